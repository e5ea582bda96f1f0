"""Which backends there are, how one is chosen, and what explain says about the choice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from support import LAYOUTS
from torch import nn

from grouped_conv import (
    GroupedConv2d,
    available_backends,
    explain,
    grouped_conv2d,
    use_backend,
)

pytestmark = pytest.mark.once

PASSES = ("fprop", "dgrad", "wgrad")
X = torch.randn(2, 32, 9, 8)
W = torch.randn(32, 4, 3, 3)
CALL = (X, W, None, 1, 1, 1, 8)


def chosen() -> str:
    return explain(*CALL).backend


def test_available_backends():
    backends = available_backends()
    assert list(backends) == ["native", "triton", "aten"]
    assert backends["native"] is None
    assert backends["aten"] is None
    assert all(reason is None or reason for reason in backends.values())


def test_available_backends_cannot_be_corrupted():
    available_backends().clear()
    assert "native" in available_backends()


@pytest.mark.parametrize("name", ["native", "aten"])
def test_use_backend(name: str):
    with use_backend(name):
        assert chosen() == name
        torch.testing.assert_close(
            grouped_conv2d(*CALL), nn.functional.conv2d(*CALL), rtol=1e-4, atol=1e-4
        )


def test_use_backend_nests():
    with use_backend("aten"):
        with use_backend("native"):
            assert chosen() == "native"
            with use_backend("aten"):
                assert chosen() == "aten"
            assert chosen() == "native"
        assert chosen() == "aten"


def test_auto_undoes_a_choice():
    outside = chosen()
    with use_backend("aten"), use_backend("auto"):
        assert chosen() == outside


def test_use_backend_ends_with_an_exception():
    before = chosen()
    other = "aten" if before == "native" else "native"
    seen = []

    def fail() -> None:
        with use_backend(other):
            seen.append(chosen())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [other]
    assert chosen() == before


def test_backend_argument_is_stronger_than_the_context():
    complex_call = (X.to(torch.complex64), W.to(torch.complex64), None, 1, 1, 1, 8)
    with use_backend("native"):
        grouped_conv2d(*complex_call, backend="aten")
        with pytest.raises(RuntimeError):
            grouped_conv2d(*complex_call)
    with use_backend("aten"), pytest.raises(RuntimeError):
        grouped_conv2d(*complex_call, backend="native")


@pytest.mark.parametrize("name", ["cudnn", "", "NATIVE", None, 3])
def test_unknown_backend(name):
    before = chosen()
    with pytest.raises(ValueError, match=r"native.*triton.*aten") as raised, use_backend(name):
        pass
    assert str(name) in str(raised.value)
    assert chosen() == before


def test_unavailable_backends_say_why():
    for name, reason in available_backends().items():
        if reason is None:
            continue
        with use_backend(name), pytest.raises(RuntimeError) as raised:
            grouped_conv2d(*CALL)
        assert name in str(raised.value)
        assert reason in str(raised.value)


def test_each_thread_has_its_own_choice():
    outside = chosen()
    seen = {}
    meet = threading.Barrier(3, timeout=30)

    def work(name: str) -> None:
        seen[f"{name} before"] = chosen()
        with use_backend(name):
            meet.wait()
            seen[name] = chosen()
            meet.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("native", "aten")]
    for thread in threads:
        thread.start()
    meet.wait()
    seen["outside"] = chosen()
    meet.wait()
    for thread in threads:
        thread.join()
    assert seen == {
        "native": "native",
        "aten": "aten",
        "native before": outside,
        "aten before": outside,
        "outside": outside,
    }


PROGRAM = """
import torch, grouped_conv
x, w = torch.randn(2, 32, 9, 8), torch.randn(32, 4, 3, 3)
print(grouped_conv.explain(x, w, None, 1, 1, 1, 8).backend)
with grouped_conv.use_backend("{inside}"):
    print(grouped_conv.explain(x, w, None, 1, 1, 1, 8).backend)
