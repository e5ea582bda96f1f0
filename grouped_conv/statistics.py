"""What PyTorch must know of ``fprop_stats`` and ``normalize``: fakes, gradients, kernels.

A batch normalization in training reads its input twice, for the statistics and to normalize it.
``fprop_stats`` takes them while the convolution's output is at hand, and ``normalize`` is what is
left to do. Together they are ``batch_norm(fprop(x, w, bias), training=True)``.

The statistics are the sum and the sum of the squared deviations from the mean. E[y²] − E[y]² in
float32 would lose the variance where the mean is a few hundred times the deviation; here every part
of y, a row or what a block of threads computes, takes its deviations from a pixel of its own, and
the parts are combined by their means and deviations. The error of the variance is a few units of
float32 for any mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv import ops, routing

_OPS = torch.ops.grouped_conv


@torch.library.register_fake("grouped_conv::fprop_stats")  # type: ignore[untyped-decorator]
def _fprop_stats_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    y: Tensor = _OPS.fprop.default(x, w, bias, stride, padding, dilation, groups)
    wide = torch.promote_types(y.dtype, torch.float32)
    return y, y.new_empty(y.shape[1], dtype=wide), y.new_empty(y.shape[1], dtype=wide)


def _setup_fprop_stats(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    # y is what a normalization behind keeps too.
    ops.prepare_fprop(ctx, inputs, *output[:2])


def _backward_fprop_stats(
    ctx: Any, dy: Tensor | None, dsum: Tensor | None, dsquares: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, w, y, total = ctx.saved_tensors
    if dsum is not None:
        dy = _plus(dy, dsum[:, None, None], y)
    if dsquares is not None:
        mean = total / (y.numel() // y.shape[1])
        dy = _plus(dy, 2 * dsquares[:, None, None] * (y - mean[:, None, None]), y)
    if dy is None:
        return (None,) * 8
    return ops.gradients_of_fprop(ctx, dy, x, w)


def _plus(dy: Tensor | None, more: Tensor, y: Tensor) -> Tensor:
    return (more.expand_as(y) if dy is None else dy + more).to(y.dtype)


def _count(y: Tensor) -> int:
    """Pixels of a channel."""
    n, _, h, w = y.shape
    return n * h * w


def _wide(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _normalize(
    y: Tensor,
    total: Tensor,
    squares: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    count = _count(y)
    scale, shift = _wide(weight, total.dtype), _wide(bias, total.dtype)
    return torch.nn.functional.batch_norm(
        y, total / count, squares / count, scale, shift, False, 0.0, eps
    )


@torch.library.register_fake("grouped_conv::normalize")  # type: ignore[untyped-decorator]
def _normalize_fake(y: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(
        y, memory_format=routing.memory_format(routing.suggests_channels_last(y))
    )


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, total, squares, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(y, total, squares, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward_normalize(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    """Of a normalization by statistics of y itself: what y does to them is in its own gradient.

    So the statistics get none, and must not carry one into a second differentiation either.
    """
    y, total, squares, weight = ctx.saved_tensors
    need_y, _, _, need_weight, need_bias = ctx.needs_input_grad[:5]
    count = _count(y)
    mean = total.detach() / count
    invstd = torch.rsqrt(squares.detach() / count + ctx.eps)
    dy, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dout,
        y,
        _wide(weight, total.dtype),
        None,
        None,
        mean,
        invstd,
        True,
        ctx.eps,
        [need_y, need_weight, need_bias],
    )
    return (
        dy if need_y else None,
        None,
        None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(ctx.bias_dtype) if need_bias else None,
        None,
    )


torch.library.register_autograd(
    "grouped_conv::fprop_stats", _backward_fprop_stats, setup_context=_setup_fprop_stats
)
torch.library.register_autograd(
    "grouped_conv::normalize", _backward_normalize, setup_context=_setup_normalize
)
_library = torch.library.Library("grouped_conv", "IMPL")
_library.impl("normalize", _normalize, "CompositeExplicitAutograd")
