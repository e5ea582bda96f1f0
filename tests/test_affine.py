"""grouped_conv2d_affine: the convolution with scale, shift, residual and activation."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import (
    DTYPES,
    LAYOUTS,
    assert_as_accurate,
    assert_same_error,
    error_of,
    memory_format,
    poisoned,
    rms,
    short,
    threads,
    view,
    walled,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_map_only

from grouped_conv import fold_batch_norm, grouped_conv2d, grouped_conv2d_affine, reference
from grouped_conv.problem import ConvProblem

OP = torch.ops.grouped_conv.fprop_affine
BACKENDS = ("auto", "native")
PARTS = ("bias", "scale", "shift", "residual", "relu")
SUBSETS = [frozenset(s) for n in range(6) for s in itertools.combinations(PARTS, n)]
EVERYTHING = frozenset(PARTS)


def problem(per_group: int, stride: int = 1, groups: int = 3) -> ConvProblem:
    c = per_group * groups
    return ConvProblem(2, c, 7, 11, c, 3, 3, groups, 1, 1, stride, stride)


@dataclass(frozen=True)
class Call:
    """The tensors and attributes of one call."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    relu: bool
    p: ConvProblem

    @classmethod
    def draw(
        cls,
        p: ConvProblem,
        dtype: torch.dtype = torch.float32,
        layout: str = "nchw",
        parts: frozenset[str] = EVERYTHING,
        factors: torch.dtype | None = None,
    ) -> Call:
        """Random tensors, those of the epilogue only where ``parts`` names them."""

        def made(size: tuple[int, ...], part: str = "", dtype: torch.dtype = dtype) -> Any:
            t = torch.randn(size).to(dtype)  # drawn in any case: the others stay the same
            if part and part not in parts:
                return None
            return t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t

        factors = dtype if factors is None else factors
        scale = made((p.K,), "scale", factors)
        if scale is not None:  # no channel's errors are much larger than all others
            scale = torch.where(scale < 0, scale.clamp(-1.5, -0.5), scale.clamp(0.5, 1.5))
        return cls(
            made(p.input_size),
            made(p.weight_size),
            made((p.K,), "bias"),
            scale,
            made((p.K,), "shift", factors),
            made(p.output_size, "residual"),
            "relu" in parts,
            p,
        )

    def only(self, parts: frozenset[str]) -> Call:
        """The same call with no more than these parts of the epilogue."""
        dropped = {name: None for name in PARTS[:4] if name not in parts}
        return replace(self, relu="relu" in parts, **dropped)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.x, self.w, self.bias, self.scale, self.shift, self.residual)

    @property
    def attributes(self) -> tuple[Any, ...]:
        return (self.p.stride, self.p.padding, self.p.dilation, self.p.G)

    def with_tensors(self, *tensors: Tensor | None) -> Call:
        names = ("x", "w", "bias", "scale", "shift", "residual")
        return replace(self, **dict(zip(names, tensors, strict=True)))

    def run(self, backend: str | None = None) -> Tensor:
        activation = "relu" if self.relu else None
        return grouped_conv2d_affine(*self.tensors, activation, *self.attributes, backend=backend)

    def run_op(self) -> Tensor:
        return OP(*self.tensors, self.relu, *self.attributes)

    def unfused(self) -> Tensor:
        """What a user of PyTorch writes, in the dtype of the input."""
        dtype = self.x.dtype
        y = F.conv2d(self.x, self.w, self.bias, *self.attributes)
        if self.scale is not None:
            y = y * self.scale.to(dtype)[:, None, None]
        if self.shift is not None:
            y = y + self.shift.to(dtype)[:, None, None]
        if self.residual is not None:
            y = y + self.residual
        return y.relu() if self.relu else y

    def epilogue(self, y: Tensor) -> Tensor:
        """The exact epilogue of an exact convolution."""
        if self.scale is not None:
            y = y * self.scale.double()[:, None, None]
        if self.shift is not None:
            y = y + self.shift.double()[:, None, None]
        if self.residual is not None:
            y = y + self.residual.double()
        return y.relu() if self.relu else y

    def exact(self) -> Tensor:
        return self.epilogue(reference.fprop(self.x.double(), self.w.double(), self.bias, self.p))

    def magnitude(self) -> float:
        """What a result with random signs comes to: the epilogue of squares."""
        squares = [None if t is None else t.double().square() for t in self.tensors]
        call = replace(self.with_tensors(*squares), relu=False)
        total = call.exact()
        return float(total.max().sqrt()) if total.numel() else 0.0

    def assert_accurate(self, ours: Tensor) -> None:
        parts = [n for n in PARTS[:4] if getattr(self, n) is not None] + ["relu"] * self.relu
        assert_as_accurate(ours, self.unfused(), self.exact(), self.magnitude(), f"{parts}")


