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

from typing import Any, NamedTuple

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
    allow_tf32: bool = False
    """Of float32 on a GPU: whether factors may be cut to TF32."""

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
            allows_tf32(dtype, device.type),
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _convolutions_allow_tf32() -> bool:
    """PyTorch's setting for convolutions, which the compiler cannot trace.

    ``torch.backends.cudnn.conv.fp32_precision`` and what it inherits from, which
    ``torch.backends.cudnn.allow_tf32`` sets, too. A compiled function keeps what it was compiled
    with.
    """
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(conv.fp32_precision == "tf32")


def allows_tf32(dtype: torch.dtype, device: str) -> bool:
    """Whether a call may cut its factors to TF32, as PyTorch's own convolutions would now."""
    return dtype is torch.float32 and device == "cuda" and _convolutions_allow_tf32()


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
