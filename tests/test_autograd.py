"""Differentiation: reverse, double, forward, functorch transforms; what is computed when."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from support import LAYOUTS
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from grouped_conv import grouped_conv2d, use_backend

OPS = torch.ops.grouped_conv
BACKENDS = ("auto", "native")

# (C, K, groups, (H, W), kernel, stride, padding, dilation)
GEOMETRIES = {
    "same width": (8, 8, 2, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": (8, 8, 2, (6, 5), (3, 3), (2, 2), (1, 1), (1, 1)),
    "unequal": (4, 6, 2, (5, 4), (3, 2), (1, 2), (0, 1), (1, 1)),
    "dilated": (4, 4, 4, (6, 6), (3, 3), (1, 1), (2, 1), (2, 1)),
    "rows that no window reaches": (4, 4, 2, (6, 6), (2, 2), (3, 3), (0, 0), (1, 1)),
}


class Made:
    """Tensors and attributes of a small convolution."""

    def __init__(self, name: str, layout: str = "nchw", dtype: torch.dtype = torch.float64) -> None:
        c, k, groups, extent, kernel, *attributes = GEOMETRIES[name]

        def draw(*size: int) -> Tensor:
            t = torch.randn(size, dtype=dtype)
            return t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t

        self.x = draw(2, c, *extent).requires_grad_()
        self.w = draw(k, c // groups, *kernel).requires_grad_()
        self.b = draw(k).requires_grad_()
        self.attributes = (*attributes, groups)
        self.dy = draw(*F.conv2d(self.x, self.w, None, *self.attributes).shape).requires_grad_()
        self.channels_last = layout == "nhwc"


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_the_function(geometry: str, layout: str, backend: str):
    m = Made(geometry, layout)

    def function(x, w, b):
        return grouped_conv2d(x, w, b, *m.attributes)

    with use_backend(backend):
        assert gradcheck(function, (m.x, m.w, m.b), fast_mode=True)
        assert gradgradcheck(function, (m.x, m.w, m.b), fast_mode=True)


def op_calls(m: Made):
    """Each operator as a function of its tensors."""
    sizes = tuple(m.x.shape), tuple(m.w.shape)
    a, last = m.attributes, m.channels_last
    return {
        "fprop": (lambda x, w, b: OPS.fprop(x, w, b, *a), (m.x, m.w, m.b)),
        "dgrad": (lambda dy, w: OPS.dgrad(dy, w, sizes[0], *a, last), (m.dy, m.w)),
        "wgrad": (lambda dy, x: OPS.wgrad(dy, x, sizes[1], *a, last), (m.dy, m.x)),
    }


@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_gradcheck_of_the_operators(geometry: str, layout: str, name: str):
    function, tensors = op_calls(Made(geometry, layout))[name]
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors, fast_mode=True)


def test_third_derivative():
    m = Made("strided")

    def third(conv):
        y = conv(m.x, m.w, m.b, *m.attributes).tanh().square().sum()
        for _ in range(2):
            (dx, dw) = torch.autograd.grad(y, (m.x, m.w), create_graph=True)
            y = dx.tanh().sum() + dw.sin().sum()
        return torch.autograd.grad(y, (m.x, m.w, m.b))

    for ours, theirs in zip(third(grouped_conv2d), third(F.conv2d), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_double_backward_is_pytorch_s(geometry: str, layout: str):
    m = Made(geometry, layout)

    def second(conv):
        y = conv(m.x, m.w, m.b, *m.attributes)
        first = torch.autograd.grad(y, (m.x, m.w, m.b), m.dy, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return torch.autograd.grad(penalty, (m.x, m.w, m.dy))

    for ours, theirs in zip(second(grouped_conv2d), second(F.conv2d), strict=True):
        torch.testing.assert_close(ours, theirs)


class Recorder(TorchDispatchMode):
    """Names of all operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if func is torch.ops.aten.convolution_backward.default:
            self.names += itertools.compress(
                ("aten dgrad", "aten wgrad"), args[10] if len(args) > 10 else kwargs["output_mask"]
            )
        return func(*args, **(kwargs or {}))

    def ran(self, what: str) -> bool:
        return any(what in name for name in self.names)


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3)), ids=str)
@pytest.mark.parametrize("backend", ["native", "aten"])
def test_only_needed_gradients_are_computed(needed: tuple[bool, bool, bool], backend: str):
    m = Made("same width", dtype=torch.float32)
    tensors = [t.detach().requires_grad_(n) for t, n in zip((m.x, m.w, m.b), needed, strict=True)]
    y = grouped_conv2d(*tensors, *m.attributes, backend=backend)
    assert y.requires_grad == any(needed)
    if not any(needed):
        return
    with Recorder() as recorder:
        y.backward(torch.ones_like(y))
    assert [t.grad is not None for t in tensors] == list(needed)
    assert recorder.ran("dgrad") == needed[0]
    assert recorder.ran("wgrad") == needed[1]