def present(call: Call) -> list[Tensor]:
    return [t for t in call.tensors if t is not None]


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("per_group", [3, 4, 8, 16, 24, 32])
def test_every_subset(per_group: int, stride: int, dtype: torch.dtype, layout: str):
    everything = Call.draw(problem(per_group, stride), dtype, layout)
    for parts in SUBSETS:
        call = everything.only(parts)
        with poisoned():
            ours = call.run("native")
        call.assert_accurate(ours)
        assert memory_format(ours) == memory_format(call.unfused())


# Rows that fill tiles and rows that do not, one slab and many, more channels out than in.
ODD = {
    "one pixel": ConvProblem(3, 16, 1, 1, 16, 3, 3, 4, 1, 1),
    "one row": ConvProblem(1, 64, 1, 41, 64, 3, 3, 16, 1, 1),
    "one column": ConvProblem(2, 32, 23, 1, 32, 3, 3, 8, 1, 1),
    "wide padding": ConvProblem(1, 12, 5, 6, 20, 3, 3, 2, 2, 3),
    "no padding": ConvProblem(2, 128, 9, 16, 128, 3, 3, 32),
    "many out": ConvProblem(1, 8, 9, 14, 70, 3, 3, 2, 1, 1),
    "few out": ConvProblem(2, 80, 8, 7, 6, 3, 3, 2, 1, 1, 2, 2),
    "whole lanes": ConvProblem(2, 96, 14, 14, 96, 3, 3, 24, 1, 1),
    "depthwise": ConvProblem(2, 24, 8, 7, 24, 3, 3, 24, 1, 1),
    "one group": ConvProblem(2, 8, 8, 7, 24, 3, 3, 1, 1, 1),
    "not 3x3": ConvProblem(2, 12, 9, 8, 12, 5, 2, 3, 2, 1),
    "dilated": ConvProblem(2, 12, 9, 8, 12, 3, 3, 3, 2, 2, 1, 1, 2, 2),
    "strides unequal": ConvProblem(2, 12, 9, 8, 12, 3, 3, 3, 1, 1, 1, 3),
    "no batch": ConvProblem(0, 32, 9, 8, 32, 3, 3, 8, 1, 1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("backend", [*BACKENDS, "aten"])
@pytest.mark.parametrize("name", ODD)
def test_odd_problems(name: str, backend: str, dtype: torch.dtype, layout: str):
    call = Call.draw(ODD[name], dtype, layout)
    for parts in (EVERYTHING, frozenset({"scale", "shift", "relu"}), frozenset({"residual"})):
        some = call.only(parts)
        with poisoned():
            ours = some.run(backend)
        some.assert_accurate(ours)
        if ours.numel():
            assert memory_format(ours) == memory_format(some.unfused())


RESNEXT = ConvProblem(2, 128, 20, 20, 128, 3, 3, 32, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=short)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, layout: str):
    call = Call.draw(RESNEXT, dtype, layout)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(call.run("native"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    call.assert_accurate(results[0])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=short)
def test_reads_nothing_around_its_tensors(dtype: torch.dtype, layout: str):
    call = Call.draw(problem(4, groups=9), dtype, layout)
    call.with_tensors(*map(walled, call.tensors)).assert_accurate(
        call.with_tensors(*map(walled, call.tensors)).run("native")
    )


def test_empty_epilogue_is_the_convolution(layout: str):
    call = Call.draw(RESNEXT, layout=layout, parts=frozenset({"bias"}))
    plain = grouped_conv2d(call.x, call.w, call.bias, *call.attributes, backend="native")
    assert torch.equal(call.run("native"), plain)


RESIDUALS = ("offset", "other", "channels", "columns", "transposed", "batch", "scalar")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("backend", [*BACKENDS, "aten"])
@pytest.mark.parametrize("kind", RESIDUALS)
def test_residual_of_any_strides(kind: str, backend: str, dtype: torch.dtype, layout: str):
    call = Call.draw(problem(8), dtype, layout)
    call = replace(call, residual=view(call.residual, kind, layout, dtype))
    kept = call.residual.clone()
    ours = call.run(backend)
    call.assert_accurate(ours)
    assert memory_format(ours) == memory_format(F.conv2d(call.x, call.w, None, *call.attributes))
    assert torch.equal(call.residual, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=short)
@pytest.mark.parametrize("backend", ["native", "aten"])
def test_factors_in_float32(dtype: torch.dtype, backend: str, layout: str):
    call = Call.draw(problem(8), dtype, layout, factors=torch.float32)
    ours = call.run(backend)
    assert ours.dtype == dtype
    call.assert_accurate(ours)
    short_factors = replace(call, scale=call.scale.to(dtype), shift=call.shift.to(dtype))
    widened = replace(
        call, scale=short_factors.scale.to(torch.float32), shift=short_factors.shift.float()
    )
    assert torch.equal(short_factors.run("native"), widened.run("native"))


@pytest.mark.parametrize("backend", [*BACKENDS, "aten"])
def test_factors_with_strides(backend: str):
    call = Call.draw(problem(8))
    k = call.p.K
    strided = replace(
        call, scale=call.scale.repeat_interleave(2)[::2], shift=call.shift[:1].expand(k)
    )
    strided.assert_accurate(strided.run(backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
def test_one_rounding_is_no_worse_than_many(dtype: torch.dtype, layout: str):
    for parts in (frozenset({"scale", "shift", "relu"}), EVERYTHING):
        call = Call.draw(RESNEXT, dtype, layout, parts)
        exact = call.exact()
        ours = rms(call.run("native").double() - exact)
        assert ours < rms(call.unfused().double() - exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "residual", "scale", "shift", "bias"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=short)
def test_infinities_and_nan(value: float, where: str, dtype: torch.dtype, layout: str):
    """As PyTorch's composition: max(0, -inf) is 0, NaN stays NaN."""
    for p in (problem(4, groups=8), problem(4)):
        call = Call.draw(p, dtype, layout)
        call = replace(call, scale=call.scale.abs())
        tensor = getattr(call, where)
        tensor[(0, 1, 2, 3)[: tensor.dim()] if tensor.dim() > 1 else 3] = value
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype]
        ours, theirs = call.run("native"), call.unfused()
        assert not theirs.isfinite().all() or value == -float("inf")
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [*BACKENDS, "aten"])
def test_unbatched(backend: str):
    call = Call.draw(ConvProblem(1, 32, 9, 8, 32, 3, 3, 8, 1, 1))
    one = replace(call, x=call.x[0], residual=call.residual[0])
    assert one.run(backend).shape == call.p.output_size[1:]
    torch.testing.assert_close(one.run(backend), call.run(backend)[0])


UNUSUAL = {
    "same": {"padding": "same"},
    "valid": {"padding": "valid", "stride": 2},
    "same, even kernel": {"padding": "same", "kernel": 4},
    "lists": {"padding": [1], "stride": [2, 1]},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_attributes_as_conv2d_takes_them(name: str, layout: str):
    options: dict[str, Any] = {"groups": 8, **UNUSUAL[name]}
    kernel = options.pop("kernel", 3)
    x = torch.randn(2, 32, 9, 8).contiguous(memory_format=LAYOUTS[layout])
    w, scale, shift = torch.randn(32, 4, kernel, kernel), torch.randn(32), torch.randn(32)
    y = F.conv2d(x, w, **options)
    residual = torch.randn_like(y)
    ours = grouped_conv2d_affine(
        x, w, scale=scale, shift=shift, residual=residual, activation="relu", **options
    )
    theirs = (y * scale[:, None, None] + shift[:, None, None] + residual).relu()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_complex_goes_through_aten():
    x, w = (torch.randn(s, dtype=torch.complex64) for s in ((2, 8, 6, 7), (12, 4, 3, 3)))
    scale, shift = torch.randn(12, dtype=torch.complex64), torch.randn(12)
    ours = grouped_conv2d_affine(x, w, None, scale, shift, groups=2)
    theirs = F.conv2d(x, w, groups=2) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", [*BACKENDS, "aten"])
def test_arguments_are_left_alone(backend: str, layout: str):
    call = Call.draw(problem(4), layout=layout)
    kept = [t.clone() for t in present(call)]
    call.run(backend)
    for a, b in zip(present(call), kept, strict=True):
        assert torch.equal(a, b)


def test_fold_batch_norm():
    mean, variance = torch.randn(24), torch.rand(24) + 0.1
    weight, bias = torch.randn(24), torch.randn(24)
    x = torch.randn(2, 24, 5, 5)
    for w, b in itertools.product((None, weight), (None, bias)):
        scale, shift = fold_batch_norm(mean, variance, w, b, eps=1e-3)
        theirs = F.batch_norm(x, mean, variance, w, b, eps=1e-3)
        torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], theirs)
    assert fold_batch_norm(mean.bfloat16(), variance.bfloat16())[0].dtype == torch.float32
    assert fold_batch_norm(mean.double(), variance.double())[1].dtype == torch.float64


# Gradients ----------------------------------------------------------------------------------------

GEOMETRIES = {
    "same width": ConvProblem(2, 8, 5, 4, 8, 3, 3, 2, 1, 1),
    "strided": ConvProblem(2, 8, 6, 5, 8, 3, 3, 2, 1, 1, 2, 2),
    "unequal": ConvProblem(2, 4, 5, 4, 6, 3, 2, 2, 0, 1, 1, 2),
}
GRADIENT_SUBSETS = [
    EVERYTHING,
    EVERYTHING - {"relu"},
    EVERYTHING - {"bias"},
    frozenset({"scale"}),
    frozenset({"bias", "shift"}),
    frozenset({"residual", "relu"}),
]


def names(parts: frozenset[str]) -> str:
    return "+".join(name for name in PARTS if name in parts)


def differentiable(call: Call) -> tuple[Any, tuple[Tensor, ...]]:
    """A call as a function of the tensors that it has, and these."""
    has = [t is not None for t in call.tensors]
    leaves = tuple(t.detach().requires_grad_() for t in present(call))

    def spread(*values: Tensor) -> Call:
        left = iter(values)
        return call.with_tensors(*(next(left) if h else None for h in has))

    return spread, leaves


@pytest.mark.parametrize("parts", GRADIENT_SUBSETS, ids=names)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradcheck(geometry: str, backend: str, parts: frozenset[str], layout: str):
    spread, leaves = differentiable(Call.draw(GEOMETRIES[geometry], torch.float64, layout, parts))

    def function(*values: Tensor) -> Tensor:
        return spread(*values).run(backend)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=short)
