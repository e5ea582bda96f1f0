"""Counts of the tiled CUDA kernels, from the emulator, as ``cuda_counts.py`` has the others.

python tests/tiled_counts.py > docs/cuda-counts-tiled.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cuda_counts
import emulator
from cuda_counts import CLOCK, DRAM, SCHEDULERS, SECTOR, SM, TENSOR, Row
from tabulate import tabulate
from tqdm import tqdm

from grouped_conv import _C
from grouped_conv.bench.problems import Layer

BATCH = 64
TILES = 32  # of pixels that are run, for all channels

# FLOP a second: TF32 has half the rate of 16 bits; 128 FMA units in a multiprocessor.
RATES = {"float16": TENSOR, "tf32": TENSOR / 2, "float32": 2 * 128 * SM * CLOCK}
MATHS = {"float16": "Float16", "tf32": "Tf32", "float32": "Fma"}  # as the gates name them


@dataclass(frozen=True)
class TiledRow(Row):
    """One pass of one layer; ``math`` is float16, tf32, or float32 on FMA units."""

    math: str = "float16"

    @property
    def dtype(self) -> str:
        return "float16" if self.math == "float16" else "float32"

    @cached_property
    def plan(self) -> Any:
        extents = emulator.extents(self.problem)
        tf32 = self.math == "tf32"
        return _C.plan_tiled(self.pass_name, extents, SM, self.dtype, not self.planar, tf32)

    @cached_property
    def config(self) -> Any:
        (config,) = [c for c in _C.tiled_kernels() if c["name"] == self.plan["name"]]
        blocks = config["blocks_of_fma" if self.math == "float32" else "blocks_per_sm"]
        return {**config, "blocks_per_sm": blocks}

    @property
    def channel_blocks(self) -> int:
        """Blocks that have the same pixels."""
        p = self.problem
        per_group = p.c_per_group if self.pass_name == "dgrad" else p.k_per_group
        tiles = -(-per_group // self.plan["tile_channels"])
        return -(-p.G // self.config["groups"]) * tiles

    @cached_property
    def launches(self) -> list[Any]:
        name = self.plan["name"] + ("_tf32" if self.math == "tf32" else "")
        (kernel,) = [
            k
            for k in emulator.tiled_kernels(self.pass_name, planar=self.planar)
            if (k.name, k.dtype) == (name, self.dtype)
        ]
        session = kernel.session(emulator.extents(self.problem), sm_count=SM)
        blocks = TILES * self.channel_blocks
        reports = session.run(detect=False, arithmetic=False, most_blocks=blocks)
        return [report.counts for report in reports]

    @property
    def element_bytes(self) -> int:
        return emulator.DTYPES[self.dtype].itemsize

    @property
    def min_sectors(self) -> float:
        return self.problem.min_bytes(emulator.DTYPES[self.dtype]) / SECTOR

    @cached_property
    def dram_sectors(self) -> float:
        """Each sector of x and y once; the weights read, written in chunks, and read again."""
        p = self.problem
        weights = p.K * p.c_per_group * p.R * p.S * self.element_bytes
        total = (weights + 2 * self.plan["workspace_bytes"]) / SECTOR
        main = self.launches[1]
        for buffer in main.buffers:
            if buffer.name in ("x", "y"):
                touched = buffer.sectors_read + buffer.sectors_written
                total += touched * main.grid_blocks / main.blocks
        return total

    @property
    def multiplications(self) -> float:
        """Warp instructions: mma, or multiply-adds of 16 terms, 8 rows and every eighth channel."""
        if self.math != "float32":
            return self.total("warp_instructions", ("mma",))
        eights = self.plan["tile_channels"] // 8
        return self.plan["blocks"] * 4 * self.plan["chunks"] * 128 * eights

    @property
    def flops(self) -> float:
        return self.multiplications * 64 if self.math == "float32" else self.total("flops")

    @property
    def mma(self) -> float:
        return self.flops / self.problem.flops

    @cached_property
    def instructions(self) -> float:
        recorded = json.loads((emulator.ROOT / "tests/sass/recorded.json").read_text())
        units = 16 // self.element_bytes
        p = self.problem
        whole = p.c_per_group % units == 0 and p.k_per_group % units == 0
        way = "direct" if whole and not self.planar else "gather"
        name = f"{self.plan['name']}_{way} {MATHS[self.math]} sm_90"
        return float(recorded["instructions_per_mma"][name]) * self.multiplications / self.tiles

    @property
    def kilobytes_in_flight(self) -> float:
        return self.launches[1].bytes_in_flight * self.blocks_at_once / 1024

    def times(self) -> dict[str, float]:
        return {**super().times(), "tensor": 1e6 * self.flops / RATES[self.math]}

    def cells(self) -> list[str]:
        layer, batch, name, *others = super().cells()
        layout = "NCHW" if self.planar else "NHWC"
        return [layer, batch, f"{name} {self.math} {layout}", *others]


# RegNet's 24, 56 and 112 channels per group; ResNeXt-50's 4 and 16.
LAYERS = [
    Layer(96, 56, 56, 96, 4),
    Layer(168, 56, 56, 168, 7, stride=2),
    Layer(448, 28, 28, 448, 8),
    Layer(896, 14, 14, 896, 8),
]
RESNEXT = [Layer(128, 56, 56, 128, 32), Layer(512, 14, 14, 512, 32)]
ROWS = [
    *(TiledRow(layer, name, BATCH) for layer in LAYERS for name in ("fprop", "dgrad")),
    *(TiledRow(layer, "fprop", BATCH, True) for layer in LAYERS[:1]),
    *(TiledRow(layer, "fprop", BATCH, math="tf32") for layer in LAYERS[:1]),
    *(
        TiledRow(layer, "fprop", BATCH, math=math)
        for layer in RESNEXT
        for math in ("tf32", "float32")
    ),
]
TEXT = """\
# Counts of the tiled CUDA kernels

Printed by `python tests/tiled_counts.py`. Nothing here was measured on a GPU.

The columns are those of [cuda-counts.md](cuda-counts.md), with these differences. The first {tiles}
tiles of pixels, with all channels, stand for all of them. Sectors are asked of L1, which has most
of those that a tap shares with another. DRAM has the packed weight as well. Instructions are those
of the loop over chunks: a warp's start and end, up to 1.4 thousand instructions in a listing of
which most run once, come on top. For float32, which runs on FMA units, multiply-adds take the place
of mma. Rates: {tensor:.0f} TFLOP/s in 16 bits, {tf32:.0f} in TF32, {fma:.0f} on FMA units;
{dram:.1f} TB/s, {sm} multiprocessors at {clock:.1f} GHz with {schedulers} instructions and one pass
of shared memory a cycle.
"""


def main() -> None:
    lines = [row.cells() for row in tqdm(ROWS, unit="row")]
    print(
        TEXT.format(
            tiles=TILES,
            tensor=RATES["float16"] / 1e12,
            tf32=RATES["tf32"] / 1e12,
            fma=RATES["float32"] / 1e12,
            dram=DRAM / 1e12,
            sm=SM,
            clock=CLOCK / 1e9,
            schedulers=SCHEDULERS,
        )
    )
    print(tabulate(lines, cuda_counts.COLUMNS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
