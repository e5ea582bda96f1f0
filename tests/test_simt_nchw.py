"""The CUDA kernels for NCHW tensors in the SIMT emulator, as test_simt.py has those for NHWC."""

from __future__ import annotations

import math
from typing import Any

import emulator
import pytest
import torch
from cuda_counts import SM, Row
from emulator import Operands
from test_simt import (
    COMBINATIONS,
    MULTIPROCESSORS,
    SHAPES,
    UNIT_STRIDE,
    check_non_finite,
    kernels_for,
    problem,
    unnoticed_faults,
    wrong,
)

from grouped_conv.problem import Pass

pytestmark = pytest.mark.once

# Beside those of NHWC, such that bands of rows begin at any byte of a word and end inside an image,
# and walks of a part of the rows only.
MORE_SHAPES = [
    (5, 14, 14, (1, 1), 0, 3),
    (5, 21, 13, (0, 2), 0, 1),
    (3, 28, 28, (1, 1), 0, 1),
    (1, 57, 3, (2, 1), 1, 0),
    (40, 3, 1, (1, 1), 0, 1),
    (1, 19, 113, (1, 1), 0, 1),
]


def kernel_for(pass_name: str, c_per_group: int, stride: int, dtype: str) -> Any:
    (kernel,) = kernels_for(pass_name, c_per_group, stride, dtype, planar=True)
    return kernel


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("pass_name", "c_per_group", "stride"), COMBINATIONS)
def test_shapes(pass_name: str, c_per_group: int, stride: int, dtype: str):
    kernel = kernel_for(pass_name, c_per_group, stride, dtype)
    for i, shape in enumerate(SHAPES + MORE_SHAPES):
        p = problem(c_per_group, stride, *shape)
        operands = Operands.random(p, emulator.DTYPES[dtype], bias=i % 2 == 0, seed=i)
        outcome = emulator.run(
            kernel,
            p,
            operands,
            channels_last=i % 4 < 2,
            sm_count=MULTIPROCESSORS[i % 3],
            schedule=i,
        )
        assert not (problems := wrong(kernel, p, operands, outcome)), (
            f"{kernel.name} {p}: {problems}"
        )


@pytest.mark.parametrize(("pass_name", "c_per_group", "stride"), COMBINATIONS)
def test_every_schedule_gives_the_same_bits(pass_name: str, c_per_group: int, stride: int):
    """Of fprop and dgrad those of NHWC; the weight gradient sums pixels in another order."""
    p = problem(c_per_group, stride, 3, 9, 9, (1, 1), 1, 1)
    operands = Operands.random(p, torch.float16, bias=True)
    planar = kernel_for(pass_name, c_per_group, stride, "float16")
    model = (
        planar
        if pass_name == "wgrad"
        else kernels_for(pass_name, c_per_group, stride, "float16")[0]
    )
    expected = emulator.run(model, p, operands, sm_count=3).output
    for schedule in range(1, 3):
        outcome = emulator.run(planar, p, operands, sm_count=3, schedule=schedule)
        assert not outcome.faults
        assert torch.equal(outcome.output, expected)


# The code that looks for such values differs by sharing of slabs (4), and not beyond 16.
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("pass_name", "c_per_group", "stride"), [c for c in COMBINATIONS if c[1] in (4, 16)]
)
def test_non_finite_values_stay_where_they_belong(
    pass_name: str, c_per_group: int, stride: int, value: float
):
    dtype = "bfloat16" if value < 0 else "float16"
    check_non_finite(kernel_for(pass_name, c_per_group, stride, dtype), c_per_group, stride, value)


@pytest.mark.parametrize(
    ("pass_name", "c_per_group", "stride"),
    [("fprop", 4, 1), ("fprop", 16, 2), ("dgrad", 4, 2), ("wgrad", 4, 1), ("wgrad", 16, 2)],
)
def test_planted_faults_are_noticed(pass_name: str, c_per_group: int, stride: int):
    kernel = kernel_for(pass_name, c_per_group, stride, "float16")
    assert unnoticed_faults(kernel, c_per_group, stride) == []


@pytest.mark.parametrize("pass_name", ["fprop", "wgrad"])
@pytest.mark.parametrize("layer", UNIT_STRIDE, ids=str)
def test_traffic_is_that_of_nhwc(layer: Any, pass_name: Pass):
    """What DRAM sees, and up to a tenth, or a fifth where rows are no sectors, what L2 sees."""
    by_pixel = Row(layer, pass_name, 64)
    planar = Row(layer, pass_name, 64, planar=True)
    assert planar.dram_sectors <= 1.001 * by_pixel.dram_sectors
    rows_are_words = layer.W % 8 == 0
    most = 1.1 if rows_are_words else 1.3
    assert planar.total("sectors") <= most * by_pixel.total("sectors")
    # Seven pixels take eight slots in the weight gradient, which goes by pairs of them.
    assert planar.mma <= (1.05 if layer.W % 2 == 0 or pass_name == "fprop" else 1.12) * by_pixel.mma
    assert planar.plan["blocks"] >= 0.9 * SM
