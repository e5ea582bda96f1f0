"""A convolution and the batch normalization behind it, computed together."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.overrides import has_torch_function

from grouped_conv import sharding
from grouped_conv import statistics as statistics  # registers the ops
from grouped_conv.backends import native
from grouped_conv.dataflow import has_hooks
from grouped_conv.functional import fold_batch_norm, grouped_conv2d_affine
from grouped_conv.modules import GroupedConv2d
from grouped_conv.request import Request, parse
from grouped_conv.routing import call

_OPS = torch.ops.grouped_conv


def conv_batch_norm(input: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(conv(input))``, with fewer passes over the convolution's output.

    In training the statistics of an :class:`torch.nn.BatchNorm2d` come from the kernel of the
    convolution, which has its output at hand: one read less. They are those of the output as it was
    rounded, in float32, and exact for any ratio of mean and deviation (``grouped_conv.statistics``
    says how). In evaluation the normalization is the kernel's epilogue: no pass at all, and one
    rounding instead of two. That is not always faster: docs/performance-notes.md has measurements.
    Parameters, buffers, gradients of any order, momentum None and all else
    are as of the two modules called one after the other.

    The two modules are called wherever the native backend does not compute the convolution
    (:func:`grouped_conv.explain` says so), on a GPU for NCHW tensors, where the modules are of
    other classes, ``nn.Conv2d`` among them, or have hooks, and where the tensors are transformed,
    exported or distributed.

    Args:
        input: ``[N, C, H, W]``, any floating dtype and layout.
        conv: a :class:`GroupedConv2d`.
        norm: an :class:`torch.nn.BatchNorm2d` of the convolution's channels.

    Returns:
        ``[N, K, P, Q]``, dtype and memory format of the convolution's output.

    Raises:
        TypeError: norm is a SyncBatchNorm, whose statistics are of several processes.
        What conv and norm raise.
    """
    if isinstance(norm, nn.SyncBatchNorm):
        raise TypeError(
            "SyncBatchNorm takes its statistics from several processes, a convolution's are of one:"
            " call the two modules one after the other"
        )
    request = _joined(input, conv, norm)
    if request is None:
        out: Tensor = norm(conv(input))
        return out
    # _joined() has looked at the classes.
    batch_norm = cast(nn.BatchNorm2d, norm)
    if batch_norm.training or batch_norm.running_mean is None or batch_norm.running_var is None:
        return _training(request, batch_norm)
    scale, shift = fold_batch_norm(
        batch_norm.running_mean,
        batch_norm.running_var,
        batch_norm.weight,
        batch_norm.bias,
        batch_norm.eps,
    )
    r = request
    return grouped_conv2d_affine(
        *(r.input, r.weight, r.bias, scale, shift),
        stride=r.stride,
        padding=r.padding,
        dilation=r.dilation,
        groups=r.groups,
    )


def _joined(x: Any, conv: nn.Module, norm: nn.Module) -> Request | None:
    """The convolution as our ops take it, None where the modules are to be called."""
    if type(conv) is not GroupedConv2d or type(norm) is not nn.BatchNorm2d:
        return None
    if has_hooks(conv) or has_hooks(norm) or norm.num_features != conv.out_channels:
        return None
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[0] == 0:
        return None
    parameters = (conv.weight, conv.bias, norm.weight, norm.bias)
    if has_torch_function((x, *(p for p in parameters if p is not None))):
        return None
    if sharding.meets_dtensor(x, conv.weight):
        return None
    padding = conv.padding
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding = (0, 0)
    request = parse(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    if isinstance(request, str):
        return None
    if request.decide("fprop").backend != "native":
        return None
    if not native.takes_statistics(request.query("fprop")):
        return None
    p, wide = request.problem, torch.promote_types(request.input.dtype, torch.float32)
    if norm.training or norm.running_var is None:
        return request if p.N * p.P * p.Q > 1 else None  # that is an error of the normalization
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    fits = all(t is None or torch.promote_types(t.dtype, wide) == wide for t in statistics)
    return request if fits else None


def _training(r: Request, norm: nn.BatchNorm2d) -> Tensor:
    y, total, squares = call(
        _OPS.fprop_stats.default,
        *(r.input, r.weight, r.bias, r.stride, r.padding, r.dilation, r.groups),
        r.query("fprop").allow_tf32,
    )
    if norm.training and norm.track_running_stats:
        _update_running_statistics(norm, total, squares, r.problem.N * r.problem.P * r.problem.Q)
    out: Tensor = call(_OPS.normalize.default, y, total, squares, norm.weight, norm.bias, norm.eps)
    return out


@torch.no_grad()
def _update_running_statistics(
    norm: nn.BatchNorm2d, total: Tensor, squares: Tensor, count: int
) -> None:
    """As nn.BatchNorm2d does; without momentum they are means over all batches."""
    share: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            share = 1.0 / norm.num_batches_tracked.to(total.dtype)
    for running, new in (
        (norm.running_mean, total / count),
        (norm.running_var, squares / (count - 1)),
    ):
        if running is not None:
            weight = share.to(running.dtype) if isinstance(share, Tensor) else share
            running.lerp_(new.to(running.dtype), weight)


class GroupedConvBN2d(nn.Sequential):
    """A convolution and its :class:`torch.nn.BatchNorm2d` by :func:`conv_batch_norm`.

    Takes the place of ``nn.Sequential(conv, norm)``: same parameters, buffers, state_dict, results,
    gradients and running statistics. Maps ``[N, C, H, W]`` to ``[N, K, P, Q]``, in any floating
    dtype and memory format.

    Args:
        conv: a :class:`GroupedConv2d`; any other Conv2d is called as it is.
        norm: an :class:`torch.nn.BatchNorm2d` of as many channels.

    Raises:
        TypeError: conv or norm is of another kind; a SyncBatchNorm is, and so is what
            ``convert_sync_batchnorm`` makes of this module, when it is called.
        ValueError: the numbers of channels differ.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(
                "expected a Conv2d and a BatchNorm2d, but got "
                f"{type(conv).__name__} and {type(norm).__name__}"
            )
        if conv.out_channels != norm.num_features:
            raise ValueError(
                f"the convolution has {conv.out_channels} output channels, the normalization "
                f"{norm.num_features}"
            )
        super().__init__(conv, norm)

    def forward(self, input: Tensor) -> Tensor:
        if is_scripting():
            out: Tensor = self[1](self[0](input))
            return out
        return conv_batch_norm(input, self[0], self[1])
