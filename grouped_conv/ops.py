"""What PyTorch must know of the ops, once for every backend: fakes, gradients, autocast.

The gradients of each op are compositions of the three passes, which are thereby differentiable any
number of times:

=======  ==========================  ==========================
op       gradient of its 1st input   gradient of its 2nd input
=======  ==========================  ==========================
fprop    dgrad(dy, w)                wgrad(dy, x)
dgrad    fprop(ddx, w)               wgrad(dy, ddx)
wgrad    fprop(x, ddw)               dgrad(dy, ddw)
=======  ==========================  ==========================

``fprop_affine`` is fprop with an epilogue, ``relu(scale * (fprop + bias) + shift + residual)``. Its
gradients need no pass over an activation beyond g, the gradient in front of the relu: scale is
applied to the weight and to its gradient, which are small, and the gradient of scale is the inner
product of each filter with its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv import routing
from grouped_conv.backends import triton_ops
from grouped_conv.problem import ConvProblem
from grouped_conv.routing import memory_format, suggests_channels_last

_Grads = tuple[Tensor | None, ...]


class _Attributes(NamedTuple):
    """What the three passes of one convolution have in common.

    Whether TF32 is allowed is not among it: as in PyTorch, a gradient follows the setting in force
    when it is computed.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


def _check_same_kind(a: Tensor, a_name: str, b: Tensor, b_name: str) -> None:
    torch._check(
        a.dtype == b.dtype,
        lambda: f"grouped_conv: {a_name} and {b_name} should have the same dtype",
    )
    torch._check(
        a.device == b.device,
        lambda: f"grouped_conv: expected {a_name} and {b_name} to be on the same device",
    )


def _check_output(dy: Tensor, p: ConvProblem) -> None:
    expected = p.output_size
    torch._check(dy.dim() == 4, lambda: "grouped_conv: expected 4-dimensional grad_output")
    for i in range(4):
        torch._check(
            dy.shape[i] == expected[i],
            lambda: (
                f"grouped_conv: expected grad_output of size {list(expected)}, "
                f"but got {list(dy.shape)}"
            ),
        )


