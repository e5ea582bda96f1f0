"""Triton kernels on NVIDIA GPUs: from a problem to launches.

The operators ``grouped_conv::triton_*`` have the schemas of the compiled ones, and the same fakes
and gradients (``grouped_conv/ops.py``). They are custom operators and not ``triton_op``: a graph
that is exported or compiled keeps one node for each, whatever the device it was traced on, the
choice of a configuration stays at run time, where the GPU and the batch are known, and no feature
of a kernel depends on what Inductor can inline. The price is that AOTInductor, which runs without
Python, does not take them; the compiled operators are for that.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv import _libraries
from grouped_conv.backends import IN_KERNEL, OWN_PASS, Query, dtype_name
from grouped_conv.backends.native import _CUDA_AUTO, CUDA_VARIABLE
from grouped_conv.problem import ConvProblem, Pass

NAME = "triton"

AUTOTUNE_VARIABLE = "GROUPED_CONV_TRITON_AUTOTUNE"
"""Set to 1, ``triton.autotune`` measures each new problem with what :func:`pruned` leaves."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MINIMUM_EXTENT = 16
"""The fewest channels that ``tl.dot`` multiplies."""
_SHARED_MEMORY = 99 * 1024
"""Bytes of shared memory for one program; the least of all GPUs of capability 8.0 and later."""
_REDUCE_BLOCK = 256


