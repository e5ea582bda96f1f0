"""The Triton backend without a GPU: its kernels interpreted, and compiled for GPUs not present."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_conv import _libraries, available_backends, explain, routing
from grouped_conv.backends import triton
from grouped_conv.problem import PASSES, ConvProblem, Pass

TESTS = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="there is no Triton"
)
pytestmark = pytest.mark.once


@needs_triton
def test_interpreted(tmp_path: Path):
    """tests/triton_interpreted.py in a process in which Triton interprets its kernels."""
    # Not `python -m pytest` and not from the source tree, which has no compiled libraries.
    program = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", "-x", str(TESTS / "triton_interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def compilers() -> Iterator[ProcessPoolExecutor]:
    import triton_aot

    with triton_aot.processes(2) as pool:
        yield pool


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("key", triton.SPACE, ids="-".join)
def test_compiled(key: tuple[Pass, str], capability: int, compilers: ProcessPoolExecutor):
    """What is chosen without tuning: no register is spilled, and every GPU has the resources."""
    from triton_aot import cases, compile_all

    for case, compiled in compile_all(list(cases(*key, capability, whole=False)), compilers):
        assert compiled.complaint() is None, f"{case}: {compiled.complaint()}"
        assert compiled.warps >= 8, case
        # tests/ptx interprets no wgmma, and so what is chosen without tuning can do without.
        assert "wgmma" not in compiled.ptx, case


@needs_triton
def test_packing_and_reduction_compiled():
    from triton_aot import CAPABILITIES, compile_launch, launches

    p = ConvProblem(8, 64, 28, 28, 64, 3, 3, 16, 1, 1)
    x, w, y = (torch.empty(size) for size in (p.input_size, p.weight_size, p.output_size))
    for capability, pass_name in itertools.product(CAPABILITIES, PASSES):
        plan = triton.Plan.of(pass_name, p, torch.float32, False)
        (launch,) = (one for one in launches(plan, x, w, y, None)[0] if not one.choice)
        assert compile_launch(launch, capability).complaint() is None


def test_choice_is_explained():
    """Where the compiled library is missing Triton is named, with the reason for or against it."""
    x, w = torch.randn(1, 8, 5, 5), torch.randn(8, 4, 3, 3)
    reason = available_backends()["triton"]
    assert reason is not None or torch.cuda.is_available()
    refused = dict(explain(x, w, None, 1, 1, 1, 2).refused)
    if "triton" in refused:
        assert refused["triton"] == reason
    with pytest.raises(RuntimeError, match="backend triton cannot compute fprop"):
        explain(x, w, None, 1, 1, 1, 2, backend="triton")


@pytest.mark.parametrize("channels_last", [True, False])
def test_blocks_of_channels(channels_last: bool):
    """Groups are packed until they reach the extent of a product, and never beyond their slab."""
    for c, k in itertools.product((1, 2, 4, 5, 8, 16, 24, 64, 264), repeat=2):
        for pass_name, precision in triton.SPACE:
            blocking = triton.Blocking.of(pass_name, c, k, precision)
            groups = blocking.groups_per_slab
            assert groups == 1 or groups * max(c, k) <= 16
            read, written = (k, c) if pass_name == "dgrad" else (c, k)
            assert 16 <= blocking.block_c <= 64
            assert 16 <= blocking.block_k <= 64
            if groups > 1:
                assert blocking.block_c >= groups * read
                assert blocking.block_k >= groups * written
            configs = triton.pruned(pass_name, blocking, precision, 10**6)
            assert configs[0] == triton.SPACE[pass_name, precision][0]
            assert set(configs) <= set(triton.SPACE[pass_name, precision])
    assert triton.block_q(7, channels_last) in ((8,) if channels_last else (16,))
    assert set(PASSES) == {name for name, _ in triton.SPACE}


def who_computes_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, *, absent: str | None, auto: bool
) -> tuple[str, dict[str, str]]:
    """The choice for a GPU, which needs none: with or without the compiled CUDA library."""
    monkeypatch.setattr(_libraries, "_cuda_absent_reason", absent)
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "_CUDA_AUTO", auto)
    monkeypatch.setattr(routing, "_cache", {})
    p = ConvProblem(2, 48, 9, 8, 48, 3, 3, 4, 1, 1)  # 12 channels per group
    decision = routing.decide(p, torch.float16, "cuda", True, "fprop", "auto")
    return decision.backend, dict(decision.refused)


@pytest.mark.parametrize("auto", [True, False])
def test_explain_on_a_gpu_without_the_compiled_library(auto: bool, monkeypatch: pytest.MonkeyPatch):
    """What a user reads there; fake tensors are of a GPU that need not be there."""
    monkeypatch.setattr(_libraries, "_cuda_absent_reason", "there is no nvcc")
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "_CUDA_AUTO", auto)
    monkeypatch.setattr(routing, "_cache", {})
    with FakeTensorMode():
        x = torch.empty(2, 48, 9, 8, device="cuda", dtype=torch.float16)
        w = torch.empty(48, 12, 3, 3, device="cuda", dtype=torch.float16)
        decision = explain(x, w, None, 1, 1, 1, 4)
    lines = str(decision).splitlines()
    assert "  native refused: there is no nvcc" in lines
    if auto:
        assert lines[0] == "triton: fprop_triton_float16"
        assert [decision.passes[name][0] for name in PASSES] == ["triton"] * 3
    else:
        assert lines[0] == "aten: aten::convolution"
        assert any(line.startswith("  triton refused: the Triton kernels have") for line in lines)


def test_auto_takes_triton_where_there_is_no_compiled_library(monkeypatch: pytest.MonkeyPatch):
    chosen, refused = who_computes_on_a_gpu(monkeypatch, absent="there is no nvcc", auto=True)
    assert chosen == "triton"
    assert refused == {"native": "there is no nvcc"}


def test_auto_says_why_it_does_not_take_triton(monkeypatch: pytest.MonkeyPatch):
    chosen, refused = who_computes_on_a_gpu(monkeypatch, absent="there is no nvcc", auto=False)
    assert chosen == "aten"
    assert "not been measured" in refused["triton"]
    assert "GROUPED_CONV_CUDA_AUTO=1" in refused["triton"]
    chosen, refused = who_computes_on_a_gpu(monkeypatch, absent=None, auto=True)
    assert chosen == "aten"
    assert "by name" in refused["triton"]


def test_an_absent_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton, "_triton_absent", lambda: "triton is not installed")
    assert available_backends()["triton"] == "triton is not installed"
    with pytest.raises(RuntimeError, match="triton is not installed"):
        routing.decide(ConvProblem(1, 8, 5, 5, 8), torch.float32, "cpu", True, "fprop", "triton")


def test_float32_is_computed_as_the_operator_is_told():
    assert triton.precision(torch.float32, allow_tf32=False) == "ieee"
    assert triton.precision(torch.float32, allow_tf32=True) == "tf32"
    assert triton.precision(torch.bfloat16, allow_tf32=True) == "16-bit"