@pytest.mark.parametrize("per_group", [4, 32])
def test_gradients_are_as_accurate_as_unfused(per_group: int, dtype: torch.dtype, layout: str):
    """rms of the error, each gradient; twice PyTorch's, for a gradient has few elements."""
    call = Call.draw(problem(per_group), dtype, layout)
    dy = torch.randn(call.p.output_size).to(dtype)

    def gradients(c: Call, run: Any) -> tuple[Tensor, ...]:
        spread, leaves = differentiable(c)
        return torch.autograd.grad(run(spread(*leaves)), leaves, dy.to(c.x.dtype))

    exact = gradients(call.with_tensors(*(t.double() for t in present(call))), Call.unfused)
    ours = gradients(call, lambda c: c.run("native"))
    theirs = gradients(call, Call.unfused)
    for what, a, b, right in zip(("x", "w", *PARTS[:4]), ours, theirs, exact, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        rounding = torch.finfo(dtype).eps * rms(right)
        assert rms(a.double() - right) <= 2 * rms(b.double() - right) + rounding, what


def test_gradients_of_float32_factors_are_float32():
    call = Call.draw(problem(4), torch.bfloat16, factors=torch.float32)
    spread, leaves = differentiable(call)
    gradients = torch.autograd.grad(spread(*leaves).run("native").sum(), leaves)
    assert [g.dtype for g in gradients] == [t.dtype for t in leaves]
    assert [g.shape for g in gradients] == [t.shape for t in leaves]


@pytest.mark.parametrize("needed", range(6))
@pytest.mark.parametrize("backend", ["native", "aten"])
def test_one_gradient_alone(needed: int, backend: str):
    call = Call.draw(GEOMETRIES["same width"], torch.float64)
    leaves = [t.detach().requires_grad_(i == needed) for i, t in enumerate(call.tensors)]
    one = call.with_tensors(*leaves)
    (ours,) = torch.autograd.grad(one.run(backend).square().sum(), leaves[needed])
    (theirs,) = torch.autograd.grad(one.unfused().square().sum(), leaves[needed])
    torch.testing.assert_close(ours, theirs)


def test_backward_keeps_only_what_it_needs():
    """A frozen convolution with a trained shift keeps the output alone, for the relu."""
    call = Call.draw(GEOMETRIES["same width"])
    call.shift.requires_grad_()
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, id):
        call.run("native")
    assert saved == [call.p.output_size]