class Config(NamedTuple):
    """How a kernel is launched: pixels of a tile, warps of a program, loads in flight."""

    block_m: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """As Triton names them."""
        return {
            "BLOCK_M": self.block_m,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


_CONV_TF32 = (Config(32, 2, 3), Config(32, 2, 4), Config(64, 4, 3))
_CONV_IEEE = (Config(64, 2, 3), Config(64, 4, 3))

SPACE: dict[tuple[Pass, str], tuple[Config, ...]] = {
    ("fprop", "16-bit"): (
        Config(64, 2, 3),
        Config(64, 2, 4),
        Config(128, 4, 3),
    ),
    ("fprop", "tf32"): _CONV_TF32,
    ("fprop", "ieee"): _CONV_IEEE,
    ("dgrad", "16-bit"): (Config(64, 2, 3), Config(64, 2, 4)),
    ("dgrad", "tf32"): _CONV_TF32,
    ("dgrad", "ieee"): _CONV_IEEE,
    ("wgrad", "16-bit"): (Config(32, 4, 2), Config(32, 4, 3)),
    ("wgrad", "tf32"): (Config(32, 4, 2),),
    ("wgrad", "ieee"): (Config(32, 8, 2),),
}
"""What tuning chooses from, by pass and precision, the default first. The defaults spill no
registers with the widths of ResNeXt, in any layout; ``tests/triton_aot.py`` has the rest."""


class Blocking(NamedTuple):
    """Channels of a program: see "Packing" in ``triton_kernels.py``."""

    groups_per_slab: int
    block_c: int
    block_k: int

    @classmethod
    def of(cls, pass_name: Pass, c_per_group: int, k_per_group: int, precision: str) -> Blocking:
        """The blocking of a pass; in dgrad, block_c counts channels of dy."""
        groups = max(1, _MINIMUM_EXTENT // max(c_per_group, k_per_group))
        # The registers of a thread are the bound: they hold a tile of sums in float32, three tiles
        # in wgrad, and where products are on FMA units the operands, too.
        most_read = 64 if pass_name != "wgrad" and precision == "16-bit" else 32
        most_written = 32
        if precision == "ieee":
            most_read = most_written = 16
        read, written = groups * c_per_group, groups * k_per_group
        if pass_name == "dgrad":
            read, written = written, read

        def block(channels: int, most: int) -> int:
            """The largest that is full, or the least."""
            sizes = (size for size in (64, 32) if size <= most and channels % size == 0)
            return next(sizes, _MINIMUM_EXTENT)

        return cls(groups, block(read, most_read), block(written, most_written))

    def slabs(self, groups: int) -> int:
        return -(-groups // self.groups_per_slab)


def pruned(pass_name: Pass, blocking: Blocking, precision: str, pixels: int) -> tuple[Config, ...]:
    """The configurations of a pass that are worth a measurement, the default first.

    Left out is what needs more shared memory than every GPU has, and tiles larger than all pixels
    there are.
    """
    size = 2 if precision == "16-bit" else 4
    default, *others = SPACE[pass_name, precision]
    kept = [default]
    for config in others:
        m, c, k = config.block_m, blocking.block_c, blocking.block_k
        stage = (3 * m * c + m * k) if pass_name == "wgrad" else (m * c + c * k)
        if config.num_stages * stage * size <= _SHARED_MEMORY and pixels >= m:
            kept.append(config)
    return tuple(kept)


def block_q(columns: int, channels_last: bool) -> int:
    """Columns of a tile: of two candidates the one that leaves fewer idle, or the wider one."""
    candidates = (16, 8) if channels_last else (32, 16)
    return min(candidates, key=lambda q: -(-columns // q) * q)


@functools.cache
def _triton_absent() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # whatever a broken installation raises
        return f"triton does not load: {error}"
    return None


@functools.cache
def kernel_function(name: str) -> Any:
    """A kernel; its module is imported when it is first needed, because Triton takes a while."""
    module = "triton_wgrad_kernels" if name.startswith("wgrad") else "triton_kernels"
    return getattr(importlib.import_module(f"grouped_conv.backends.{module}"), name)


_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs kernels, on tensors of the CPU."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def unavailable() -> str | None:
    if reason := _triton_absent():
        return reason
    if _INTERPRETED:
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def supports(query: Query) -> str | None:
    if query.device != "cuda" and not (query.device == "cpu" and _INTERPRETED):
        return f"there are no Triton kernels for device {query.device}"
    if query.dtype not in _DTYPES:
        return f"the Triton kernels do not compute in {dtype_name(query.dtype)}"
    if query.kernel_size != (3, 3):
        return "the Triton kernels are for 3x3 filters"
    if query.dilation != (1, 1):
        return "the Triton kernels are for dilation 1"
    if query.stride not in ((1, 1), (2, 2)):
        return "the Triton kernels are for strides 1 and 2, equal in both directions"
    return None


def prefers(query: Query) -> str | None:
    if query.device != "cuda":
        return "the interpreter of Triton is for tests"
    if query.groups == 1:
        return "one group is a dense convolution, which ATen does well"
    if _libraries.cuda_absent_reason() is None:
        return "where there are compiled CUDA kernels, the Triton kernels must be asked for by name"
    if not _CUDA_AUTO:
        return (
            "the Triton kernels have not been measured against cuDNN on a GPU yet "
            f"({CUDA_VARIABLE}=1 lets them be chosen)"
        )
    return None


def kernel(query: Query) -> str:
    computed_in = "tf32" if query.allow_tf32 else dtype_name(query.dtype)
    return f"{query.pass_name}_triton_{computed_in}"


def epilogue(query: Query) -> str:
    return IN_KERNEL


def statistics(query: Query) -> str:
    return OWN_PASS


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How products are computed: ``16-bit``, or for float32 ``tf32`` or ``ieee``."""
    if dtype is not torch.float32:
        return "16-bit"
    return "tf32" if allow_tf32 else "ieee"


COMPILED = {"enable_fp_fusion": True}
"""How all kernels are compiled; stated, because the default differs between versions of Triton."""


COMPILED = {"enable_fp_fusion": True}
"""How all kernels are compiled; stated, because the default differs between versions of Triton."""


class Launch(NamedTuple):
    """A kernel and its arguments, and the configurations to choose from, the default first."""

    kernel: str
    grid: Callable[[Mapping[str, Any]], tuple[int]]
    """The number of programs, which may depend on the configuration."""
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]
    """The default configuration."""
    choice: tuple[Config, ...] = ()

    def run(self, tuner: Any = None) -> None:
        """Launch the default configuration, or the one that a tuner finds."""
        options = self.options if tuner is None else {}
        function = kernel_function(self.kernel) if tuner is None else tuner
        function[self.grid](*self.arguments, **self.constants, **options, **COMPILED)


def _rows(p: ConvProblem, pass_name: Pass) -> tuple[int, int]:
    """Rows through all images, and columns, of the grid of pixels that a pass walks over."""
    if pass_name == "dgrad":
        return p.N * -(-p.H // p.stride_h), -(-p.W // p.stride_w)
    return p.N * p.P, p.Q


class Plan(NamedTuple):
    """What the launches of a pass have in common."""

    pass_name: Pass
    problem: ConvProblem
    blocking: Blocking
    precision: str
    config: Config
    block_q: int

    @classmethod
    def of(
        cls,
        pass_name: Pass,
        p: ConvProblem,
        dtype: torch.dtype,
        channels_last: bool,
        allow_tf32: bool = False,
        config: Config | None = None,
    ) -> Plan:
        how = precision(dtype, allow_tf32)
        blocking = Blocking.of(pass_name, p.c_per_group, p.k_per_group, how)
        columns = _rows(p, pass_name)[1]
        chosen = SPACE[pass_name, how][0] if config is None else config
        return cls(pass_name, p, blocking, how, chosen, block_q(columns, channels_last))

    def tiles(self, block_m: int) -> int:
        """Tiles of pixels."""
        rows, columns = _rows(self.problem, self.pass_name)
        return -(-rows // (block_m // self.block_q)) * -(-columns // self.block_q)

    @property
    def units(self) -> int:
        """Programs of one tile of pixels: blocks of the channels written, of all slabs."""
        p, b = self.problem, self.blocking
        written = p.c_per_group if self.pass_name == "dgrad" else p.k_per_group
        return b.slabs(p.G) * -(-b.groups_per_slab * written // b.block_k)

    @property
    def c_blocks(self) -> int:
        p, b = self.problem, self.blocking
        read = p.k_per_group if self.pass_name == "dgrad" else p.c_per_group
        return -(-b.groups_per_slab * read // b.block_c)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.units * 9 * self.c_blocks * self.blocking.block_c * self.blocking.block_k

    @property
    def constants(self) -> dict[str, Any]:
        p, b = self.problem, self.blocking
        return {
            "STRIDE": p.stride_h,
            "C_PER_GROUP": p.c_per_group,
            "K_PER_GROUP": p.k_per_group,
            "GROUPS_PER_SLAB": b.groups_per_slab,
            "BLOCK_C": b.block_c,
            "BLOCK_K": b.block_k,
            "BLOCK_Q": self.block_q,
            "PRECISION": "tf32" if self.precision == "tf32" else "ieee",
        }

    @property
    def choice(self) -> tuple[Config, ...]:
        """What tuning measures for this problem."""
        rows, columns = _rows(self.problem, self.pass_name)
        return pruned(self.pass_name, self.blocking, self.precision, rows * columns)

    @property
    def geometry(self) -> tuple[int, ...]:
        p = self.problem
        return (p.N, p.H, p.W, p.P, p.Q, p.G, p.pad_h, p.pad_w)

    def pack(self, w: Tensor, packed: Tensor) -> Launch:
        """The weight in the order in which fprop or dgrad reads it."""
        p, b = self.problem, self.blocking
        stride_k, stride_c, stride_r, stride_s = w.stride()
        read, written = (p.c_per_group, stride_c), (p.k_per_group, stride_k)
        if self.pass_name == "dgrad":
            read, written = written, read
        constants = {
            "IN_PER_GROUP": read[0],
            "OUT_PER_GROUP": written[0],
            "GROUPS_PER_SLAB": b.groups_per_slab,
            "BLOCK_C": b.block_c,
            "BLOCK_K": b.block_k,
        }
        strides = (read[1], written[1], stride_r, stride_s, p.k_per_group * stride_k)
        grid = (self.units * 9 * self.c_blocks,)
        return Launch(
            "pack_weights_kernel",
            lambda meta: grid,
            (w, packed, p.G, *strides),
            constants,
            {"num_warps": 2},
        )

    def fprop(
        self, x: Tensor, packed: Tensor, y: Tensor, epilogue: Sequence[Tensor | None], relu: bool
    ) -> Launch:
        """epilogue: bias, scale, shift, and a residual with the strides of y."""
        arguments = (x, packed, y, *epilogue, *self.geometry, *x.stride(), *y.stride())
        return self._tiled("fprop_kernel", self.units, arguments, RELU=relu)

    def dgrad(self, dy: Tensor, packed: Tensor, dx: Tensor) -> Launch:
        arguments = (dy, packed, dx, *self.geometry, *dy.stride(), *dx.stride())
        return self._tiled("dgrad_kernel", self.problem.stride_h**2 * self.units, arguments)

    def _tiled(
        self, kernel: str, each: int, arguments: tuple[Any, ...], **constants: bool
    ) -> Launch:
        """A launch of some programs for each tile of pixels."""
        return Launch(
            kernel,
            lambda meta: (self.tiles(meta["BLOCK_M"]) * each,),
            arguments,
            {**self.constants, **constants},
            self.config.options,
            self.choice,
        )

    def splits(self, processors: int) -> int:
        """Into how many parts wgrad cuts the pixels: four programs for each multiprocessor, of two
        tiles or more. The default's tiles, so that the workspace suits every configuration."""
        programs = 3 * self.c_blocks * self.units
        tiles = self.tiles(self.config.block_m)
        wanted = max(1, min(4 * processors // programs, tiles // 2))
        return -(-tiles // -(-tiles // wanted))

    def wgrad(self, dy: Tensor, x: Tensor, partial: Tensor) -> Launch:
        splits = partial.shape[0]
        grid = (splits * 3 * self.c_blocks * self.units,)
        return Launch(
            "wgrad_kernel",
            lambda meta: grid,
            (dy, x, partial, *self.geometry, *dy.stride(), *x.stride(), splits),
            self.constants,
            self.config.options,
            self.choice,
        )

    def reduce(self, partial: Tensor, dw: Tensor) -> Launch:
        grid = (-(-dw.numel() // _REDUCE_BLOCK),)
        arguments = (partial, dw, partial.shape[0], dw.shape[0], *dw.stride())
        constants = {"C_PER_GROUP": dw.shape[1], "BLOCK": _REDUCE_BLOCK}
        return Launch(
            "wgrad_reduce_kernel", lambda meta: grid, arguments, constants, {"num_warps": 2}
        )
