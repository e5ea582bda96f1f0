"""The Triton kernels in Triton's interpreter, on the CPU; ``test_triton.py`` runs this file.

The variable ``TRITON_INTERPRET`` decides what a kernel is when its module is imported, so these
tests need a process of their own: ``TRITON_INTERPRET=1 pytest tests/triton_interpreted.py``.
The interpreter computes in numpy: float16 and float32 are right there, bfloat16 and TF32 are not.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support import LAYOUTS, assert_as_accurate, exact, poisoned, walled
from torch import Tensor

from grouped_conv import (
    available_backends,
    explain,
    grouped_conv2d,
    grouped_conv2d_affine,
    reference,
    use_backend,
)
from grouped_conv.backends import triton, triton_ops
from grouped_conv.problem import PASSES, ConvProblem, Pass

assert os.environ.get("TRITON_INTERPRET") == "1"

OPS = torch.ops.grouped_conv


def problem(
    c: int,
    k: int,
    groups: int,
    *,
    n: int = 2,
    h: int = 7,
    w: int = 9,
    pad: int = 1,
    stride: int = 1,
) -> ConvProblem:
    return ConvProblem(n, groups * c, h, w, groups * k, 3, 3, groups, pad, pad, stride, stride)


# Every blocking of channels; groups that do not fill their slab; images of every awkward size.
PROBLEMS = [
    problem(4, 4, 8),
    problem(4, 4, 6, stride=2, n=3, h=5, w=4),
    problem(8, 8, 3, n=5, h=3, w=3),
    problem(8, 8, 2, stride=2, h=8, w=18),
    problem(16, 16, 2, pad=0),
    problem(16, 16, 2, stride=2, pad=2, h=6),
    problem(32, 32, 2, n=1, w=17),
    problem(64, 64, 1, n=1, h=4, w=5),
    problem(24, 40, 2, n=1, stride=2, h=4),
    problem(72, 8, 2, n=1, h=4, w=3),
    problem(5, 7, 5, pad=2, h=1, w=2),
    problem(1, 1, 19, stride=2, w=11),
    problem(2, 6, 3, n=1, h=2, w=35),
    ConvProblem(2, 8, 4, 6, 8, 3, 3, 2, 0, 2, 1, 1),
]


def operands(p: ConvProblem, dtype: torch.dtype, layout: str, seed: int = 0) -> list[Tensor]:
    """x, w, bias, dy: random, with NaN in front of and behind each."""
    g = torch.Generator().manual_seed(seed)
    x, w, b, dy = (
        torch.randn(size, generator=g).to(dtype)
        for size in (p.input_size, p.weight_size, (p.K,), p.output_size)
    )
    x, dy = (walled(t.contiguous(memory_format=LAYOUTS[layout])) for t in (x, dy))
    return [x, walled(w), b, dy]


def compute(
    p: ConvProblem, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor, layout: str = "nhwc"
) -> list[Tensor]:
    a = (p.stride, p.padding, p.dilation, p.G)
    last = layout == "nhwc"
    return [
        OPS.triton_fprop(x, w, b, *a),
        OPS.triton_dgrad(dy, w, p.input_size, *a, last),
        OPS.triton_wgrad(dy, x, p.weight_size, *a, last),
    ]


def by_aten(p: ConvProblem, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    y = torch.conv2d(*leaves, b, p.stride, p.padding, p.dilation, p.G)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check(p: ConvProblem, dtype: torch.dtype, layout: str) -> None:
    x, w, b, dy = operands(p, dtype, layout)
    with poisoned():
        found = compute(p, x, w, b, dy, layout)
    e = exact(x, w, b, dy, p)
    truth = (e.y, e.y_scale), (e.dx, e.dx_scale), (e.dw, e.dw_scale)
    for name, ours, aten, (right, scale) in zip(
        PASSES, found, by_aten(p, x, w, b, dy), truth, strict=True
    ):
        # A fresh result is dense in the layout that was asked for.
        assert ours.is_contiguous(memory_format=LAYOUTS[layout]), name
        assert_as_accurate(ours, aten, right, scale, name)


# The types take the layouts in turn, one this and one the other; float16 both at first.
CASES = [
    (p, dtype, layout)
    for i, p in enumerate(PROBLEMS)
    for j, layout in enumerate(LAYOUTS)
    for k, dtype in enumerate((torch.float16, torch.float32))
    if (i + j + k) % 2 == 0 or (i < 6 and dtype is torch.float16)
]


@pytest.mark.parametrize(("p", "dtype", "layout"), CASES, ids=lambda v: str(v).split(".")[-1])
def test_passes(p: ConvProblem, dtype: torch.dtype, layout: str):
    check(p, dtype, layout)


@pytest.mark.parametrize("key", triton.SPACE, ids="-".join)
def test_every_configuration(key: tuple[Pass, str], monkeypatch: pytest.MonkeyPatch):
    """The tiles that are not the default; "16-bit" and "ieee" are what the interpreter knows."""
    precision = key[1]
    dtype = torch.float16 if precision == "16-bit" else torch.float32
    monkeypatch.setattr(triton, "precision", lambda dtype, allow_tf32: precision)
    for number, config in enumerate(triton.SPACE[key][1:]):
        monkeypatch.setitem(triton.SPACE, key, (config,))
        check(problem(8, 8, 2, n=3, stride=1 + number % 2), dtype, "nhwc")


def without_padding(x: Tensor, w: Tensor, dy: Tensor, p: ConvProblem) -> list[Tensor]:
    """All passes in float64, in which no tap is multiplied where it meets padding."""
    inner = reference._padded(torch.ones(p.input_size), p)
    padded = reference._padded(x, p)
    wide = w.double().reshape(p.G, p.k_per_group, p.c_per_group, 3, 3)
    grad = dy.double().reshape(p.N, p.G, p.k_per_group, p.P, p.Q)
    y, dw = torch.zeros_like(grad), torch.zeros_like(wide)
    for r in range(3):
        for s in range(3):
            met = reference._tap(inner, p, r, s)[:, :, :1] != 0
            tap = reference._tap(padded, p, r, s)
            zero = torch.zeros((), dtype=torch.float64)
            y += torch.where(met, torch.einsum("ngcpq,gkc->ngkpq", tap, wide[..., r, s]), zero)
            dw[..., r, s] = torch.einsum("ngkpq,ngcpq->gkc", torch.where(met, grad, zero), tap)
    dx = reference.dgrad(dy, w, p)  # scatters: what falls into the padding is dropped
    return [y.reshape(p.output_size), dx, dw.reshape(p.weight_size)]


@pytest.mark.parametrize(("stride", "value"), [(1, float("inf")), (2, float("nan"))])
@pytest.mark.parametrize(("c", "k"), [(4, 4), (8, 8), (5, 7), (17, 20)])
def test_values_that_are_not_finite(c: int, k: int, stride: int, value: float):
    """They stay in their group, and the padding is not multiplied."""
    p = problem(c, k, 3, stride=stride, h=4, w=4)
    for place in (0, 1, 3) if c < 17 else (3,):
        x, w, _, dy = operands(p, torch.float32, "nhwc", seed=place)
        x[0, c + 1, place, place] = value
        dy[1, k - 1, place // stride, place // stride] = value
        w[2, 1, place % 3, 2 - place % 3] = value
        truth = without_padding(x, w, dy, p)
        for ours, right in zip(compute(p, x, w, None, dy), truth, strict=True):
            assert not right.isfinite().all()
            torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue(layout: str):
    p = problem(4, 6, 5)
    x, w, b, residual = operands(p, torch.float16, layout)
    scale, shift = torch.randn(p.K), torch.randn(p.K)
    call = (1, 1, 1, p.G)
    y = torch.conv2d(x.double(), w.double(), b.double(), *call)
    y = y * scale.double()[:, None, None] + shift.double()[:, None, None] + residual.double()
    other = residual.contiguous(memory_format=LAYOUTS["nchw" if layout == "nhwc" else "nhwc"])
    for r in (residual, other):
        found = grouped_conv2d_affine(x, w, b, scale, shift, r, "relu", *call, backend="triton")
        torch.testing.assert_close(found.double(), y.relu(), rtol=1e-3, atol=1e-3)
    # Each part may be absent, and the parts may be of the input's dtype.
    found = grouped_conv2d_affine(
        x, w, None, scale.half(), None, None, None, *call, backend="triton"
    )
    y = torch.conv2d(x.double(), w.double(), None, *call) * scale.half().double()[:, None, None]
    torch.testing.assert_close(found.double(), y, rtol=2e-3, atol=2e-3)


def test_relu_keeps_nan():
    p = problem(4, 4, 2, h=3, w=3)
    x, w, _, _ = operands(p, torch.float32, "nhwc")
    x[0, 0, 1, 1] = float("nan")
    y = grouped_conv2d_affine(x, w, activation="relu", padding=1, groups=2, backend="triton")
    expected = torch.conv2d(x, w, None, 1, 1, 1, 2).relu()
    assert torch.equal(y.isnan(), expected.isnan())
    assert int(y.isnan().sum()) == 9 * 4


def test_views_are_read_where_they_lie():
    p = problem(4, 4, 2, n=2, h=4, w=5)
    x, w, b, dy = operands(p, torch.float32, "nchw")
    wide = x.repeat_interleave(2, 3)[..., ::2]
    flipped = w.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    spread = dy[:1].expand_as(dy)
    dy = spread.contiguous()
    for ours, dense in zip(
        compute(p, wide, flipped, b, spread), compute(p, x, w, b, dy), strict=True
    ):
        assert torch.equal(ours, dense)


def test_more_than_two_to_the_31_elements():
    """Images whose addresses are further apart; memory that no one touches is not there."""
    p = problem(8, 8, 2, n=2, h=3, w=4)
    x, w, b, dy = operands(p, torch.float16, "nhwc")
    size = p.H * p.W * p.C
    far = [
        torch.empty(2**31 + 64 + size, dtype=torch.float16)
        .as_strided(p.input_size, (2**31 + 64, 1, p.W * p.C, p.C))
        .copy_(t)
        for t in (x, dy)
    ]
    for ours, near in zip(compute(p, far[0], w, b, far[1]), compute(p, x, w, b, dy), strict=True):
        assert torch.equal(ours, near)


def test_many_splits_of_the_weight_gradient(monkeypatch: pytest.MonkeyPatch):
    """Partial sums are added in order: the same bits each time, whatever was in the workspace."""
    monkeypatch.setattr(triton_ops, "_processors", lambda device: 1000)
    p = problem(4, 4, 4, n=6, h=9, w=7)
    x, w, b, dy = operands(p, torch.float16, "nhwc")
    assert triton.Plan.of("wgrad", p, x.dtype, True).splits(1000) == 7
    check(p, torch.float16, "nhwc")
    with poisoned():
        assert torch.equal(compute(p, x, w, b, dy)[2], compute(p, x, w, b, dy)[2])


def test_tuning(monkeypatch: pytest.MonkeyPatch):
    """The fastest is kept for a problem; nothing is measured unasked, or during a capture."""
    measured: list[str] = []

    def do_bench(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        call()
        measured.append("once")
        return [1 / len(measured)] * 3  # each is faster than the one before

    autotune = partial(importlib.import_module("triton").autotune, do_bench=do_bench)
    monkeypatch.setattr("triton.autotune", autotune)
    monkeypatch.setattr(triton_ops, "_measured", set())
    monkeypatch.setattr(triton_ops, "_tuning", lambda device: "TUNE" in os.environ)
    stream = SimpleNamespace(captured=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.captured)
    triton_ops._tuner.cache_clear()
    p = problem(4, 4, 2, n=3, h=4, w=11)
    x, w, b, dy = operands(p, torch.float16, "nhwc")
    default = compute(p, x, w, b, dy)
    assert measured == []
    monkeypatch.setenv("TUNE", "1")
    stream.captured = True
    compute(p, x, w, b, dy)
    assert measured == []
    stream.captured = False
    tuned = compute(p, x, w, b, dy)
    choices = {name: triton.Plan.of(name, p, x.dtype, True).choice for name in PASSES}
    assert len(measured) == sum(map(len, choices.values())) > len(PASSES)
    for name, choice in choices.items():
        tuner = triton_ops._tuner(f"{name}_kernel", choice, x.device)
        assert tuner.best_config.all_kwargs().items() >= choice[-1].options.items()
    known = len(measured)
    for captured in (False, True):
        stream.captured = captured
        again = compute(p, x, w, b, dy)
        assert len(measured) == known
        for first, second, plain in zip(tuned, again, default, strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, plain, rtol=2e-3, atol=2e-3)
    x, w, b, dy = operands(p, torch.float16, "nchw")  # another problem
    compute(p, x, w, b, dy, "nchw")
    assert len(measured) == known  # met in a capture
    triton_ops._tuner.cache_clear()


def test_empty_batch():
    p = problem(4, 4, 2)
    x, w, b, dy = operands(p, torch.float16, "nhwc")
    y, dx, dw = compute(ConvProblem(0, *p.input_size[1:], p.K, 3, 3, 2, 1, 1), x[:0], w, b, dy[:0])
    assert y.shape == (0, *p.output_size[1:])
    assert dx.shape == (0, *p.input_size[1:])
    assert bool((dw == 0).all())


def test_gradients_of_any_order_by_name():
    """The whole way of a user's call, and of its gradients' gradients."""
    p = problem(3, 2, 2, n=1, h=4, w=3, stride=2)
    x, w, b, dy = (t.clone().requires_grad_() for t in operands(p, torch.float32, "nhwc"))
    call = (p.stride, p.padding, p.dilation, p.G)

    def grads(y: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(y, (x, w, b), dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w, dy))
        return [y, *first, *second]

    with use_backend("triton"):
        decision = explain(x, w, b, *call)
        ours = grads(grouped_conv2d(x, w, b, *call))
    assert [decision.passes[name][0] for name in PASSES] == ["triton"] * 3
    assert decision.kernel == "fprop_triton_float32"
    for a, e in zip(ours, grads(torch.conv2d(x, w, b, *call)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", triton_ops.NAMES)
def test_opcheck(name: str):
    p = problem(4, 4, 2, n=1, h=4, w=3)
    x, w, b, dy = operands(p, torch.float32, "nhwc")
    x, w = x.requires_grad_(), w.requires_grad_()
    a = (p.stride, p.padding, p.dilation, p.G)
    arguments = {
        "fprop": (x, w, b, *a),
        "fprop_affine": (x, w, b, b, b, dy, True, *a),
        "dgrad": (dy, w, p.input_size, *a, True),
        "wgrad": (dy, x, p.weight_size, *a, True),
    }
    torch.library.opcheck(getattr(OPS, f"triton_{name}").default, arguments[name])


def test_compile_and_export():
    p = problem(4, 4, 2, n=1, h=4, w=3)
    x, w, _, _ = operands(p, torch.float32, "nhwc")

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return grouped_conv2d(x, w, None, 1, 1, 1, 2, backend="triton")

    expected = torch.conv2d(x, w, None, 1, 1, 1, 2)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    program = torch.export.export(Layer(), (x,))
    assert "triton_fprop" in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)


def test_what_the_kernels_do_not_take():
    assert available_backends()["triton"] is None
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3)
    for call, word in (
        ((x, torch.randn(4, 2, 1, 1), None, 1, 0, 1, 2), "3x3"),
        ((x, w, None, 3, 1, 1, 2), "strides"),
        ((x, w, None, 1, 2, 2, 2), "dilation"),
        ((x.double(), w.double(), None, 1, 1, 1, 2), "float64"),
    ):
        with pytest.raises(RuntimeError, match=word):
            grouped_conv2d(*call, backend="triton")
    with pytest.raises(RuntimeError, match="3x3 filters"):
        OPS.triton_fprop(x, w, None, (3, 3), (1, 1), (1, 1), 2)
    far = torch.empty_strided((1, 4, 5, 5), (2**33, 1, 2**31, 4), device="meta")
    with pytest.raises(RuntimeError, match="2\\^31"):
        triton_ops._nothing_to_do(far, far)
