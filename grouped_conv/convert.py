"""Swapping :class:`GroupedConv2d` into models that were written with nn.Conv2d."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import nn

from grouped_conv.backends import Query
from grouped_conv.modules import GroupedConv2d
from grouped_conv.routing import PassDecision, decide_query


@dataclass(frozen=True)
class Entry:
    """What became of one layer."""

    name: str
    """Qualified name in the model, empty for the model itself."""
    replaced: bool
    backend: str = ""
    kernel: str = ""
    """Who takes the layer in its present dtype and device, NCHW; explain() tells about others."""
    reason: str = ""
    """Why it was left alone."""

    def __str__(self) -> str:
        name = self.name or "(the model)"
        if self.replaced:
            return f"{name}: {self.backend}, {self.kernel}"
        return f"{name}: left alone, {self.reason}"


class Report(Sequence[Entry]):
    """One entry for each grouped nn.Conv2d of a model; prints as a list."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Report({self._entries!r})"

    def __str__(self) -> str:
        count = sum(entry.replaced for entry in self._entries)
        head = f"{count} of {len(self)} grouped convolutions replaced"
        return "\n".join([head, *(f"  {entry}" for entry in self._entries)])


def _decision(layer: nn.Conv2d, dtype: torch.dtype, device: str) -> PassDecision:
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
    decision = _decision(layer, torch.float32, "cpu")
    return decision.reason if decision.backend == "aten" else None


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
            kind = type(layer).__name__
            entries.append(Entry(name, False, reason=f"{kind} is a class of its own"))
        elif filter_fn is not None and not filter_fn(name, layer):
            entries.append(Entry(name, False, reason="filter_fn said no"))
        elif reason := _refusal(layer):
            entries.append(Entry(name, False, reason=reason))
        else:
            decision = _decision(layer, layer.weight.dtype, layer.weight.device.type)
            layer.__class__ = GroupedConv2d
            entries.append(Entry(name, True, decision.backend, decision.kernel))
    return Report(entries)
