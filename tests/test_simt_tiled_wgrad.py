"""The tiled weight-gradient kernels in the SIMT emulator: any filter and number of channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import emulator
import pytest
import torch
from emulator import Operands
from test_simt import HARMLESS, plants, source, wrong

from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once

KERNELS = [
    (config, dtype)
    for config in ("48x8", "144x32", "144x64")
    for dtype in ("float16", "bfloat16")
]

# Channels per group that fill slots and those that do not, in and out apart; filters of one tap and
# of many; strides, paddings and dilations of their own in either direction; rows of one pixel;
# images smaller than the filter; more and fewer pixels than a stage has; tiles partly filled.
PROBLEMS = [
    ConvProblem(2, 24, 9, 8, 24, 3, 3, 1, 1, 1),
    ConvProblem(1, 48, 7, 7, 24, 3, 3, 3, 1, 1, 2, 2),
    ConvProblem(3, 15, 5, 6, 20, 3, 3, 5, 1, 1),
    ConvProblem(17, 16, 1, 1, 80, 1, 1, 2),
    ConvProblem(1, 16, 4, 70, 16, 2, 3, 2, 1, 2, 1, 2, 1, 3),
    ConvProblem(9, 6, 2, 3, 6, 3, 3, 6, 1, 1),
    ConvProblem(2, 8, 12, 11, 8, 7, 5, 1, 3, 2, 3, 2),
    ConvProblem(1, 112, 6, 5, 112, 3, 3, 1, 2, 0),
    ConvProblem(2, 35, 10, 1, 14, 5, 1, 7, 1, 0, 1, 1, 2, 1),
]
MULTIPROCESSORS = (1, 3, 132)


def variants(config: str, dtype: str, p: ConvProblem) -> list[Any]:
    """The kernels of a configuration that compute a problem: of both layouts, both ways to load."""
    found = [
        kernel
        for planar in (False, True)
        for kernel in emulator.kernels("wgrad", planar=planar, tiled=True)
        if kernel.name.startswith(f"tiled_wgrad_{config}_") and kernel.dtype == dtype
    ]
    taken = [kernel for kernel in found if not kernel.refusal(emulator.extents(p))]
    assert len(found) == 3
    assert len(taken) == 3 or (len(taken) == 2 and (p.c_per_group % 8 or p.k_per_group % 8))
    return taken


@pytest.mark.parametrize(("config", "dtype"), KERNELS)
def test_shapes(config: str, dtype: str):
    for i, p in enumerate(PROBLEMS):
        operands = Operands.random(p, emulator.DTYPES[dtype], bias=False, seed=i)
        for j, kernel in enumerate(variants(config, dtype, p)):
            outcome = emulator.run(
                kernel,
                p,
                operands,
                channels_last=(i + j) % 2 == 0,
                sm_count=MULTIPROCESSORS[(i + j) % 3],
                schedule=i,
            )
            assert not (problems := wrong(kernel, p, operands, outcome)), (
                f"{kernel.name} {p}: {problems}"
            )