def test_relu_passes_gradients_as_pytorch_does():
    """Nothing at zero, and at NaN whatever arrives."""
    x, w = torch.zeros(1, 8, 3, 3), torch.ones(8, 4, 3, 3)
    residual = torch.zeros(1, 8, 3, 3)
    residual[0, 0, 0] = torch.tensor([float("nan"), 1.0, -1.0])
    gradients = []
    for function in (
        lambda r: grouped_conv2d_affine(
            x, w, residual=r, activation="relu", padding=1, groups=2, backend="native"
        ),
        lambda r: (F.conv2d(x, w, padding=1, groups=2) + r).relu(),
    ):
        leaf = residual.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf).sum(), leaf)
    assert torch.equal(gradients[0], gradients[1])


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda *t: f(*t).tanh().sum(), argnums=tuple(range(6))),
    "jvp": lambda f: lambda *t: torch.func.jvp(f, t, tuple(v.sin() for v in t)),
    "vmap": lambda f: lambda *t: torch.func.vmap(f)(*(torch.stack([v, v.cos()]) for v in t)),
    "vmap of scale": lambda f: (
        lambda *t: torch.func.vmap(lambda s: f(*t[:3], s, *t[4:]))(torch.stack([t[3], t[4]]))
    ),
    "functionalize": torch.func.functionalize,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms(name: str, layout: str):
    call = Call.draw(GEOMETRIES["strided"], torch.float64, layout)
    ours, theirs = (
        TRANSFORMS[name](lambda *t, run=run: run(call.with_tensors(*t)))(*call.tensors)
        for run in (Call.run, Call.unfused)
    )
    torch.testing.assert_close(ours, theirs)