def epilogue_refusal(
    x: Tensor,
    output_size: Sequence[int],
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> str | None:
    """Why an epilogue does not fit an output, None if it does; mirrors ``csrc/checks.h``."""
    channels = output_size[-3]
    for t, name in ((scale, "scale"), (shift, "shift")):
        if t is None:
            continue
        if t.dtype not in (x.dtype, torch.float32):
            return f"grouped_conv: expected {name} of the input's dtype or float32"
        if t.device != x.device:
            return f"grouped_conv: expected input and {name} to be on the same device"
        if t.dim() != 1 or t.shape[0] != channels:
            return (
                f"grouped_conv: expected {name} to be 1-dimensional with {channels} elements, "
                f"but got size {list(t.shape)}"
            )
    if residual is None:
        return None
    if residual.dtype != x.dtype:
        return "grouped_conv: input and residual should have the same dtype"
    if residual.device != x.device:
        return "grouped_conv: expected input and residual to be on the same device"
    if tuple(residual.shape) != tuple(output_size):
        return (
            f"grouped_conv: expected residual of the output's size {list(output_size)}, "
            f"but got {list(residual.shape)}"
        )
    return None


@torch.library.register_fake("grouped_conv::triton_fprop_affine")  # type: ignore[untyped-decorator]
@torch.library.register_fake("grouped_conv::fprop_affine")  # type: ignore[untyped-decorator]
def _fprop_affine_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    y: Tensor = _fprop_fake(x, w, bias, stride, padding, dilation, groups)
    refusal = epilogue_refusal(x, y.shape, scale, shift, residual)
    torch._check(refusal is None, lambda: refusal)
    return y


@torch.library.register_fake("grouped_conv::triton_fprop")  # type: ignore[untyped-decorator]
@torch.library.register_fake("grouped_conv::fprop")  # type: ignore[untyped-decorator]
def _fprop_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    p = ConvProblem.checked(x.shape, w.shape, stride, padding, dilation, groups)
    _check_same_kind(x, "input", w, "weight")
    if bias is not None:
        _check_same_kind(x, "input", bias, "bias")
        torch._check(
            bias.dim() == 1 and bias.shape[0] == p.K,
            lambda: (
                f"Given weight of size {list(w.shape)}, expected bias to be 1-dimensional with "
                f"{p.K} elements, but got bias of size {list(bias.shape)} instead"
            ),
        )
    return torch.empty(
        p.output_size,
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format(suggests_channels_last(x)),
    )


@torch.library.register_fake("grouped_conv::triton_dgrad")  # type: ignore[untyped-decorator]
@torch.library.register_fake("grouped_conv::dgrad")  # type: ignore[untyped-decorator]
def _dgrad_fake(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    allow_tf32: bool = False,
) -> Tensor:
    p = ConvProblem.checked(input_size, w.shape, stride, padding, dilation, groups)
    _check_same_kind(dy, "grad_output", w, "weight")
    _check_output(dy, p)
    return torch.empty(
        tuple(input_size),
        dtype=dy.dtype,
        device=dy.device,
        memory_format=memory_format(channels_last),
    )


@torch.library.register_fake("grouped_conv::triton_wgrad")  # type: ignore[untyped-decorator]
@torch.library.register_fake("grouped_conv::wgrad")  # type: ignore[untyped-decorator]
def _wgrad_fake(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    allow_tf32: bool = False,
) -> Tensor:
    p = ConvProblem.checked(x.shape, weight_size, stride, padding, dilation, groups)
    _check_same_kind(dy, "grad_output", x, "input")
    _check_output(dy, p)
    return torch.empty(
        tuple(weight_size),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format(channels_last),
    )


triton_ops.implement(
    {
        "fprop": _fprop_fake,
        "fprop_affine": _fprop_affine_fake,
        "dgrad": _dgrad_fake,
        "wgrad": _wgrad_fake,
    }
)


def _save(ctx: Any, first: Tensor, second: Tensor, *others: Tensor) -> None:
    """Keep each input only for the other's gradient: a frozen layer does not hold its input."""
    need_first, need_second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(first if need_second else None, second if need_first else None, *others)
    ctx.first = (first.shape, suggests_channels_last(first))
    ctx.second = (second.shape, suggests_channels_last(second))


def _setup_fprop(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prepare_fprop(ctx, inputs)


def prepare_fprop(ctx: Any, inputs: tuple[Any, ...], *others: Tensor) -> None:
    """Save what :func:`gradients_of_fprop` wants, and other tensors behind it."""
    x, w, bias, *attributes, _ = inputs
    ctx.attributes = _Attributes(*attributes)
    ctx.has_bias = bias is not None
    _save(ctx, x, w, *others)


def _backward_fprop(ctx: Any, dy: Tensor) -> _Grads:
    return gradients_of_fprop(ctx, dy, *ctx.saved_tensors)


def gradients_of_fprop(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> _Grads:
    """Of all arguments of fprop, in a context that :func:`prepare_fprop` has prepared."""
    a: _Attributes = ctx.attributes
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        size, channels_last = ctx.first
        dx = routing.dgrad(dy, w, size, *a, channels_last)
    if ctx.needs_input_grad[1]:
        size, channels_last = ctx.second
        dw = routing.wgrad(dy, x, size, *a, channels_last)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        db = dy.sum((0, 2, 3))
    return dx, dw, db, None, None, None, None, None


def _per_filter(t: Tensor) -> Tensor:
    """One number for each filter, to be multiplied with a weight."""
    return t[:, None, None, None]


def _setup_fprop_affine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, bias, scale, shift, _, relu, *attributes, _ = inputs
    ctx.attributes = _Attributes(*attributes)
    need_x, need_w, need_bias, need_scale = ctx.needs_input_grad[:4]
    ctx.save_for_backward(
        x if need_w or need_scale else None,
        w if need_x or need_scale else None,
        bias if need_scale else None,
        scale if need_x or need_w or need_bias else None,
        output if relu else None,
    )
    ctx.x = (x.shape, suggests_channels_last(x))
    ctx.w = (w.shape, suggests_channels_last(w))
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, scale, shift)]


def _backward_fprop_affine(ctx: Any, dy: Tensor) -> _Grads:
    x, w, bias, scale, y = ctx.saved_tensors
    a: _Attributes = ctx.attributes
    need_x, need_w, need_bias, need_scale, need_shift, need_residual = ctx.needs_input_grad[:6]
    # The gradient in front of the relu: it passes where the output is positive, or NaN.
    g = dy if y is None else torch.ops.aten.threshold_backward(dy, y, 0)
    dx = dw = dbias = dscale = dshift = None
    if need_x:
        scaled = w if scale is None else (w * _per_filter(scale)).to(w.dtype)
        size, channels_last = ctx.x
        dx = routing.dgrad(g, scaled, size, *a, channels_last)
    # Sums are kept in float32 or better until the end.
    wide = torch.promote_types(dy.dtype, torch.float32)
    bias_dtype, scale_dtype, shift_dtype = ctx.dtypes
    if need_bias or need_shift or (need_scale and bias is not None):
        sums = g.sum((0, 2, 3), dtype=wide)
        if need_bias:
            dbias = (sums if scale is None else sums * scale).to(bias_dtype)
        if need_shift:
            dshift = sums.to(shift_dtype)
    if need_w or need_scale:
        size, channels_last = ctx.w
        unscaled = routing.wgrad(g, x, size, *a, channels_last)
        if need_w:
            dw = unscaled
            if scale is not None:
                dw = (unscaled * _per_filter(scale)).to(unscaled.dtype)
        if need_scale:
            products = (unscaled.to(wide) * w).sum((1, 2, 3))
            dscale = (products if bias is None else products + sums * bias).to(scale_dtype)
    dresidual = g if need_residual else None
    return dx, dw, dbias, dscale, dshift, dresidual, *(None,) * 6


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, w, _, *attributes, _, _ = inputs
    ctx.attributes = _Attributes(*attributes)
    _save(ctx, dy, w)


def _backward_dgrad(ctx: Any, ddx: Tensor) -> _Grads:
    dy, w = ctx.saved_tensors
    a: _Attributes = ctx.attributes
    d_dy = d_w = None
    if ctx.needs_input_grad[0]:
        d_dy = routing.fprop(ddx, w, None, *a)
    if ctx.needs_input_grad[1]:
        size, channels_last = ctx.second
        d_w = routing.wgrad(dy, ddx, size, *a, channels_last)
    return d_dy, d_w, *(None,) * 7


def _setup_wgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, _, *attributes, _, _ = inputs
    ctx.attributes = _Attributes(*attributes)
    _save(ctx, dy, x)


def _backward_wgrad(ctx: Any, ddw: Tensor) -> _Grads:
    dy, x = ctx.saved_tensors
    a: _Attributes = ctx.attributes
    d_dy = d_x = None
    if ctx.needs_input_grad[0]:
        d_dy = routing.fprop(x, ddw, None, *a)
    if ctx.needs_input_grad[1]:
        size, channels_last = ctx.second
        d_x = routing.dgrad(dy, ddw, size, *a, channels_last)
    return d_dy, d_x, *(None,) * 7


for _name, _setup, _backward in (
    ("fprop", _setup_fprop, _backward_fprop),
    ("fprop_affine", _setup_fprop_affine, _backward_fprop_affine),
    ("dgrad", _setup_dgrad, _backward_dgrad),
    ("wgrad", _setup_wgrad, _backward_wgrad),
):
    for _op in (_name, f"triton_{_name}"):
        torch.library.register_autograd(f"grouped_conv::{_op}", _backward, setup_context=_setup)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast, if it is on for a device, gives to convolutions."""
    if not torch.amp.is_autocast_available(device_type):
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def cast(t: Tensor | None, dtype: torch.dtype, device_type: str) -> Tensor | None:
    """t as autocast would cast it: floating point, on the device, and not float64."""
    if t is None or t.device.type != device_type:
        return t
    if not t.dtype.is_floating_point or t.dtype in (torch.float64, dtype):
        return t
    return t.to(dtype)


def _autocast_rule(name: str, device_type: str) -> Callable[..., Tensor]:
    """The kernel of one op for an Autocast dispatch key: cast, then below autocast."""
    op = getattr(torch.ops.grouped_conv, name).default
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    exclude = torch._C.DispatchKeySet(key)
    # Per-channel factors are applied to float32 sums: they stay as precise as those.
    wide = [i for i, a in enumerate(op._schema.arguments) if a.name in ("scale", "shift")]

    def rule(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        cast_args = [
            cast(a, torch.float32 if i in wide else dtype, device_type)
            if isinstance(a, Tensor)
            else a
            for i, a in enumerate(args)
        ]
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            out: Tensor = op(*cast_args)
            return out

    return rule


def compose_epilogue(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    in_place: bool,
) -> Tensor:
    """The epilogue of ``fprop_affine`` in steps that are each rounded to y's dtype."""
    out = y if in_place else None
    if scale is not None:
        y = torch.mul(y, scale[:, None, None], out=out).to(y.dtype)
    if shift is not None:
        y = torch.add(y, shift[:, None, None], out=out).to(y.dtype)
    if residual is not None:
        y = torch.add(y, residual, out=out)
    if relu:
        y = y.relu_() if in_place else y.relu()
    return y


_library = torch.library.Library("grouped_conv", "IMPL")
for _device in ("cpu", "cuda"):
    for _name in ("fprop", "fprop_affine", "fprop_stats", "dgrad", "wgrad"):
        _library.impl(_name, _autocast_rule(_name, _device), f"Autocast{_device.upper()}")
    for _name in ("triton_fprop", "triton_fprop_affine", "triton_dgrad", "triton_wgrad"):
        _library.impl(_name, _autocast_rule(_name, _device), f"Autocast{_device.upper()}")
