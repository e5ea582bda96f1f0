"""The compiled C++ kernels: CPU (SIMD, chosen at run time) and CUDA."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch

from grouped_conv import _C, _libraries
from grouped_conv.backends import IN_KERNEL, OWN_PASS, Query, dtype_name
from grouped_conv.problem import Pass

NAME = "native"

ISA_VARIABLE = "GROUPED_CONV_CPU_ISA"
ISAS = ("avx512bf16", "avx512", "avx2", "portable")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DIRECT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWSTREAM_DTYPES = (torch.float16, torch.bfloat16)
_ROWSTREAM_CHANNELS = (4, 8, 16, 32, 64)

CUDA_VARIABLE = "GROUPED_CONV_CUDA_AUTO"
"""Set to 1, CUDA kernels are chosen automatically, before they were measured."""

Unsuited = Callable[[int], bool]


def _above(largest: int) -> Unsuited:
    return lambda channels: channels > largest


def _blocks(size: int, least: int) -> Unsuited:
    """Multiples of ``size``, which is how oneDNN blocks channels, from ``least`` on."""
    return lambda channels: channels >= least and channels % size == 0


def _either(*rules: Unsuited) -> Unsuited:
    return lambda channels: any(rule(channels) for rule in rules)


def _half_filled(channels: int) -> bool:
    """Between one vector of channels and two."""
    return 16 < channels < 32


# Channels per group, in and out alike, with which oneDNN was measured to be the faster one in a
# pass, with a dtype, in channels_last or not, at a stride: see docs/performance-notes.md.
_FASTER_IN_ATEN: dict[tuple[Pass, torch.dtype, bool, int], Unsuited] = {
    ("fprop", torch.float32, True, 2): _above(64),
    ("fprop", torch.bfloat16, True, 1): _above(120),
    ("fprop", torch.bfloat16, True, 2): _above(72),
    ("fprop", torch.bfloat16, False, 1): _half_filled,
    ("dgrad", torch.float32, True, 2): _above(168),
    ("dgrad", torch.bfloat16, True, 1): _above(120),
    ("dgrad", torch.bfloat16, True, 2): _above(120),
    ("dgrad", torch.bfloat16, False, 1): _either(_half_filled, _blocks(128, 128)),
    ("wgrad", torch.float32, False, 2): _either(_blocks(16, 64), _above(112)),
    ("wgrad", torch.bfloat16, True, 1): _above(112),
    ("wgrad", torch.bfloat16, True, 2): _above(72),
    ("wgrad", torch.bfloat16, False, 1): _above(120),
    ("wgrad", torch.bfloat16, False, 2): _above(72),
}

if (_cap := os.environ.get(ISA_VARIABLE)) is not None and _cap not in ISAS:
    warnings.warn(
        f"{ISA_VARIABLE}={_cap!r} is not one of {', '.join(ISAS)}; it is ignored", stacklevel=2
    )

_ISA = _C.cpu_isa()
_CUDA_AUTO = os.environ.get(CUDA_VARIABLE) == "1"


def unavailable() -> str | None:
    return None


def supports(query: Query) -> str | None:
    if query.device == "cuda":
        if reason := _libraries.cuda_absent_reason():
            return reason
    elif query.device != "cpu":
        return f"there are no kernels for device {query.device}"
    if query.dtype not in _DTYPES:
        return f"there are no kernels for {dtype_name(query.dtype)}"
    return None


def _no_direct(query: Query) -> str | None:
    """Why the direct CPU kernels do not take a problem; mirrors ``direct_refusal`` in C++."""
    if query.dtype not in _DIRECT_DTYPES:
        return "the direct kernels compute in float32"
    if query.kernel_size != (3, 3):
        return "the direct kernels are for 3x3 filters"
    if query.dilation != (1, 1):
        return "the direct kernels are for dilation 1"
    if query.stride not in ((1, 1), (2, 2)):
        return "the direct kernels are for strides 1 and 2, equal in both directions"
    return None


def _no_rowstream(query: Query) -> str | None:
    """Why the row-streaming CUDA kernels do not take a pass.

    Mirrors ``rowstream_refusal`` in C++, as far as it does not depend on batch and image.
    """
    if query.dtype not in _ROWSTREAM_DTYPES:
        return "the row-streaming kernels compute in 16 bits"
    if query.kernel_size != (3, 3):
        return "the row-streaming kernels are for 3x3 filters"
    if query.dilation != (1, 1):
        return "the row-streaming kernels are for dilation 1"
    if query.stride not in ((1, 1), (2, 2)):
        return "the row-streaming kernels are for strides 1 and 2, equal in both directions"
    if max(query.padding) > 2:
        return "the row-streaming kernels are for paddings up to 2"
    if query.c_per_group != query.k_per_group or query.c_per_group not in _ROWSTREAM_CHANNELS:
        return (
            "the row-streaming kernels are for 4, 8, 16, 32 or 64 channels per group, in and out "
            "alike"
        )
    if query.groups * query.c_per_group % 8:
        return "the row-streaming kernels are for a multiple of 8 channels"
    return None


def _no_tiled(query: Query) -> str | None:
    """Why the tiled CUDA kernels do not take a pass.

    Mirrors ``tiled_refusal`` in C++, as far as it does not depend on batch and image.
    """
    if query.dtype is torch.float64:
        return "the tiled kernels do not compute in float64"
    return None


# Channels per group between which a product is neither mostly padding nor nearly a dense one.
_FEWEST_CHANNELS, _DENSE_CHANNELS = 4, 128


def _faster_in_cudnn(query: Query) -> str | None:
    """Why cuDNN is expected to be as fast as the tiled kernels; a model, not a measurement."""
    if query.dtype is torch.float32 and not query.allow_tf32:
        return "float32 without TF32 runs on FMA units, which cuDNN keeps as busy"
    channels = min(query.c_per_group, query.k_per_group)
    if channels < _FEWEST_CHANNELS:
        return f"fewer than {_FEWEST_CHANNELS} channels per group leave most of a tile empty"
    if channels >= _DENSE_CHANNELS:
        return (
            f"{_DENSE_CHANNELS} channels per group and more are nearly a dense convolution, whose "
            "limit is arithmetic and which cuDNN does well"
        )
    return None


def takes_statistics(query: Query) -> bool:
    """Whether fprop finds the statistics of its output on the way, without reading it again."""
    return query.device == "cpu" or (_no_rowstream(query) is None and query.channels_last)


def epilogue(query: Query) -> str:
    planar = query.device == "cuda" and _no_rowstream(query) is None and not query.channels_last
    return OWN_PASS if planar else IN_KERNEL


def statistics(query: Query) -> str:
    in_kernel = takes_statistics(query) and query.dtype is not torch.float64
    return IN_KERNEL if in_kernel else OWN_PASS


def _uses_winograd(query: Query) -> bool:
    """Whether a direct kernel uses Winograd's algorithm; mirrors ``uses_winograd`` in C++.

    But for a weight gradient that sums few pixels, which a query does not know.
    """
    return (
        query.stride == (1, 1)
        and min(query.c_per_group, query.k_per_group) >= 16
        and not (query.dtype is torch.bfloat16 and _ISA == "avx512bf16")
    )


def prefers(query: Query) -> str | None:
    if query.groups == 1:
        return "one group is a dense convolution, which ATen does well"
    if query.device == "cuda":
        family = "row-streaming"
        if reason := _no_rowstream(query):
            if other := _no_tiled(query):
                return f"{reason}; {other}; cuDNN is faster than plain loops"
            if slower := _faster_in_cudnn(query):
                return f"{reason}; {slower}"
            family = "tiled"
        if not _CUDA_AUTO:
            return (
                f"the {family} kernels have not been measured against cuDNN on a GPU yet "
                f"({CUDA_VARIABLE}=1 lets them be chosen)"
            )
        return None
    if reason := _no_direct(query):
        return f"{reason}, ATen is faster than plain loops"
    return _faster_in_aten(query)


def _slower_where_channels_differ(query: Query) -> bool:
    """As many channels in as out per group are what the kernels are tuned for."""
    fewest, bfloat16 = min(query.c_per_group, query.k_per_group), query.dtype is torch.bfloat16
    if fewest < 2:
        return True
    if query.pass_name == "wgrad":
        return query.channels_last and not bfloat16 and not _uses_winograd(query)
    if query.channels_last:
        return True
    return 4 <= fewest < 16 if query.pass_name == "dgrad" else bfloat16 and 4 <= fewest < 8


def _faster_in_aten(query: Query) -> str | None:
    """Why ATen computes a pass faster than the direct CPU kernels, by measurement."""
    if query.dtype is torch.float16:  # for which oneDNN has no kernels and ATen has plain loops
        return None
    channels = query.c_per_group, query.k_per_group
    stride = query.stride[0]
    if channels[0] != channels[1]:
        slower = _slower_where_channels_differ(query)
    elif channels[0] < 6 and channels[0] not in (2, 4):
        slower = query.channels_last or channels[0] == 1  # most lanes of a vector stay idle
    else:
        key = (query.pass_name, query.dtype, query.channels_last, stride)
        slower = key in _FASTER_IN_ATEN and _FASTER_IN_ATEN[key](channels[0])
    if not slower:
        return None
    layout = "channels_last" if query.channels_last else "NCHW"
    return (
        f"{channels[0]} channels in and {channels[1]} out per group: ATen was measured to be as "
        f"fast or faster in {query.pass_name} of {dtype_name(query.dtype)} in {layout} at stride "
        f"{stride}"
    )


def kernel(query: Query) -> str:
    dtype = dtype_name(query.dtype)
    if query.device == "cuda":
        algorithm = "rowstream" if query.channels_last else "nchw"
        if _no_rowstream(query):
            algorithm = "simple" if _no_tiled(query) else "tiled"
        if algorithm == "tiled" and query.allow_tf32:
            dtype = "tf32"
        return f"{query.pass_name}_{algorithm}_{dtype}_cuda"
    if _no_direct(query) is None:
        algorithm = "winograd" if _uses_winograd(query) else "direct"
        return f"{query.pass_name}_{algorithm}_{dtype}_{_ISA}"
    return f"{query.pass_name}_simple_{dtype}"
