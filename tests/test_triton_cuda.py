"""The Triton backend on a GPU: results, streams, graphs, tuning, large tensors."""

from __future__ import annotations

import pytest
import torch
from support import LAYOUTS, assert_as_accurate, exact, poisoned, short
from torch import Tensor

from grouped_conv import explain, use_backend
from grouped_conv.backends import triton, triton_ops
from grouped_conv.problem import PASSES, ConvProblem

WHY_NOT = triton.unavailable() or (None if torch.cuda.is_available() else "there is no GPU")
pytestmark = [pytest.mark.once, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

OPS = torch.ops.grouped_conv


def sized(n: int, c: int, k: int, groups: int, h: int, w: int, stride: int) -> ConvProblem:
    return ConvProblem(n, groups * c, h, w, groups * k, 3, 3, groups, 1, 1, stride, stride)


def operands(p: ConvProblem, dtype: torch.dtype, layout: str) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, w, dy = (
        torch.randn(size, generator=g).to(dtype)
        for size in (p.input_size, p.weight_size, p.output_size)
    )
    x, dy = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, dy))
    return [x, w, dy]


def compute(p: ConvProblem, x: Tensor, w: Tensor, dy: Tensor, layout: str) -> list[Tensor]:
    a, last = (p.stride, p.padding, p.dilation, p.G), layout == "nhwc"
    return [
        OPS.triton_fprop(x, w, None, *a),
        OPS.triton_dgrad(dy, w, p.input_size, *a, last),
        OPS.triton_wgrad(dy, x, p.weight_size, *a, last),
    ]


def check(p: ConvProblem, dtype: torch.dtype, layout: str) -> None:
    x, w, dy = operands(p, dtype, layout)
    with poisoned():
        found = compute(p, x.cuda(), w.cuda(), dy.cuda(), layout)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    y = torch.conv2d(*leaves, None, p.stride, p.padding, p.dilation, p.G)
    aten = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    e = exact(x, w, None, dy, p)
    truth = (e.y, e.y_scale), (e.dx, e.dx_scale), (e.dw, e.dw_scale)
    for name, ours, theirs, (right, scale) in zip(PASSES, found, aten, truth, strict=True):
        assert_as_accurate(ours.cpu(), theirs, right, scale, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("c", "k"), [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (5, 7), (24, 40)]
)
def test_results(c: int, k: int, stride: int, dtype: torch.dtype, layout: str):
    with torch.backends.cudnn.flags(allow_tf32=False):
        for n, h, w in ((3, 14, 14), (5, 7, 7), (1, 5, 131)):
            check(sized(n, c, k, 6, h, w, stride), dtype, layout)


def test_tf32():
    p = sized(2, 16, 16, 4, 14, 14, 1)
    x, w, dy = operands(p, torch.float32, "nhwc")
    e = exact(x, w, None, dy, p)
    with torch.backends.cudnn.flags(allow_tf32=True):
        found = compute(p, x.cuda(), w.cuda(), dy.cuda(), "nhwc")
    for ours, right in zip(found, (e.y, e.dx, e.dw), strict=True):
        error = (ours.cpu().double() - right).abs().max()
        assert 0 < error <= 4e-3 * right.abs().max()


def test_every_configuration(monkeypatch: pytest.MonkeyPatch):
    for key, space in triton.SPACE.items():
        if key[1] == "tf32":
            continue
        for config in space[1:]:
            monkeypatch.setitem(triton.SPACE, key, (config,))
            with torch.backends.cudnn.flags(allow_tf32=False):
                dtype = torch.float16 if key[1] == "16-bit" else torch.float32
                check(sized(3, 64, 64, 2, 14, 14, 1), dtype, "nhwc")


def test_values_that_are_not_finite_stay_in_their_group():
    p = sized(2, 4, 4, 8, 9, 9, 1)
    x, w, dy = (t.cuda() for t in operands(p, torch.float16, "nhwc"))
    good = compute(p, x, w, dy, "nhwc")
    x[0, 9, 4, 4] = float("inf")  # of group 2
    for ours, before, dim in zip(compute(p, x, w, dy, "nhwc"), good, (1, 1, 0), strict=True):
        groups = zip(ours.chunk(8, dim), before.chunk(8, dim), strict=True)
        same = [torch.equal(a, b) for a, b in groups]
        assert same == [True] * 8 or same == [g != 2 for g in range(8)]


def test_streams_and_graphs():
    p = sized(4, 8, 8, 16, 14, 14, 2)
    x, w, dy = (t.cuda() for t in operands(p, torch.float16, "nhwc"))
    expected = compute(p, x, w, dy, "nhwc")  # compiles, too
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = compute(p, x, w, dy, "nhwc")
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)
    for t in (x, w, dy):
        t.neg_()
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(captured, compute(p, x, w, dy, "nhwc"), strict=True):
        assert torch.equal(ours, theirs)


def test_tuning_finds_a_configuration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(triton.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(triton_ops, "_measured", set())
    check(sized(4, 4, 4, 32, 14, 14, 1), torch.float16, "nhwc")
    kernels = {problem[0] for problem in triton_ops._measured}
    assert kernels == {f"{name}_kernel" for name in PASSES}


def test_more_than_two_to_the_31_elements():
    p = sized(5400, 4, 4, 32, 56, 56, 1)
    if torch.cuda.mem_get_info()[0] < 6 * p.N * p.C * p.H * p.W:
        pytest.skip("the GPU has too little memory to spare")
    x = torch.empty(
        p.input_size, dtype=torch.float16, device="cuda", memory_format=torch.channels_last
    )
    x.normal_()
    w = torch.randn(p.weight_size, device="cuda", dtype=torch.float16)
    a = (p.stride, p.padding, p.dilation, p.G)
    y = OPS.triton_fprop(x, w, None, *a)
    assert torch.equal(y[-2:], OPS.triton_fprop(x[-2:], w, None, *a))


def test_explain_names_the_kernel():
    x = torch.empty(2, 128, 9, 9, dtype=torch.float16, device="cuda")
    w = torch.empty(128, 4, 3, 3, dtype=torch.float16, device="cuda")
    with use_backend("triton"):
        decision = explain(x, w, None, 1, 1, 1, 32)
    for name, (backend, kernel, _) in decision.passes.items():
        assert (backend, kernel) == ("triton", f"{name}_triton_float16")