"""


def fresh_process(environment: str | None, inside: str, cwd) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "GROUPED_CONV_BACKEND"}
    if environment is not None:
        env["GROUPED_CONV_BACKEND"] = environment
    program = PROGRAM.format(inside=inside)
    return subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(("environment", "inside"), [("native", "aten"), ("aten", "native")])
def test_environment_variable(environment: str, inside: str, tmp_path):
    done = fresh_process(environment, inside, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [environment, inside]


def test_unknown_name_in_the_environment_is_an_error(tmp_path):
    done = fresh_process("cudnn", "auto", tmp_path)
    assert done.returncode != 0
    for word in ("GROUPED_CONV_BACKEND", "cudnn", "native", "aten"):
        assert word in done.stderr.splitlines()[-1]


def test_decision_names_backend_kernel_and_passes(layout: str):
    x = X.contiguous(memory_format=LAYOUTS[layout])
    for name in ("native", "aten"):
        with use_backend(name):
            decision = explain(x, W, None, 1, 1, 1, 8)
        assert decision.backend == name
        assert decision.kernel
        assert set(decision.passes) == set(PASSES)
        for backend, kernel, reason in decision.passes.values():
            assert backend in available_backends()
            assert kernel
            assert isinstance(reason, str)
        assert decision.passes["fprop"][:2] == (decision.backend, decision.kernel)
        for word in (decision.backend, decision.kernel, *PASSES):
            assert word in str(decision)


def test_decision_says_where_an_epilogue_and_statistics_are_computed():
    inside, after = "in the kernel", "in a pass of its own"
    for name, where in (("native", inside), ("aten", after)):
        decision = explain(*CALL, backend=name)
        assert (decision.epilogue, decision.statistics) == (where, where)
        assert f"epilogue {where}" in str(decision)
        assert f"statistics {where}" in str(decision)
    wide = explain(X.double(), W.double(), None, 1, 1, 1, 8, backend="native")
    assert (wide.epilogue, wide.statistics) == (inside, after)
    unusual = explain(X.long(), W.long(), None, 1, 1, 1, 8)
    assert (unusual.epilogue, unusual.statistics) == (after, after)


def test_refused_candidates_have_reasons():
    decision = explain(X.to(torch.complex64), W.to(torch.complex64), None, 1, 1, 1, 8)
    assert decision.backend == "aten"
    refused = dict(decision.refused)
    assert "complex64" in refused["native"]
    assert "triton" in refused
    for backend, reason in decision.refused:
        assert backend in available_backends()
        assert reason
        assert reason in str(decision)


REFUSALS = {
    "integers": lambda: ((X.long(), W.long(), None, 1, 1, 1, 8), "int64"),
    "dilated": lambda: ((X, W, None, 1, 2, 2, 8), ""),
    "one group": lambda: ((X, torch.randn(8, 32, 3, 3)), ""),
    "unbatched": lambda: ((X[0], W, None, 1, 1, 1, 8), ""),
    "strides of three": lambda: ((X, W, None, 3, 1, 1, 8), ""),
    "empty batch": lambda: ((X[:0], W, None, 1, 1, 1, 8), ""),
    "meta": lambda: ((X.to("meta"), W.to("meta"), None, 1, 1, 1, 8), ""),
    "same": lambda: ((X, W, None, 1, "same", 1, 8), ""),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_explain_takes_what_the_function_takes(name: str):
    call, word = REFUSALS[name]()
    decision = explain(*call)
    assert decision.backend in available_backends()
    if decision.backend == "aten":
        reason = dict(decision.refused)["native"]
        assert reason
        assert word in reason


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (("float32", "nhwc", 56, 56, 1), "native native native"),
        (("float32", "nhwc", 112, 112, 2), "aten aten aten"),
        (("float32", "nchw", 112, 112, 2), "native native aten"),
        (("bfloat16", "nhwc", 232, 232, 1), "aten aten aten"),
        (("float16", "nhwc", 232, 232, 1), "native native native"),
        (("float32", "nhwc", 4, 8, 1), "aten aten aten"),
        (("bfloat16", "nhwc", 4, 8, 1), "aten aten aten"),
        (("float32", "nhwc", 112, 112, 1), "native native native"),
        (("bfloat16", "nchw", 24, 24, 1), "aten aten aten"),
        (("bfloat16", "nhwc", 112, 112, 1), "native native native"),
        (("bfloat16", "nhwc", 120, 120, 1), "native native aten"),
        (("float32", "nchw", 4, 8, 1), "native aten native"),
        (("bfloat16", "nchw", 8, 16, 1), "native aten native"),
        (("bfloat16", "nchw", 4, 8, 2), "aten aten aten"),
        (("float32", "nchw", 1, 1, 1), "aten aten aten"),
        (("float32", "nhwc", 3, 3, 1), "aten aten aten"),
        (("float32", "nchw", 3, 3, 1), "native native native"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_faster_one_is_chosen_by_channels_per_group(case: tuple, passes: str):
    dtype, layout, c_per_group, k_per_group, stride = case
    kind = getattr(torch, dtype)
    x = torch.randn(1, 2 * c_per_group, 5, 5).to(kind).to(memory_format=LAYOUTS[layout])
    weight = torch.randn(2 * k_per_group, c_per_group, 3, 3).to(kind)
    with use_backend("auto"):
        decision = explain(x, weight, None, stride, 1, 1, 2)
    for name, expected in zip(PASSES, passes.split(), strict=True):
        backend, _, reason = decision.passes[name]
        assert backend == expected
        if backend == "aten":
            assert f"{c_per_group} channels in and {k_per_group} out" in reason


def test_explain_computes_nothing():
    with torch.profiler.profile() as profile:
        explain(*CALL)
    names = {event.key for event in profile.key_averages()}
    assert not any("conv" in name for name in names), names


def test_module_obeys_the_context():
    layer = GroupedConv2d(8, 8, 3, groups=2, dtype=torch.complex64)
    x = torch.randn(1, 8, 5, 5, dtype=torch.complex64)
    layer(x)
    with use_backend("native"), pytest.raises(RuntimeError, match="complex64"):
        layer(x)


def test_resnext_layers_are_explained():
    for channels, extent, stride in ((128, 56, 1), (256, 56, 2), (1024, 7, 1)):
        x = torch.randn(8, channels, extent, extent).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels // 32, 3, 3)
        decision = explain(x, w, None, stride, 1, 1, 32)
        if decision.backend == "aten":
            assert dict(decision.refused)["native"]
        else:
            assert decision.backend == "native"
