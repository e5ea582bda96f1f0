"""Counts of the tiled weight-gradient kernels, from the emulator, as ``cuda_counts.py`` has others.

python tests/tiled_wgrad_counts.py > docs/cuda-counts-tiled-wgrad.md
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
# FLOP a second: TF32 has half the rate of 16 bits; 128 FMA units in a multiprocessor.
RATES = {"float16": TENSOR, "tf32": TENSOR / 2, "float32": 2 * 128 * SM * CLOCK}
MATHS = {"float16": "Float16", "tf32": "Tf32", "float32": "Fma"}  # as the gates name them
L2 = 5.5e12  # bytes a second


@dataclass(frozen=True)
class TiledWgradRow(Row):
    """The weight gradient of a layer; ``math`` is float16, tf32, or float32 on FMA units."""

    math: str = "float16"

    @property
    def dtype(self) -> str:
        return "float16" if self.math == "float16" else "float32"

    @property
    def element_bytes(self) -> int:
        return emulator.DTYPES[self.dtype].itemsize

    @cached_property
    def plan(self) -> Any:
        extents = emulator.extents(self.problem)
        tf32 = self.math == "tf32"
        return _C.plan_tiled("wgrad", extents, SM, self.dtype, not self.planar, tf32)

    @cached_property
    def config(self) -> Any:
        (config,) = [c for c in _C.tiled_wgrad_kernels() if c["name"] == self.plan["name"]]
        return config

    @property
    def load(self) -> str:
        slot, p = 16 // self.element_bytes, self.problem
        whole = p.c_per_group % slot == p.k_per_group % slot == 0
        return "vector" if whole and not self.planar else "gather"

    @property
    def splits(self) -> int:
        p = self.problem
        dw = 4 * p.K * p.c_per_group * p.R * p.S
        return int(self.plan["workspace_bytes"]) // dw

    @cached_property
    def launches(self) -> list[Any]:
        """Of all tiles of the first split, and of the reduction likewise."""
        name = f"{self.plan['name']}_{self.load}" + ("_tf32" if self.math == "tf32" else "")
        (kernel,) = [
            k
            for k in emulator.tiled_kernels("wgrad", planar=self.planar)
            if (k.name, k.dtype) == (name, self.dtype)
        ]
        session = kernel.session(emulator.extents(self.problem), sm_count=SM)
        blocks = self.plan["blocks"] // self.splits
        reports = session.run(detect=False, arithmetic=False, most_blocks=blocks)
        return [report.counts for report in reports]

    @property
    def min_sectors(self) -> float:
        return self.problem.min_bytes(emulator.DTYPES[self.dtype]) / SECTOR

    @property
    def multiplications(self) -> float:
        """Warp instructions: mma, or multiply-adds of the whole of all tiles."""
        if self.math != "float32":
            return self.total("warp_instructions", ("mma",))
        p = self.problem
        rows_cols = self.config["rows"] * self.config["cols"] * self.config["groups"]
        return self.plan["blocks"] / self.splits * rows_cols * p.N * p.P * p.Q / 32

    @property
    def flops(self) -> float:
        return self.multiplications * 64 if self.math == "float32" else self.total("flops")

    @property
    def mma(self) -> float:
        return self.flops / self.problem.flops

    @cached_property
    def instructions(self) -> float:
        recorded = json.loads((emulator.ROOT / "tests/sass/recorded.json").read_text())
        name = f"{self.plan['name']}_{self.load} {MATHS[self.math]} sm_90"
        return float(recorded["instructions_per_mma"][name]) * self.multiplications / self.tiles

    def times(self) -> dict[str, float]:
        return {
            **super().times(),
            "tensor": 1e6 * self.flops / RATES[self.math],
            "L2": 1e6 * self.total("sectors") * SECTOR / L2,
        }

    def cells(self) -> list[str]:
        layer, batch, name, *others = super().cells()
        layout = "NCHW" if self.planar else "NHWC"
        return [layer, batch, f"{name} {self.math} {layout}", *others]


# RegNet's 24, 56 and 112 channels per group; ResNeXt-50's 4 and 16.
REGNET = [
    Layer(96, 56, 56, 96, 4),
    Layer(168, 56, 56, 168, 3, stride=2),
    Layer(896, 14, 14, 896, 8),
]
RESNEXT = [Layer(128, 56, 56, 128, 32), Layer(512, 14, 14, 512, 32)]
ROWS = [
    *(TiledWgradRow(layer, "wgrad", BATCH) for layer in REGNET),
    TiledWgradRow(REGNET[0], "wgrad", BATCH, planar=True),
    *(
        TiledWgradRow(layer, "wgrad", BATCH, planar, math=math)
        for layer in RESNEXT
        for math in ("tf32", "float32")
        for planar in (False, True)
    ),
]
TEXT = """\
# Counts of the tiled weight-gradient kernels

Printed by `python tests/tiled_wgrad_counts.py`. Nothing here was measured on a GPU.

The columns are those of [cuda-counts.md](cuda-counts.md), with these differences. All tiles of the
first split stand for the others. Each tap asks for its input anew: sectors / min has all of it, of
which L1 has a part, and L2's time is that of all of it at {l2:.1f} TB/s. Instructions are those of
the loop; of float32, which runs on FMA units, they are those of the innermost loop, over pixels, so
that the copies around it are missing. Rates: {tensor:.0f} TFLOP/s in 16 bits, {tf32:.0f} in TF32,
{fma:.0f} on FMA units; {dram:.1f} TB/s, {sm} multiprocessors at {clock:.1f} GHz with {schedulers}
instructions and one pass of shared memory a cycle.
"""


def main() -> None:
    lines = [row.cells() for row in tqdm(ROWS, unit="row")]
    print(
        TEXT.format(
            l2=L2 / 1e12,
            tensor=RATES["float16"] / 1e12,
            tf32=RATES["tf32"] / 1e12,
            fma=RATES["float32"] / 1e12,
            dram=DRAM / 1e12,
            sm=SM,
            clock=CLOCK / 1e9,
            schedulers=SCHEDULERS,
        )
    )
    columns = [*cuda_counts.COLUMNS[:-1], "L2 µs", cuda_counts.COLUMNS[-1]]
    print(tabulate(lines, columns, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
