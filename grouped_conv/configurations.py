"""Configurations of the row-streaming CUDA kernels: several can compute some passes, and a
measurement may prefer another one than ``csrc/cuda/heuristics.h`` would choose."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from grouped_conv import _C, _libraries
from grouped_conv.backends import Query, dtype_name
from grouped_conv.problem import PASSES


def extents(query: Query, image: Sequence[int]) -> list[int]:
    """Of the query's problem with N, H and W of x, in the order of ``ConvProblem::make``."""
    q, (n, h, w) = query, image
    channels = (q.groups * q.c_per_group, q.groups * q.k_per_group)
    sizes = [n, channels[0], h, w, channels[1], *q.kernel_size, q.groups]
    return [*sizes, *q.padding, *q.stride, *q.dilation]


def candidates(query: Query, image: Sequence[int]) -> list[str]:
    """Names of the configurations among which there is a choice; none where there is not."""
    e = extents(query, image)
    if (
        query.device != "cuda"
        or not query.channels_last
        or _libraries.cuda_absent_reason() is not None
        or _C.rowstream_refusal(query.pass_name, e, dtype_name(query.dtype)) is not None
    ):
        return []
    names = [kernel["name"] for kernel in _C.cuda_kernels() if query.pass_name in kernel["passes"]]
    able = [n for n in names if _C.plan_fast(query.pass_name, e, 1, preferred=n)["name"] == n]
    return able if len(able) > 1 else []


def prefer(device: torch.device, query: Query, image: Sequence[int], name: str) -> None:
    """Let a configuration compute a pass of this problem from now on; an empty name: the choice of
    the heuristics."""
    library = ctypes.CDLL(str(_libraries.CUDA_LIBRARY))  # loaded already
    has_index = device != torch.device(device.type)
    index = device.index if has_index else torch.cuda.current_device()
    e = extents(query, image)
    array = (ctypes.c_int64 * len(e))(*e)
    library.grouped_conv_prefer(index, PASSES.index(query.pass_name), array, name.encode())
