"""The tiled weight-gradient kernels in the SIMT emulator: any filter and number of channels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import emulator
import pytest
import torch
from emulator import Operands, Outcome
from test_simt import HARMLESS, plants, source

from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once

CONFIGS = ("48x8", "144x32", "144x64")
KERNELS = list(itertools.product(CONFIGS, ("float16", "bfloat16", "tf32", "float32")))

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
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def element_type(how: str) -> torch.dtype:
    return emulator.DTYPES["float32" if how == "tf32" else how]


def variants(config: str, how: str, p: ConvProblem) -> list[Any]:
    """The kernels of a configuration that compute a problem: of both layouts, both ways to load."""
    suffix = "_tf32" if how == "tf32" else ""
    named = [f"tiled_wgrad_{config}_{load}{suffix}" for load in ("vector", "gather")]
    found = [
        kernel
        for planar in (False, True)
        for kernel in emulator.tiled_kernels("wgrad", planar=planar)
        if kernel.name in named and emulator.DTYPES[kernel.dtype] is element_type(how)
    ]
    taken = [kernel for kernel in found if not kernel.refusal(emulator.extents(p))]
    slot = 16 // element_type(how).itemsize
    whole = p.c_per_group % slot == p.k_per_group % slot == 0
    assert (len(found), len(taken)) == (3, 3 if whole else 2)
    return taken


def wrong(kernel: Any, p: ConvProblem, operands: Operands, outcome: Outcome) -> str:
    """What is wrong with an outcome, in words; empty if nothing is."""
    if outcome.faults:
        return outcome.faults
    expected, got = emulator.exact("wgrad", p, operands), outcome.output.double()
    # float32 sums; the smallest numbers of float16; the rounding of products and of the result.
    product = 2.0**-10 if kernel.name.endswith("tf32") else 0.0
    allowed = emulator.magnitude("wgrad", p, operands) * (2.0**-20 + product)
    allowed += expected.abs() * ROUNDING[kernel.dtype] + 2.0**-25
    right = ((got - expected).abs() <= allowed) & expected.isfinite()
    right |= (got == expected) | (got.isnan() & expected.isnan())
    if bool(right.all()):
        return ""
    place = tuple((~right).nonzero()[0].tolist())
    return f"{int((~right).sum())} wrong, at {place} {got[place]} instead of {expected[place]}"


@pytest.mark.parametrize(("config", "how"), KERNELS)
def test_shapes(config: str, how: str):
    for i, p in enumerate(PROBLEMS):
        operands = Operands.random(p, element_type(how), bias=False, seed=i)
        for j, kernel in enumerate(variants(config, how, p)):
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