@pytest.mark.parametrize("needed", ["x", "w"])
def test_backward_keeps_only_what_it_needs(needed: str):
    """dx needs w alone, dw needs x alone: a frozen layer must not keep its input alive."""
    m = Made("same width", dtype=torch.float32)
    x = m.x.detach().requires_grad_(needed == "x")
    w = m.w.detach().requires_grad_(needed == "w")
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, id):
        grouped_conv2d(x, w, None, *m.attributes, backend="native")
    unneeded = x if needed == "x" else w
    assert unneeded.data_ptr() not in saved


def test_gradients_accumulate():
    m = Made("same width")
    ours, theirs = ([t.detach().requires_grad_() for t in (m.x, m.w, m.b)] for _ in range(2))
    for _ in range(2):
        grouped_conv2d(*ours, *m.attributes).backward(m.dy)
        F.conv2d(*theirs, *m.attributes).backward(m.dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_second_backward_needs_a_retained_graph():
    m = Made("same width")
    y = grouped_conv2d(m.x, m.w, m.b, *m.attributes)
    y.backward(m.dy, retain_graph=True)
    y.backward(m.dy)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(m.dy)


def test_changing_a_saved_tensor_is_detected():
    m = Made("same width")
    w = m.w.detach().clone().requires_grad_()
    y = grouped_conv2d(m.x, w, None, *m.attributes)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(m.dy)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool):
    m = Made("strided")

    def function(x, w, b):
        return grouped_conv2d(x, w, b, *m.attributes).tanh()

    y = checkpoint(function, m.x, m.w, m.b, use_reentrant=use_reentrant)
    y.backward(m.dy)
    expected = torch.autograd.grad(function(m.x, m.w, m.b), (m.x, m.w, m.b), m.dy)
    for ours, theirs in zip((m.x.grad, m.w.grad, m.b.grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_hooks():
    m = Made("same width")
    seen = []
    m.w.register_hook(lambda g: seen.append(g.shape) or 2 * g)
    grouped_conv2d(m.x, m.w, m.b, *m.attributes).backward(m.dy)
    fresh = m.w.detach().requires_grad_()
    F.conv2d(m.x, fresh, m.b, *m.attributes).backward(m.dy)
    assert seen == [m.w.shape]
    torch.testing.assert_close(m.w.grad, 2 * fresh.grad)


def both(transform):
    """A transform of the function, and of F.conv2d."""
    return transform(grouped_conv2d), transform(F.conv2d)


def assert_equal_trees(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f, argnums=(0, 1, 2)),
    "vjp": lambda f: lambda *a: torch.func.vjp(f, *a)[1](torch.tensor(2.0, dtype=torch.float64)),
    "jvp": lambda f: lambda *a: torch.func.jvp(f, a, tuple(t.sin() for t in a)),
    "jacrev": lambda f: torch.func.jacrev(f, argnums=(0, 1, 2)),
    "jacfwd": lambda f: torch.func.jacfwd(f, argnums=(1, 2)),
    "hessian": lambda f: torch.func.hessian(f, argnums=1),
    "grad of grad": lambda f: torch.func.grad(
        lambda *a: torch.func.grad(f, argnums=1)(*a).square().sum(), argnums=(0, 1)
    ),
    "jvp of grad": lambda f: (
        lambda *a: torch.func.jvp(torch.func.grad(f, argnums=(0, 1)), a, tuple(t.cos() for t in a))
    ),
    "linearize": lambda f: lambda *a: torch.func.linearize(f, *a)[1](*a),
    "functionalize": torch.func.functionalize,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("geometry_name", ["same width", "unequal"])
def test_function_transform(name: str, geometry_name: str, layout: str):
    m = Made(geometry_name, layout)
    arguments = tuple(t.detach() for t in (m.x, m.w, m.b))

    def transformed(conv):
        def loss(x, w, b):
            return conv(x, w, b, *m.attributes).tanh().sum()

        return TRANSFORMS[name](loss)(*arguments)

    assert_equal_trees(*both(transformed))


VMAPS = {
    "input": (0, None, None),
    "input and weight": (0, 0, None),
    "weight": (None, 0, None),
    "bias": (None, None, 0),
    "all": (0, 0, 0),
    "other dimensions": (1, 2, 1),
}


@pytest.mark.parametrize("name", VMAPS)
@pytest.mark.parametrize("randomly", ["plain", "grad"])
def test_vmap(name: str, randomly: str, layout: str):
    m = Made("strided", layout)
    in_dims = VMAPS[name]
    arguments = tuple(
        t.detach() if d is None else torch.stack([t.detach(), 2 * t.detach().sin(), -t.detach()], d)
        for t, d in zip((m.x, m.w, m.b), in_dims, strict=True)
    )

    def transformed(conv):
        def function(x, w, b):
            return conv(x, w, b, *m.attributes)

        if randomly == "grad":
            plain = function

            def function(x, w, b):
                return torch.func.grad(lambda *a: plain(*a).tanh().sum(), argnums=(0, 1, 2))(
                    x, w, b
                )

        return torch.func.vmap(function, in_dims)(*arguments)

    assert_equal_trees(*both(transformed))


def test_vmap_of_unbatched_images():
    x, w = torch.randn(5, 32, 6, 6), torch.randn(32, 4, 3, 3)
    ours, theirs = both(lambda conv: torch.func.vmap(lambda t: conv(t, w, groups=8))(x))
    torch.testing.assert_close(ours, theirs)


def test_vmap_in_chunks_and_nested():
    x, w = torch.randn(4, 3, 2, 32, 6, 6), torch.randn(3, 32, 4, 3, 3)

    def transformed(conv):
        inner = torch.func.vmap(functools.partial(conv, groups=8))
        return torch.func.vmap(inner, in_dims=(0, None), chunk_size=2)(x, w)

    ours, theirs = both(transformed)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("duals", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_forward_ad(duals: tuple[int, ...], geometry: str):
    m = Made(geometry)
    primals = [t.detach() for t in (m.x, m.w, m.b)]

    def tangent(conv):
        with forward_ad.dual_level():
            made = [
                forward_ad.make_dual(t, t.sin()) if i in duals else t for i, t in enumerate(primals)
            ]
            return tuple(forward_ad.unpack_dual(conv(*made, *m.attributes)))

    assert_equal_trees(*both(tangent))


def test_forward_over_reverse():
    m = Made("strided")

    def transformed(conv):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(m.x.detach().requires_grad_(), m.x.detach().cos())
            y = conv(x, m.w, m.b, *m.attributes).tanh()
            grads = torch.autograd.grad(y.square().sum(), (m.w, m.b))
            return tuple(forward_ad.unpack_dual(g).tangent for g in grads)

    assert_equal_trees(*both(transformed))


def test_gradient_of_the_sum_of_the_output(layout: str):
    """The gradient that arrives is expanded: all its strides are zero."""
    m = Made("same width", layout, torch.float32)
    gradients = [
        torch.autograd.grad(conv(m.x, m.w, m.b, *m.attributes).sum(), (m.x, m.w, m.b))
        for conv in (grouped_conv2d, F.conv2d)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_anomaly_mode_names_the_nan():
    m = Made("same width")
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(RuntimeError, match="nan"):
        grouped_conv2d(m.x * float("nan"), m.w, m.b, *m.attributes).sum().backward()


def test_no_grad_builds_no_graph():
    m = Made("same width")
    with torch.no_grad():
        assert not grouped_conv2d(m.x, m.w, m.b, *m.attributes).requires_grad


def test_gradients_follow_the_choice_in_force_when_they_run():
    m = Made("dilated", dtype=torch.float32)
    y = grouped_conv2d(m.x, m.w, m.b, *m.attributes, backend="native")
    for name, ours in (("native", True), ("aten", False)):
        with use_backend(name), Recorder() as recorder:
            y.backward(m.dy, retain_graph=True)
        for op in ("dgrad", "wgrad"):
            assert recorder.ran(f"grouped_conv.{op}") == ours
            assert recorder.ran(f"aten {op}") != ours