# The operator, the compiler, autocast -------------------------------------------------------------

SCHEMA = (
    "grouped_conv::fprop_affine(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, Tensor? residual, bool relu, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups, bool allow_tf32=False) -> Tensor"
)


def test_schema():
    assert str(OP.default._schema) == SCHEMA


@pytest.mark.once
@pytest.mark.parametrize("parts", GRADIENT_SUBSETS, ids=names)
def test_opcheck(parts: frozenset[str], layout: str):
    call = Call.draw(problem(4, 2, groups=8), layout=layout, parts=parts)
    for t in present(call):
        t.requires_grad_()
    torch.library.opcheck(OP, (*call.tensors, call.relu, *call.attributes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "other", "channels", "columns", "batch"])
def test_fake_kernel_has_the_layout_of_the_real_one(kind: str, layout: str):
    call = Call.draw(problem(4, groups=8), layout=layout)
    call = replace(call, x=view(call.x, kind, layout, torch.float32))
    real = call.run_op()
    with FakeTensorMode() as mode:
        fake = call.with_tensors(*tree_map_only(Tensor, mode.from_tensor, call.tensors)).run_op()
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.once
@pytest.mark.parametrize("chosen", ["native", "aten"])
@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(COMPILER is None, reason="there is no compiler")
        ),
    ],
)
def test_compiled_in_one_graph(compiler: str, chosen: str, layout: str, fresh_dynamo: None):
    call = Call.draw(problem(4, 2, groups=8), layout=layout)
    spread, leaves = differentiable(call)

    def function(*values: Tensor) -> Tensor:
        return spread(*values).run(chosen).sin()

    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    results = []
    for f in (compiled, function):
        y = f(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    assert memory_format(results[0][0]) == memory_format(results[1][0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_new_batch_sizes_do_not_recompile(layout: str, fresh_dynamo: None):
    calls = [Call.draw(replace(problem(4, groups=8), N=n), layout=layout) for n in (2, 3, 5, 8)]

    def function(x: Tensor, w: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
        return grouped_conv2d_affine(x, w, None, scale, None, residual, "relu", padding=1, groups=8)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for c in calls:
        arguments = (c.x, c.w, c.scale, c.residual)
        torch.testing.assert_close(compiled(*arguments), function(*arguments))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("backend", ["native", "aten"])
def test_autocast(dtype: torch.dtype, backend: str, layout: str):
    call = Call.draw(problem(8), layout=layout)
    cast = [t.to(dtype) for t in call.tensors]
    expected = call.with_tensors(*cast[:3], call.scale, call.shift, cast[5]).run(backend)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(call.run(backend), expected)
        mixed = replace(call, x=cast[0], scale=cast[3], residual=cast[5])
        assert mixed.run(backend).dtype == dtype
        if backend == "native":
            assert torch.equal(call.run_op(), expected)


def test_autocast_keeps_float64():
    call = Call.draw(problem(8), torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call.run("native"), call.run_op())
    torch.testing.assert_close(call.run_op(), call.exact())


def test_meta_tensors_give_a_meta_tensor(layout: str):
    call = Call.draw(problem(8), layout=layout)
    meta = call.with_tensors(*(t.to("meta") for t in call.tensors)).run()
    assert meta.device.type == "meta"
    assert (meta.shape, meta.dtype) == (call.run().shape, call.run().dtype)


class Tagged(Tensor):
    """A subclass that takes part in __torch_function__."""


@pytest.mark.parametrize("which", ["x", "residual"])
def test_tensor_subclass_survives(which: str):
    call = Call.draw(problem(8))
    tagged = replace(call, **{which: getattr(call, which).as_subclass(Tagged)})
    assert type(tagged.run()) is Tagged


# Errors -------------------------------------------------------------------------------------------

GOOD = {"scale": (32,), "shift": (32,), "residual": (2, 32, 9, 8)}
BAD_SHAPES = {
    "scale too long": {"scale": (33,)},
    "scale of rank 2": {"scale": (32, 1)},
    "scale scalar": {"scale": ()},
    "scale of one": {"scale": (1,)},
    "shift too short": {"shift": (8,)},
    "shift of rank 3": {"shift": (32, 1, 1)},
    "residual of rank 3": {"residual": (32, 9, 8)},
    "residual of one image": {"residual": (1, 32, 9, 8)},
    "residual of other rows": {"residual": (2, 32, 8, 8)},
    "residual of other channels": {"residual": (2, 16, 9, 8)},
}
BAD_DTYPES = {
    "scale in float64": {"scale": torch.float64},
    "scale in bfloat16": {"scale": torch.bfloat16},
    "shift in int64": {"shift": torch.int64},
    "residual in bfloat16": {"residual": torch.bfloat16},
    "residual in float64": {"residual": torch.float64},
}


def faulty(name: str) -> dict[str, Tensor]:
    sizes, dtypes = BAD_SHAPES.get(name, {}), BAD_DTYPES.get(name, {})
    return {
        part: torch.zeros(sizes.get(part, size), dtype=dtypes.get(part))
        for part, size in GOOD.items()
    }


X, W = torch.zeros(2, 32, 9, 8), torch.zeros(32, 4, 3, 3)


@pytest.mark.parametrize("name", [*BAD_SHAPES, *BAD_DTYPES])
def test_epilogue_that_does_not_fit(name: str):
    """The same error from every backend and from the operator, real and fake."""
    parts = faulty(name)
    errors = [
        error_of(grouped_conv2d_affine, X, W, **parts, padding=1, groups=8, backend=backend)
        for backend in ("native", "aten", "auto")
    ]
    arguments = (X, W, None, *parts.values(), False, (1, 1), (1, 1), (1, 1), 8)
    errors.append(error_of(OP, *arguments))
    with FakeTensorMode() as mode:
        errors.append(error_of(OP, *tree_map_only(Tensor, mode.from_tensor, arguments)))
    for error in errors:
        assert isinstance(error, RuntimeError)
        assert name.split()[0] in str(error)
        assert str(errors[1]) in str(error)  # C++ names its place in the source too


def test_the_tables_of_refusals_start_from_a_valid_call():
    for backend in ("native", "aten"):
        y = grouped_conv2d_affine(
            X, W, **faulty(""), activation="relu", padding=1, groups=8, backend=backend
        )
        assert y.shape == GOOD["residual"]


WRONG_CONVOLUTIONS = {
    "too few groups": lambda: ((X, W), {"groups": 4}),
    "kernel too large": lambda: ((X, torch.zeros(32, 4, 13, 3)), {"groups": 8}),
    "bias too long": lambda: ((X, W, torch.zeros(33)), {"groups": 8}),
    "weight of another dtype": lambda: ((X, W.double()), {"groups": 8}),
    "stride zero": lambda: ((X, W), {"groups": 8, "stride": 0}),
    "input None": lambda: ((None, W), {"groups": 8}),
}


@pytest.mark.parametrize("name", WRONG_CONVOLUTIONS)
def test_wrong_convolution_gets_pytorch_s_error(name: str):
    args, kwargs = WRONG_CONVOLUTIONS[name]()
    assert_same_error(F.conv2d, grouped_conv2d_affine, *args, **kwargs)


@pytest.mark.parametrize("part", ["scale", "shift", "residual"])
def test_part_that_is_no_tensor(part: str):
    with pytest.raises(TypeError, match=f"{part} must be a tensor or None, not float"):
        grouped_conv2d_affine(X, W, **{part: 2.0}, groups=8)


@pytest.mark.parametrize("activation", ["gelu", "ReLU", True, torch.relu])
def test_unknown_activation(activation: Any):
    with pytest.raises(ValueError, match="unknown activation"):
        grouped_conv2d_affine(X, W, activation=activation, groups=8)


def test_backend_that_cannot_says_why():
    integers = torch.zeros(2, 32, 9, 8, dtype=torch.int64), torch.zeros(32, 4, 3, 3).long()
    with pytest.raises(RuntimeError, match=r"native cannot compute fprop.*int64"):
        grouped_conv2d_affine(*integers, groups=8, backend="native")
    with pytest.raises(ValueError, match="cudnn"):
        grouped_conv2d_affine(X, W, groups=8, backend="cudnn")
