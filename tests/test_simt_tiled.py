"""The tiled CUDA kernels in the SIMT emulator, as test_simt.py has the row-streaming ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import emulator
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulator import Operands
from test_simt import check_non_finite_in, source, wrong
from tiled_counts import ROWS, TiledRow

from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once

PASSES = ("fprop", "dgrad")
# How products are computed: the element type and whether it may be cut to TF32.
MATHS = ("float16", "bfloat16", "tf32", "float32")


def problem(n: int, h: int, w: int, g: int, c: int, k: int, r: int, s: int, **other: int):
    """With c input and k output channels in each of g groups."""
    return ConvProblem(n, g * c, h, w, g * k, r, s, g, **other)


PADDED = {"pad_h": 1, "pad_w": 1}
STRIDED = {**PADDED, "stride_h": 2, "stride_w": 2}
PROBLEMS = [
    problem(2, 9, 8, 3, 24, 24, 3, 3, **PADDED),  # more than a tile of pixels
    problem(2, 7, 7, 2, 40, 72, 3, 3, **STRIDED),  # two tiles of channels
    problem(3, 5, 6, 5, 4, 4, 3, 3, **PADDED),  # a block of groups that is not full
    problem(1, 9, 10, 2, 12, 20, 3, 3, **STRIDED),  # whole units in 32 bits, not in 16
    problem(2, 6, 5, 6, 3, 5, 3, 3, **PADDED),
    problem(1, 8, 8, 4, 1, 2, 2, 3, pad_w=2),
    problem(1, 7, 9, 2, 8, 16, 5, 1, pad_h=3, stride_h=3, stride_w=2),
    problem(2, 11, 9, 2, 8, 8, 3, 3, pad_h=2, pad_w=2, dilation_h=2, dilation_w=2, stride_w=2),
    problem(1, 5, 5, 1, 7, 9, 1, 1, stride_h=4, stride_w=3),  # phases without a tap
    problem(1, 6, 4, 2, 2, 6, 7, 7, pad_h=3, pad_w=4),
    problem(5, 1, 1, 2, 16, 8, 3, 3, **PADDED),
    problem(1, 20, 17, 1, 48, 65, 3, 2, stride_h=2, dilation_h=3, pad_h=3),
]


def of_terms(kernel: Any) -> float:
    """The error of a sum, relative to its terms: of TF32 a rounding of each factor."""
    return 2.0**-10 + 2.0**-20 if kernel.name.endswith("_tf32") else 2.0**-20


def kernels_for(pass_name: str, p: ConvProblem, math_name: str, *, planar: bool) -> list[Any]:
    """The configurations that compute a problem. There must be one."""
    dtype = "float32" if math_name == "tf32" else math_name
    found = [
        kernel
        for kernel in emulator.tiled_kernels(pass_name, planar=planar)
        if kernel.dtype == dtype
        and kernel.name.endswith("_tf32") == (math_name == "tf32")
        and not kernel.refusal(emulator.extents(p))
    ]
    assert found
    return found


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("math_name", MATHS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_shapes(pass_name: str, math_name: str, planar: bool):
    for i, p in enumerate(PROBLEMS):
        if math_name == "bfloat16" and i % 4:
            continue  # which differs from float16 in conversions alone
        for kernel in kernels_for(pass_name, p, math_name, planar=planar):
            operands = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=i % 2 == 0, seed=i)
            outcome = emulator.run(kernel, p, operands, channels_last=i % 4 < 2, schedule=i)
            problems = wrong(kernel, p, operands, outcome, of_terms(kernel))
            assert not problems, f"{kernel.name} {p}: {problems}"


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("math_name", MATHS)
def test_epilogue(math_name: str, planar: bool):
    p = problem(2, 6, 7, 2, 8, 16, 3, 3, **PADDED)
    (kernel, *_) = kernels_for("fprop", p, math_name, planar=planar)
    plain = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=True)
    residual = Operands.random(p, plain.x.dtype, bias=False, seed=1).y
    scale, shift = torch.randn(p.K), torch.randn(p.K)
    operands = dataclasses.replace(
        plain, scale=scale, shift=shift, residual=residual, relu=math_name != "bfloat16"
    )
    outcome = emulator.run(kernel, p, operands)
    assert not outcome.faults
    by_channel = scale.double()[:, None, None], shift.double()[:, None, None]
    expected = emulator.exact("fprop", p, plain) * by_channel[0] + by_channel[1]
    expected += residual.double()
    if operands.relu:
        expected = expected.relu()
    allowed = emulator.magnitude("fprop", p, plain) * by_channel[0].abs() * of_terms(kernel)
    allowed += expected.abs() * (2.0**-8 if kernel.dtype == "bfloat16" else 2.0**-11) + 1e-6
    assert bool(((outcome.output.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(("math_name", "planar"), [("float16", False), ("tf32", True)])
def test_every_schedule_gives_the_same_bits(pass_name: str, math_name: str, planar: bool):
    p = problem(3, 6, 9, 2, 40, 40, 3, 3, **PADDED)
    for kernel in kernels_for(pass_name, p, math_name, planar=planar):
        operands = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=True)
        first, *others = (
            emulator.run(kernel, p, operands, schedule=schedule) for schedule in range(3)
        )
        for other in others:
            assert not other.faults
            assert torch.equal(other.output, first.output)


@pytest.mark.parametrize("pass_name", PASSES)
def test_layouts_have_the_same_bits(pass_name: str):
    p = problem(2, 9, 7, 3, 8, 16, 3, 3, **STRIDED)
    for math_name in MATHS:
        outputs = []
        for planar, channels_last in itertools.product((False, True), (False, True)):
            kernel = kernels_for(pass_name, p, math_name, planar=planar)[-1]
            operands = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=True)
            outputs.append(emulator.run(kernel, p, operands, channels_last=channels_last).output)
        assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(
    ("math_name", "planar"), [("bfloat16", False), ("tf32", True), ("float32", False)]
)
@pytest.mark.parametrize("pass_name", PASSES)
def test_non_finite_values_stay_where_they_belong(
    pass_name: str, math_name: str, planar: bool, value: float
):
    # Where the padding meets such a weight the sum is computed again: in order, as by FMA units.
    channels = 3 if planar else 8
    p = problem(3, 5, 4, 5, channels, channels, 3, 3, **STRIDED)
    for kernel in kernels_for(pass_name, p, math_name, planar=planar)[:2]:
        check_non_finite_in(kernel, p, value, of_terms(kernel), same_bits=math_name == "float32")


@pytest.mark.parametrize("channels", [24, 112])
def test_float32_is_as_accurate_as_pytorch(channels: int):
    """Whose sums are not one chain either."""
    p = problem(1, 8, 8, 2, channels, channels, 3, 3, **PADDED)
    operands = Operands.random(p, torch.float32, bias=False)
    exact = emulator.exact("fprop", p, operands)
    theirs = F.conv2d(operands.x, operands.w, None, p.stride, p.padding, p.dilation, p.G)
    for kernel in kernels_for("fprop", p, "float32", planar=False):
        ours = emulator.run(kernel, p, operands, detect=False).output
        errors = [float((t.double() - exact).square().mean().sqrt()) for t in (ours, theirs)]
        assert errors[0] <= 1.5 * errors[1]


def test_sums_that_overflow_in_a_tile_do_not_spread():
    p = problem(1, 4, 4, 2, 8, 8, 3, 3, **PADDED)
    (kernel, *_) = kernels_for("fprop", p, "float32", planar=False)
    operands = Operands.random(p, torch.float32, bias=False)
    operands.x[0, 3, 1, 1] = 1e37
    operands.w[2] *= 1e3
    outcome = emulator.run(kernel, p, operands)
    assert not outcome.faults
    reached = emulator.exact("fprop", p, operands).abs() > torch.finfo().max
    assert torch.equal(outcome.output.isfinite(), ~reached)


@pytest.mark.parametrize("planar", [False, True])
def test_images_that_begin_beyond_two_to_the_31(planar: bool):
    """Three images of nearly 2 GiB, of which the filter meets a few pixels."""
    p = problem(3, 11000, 11000, 1, 8, 16, 1, 1, stride_h=5500, stride_w=5500)
    (kernel, *_) = kernels_for("fprop", p, "float16", planar=planar)
    rng = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, generator=rng).half() for size in ((3, 8, 2, 2), (16, 8)))
    session = kernel.session(emulator.extents(p))
    image, channel = np.arange(3)[:, None, None] * p.C * p.H * p.W, np.arange(8)[:, None]
    pixel = (np.arange(2)[:, None] * p.W + np.arange(2)).reshape(-1) * 5500
    place = image + (channel * p.H * p.W + pixel if planar else pixel * p.C + channel)
    session.x.view(np.int16)[place.reshape(-1)] = x.view(-1).view(torch.int16).numpy()
    session.w.view(np.int16)[:] = w.view(-1).view(torch.int16).numpy()
    launches = session.run()
    assert not any(launch.text for launch in launches)
    assert session.complete
    y = torch.from_numpy(session.y.view(np.int16)).view(torch.float16)
    y = y.view(3, 16, 2, 2) if planar else y.view(3, 2, 2, 16).permute(0, 3, 1, 2)
    expected = torch.einsum("ncpq,kc->nkpq", x.double(), w.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


# Faults that change nothing, by the beginning of the line that they are planted in.
HARMLESS: dict[str, tuple[str, ...]] = {}


@pytest.mark.parametrize(
    ("pass_name", "math_name", "planar"),
    [("fprop", "float16", False), ("dgrad", "tf32", True), ("fprop", "float32", False)],
)
def test_planted_faults_are_noticed(pass_name: str, math_name: str, planar: bool):
    """One fault at each call of a leaf in the kernels' source: a report or a wrong result."""
    assert unnoticed_faults(pass_name, math_name, planar) == []


