"""Counts of the CUDA kernels on ResNeXt-50's layers, from the emulator, and what they would cost.

    python tests/cuda_counts.py > docs/cuda-counts.md

Nothing here is measured on a GPU: traffic, conflicts and tensor-core work are counted while the
kernels' source runs in the emulator (``tests/simt``); times are these counts over an H100's rates.
The first blocks of a grid are run and scaled to all of it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import emulator
from tabulate import tabulate
from tqdm import tqdm

from grouped_conv import _C
from grouped_conv.bench.problems import Layer, network
from grouped_conv.problem import PASSES, ConvProblem, Pass

BATCHES = (32, 64, 256)
TAILS = ("epilogue", "residual", "statistics")
BATCH_OF_TAILS = 64
MOST_BLOCKS = 16  # of a grid; with few rows in a block, more
SECTOR = 32
TILE = 16 * 8  # output elements: 16 pixels of 8 channels

# H100 SXM: multiprocessors, clock, DRAM bytes (measured copy), dense FLOP by mma.sync (about 0.6 of
# the data sheet's), a second.
SM, CLOCK, DRAM, TENSOR = 132, 1.7e9, 3.0e12, 0.6 * 990e12
SCHEDULERS = 4  # warp instructions in a cycle


@dataclass(frozen=True)
class Row:
    """One pass of one layer at one batch size, float16, NHWC or, if ``planar``, NCHW."""

    layer: Layer
    pass_name: Pass
    batch: int
    planar: bool = False
    tail: str = ""
    """Of fprop: one of ``TAILS``."""

    @property
    def problem(self) -> ConvProblem:
        return self.layer.problem(self.batch)

    @cached_property
    def plan(self) -> Any:
        extents = emulator.extents(self.problem)
        return _C.plan_fast(self.pass_name, extents, SM, not self.planar, self.tail)

    @cached_property
    def config(self) -> Any:
        table = _C.nchw_kernels() if self.planar else _C.cuda_kernels()
        (config,) = [c for c in table if c["name"] == self.plan["name"]]
        return config

    @cached_property
    def launches(self) -> list[Any]:
        """The counts of each launch."""
        (kernel,) = [
            k
            for k in emulator.kernels(self.pass_name, planar=self.planar)
            if k.name == self.plan["name"] and k.dtype == "float16"
        ]
        session = kernel.session(emulator.extents(self.problem), sm_count=SM)
        session.affine = session.relu = self.tail in ("epilogue", "residual")
        session.adds_residual = self.tail == "residual"
        session.statistics = self.tail == "statistics"
        reports = session.run(detect=False, arithmetic=False, most_blocks=MOST_BLOCKS)
        return [report.counts for report in reports]

    def total(self, field: str, leaves: tuple[str, ...] = ()) -> float:
        """A count over all launches, each scaled to its whole grid."""
        return sum(
            getattr(site, field) * counts.grid_blocks / counts.blocks
            for counts in self.launches
            for site in counts.sites
            if not leaves or site.leaf in leaves
        )

    @property
    def min_sectors(self) -> float:
        p = self.problem
        residual = 2 * p.N * p.K * p.P * p.Q if self.tail == "residual" else 0
        return (p.min_bytes(emulator.DTYPES["float16"]) + residual) / SECTOR

    @cached_property
    def dram_sectors(self) -> float:
        """Each sector of x, y, the residual and partial sums once for each launch that touches it.

        Every block of the channels reads the same weights; DRAM sees them once.
        """
        p = self.problem
        weights = p.K * p.c_per_group * p.R * p.S * 2 / SECTOR
        total = weights
        for counts in self.launches:
            for buffer in counts.buffers:
                if buffer.name in ("x", "y", "residual", "workspace"):
                    touched = buffer.sectors_read + buffer.sectors_written
                    total += touched * counts.grid_blocks / counts.blocks
        return total

    @property
    def tiles(self) -> float:
        p = self.problem
        pixels = p.N * (p.H * p.W if self.pass_name == "dgrad" else p.P * p.Q)
        return pixels * p.C / TILE

    @property
    def conflicts(self) -> str:
        """Passes of shared memory that conflicts add, in percent, and where most of them are."""
        per_site = {s.where: s.conflicts for c in self.launches for s in c.sites if s.conflicts}
        if not per_site:
            return "0"
        share = self.total("conflicts") / self.total("wavefronts")
        return f"{100 * share:.1f} % ({max(per_site, key=lambda where: per_site[where])})"

    @property
    def mma(self) -> float:
        return self.total("flops") / self.problem.flops

    @cached_property
    def instructions(self) -> float:
        """Warp instructions for a tile: of the row loop's machine code, for each mma in it."""
        recorded = json.loads((emulator.ROOT / "tests/sass/recorded.json").read_text())
        kernel = " ".join(filter(None, (self.plan["name"], "Float16", self.tail, "sm_90")))
        per_mma = recorded["instructions_per_mma"][kernel]
        return float(per_mma) * self.total("warp_instructions", ("mma",)) / self.tiles

    @property
    def blocks_at_once(self) -> float:
        """Of a multiprocessor."""
        return min(self.config["blocks_per_sm"], max(1.0, self.plan["blocks"] / SM))

    @property
    def kilobytes_in_flight(self) -> float:
        return self.launches[0].bytes_in_flight * self.blocks_at_once / 1024

    @property
    def filled(self) -> float:
        """The busiest multiprocessor's share of the work, against an even share."""
        blocks = self.plan["blocks"]
        return blocks / (SM * -(-blocks // SM))

    def times(self) -> dict[str, float]:
        """Microseconds that each resource is busy."""
        return {
            "DRAM": 1e6 * self.dram_sectors * SECTOR / DRAM,
            "issue": 1e6 * self.instructions * self.tiles / (SCHEDULERS * SM * CLOCK),
            "shared": 1e6 * self.total("wavefronts") / (SM * CLOCK),
            "tensor": 1e6 * self.total("flops") / TENSOR,
        }

    def cells(self) -> list[str]:
        times = self.times()
        return [
            str(self.layer),
            str(self.batch),
            f"{self.pass_name} {self.tail}".rstrip(),
            self.plan["name"],
            f"{self.dram_sectors / self.min_sectors:.3f}",
            f"{self.total('sectors') / self.min_sectors:.3f}",
            self.conflicts,
            f"{self.mma:.2f}",
            f"{self.total('wavefronts') / self.tiles:.1f}",
            f"{self.instructions:.0f}",
            f"{self.kilobytes_in_flight:.0f}",
            f"{self.plan['blocks']}",
            f"{self.filled:.2f}",
            *(f"{time:.1f}" for time in times.values()),
            max(times, key=lambda name: times[name]),
        ]


COLUMNS = [
    *("layer", "N", "pass", "kernel", "DRAM / min", "sectors / min", "conflicts", "mma / useful"),
    *("passes / tile", "instr / tile", "KB in flight / SM", "blocks", "filled"),
    *("DRAM µs", "issue µs", "shared µs", "tensor µs", "bound"),
]
TEXT = """\
# Counts of the CUDA kernels

Printed by `python tests/cuda_counts.py`. Nothing here was measured on a GPU.

The source of the kernels runs in the emulator (`tests/simt`), float16, on the layers of
ResNeXt-50 32x4d, NHWC and, with kernels named nchw, NCHW; the first {most} blocks of each grid
stand for all of it. A tile is 16 pixels of 8 channels of y (fprop, wgrad) or dx (dgrad). fprop is
also counted with an epilogue of scale, shift and relu, with one that adds a residual before the
relu, and with the statistics of its output.

- **DRAM / min**: 32-byte sectors touched, each once in a launch, over those of x, w, y and the
  residual. Partial sums, of wgrad and of statistics, are counted written and read.
- **sectors / min**: sectors asked of L2, over the same.
- **conflicts**: passes of shared memory that bank conflicts add, and the line with most of them.
- **mma / useful**: FLOP issued to the tensor cores, over those of all nine taps of each output.
- **passes / tile**: of shared memory.
- **instr / tile**: warp instructions of the row loop in sm_90 machine code (`tests/sass`).
- **filled**: even share of the {sm} multiprocessors over that of the busiest.
- **µs**: the counts over an H100's rates: {dram:.1f} TB/s, {sm} multiprocessors at {clock:.1f} GHz
  with {schedulers} instructions and one pass of shared memory a cycle, {tensor:.0f} TFLOP/s.
  The largest is the bound.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=list(BATCHES))
    batches = parser.parse_args().batches
    rows = [
        Row(layer, pass_name, n, planar)
        for planar in (False, True)
        for pass_name in PASSES
        for layer in network("resnext50")
        for n in batches
    ]
    rows += [
        Row(layer, "fprop", n, tail=tail)
        for tail in TAILS
        for layer in network("resnext50")
        for n in batches
        if n == BATCH_OF_TAILS
    ]
    lines = [row.cells() for row in tqdm(rows, unit="row")]
    print(
        TEXT.format(
            most=MOST_BLOCKS,
            sm=SM,
            dram=DRAM / 1e12,
            clock=CLOCK / 1e9,
            schedulers=SCHEDULERS,
            tensor=TENSOR / 1e12,
        )
    )
    print(tabulate(lines, COLUMNS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
