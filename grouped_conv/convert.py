"""Swapping :class:`GroupedConv2d` into models that were written with nn.Conv2d."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

from grouped_conv.backends import Query
from grouped_conv.modules import GroupedConv2d, GroupedConvReLU2d
from grouped_conv.report import Entry, Report
from grouped_conv.routing import PassDecision, decide_query


def decision_of(layer: nn.Conv2d, dtype: torch.dtype, device: str) -> PassDecision:
    return decide_query(
        Query(
            "fprop",
            dtype,
            device,
            False,
            layer.groups,
            layer.in_channels // layer.groups,
            layer.out_channels // layer.groups,
            (layer.kernel_size[0], layer.kernel_size[1]),
            (layer.stride[0], layer.stride[1]),
            (0, 0) if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
            (layer.dilation[0], layer.dilation[1]),
        ),
        "auto",
    )


def _refusal(layer: nn.Conv2d) -> str | None:
    """Why no kernel of ours takes a layer's geometry in any dtype, None if one does.

    dtype and device may change after the swap, the geometry does not.
    """
    decision = decision_of(layer, torch.float32, "cpu")
    return decision.reason if decision.backend == "aten" else None


def _foreign(layer: nn.Conv2d) -> str:
    """Why a subclass of nn.Conv2d keeps its class."""
    if isinstance(layer, nn.LazyConv2d):
        return "it is lazy, and knows its channels only after a first input"
    if parametrize.is_parametrized(layer):
        return "it is parametrized, which made a class for it alone; replace it before that"
    return f"{type(layer).__name__} is a class of its own"


def replace_grouped_conv_(
    model: nn.Module, *, filter_fn: Callable[[str, nn.Conv2d], bool] | None = None
) -> Report:
    """Turn each grouped nn.Conv2d of a model that our kernels take into a GroupedConv2d, in place.

    The layer object stays: it changes its class. Parameters, optimizers that hold them, hooks,
    buffers, names and train or eval state are therefore kept. Subclasses of nn.Conv2d are left
    alone, and so are layers that went to ATen in any case.

    Args:
        model: searched with all its submodules; may itself be the layer.
        filter_fn: called with the name and the layer; False leaves it alone.

    Returns:
        One entry per grouped convolution: who takes it, or why it was left alone.
    """
    entries = []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
            continue
        if isinstance(layer, GroupedConv2d):
            entries.append(Entry(name, False, reason="it is a GroupedConv2d already"))
        elif type(layer) is not nn.Conv2d:
            entries.append(Entry(name, False, reason=_foreign(layer)))
        elif filter_fn is not None and not filter_fn(name, layer):
            entries.append(Entry(name, False, reason="filter_fn said no"))
        elif reason := _refusal(layer):
            entries.append(Entry(name, False, reason=reason))
        else:
            decision = decision_of(layer, layer.weight.dtype, layer.weight.device.type)
            layer.__class__ = GroupedConv2d
            entries.append(Entry(name, True, decision.backend, decision.kernel))
    return Report(entries)


def revert_grouped_conv_(model: nn.Module) -> Report:
    """Turn each GroupedConv2d of a model into the nn.Conv2d that it was or could have been.

    The inverse of :func:`replace_grouped_conv_`, and as there the layer object stays. A layer into
    which :func:`fuse_grouped_conv_bn_` fused a relu stays what it is: nn.Conv2d has none.

    Args:
        model: searched with all its submodules; may itself be the layer.

    Returns:
        One entry per layer of ours: reverted, or why it was left alone.
    """
    entries = []
    for name, layer in model.named_modules():
        if not isinstance(layer, GroupedConv2d):
            continue
        if type(layer) is GroupedConv2d:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]
            entries.append(Entry(name, True, detail="nn.Conv2d again"))
        elif type(layer) is GroupedConvReLU2d:
            entries.append(Entry(name, False, reason="a relu was fused into it"))
        else:
            entries.append(Entry(name, False, reason=_foreign(layer)))
    return Report(entries, "layers reverted")
