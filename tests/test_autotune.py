"""Measured choices: what autotune measures, the table that it keeps, and who obeys it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from choice_tables import (
    ATEN,
    CPU,
    NATIVE,
    PROBLEM,
    attributes,
    explained,
    forget,
    table_of,
    tensors,
)
from support import LAYOUTS
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import grouped_conv
from grouped_conv import (
    GroupedConv2d,
    GroupedConvBN2d,
    GroupedConvReLU2d,
    Workload,
    _libraries,
    autotune,
    configurations,
    explain,
    functional,
    grouped_conv2d,
    measured,
    tuning,
    use_backend,
    workloads,
)
from grouped_conv.backends import Query
from grouped_conv.problem import PASSES, ConvProblem

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("table_directory")]


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operators_of(p: ConvProblem = PROBLEM, **keywords) -> str:
    x, w = tensors(p)
    dy = torch.randn(p.output_size)
    with Operators() as seen:
        grouped_conv2d(x, w, None, *attributes(p), **keywords)
        functional.dgrad(dy, w, x.shape, *attributes(p), False, **keywords)
        functional.wgrad(dy, x, w.shape, *attributes(p), False, **keywords)
    ours = sorted(n for n in seen.names if n.startswith("grouped_conv."))
    theirs = sorted(n for n in seen.names if "convolution" in n)
    return " ".join(ours + theirs)


OURS = "grouped_conv.dgrad.default grouped_conv.fprop.default grouped_conv.wgrad.default"
THEIRS = (
    "aten.convolution.default aten.convolution_backward.default aten.convolution_backward.default"
)


# Measuring.


def test_measures_every_pass_and_remembers(table_directory: Path, layout: str):
    workload = Workload(PROBLEM, channels_last=layout == "nhwc")
    found = autotune([workload, workload], seconds=0.001)
    assert [m.pass_name for m in found] == list(PASSES)
    for m in found:
        assert set(m.microseconds) == {"native", "aten"}
        assert list(m.microseconds.values()) == sorted(m.microseconds.values())
        assert min(m.microseconds.values()) > 0
        assert set(m.left_out) == {"triton"}
        assert m.backend in str(m)
    x, w = tensors()
    x = x.contiguous(memory_format=LAYOUTS[layout])
    before = explain(x, w, None, *attributes())
    assert before.backend == found[0].backend
    assert f"measured: {found[0].backend} " in before.passes["fprop"][2]
    (path,) = table_directory.glob("*.json")
    assert str(path) in before.passes["fprop"][2]
    assert found[0].source == str(path)
    forget()  # as a new process
    assert explain(x, w, None, *attributes()) == before


def test_later_measurements_are_added(table_directory: Path):
    other = ConvProblem(1, 8, 5, 5, 8, G=2)
    autotune([Workload(PROBLEM)], passes=["fprop"], seconds=0.001)
    autotune([Workload(other)], passes=["wgrad"], seconds=0.001)
    (path,) = table_directory.glob("*.json")
    rows = json.loads(path.read_text())["measured"]
    assert [(row["pass_name"], row["H"]) for row in rows] == [("fprop", 6), ("wgrad", 5)]


class Wrong:
    """tuning.ours, but one backend computes something else or nothing."""

    def __init__(self, result) -> None:
        self.result = result
        self.right = tuning.ours

    def __call__(self, case, backend):
        contender = self.right(case, backend)
        if backend != "native":
            return contender
        return type(contender)("wrong", case, lambda t: self.result(contender.run(t)))


def nan(y: Tensor) -> Tensor:
    y.view(-1)[-1] = float("nan")
    return y


def exhausted(y: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda y: y + 0.01 * y.abs().max(), "of the rms away"),
        (nan, "nan of the rms away"),
        (lambda y: y[:1], "its result is torch.float32 (1, "),
        (exhausted, "OutOfMemoryError: no memory left"),
    ],
)
def test_a_wrong_backend_is_left_out(result, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "ours", Wrong(result))
    (m,) = autotune([Workload(PROBLEM)], passes=["fprop"], seconds=0.001)
    assert words in m.left_out["native"]
    assert set(m.microseconds) == {"aten"}
    assert explained().backend == "aten"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_leaves_nobody_out(dtype: torch.dtype, layout: str):
    for m in autotune([Workload(PROBLEM, dtype, layout == "nhwc")], seconds=0.001):
        assert "native" in m.microseconds


@pytest.mark.parametrize(
    "workload",
    [
        Workload(PROBLEM, torch.complex64),
        Workload(PROBLEM, device=torch.device("meta")),
        Workload(ConvProblem(0, 16, 6, 5, 16, G=4)),
    ],
)
def test_what_cannot_be_measured(workload: Workload):
    with pytest.raises(ValueError, match="measure"):
        autotune([workload])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3),
            GroupedConvBN2d(GroupedConv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)),
            nn.Dropout(0.5),
            GroupedConv2d(16, 16, 3, padding=1, groups=4),
            GroupedConvReLU2d(16, 32, 3, 2, padding="valid", groups=2),
            GroupedConv2d(32, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_workloads_of_a_model():
    model = Network()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    found = workloads(model, torch.randn(2, 3, 9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        cast = workloads(model, torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last))
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name]), name
    first = ConvProblem(2, 16, 7, 7, 16, G=4, pad_h=1, pad_w=1)
    second = ConvProblem(2, 16, 7, 7, 32, G=2, stride_h=2, stride_w=2)
    assert found == [Workload(first), Workload(second)]
    assert cast == [Workload(p, torch.bfloat16, True) for p in (first, second)]


def test_random_numbers_stay():
    model, x = Network(), torch.randn(2, 3, 9, 9)
    before = torch.get_rng_state()
    workloads(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_tuned():
    x = torch.randn(1, 16, 5, 5)
    layer = GroupedConv2d(16, 16, 3, padding=1, groups=4)
    found = autotune(layer, x, passes=["fprop"], seconds=0.001)
    assert len(found) == 1
    assert "measured" in explain(x, layer.weight, None, 1, 1, 1, 4).passes["fprop"][2]


# Configurations of native CUDA kernels.


def cuda_query(pass_name: str, c_per_group: int, stride: int = 1, layout: str = "nhwc") -> Query:
    c = 8 * c_per_group
    p = ConvProblem(1, c, 9, 9, c, G=8, pad_h=1, pad_w=1, stride_h=stride, stride_w=stride)
    return Query.of(pass_name, p, torch.float16, torch.device("cuda"), layout == "nhwc")


def test_candidates(monkeypatch: pytest.MonkeyPatch):
    two = cuda_query("dgrad", 16)
    assert configurations.candidates(two, (4, 14, 14)) == []  # without the library
    monkeypatch.setattr(_libraries, "cuda_absent_reason", lambda: None)
    both = ["conv_c16_s1", "conv_c16_s1_narrow"]
    assert configurations.candidates(two, (4, 14, 14)) == both
    for other in (
        cuda_query("wgrad", 16),
        cuda_query("fprop", 8),
        cuda_query("fprop", 16, stride=2),
        cuda_query("fprop", 16, layout="nchw"),
        two._replace(dtype=torch.float32),
        two._replace(device="cpu"),
    ):
        assert configurations.candidates(other, (4, 14, 14)) == []
    assert configurations.candidates(two, (0, 14, 14)) == []


def test_a_preference_reaches_the_library(monkeypatch: pytest.MonkeyPatch):
    calls = []

    class Library:
        def __init__(self, path: str) -> None:
            assert path.endswith("_cuda.so")

        def grouped_conv_prefer(self, device: int, which: int, extents, name: bytes) -> None:
            calls.append((device, which, list(extents), name))

    monkeypatch.setattr("ctypes.CDLL", Library)
    query = cuda_query("dgrad", 16, stride=2)
    configurations.prefer(torch.device("cuda:3"), query, (4, 15, 14), "conv")
    extents = [4, 128, 15, 14, 128, 3, 3, 8, 1, 1, 2, 2, 1, 1]
    assert calls == [(3, 1, extents, b"conv")]


def test_configurations_are_measured_and_the_fastest_is_preferred(monkeypatch: pytest.MonkeyPatch):
    """With a library that waits in all configurations but one."""
    preferred = [""]

    def prefer(device, query, image, name: str) -> None:
        assert (device, query, *image) == (CPU, *Workload(PROBLEM).key("fprop"))
        preferred.append(name)

    def wait(y: Tensor) -> Tensor:
        time.sleep(0 if preferred[-1] == "quick" else 0.02)
        return y

    monkeypatch.setattr(configurations, "candidates", lambda *_: ["slow", "quick"])
    monkeypatch.setattr(configurations, "prefer", prefer)
    monkeypatch.setattr(tuning, "ours", Wrong(wait))
    (m,) = autotune([Workload(PROBLEM)], passes=["fprop"], seconds=0.001)
    assert set(m.configurations) == {"slow", "quick"}
    assert m.configurations["quick"] < m.configurations["slow"]
    assert m.microseconds["native"] == m.configurations["quick"]
    behind = preferred[1:]
    assert set(behind[behind.index("") + 1 :]) == {"quick"}
    assert "native by quick" in str(explained())
    forget()  # as a new process
    assert "native by quick" in str(explained())
    assert preferred[-1] == "quick"


# Obeying.


@pytest.mark.parametrize(("times", "expected"), [(NATIVE, OURS), (ATEN, THEIRS)])
def test_the_table_decides_who_runs(times: dict[str, float], expected: str):
    path = table_of(times)
    assert operators_of() == expected
    decision = explained()
    winner = min(times, key=times.__getitem__)
    assert decision.backend == winner
    text = ", ".join(f"{name} {times[name]} us" for name in sorted(times, key=times.get))
    assert f"measured: {text} ({path})" in str(decision)
    if winner == "aten":
        assert "faster" in dict(decision.refused)["native"]


def test_the_table_is_stronger_than_the_rule():
    dense = ConvProblem(2, 8, 6, 6, 8, G=1)
    assert explained(dense).backend == "aten"
    table_of(NATIVE, dense)
    assert explained(dense).backend == "native"
    assert operators_of(dense) == OURS
    x, w = tensors(dense)
    torch.testing.assert_close(
        grouped_conv2d(x, w), nn.functional.conv2d(x, w), rtol=1e-4, atol=1e-4
    )


def test_a_named_backend_is_stronger_than_the_table():
    table_of(ATEN)
    assert operators_of(backend="native") == OURS
    with use_backend("native"):
        assert operators_of() == OURS
        assert "measured" not in str(explained())
        with use_backend("auto"):
            assert operators_of() == THEIRS


def test_the_variable_turns_the_table_off(monkeypatch: pytest.MonkeyPatch):
    table_of(ATEN)
    monkeypatch.setenv(measured.SWITCH_VARIABLE, "0")
    forget()
    assert operators_of() == OURS
    assert "measured" not in str(explained())


def test_other_sizes_follow_where_measurements_agree():
    larger = ConvProblem(4, 16, 9, 9, 16, G=4, pad_h=1, pad_w=1)
    unmeasured = ConvProblem(3, 16, 8, 8, 16, G=4, pad_h=1, pad_w=1)
    other_layer = ConvProblem(2, 16, 6, 5, 16, G=4)
    table_of(ATEN)
    assert explained(unmeasured).backend == "aten"
    assert explained(other_layer).backend == "native"
    table_of(NATIVE, larger)
    assert explained().backend == "aten"
    assert explained(larger).backend == "native"
    assert "measured" not in str(explained(unmeasured))


def test_a_backend_that_cannot_is_skipped():
    table_of({"triton": 0.5, **ATEN})
    assert explained().backend == "aten"
    assert operators_of() == THEIRS
    table_of({"triton": 0.5})
    assert "measured" not in str(explained())


def test_batch_normalization_obeys():
    pair = GroupedConvBN2d(GroupedConv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16))
    x = torch.randn(PROBLEM.input_size)
    for times, expected in ((NATIVE, True), (ATEN, False)):
        table_of(times)
        with Operators() as seen:
            pair(x)
        assert ("grouped_conv.fprop_stats.default" in seen.names) is expected


# Graphs.


def function(x: Tensor, w: Tensor) -> Tensor:
    return grouped_conv2d(x, w, None, 1, 1, 1, 4).relu()


@pytest.mark.parametrize("dynamic", [False, True, None])
@pytest.mark.parametrize("times", [NATIVE, ATEN], ids=["native", "aten"])
def test_compiled_graphs_follow(dynamic: bool | None, times: dict[str, float]):
    torch._dynamo.reset()
    table_of(times)
    targets: list[str] = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    w = torch.randn(16, 4, 3, 3)
    for batch in (2, 3):
        leaves = [t.requires_grad_() for t in (torch.randn(batch, 16, 6, 5), w.clone())]
        ours = torch.autograd.grad(compiled(*leaves).sum(), leaves)
        theirs = torch.autograd.grad(function(*leaves).sum(), leaves)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == (1 if dynamic else 2)
    taken_by_us = [target for target in targets if "grouped_conv.fprop" in target]
    taken_by_aten = [target for target in targets if "method conv2d" in target]
    assert bool(taken_by_us) is (times is NATIVE)
    assert bool(taken_by_aten) is (times is ATEN)


def test_refuses_to_measure_in_a_graph():
    torch._dynamo.reset()

    def tuned(x: Tensor) -> Tensor:
        autotune([Workload(PROBLEM)])
        return x + 1

    with pytest.raises(Exception, match="while a graph is traced or compiled"):
        torch.compile(tuned, backend="eager", fullgraph=True)(torch.ones(1))
    with pytest.raises(RuntimeError, match="while a graph is traced or compiled"):
        torch.jit.trace(tuned, torch.ones(1))
    with pytest.raises(RuntimeError, match="under a transform or a dispatch mode"):
        make_fx(tuned)(torch.ones(1))
    with pytest.raises(RuntimeError, match="under a transform or a dispatch mode"):
        torch.func.vmap(tuned)(torch.ones(1))


def test_refuses_to_measure_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        grouped_conv.autotune([Workload(PROBLEM)])
