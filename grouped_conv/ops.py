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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv import routing
from grouped_conv.problem import ConvProblem
from grouped_conv.routing import memory_format, suggests_channels_last

_Grads = tuple[Tensor | None, ...]


class _Attributes(NamedTuple):
    """What the three passes of one convolution have in common."""

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


@torch.library.register_fake("grouped_conv::fprop")  # type: ignore[untyped-decorator]
def _fprop_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
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


def _save(ctx: Any, first: Tensor, second: Tensor) -> None:
    """Keep each input only for the other's gradient: a frozen layer does not hold its input."""
    need_first, need_second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(first if need_second else None, second if need_first else None)
    ctx.first = (first.shape, suggests_channels_last(first))
    ctx.second = (second.shape, suggests_channels_last(second))


def _setup_fprop(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, bias, *attributes = inputs
    ctx.attributes = _Attributes(*attributes)
    ctx.has_bias = bias is not None
    _save(ctx, x, w)


def _backward_fprop(ctx: Any, dy: Tensor) -> _Grads:
    x, w = ctx.saved_tensors
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
    return dx, dw, db, None, None, None, None


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, w, _, *attributes, _ = inputs
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
    return d_dy, d_w, None, None, None, None, None, None


def _setup_wgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, _, *attributes, _ = inputs
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
    return d_dy, d_x, None, None, None, None, None, None


for _name, _setup, _backward in (
    ("fprop", _setup_fprop, _backward_fprop),
    ("dgrad", _setup_dgrad, _backward_dgrad),
    ("wgrad", _setup_wgrad, _backward_wgrad),
):
    torch.library.register_autograd(f"grouped_conv::{_name}", _backward, setup_context=_setup)


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

    def rule(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        cast_args = [cast(a, dtype, device_type) if isinstance(a, Tensor) else a for a in args]
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            out: Tensor = op(*cast_args)
            return out

    return rule


_library = torch.library.Library("grouped_conv", "IMPL")
for _device in ("cpu", "cuda"):
    for _name in ("fprop", "dgrad", "wgrad"):
        _library.impl(_name, _autocast_rule(_name, _device), f"Autocast{_device.upper()}")
