"""The ordered list of backends: who may compute a pass, and why not.

A backend is a module with

* ``NAME``
* ``unavailable() -> str | None``: why it cannot run in this process, None if it can
* ``supports(query) -> str | None``: why it cannot compute a pass, None if it can
* ``prefers(query) -> str | None``: why a later backend computes a pass that it supports faster,
  None if it is the right choice
* ``kernel(query) -> str``: the name of the kernel that would run
* ``epilogue(query) -> str`` and ``statistics(query) -> str``: where fprop's epilogue, and the
  statistics of its output, are computed: ``IN_KERNEL`` or ``OWN_PASS``
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from grouped_conv.problem import ConvProblem, Pass

ORDER: tuple[str, ...] = ("native", "triton", "aten")
"""Backends in the order in which they are asked."""

IN_KERNEL = "in the kernel"
OWN_PASS = "in a pass of its own"


class Query(NamedTuple):
    """What a choice of backend may depend on.

    Deliberately without batch size, height and width: a compiled model keeps one choice for all of
    them.
    """

    pass_name: Pass
    dtype: torch.dtype
    device: str
    channels_last: bool
    groups: int
    c_per_group: int
    k_per_group: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        pass_name: Pass,
        problem: ConvProblem,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
    ) -> Query:
        """The query of one pass over tensors of one dtype, device and memory format."""
        p = problem
        return cls(
            pass_name,
            dtype,
            device.type,
            channels_last,
            p.G,
            p.c_per_group,
            p.k_per_group,
            (p.R, p.S),
            p.stride,
            p.padding,
            p.dilation,
        )


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