def unnoticed_faults(pass_name: str, math_name: str, planar: bool) -> list[str]:
    # A last tile of pixels and a last block of groups that are not full; an odd number of chunks,
    # the last of which lies in shared memory where the sums shall lie.
    if pass_name == "dgrad":
        p = problem(2, 5, 9, 3, 8, 8, 3, 3, stride_h=2, stride_w=2)
    else:
        p = problem(2, 6, 7, 3, 8, 8, 4, 4 if math_name == "float16" else 2, **PADDED)
    (kernel, *_) = kernels_for(pass_name, p, math_name, planar=planar)
    clean = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=True)
    if pass_name == "fprop":
        clean = dataclasses.replace(clean, residual=torch.zeros_like(clean.y))
    # The first channel of a group stays finite, and so do sums whose tap lies outside the image.
    tap = 0 if pass_name == "dgrad" else -1
    infinite = Operands.random(p, clean.x.dtype, bias=False, seed=1)
    infinite.w[1, 1, tap, tap] = infinite.x[1, 12, 2, 2] = infinite.y[1, 12, 1, 1] = math.inf
    missed: dict[Any, bool] = {}
    for given in (clean, infinite):
        right = emulator.run(kernel, p, given)
        assert not wrong(kernel, p, given, right, of_terms(kernel))
        for launch in right.launches:
            for fault in emulator.module().mutations_of(launch.counts):
                key = (fault.kind, fault.where, fault.column)
                if missed.get(key) is False:
                    continue
                outcome = emulator.run(kernel, p, given, mutation=fault)
                if outcome.effects:
                    missed[key] = not wrong(kernel, p, given, outcome, of_terms(kernel))
    assert len(missed) >= 20
    return [
        f"{kind} at {where}: {source(where)}"
        for (kind, where, _), unnoticed in missed.items()
        if unnoticed and not source(where).startswith(HARMLESS.get(kind, ("none",)))
    ]


# One of each way to compute, and those that take least.
COUNTED = [row for row in ROWS if row.layer.stride == 2 or row.layer.C == 512]


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row.pass_name} {row.layer} {row.math}")
def test_table_of_counts_is_up_to_date(row: TiledRow):
    """docs/cuda-counts-tiled.md against the kernels: print it anew after a change to one."""
    table = (emulator.ROOT / "docs" / "cuda-counts-tiled.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [cell.strip() for cell in row.cells()] in rows
    assert row.dram_sectors <= 1.05 * row.min_sectors
    assert row.mma <= 1.25
    assert row.filled >= 0.95
