"""The tiled weight-gradient kernels in the SIMT emulator: any filter and number of channels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import emulator
import numpy as np
import pytest
import torch
from emulator import Operands
from test_simt import check_non_finite_in, source, wrong
from test_simt_tiled import of_terms

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


@pytest.mark.parametrize(("config", "how"), KERNELS)
def test_shapes(config: str, how: str):
    for i, p in enumerate(PROBLEMS):
        if how == "bfloat16" and i % 4:
            continue  # which differs from float16 in conversions alone
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
            assert not (problems := wrong(kernel, p, operands, outcome, of_terms(kernel))), (
                f"{kernel.name} {p}: {problems}"
            )


@pytest.mark.parametrize("config", CONFIGS)
def test_every_schedule_and_layout_gives_the_same_bits(config: str):
    p = ConvProblem(2, 40, 7, 8, 24, 3, 2, 1, 1, 1)
    for how in ("float16", "tf32", "float32"):
        operands = Operands.random(p, element_type(how), bias=False)
        outcomes = [
            emulator.run(kernel, p, operands, channels_last=last, sm_count=3, schedule=schedule)
            for schedule, last in enumerate((False, True))
            for kernel in variants(config, how, p)
        ]
        for outcome in outcomes:
            assert not outcome.faults
            assert torch.equal(outcome.output, outcomes[0].output)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(
    ("config", "how"),
    [("48x8", "float16"), ("48x8", "tf32"), ("144x32", "bfloat16"), ("144x64", "float32")],
)
def test_non_finite_values_stay_where_they_belong(config: str, how: str, value: float):
    """Groups of one block, and padding on all sides; channels that fill their slots or do not."""
    for c, k in ((8, 4), (3, 5)):
        p = ConvProblem(2, 5 * c, 5, 7, 5 * k, 3, 2, 5, 1, 1, 2, 1)
        kernel = variants(config, how, p)[0 if c == 8 else -1]
        check_non_finite_in(kernel, p, value, of_terms(kernel))


@pytest.mark.parametrize(
    ("config", "how", "planar"),
    [("48x8", "float16", False), ("144x32", "tf32", True), ("144x64", "float32", False)],
)
def test_planted_faults_are_noticed(config: str, how: str, planar: bool):
    """One fault at each call of a leaf in the kernels' source: a report or a wrong result."""
    # Several stages of one block, the last one and the tiles partly filled; then many splits.
    p = ConvProblem(1, 24, 8, 17, 16, 2, 2, 2, 1, 1)
    if planar:
        p = dataclasses.replace(p, C=20, K=18)
    kernel = variants(config, how, p)[-1 if planar else 0]
    assert kernel.planar == planar
    clean = Operands.random(p, element_type(how), bias=False)
    infinite = Operands.random(p, element_type(how), bias=False, seed=1)
    infinite.x[0, 1, 2, 3] = infinite.y[0, 2, 0, 0] = infinite.y[0, 12, 8, 17] = math.inf
    missed: dict[Any, bool] = {}
    for given, sm_count in ((clean, 1), (infinite, 1), (clean, 132)):
        right = emulator.run(kernel, p, given, sm_count=sm_count)
        assert not wrong(kernel, p, given, right, of_terms(kernel))
        for launch in right.launches:
            for fault in emulator.module().mutations_of(launch.counts):
                key = (fault.kind, fault.where, fault.column)
                if missed.get(key) is False:
                    continue
                outcome = emulator.run(kernel, p, given, sm_count=sm_count, mutation=fault)
                if outcome.effects:
                    missed[key] = not wrong(kernel, p, given, outcome, of_terms(kernel))
    assert len(missed) >= 20
    assert [
        f"{kind} at {where}: {source(where)}"
        for (kind, where, _), unnoticed in missed.items()
        if unnoticed
    ] == []


def test_sums_in_float32_are_as_accurate_as_those_of_pytorch():
    """Even those of one block."""
    p = ConvProblem(8, 16, 28, 28, 16, 3, 3, 2, 1, 1)
    operands = Operands.random(p, torch.float32, bias=False)
    exact = emulator.exact("wgrad", p, operands)
    (kernel, *_) = variants("144x32", "float32", p)
    ours = emulator.run(kernel, p, operands, sm_count=1, detect=False, count=False).output
    geometry = (p.stride, p.padding, p.dilation, False, (0, 0), p.G)
    theirs = torch.ops.aten.convolution_backward(
        operands.y, operands.x, operands.w, None, *geometry, (False, True, False)
    )[1]
    errors = [float((t.double() - exact).square().mean()) for t in (ours, theirs)]
    assert errors[0] ** 0.5 <= 1.5 * errors[1] ** 0.5


@pytest.mark.parametrize("planar", [False, True])
def test_tensors_beyond_two_to_the_31(planar: bool):
    """Three images of nearly 2 GiB, of which the filter meets a few pixels."""
    p = ConvProblem(3, 8, 11000, 11000, 8, 1, 1, 1, stride_h=5500, stride_w=5500)
    kernel = variants("48x8", "float16", p)[-1 if planar else 0]
    assert kernel.planar == planar
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 8, 2, 2, generator=rng).half() for _ in range(2))
    session = kernel.session(emulator.extents(p))
    image = np.arange(3)[:, None, None, None] * p.C * p.H * p.W
    row, column = (np.arange(2) * 5500 for _ in range(2))
    channel = np.arange(8)[None, :, None, None]
    pixel = row[:, None] * p.W + column
    at = image + (channel * p.H * p.W + pixel if planar else pixel * p.C + channel)
    memory = session.x.view(np.uint16)
    memory[at.reshape(-1)] = x.reshape(-1).view(torch.int16).numpy().view(np.uint16)
    ordered = y if planar else y.permute(0, 2, 3, 1)
    session.y.view(np.uint16)[:] = ordered.reshape(-1).view(torch.int16).numpy().view(np.uint16)
    launches = session.run()
    assert not any(launch.text for launch in launches)
    assert session.complete
    found = torch.from_numpy(session.w.view(np.int16)).view(torch.float16).reshape(8, 8)
    expected = torch.einsum("nkpq,ncpq->kc", y.double(), x.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
