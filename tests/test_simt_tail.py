"""fprop's epilogue and statistics in the SIMT emulator, as test_simt.py has the passes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import emulator
import pytest
import torch
from emulator import Operands, Outcome
from test_simt import HARMLESS, MULTIPROCESSORS, ROUNDING, SHAPES, problem, source
from torch import Tensor

from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once

ADDED = ("rowstream_tail.cuh", "epilogue.cuh", "statistics.cuh")
# What is in other files for a residual.
ADDED_LINES = (
    "device::cp_async_16(source_ + buffer",
    "device::cp_async_wait<kTail == Tail::kResidual",
    "device::sync_threads();  // the weights may have been",
)
# The last thread's flags are not read; an infinity in the input reaches pixels of others as well.
# Another output's residual, added to an infinity.
HARMLESS_HERE = {
    "stale address": ("bad |= device::load_shared_4(flags",),
    "stale pointer": ("device::load_global_2(static_cast<const char*>(args.epilogue.residual)",),
}

TAILS = ("epilogue", "residual", "statistics")
FAMILIES = [(c, stride) for c in (4, 8, 16, 32, 64) for stride in (1, 2)]
KINDS = [(tail, c, stride) for tail in TAILS for c, stride in FAMILIES]


def kernels_for(tail: str, c_per_group: int, stride: int, dtype: str) -> list[Any]:
    """There must be one."""
    extents = emulator.extents(problem(c_per_group, stride, 2, 9, 8, (1, 1), 1, 0))
    found = [
        kernel
        for kernel in emulator.kernels("fprop")
        if kernel.dtype == dtype
        and getattr(kernel, f"takes_{tail}")
        and not kernel.refusal(extents)
    ]
    assert found
    return found


def operands_for(tail: str, p: ConvProblem, dtype: str, seed: int = 0) -> Operands:
    """With a factor of each sign for every second channel; statistics with a far mean."""
    operands = Operands.random(p, emulator.DTYPES[dtype], bias=True, seed=seed)
    if tail == "statistics":
        far = (40 * operands.bias).to(operands.bias.dtype) if seed % 2 else operands.bias
        return dataclasses.replace(operands, bias=far)
    rng = torch.Generator().manual_seed(seed)
    scale, shift = torch.randn(2, p.K, generator=rng)
    residual = operands.y.flip(0) if tail == "residual" else None
    return dataclasses.replace(
        operands, scale=scale, shift=shift, residual=residual, relu=seed % 2 == 0
    )


def run(tail: str, kernel: Any, p: ConvProblem, operands: Operands, **options: Any) -> Outcome:
    return emulator.run(kernel, p, operands, statistics=tail == "statistics", **options)


def wrong(kernel: Any, p: ConvProblem, operands: Operands, outcome: Outcome) -> str:
    """What is wrong with an outcome, in words; empty if nothing is."""
    if outcome.faults:
        return outcome.faults
    expected, got = emulator.exact("fprop", p, operands), outcome.output.double()
    allowed = emulator.magnitude("fprop", p, operands) * 2.0**-20
    if operands.scale is not None:
        scale, shift = (t.double()[:, None, None] for t in (operands.scale, operands.shift))
        expected = expected * scale + shift
        allowed = allowed * scale.abs() + (expected.abs() + shift.abs()) * 2.0**-22
        if operands.residual is not None:
            expected = expected + operands.residual.double()
        if operands.relu:
            expected = expected.relu()
    allowed += expected.abs() * ROUNDING[kernel.dtype] + 2.0**-25
    right = ((got - expected).abs() <= allowed) & expected.isfinite()
    right |= (got == expected) | (got.isnan() & expected.isnan())
    if not bool(right.all()):
        place = tuple((~right).nonzero()[0].tolist())
        return f"{int((~right).sum())} wrong, at {place} {got[place]} not {expected[place]}"
    return "" if outcome.statistics is None else wrong_statistics(got, *outcome.statistics)


def wrong_statistics(y: Tensor, total: Tensor, squares: Tensor) -> str:
    """They are those of what was written, to a few units of float32 whatever the mean."""
    finite = y.isfinite().all(3).all(2).all(0)
    if not torch.equal(finite, total.isfinite()) or not torch.equal(finite, squares.isfinite()):
        return f"statistics are finite in {total.isfinite()}, y in {finite}"
    y, total, squares = y[:, finite], total[finite].double(), squares[finite].double()
    mean = y.mean((0, 2, 3), keepdim=True)
    for name, got, expected, size in (
        ("sum", total, y.sum((0, 2, 3)), y.abs().sum((0, 2, 3))),
        ("squares", squares, *2 * ((y - mean).square().sum((0, 2, 3)),)),
    ):
        error = (got - expected).abs() - 2.0**-18 * size
        if bool((error > 1e-30).any()):
            return f"{name} {got} instead of {expected}"
    return ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("tail", "c_per_group", "stride"), KINDS)
def test_shapes(tail: str, c_per_group: int, stride: int, dtype: str):
    for kernel in kernels_for(tail, c_per_group, stride, dtype):
        for i, shape in enumerate(SHAPES):
            if (i + c_per_group + (dtype == "float16")) % 2:  # each shape for either dtype
                continue
            p = problem(c_per_group, stride, *shape)
            operands = operands_for(tail, p, dtype, seed=i)
            outcome = run(
                *(tail, kernel, p, operands),
                channels_last=i % 4 < 2,
                sm_count=MULTIPROCESSORS[i % 3],
                schedule=i,
            )
            assert not (problems := wrong(kernel, p, operands, outcome)), (
                f"{kernel.name} {p}: {problems}"
            )


@pytest.mark.parametrize(("tail", "c_per_group", "stride"), KINDS)
def test_every_schedule_gives_the_same_bits(tail: str, c_per_group: int, stride: int):
    p = problem(c_per_group, stride, 3, 6, 9, (1, 1), 1, 1)
    for kernel in kernels_for(tail, c_per_group, stride, "float16"):
        operands = operands_for(tail, p, "float16")
        first, other = (
            run(tail, kernel, p, operands, sm_count=3, schedule=schedule) for schedule in range(2)
        )
        assert not other.faults
        assert torch.equal(other.output, first.output)
        for a, b in zip(other.statistics or (), first.statistics or (), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("tail", "c_per_group"), [(t, c) for t in TAILS for c in (4, 16)])
def test_non_finite_values_meet_the_same_epilogue(tail: str, c_per_group: int, value: float):
    """Also behind a relu, which leaves NaN, and takes minus infinity for zero."""
    p = problem(c_per_group, 1, 3, 5, 7, (1, 1), 1, 0)
    for kernel in kernels_for(tail, c_per_group, 1, "float16"):
        operands = operands_for(tail, p, "float16", seed=2)
        for t in (operands.x, operands.w):
            t.view(-1)[:: t.numel() // 3] = value
        outcome = run(tail, kernel, p, operands, sm_count=1)
        assert not (problems := wrong(kernel, p, operands, outcome)), f"{kernel.name}: {problems}"


@pytest.mark.parametrize(("tail", "stride"), [(t, s) for t in TAILS for s in (1, 2)])
def test_planted_faults_are_noticed(tail: str, stride: int):
    """In what a tail adds; test_simt.py plants into all else."""
    kernel = kernels_for(tail, 4, stride, "float16")[0]
    missed: dict[Any, bool] = {}
    one = problem(4, stride, 5, 6, 7, (1, 1), 1, 0)
    finite = operands_for(tail, one, "float16", seed=1)
    infinite = dataclasses.replace(finite, x=finite.x.clone())
    infinite.x[1, 5, 3, 4] = math.inf  # in front of few threads, and not of the first
    many = problem(4, stride, 2, 14, 6, (1, 1), 1, 0)
    rest = problem(4, stride, 9, 3, 7, (1, 1), 1, 0)  # whose last tile has fewer images
    for p, operands, sm_count in (
        (one, finite, 1),
        (one, infinite, 1),
        (many, operands_for(tail, many, "float16", seed=1), 132),
        (rest, operands_for(tail, rest, "float16", seed=1), 1),
    ):
        right = run(tail, kernel, p, operands, sm_count=sm_count)
        assert not wrong(kernel, p, operands, right)
        for launch in right.launches:
            for fault in emulator.module().mutations_of(launch.counts):
                key = (fault.kind, fault.where, fault.column)
                added = fault.where.split(":")[0] in ADDED
                added |= tail == "residual" and source(fault.where).startswith(ADDED_LINES)
                if not added or missed.get(key) is False:
                    continue
                outcome = run(tail, kernel, p, operands, sm_count=sm_count, mutation=fault)
                if outcome.effects:
                    missed[key] = not wrong(kernel, p, operands, outcome)
    assert len(missed) >= {"epilogue": 2, "residual": 7, "statistics": 12}[tail]
    unexpected = [
        f"{kind} at {where}: {source(where)}"
        for (kind, where, _), unnoticed in missed.items()
        if unnoticed
        and not source(where).startswith((*HARMLESS.get(kind, ()), *HARMLESS_HERE.get(kind, ())))
    ]
    assert unexpected == []
