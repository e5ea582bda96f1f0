"""The CUDA kernels in the SIMT emulator: right on odd shapes, without a fault, in any order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
from typing import Any

import emulator
import pytest
import torch
from cuda_counts import TAILS, Row
from emulator import Operands, Outcome
from torch import Tensor

from grouped_conv import reference
from grouped_conv.bench.problems import network
from grouped_conv.problem import PASSES, ConvProblem

pytestmark = pytest.mark.once

# name -> what the programs of tests/simt must find in themselves before kernels are judged
SELF_TESTS = ("faults", "arithmetic", "counts", "mutations")

# N, H, W, (pad_h, pad_w), blocks of channels, groups (or 8 channels) beside them.
# Rows that share a tile and rows that are cut into strips; tiles of several images with the last
# one partly filled; images smaller than the kernel; a last block of channels partly filled.
SHAPES = [
    (1, 7, 7, (1, 1), 1, 0),
    (9, 7, 7, (1, 1), 0, 1),
    (2, 14, 15, (1, 1), 1, 1),
    (3, 5, 6, (2, 2), 0, 3),
    (2, 9, 8, (0, 0), 1, 0),
    (11, 2, 3, (1, 1), 0, 1),
    (17, 1, 1, (1, 1), 0, 1),
    (1, 4, 70, (1, 2), 0, 1),
    (1, 3, 131, (2, 0), 0, 1),
    (2, 28, 33, (0, 1), 0, 1),
    (1, 56, 56, (1, 1), 0, 1),
    (2, 40, 9, (1, 1), 1, 0),
]
BLOCK = 64  # channels of most blocks
MULTIPROCESSORS = (1, 3, 132)


COMBINATIONS = list(itertools.product(PASSES, (4, 8, 16, 32, 64), (1, 2)))
# Half a unit in the last place.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def kernels_for(
    pass_name: str, c_per_group: int, stride: int, dtype: str, *, planar: bool = False
) -> list[Any]:
    """The kernels that compute such problems. There must be one: none of them is optional."""
    p = problem(c_per_group, stride, 2, 9, 8, (1, 1), 1, 0)
    found = [
        kernel
        for kernel in emulator.kernels(pass_name, planar=planar)
        if kernel.dtype == dtype and not kernel.refusal(emulator.extents(p))
    ]
    assert found
    return found


def problem(
    c_per_group: int,
    stride: int,
    n: int,
    h: int,
    w: int,
    pad: tuple[int, int],
    blocks: int,
    more: int,
) -> ConvProblem:
    """A problem of ``blocks`` whole blocks of channels and ``more`` groups, or eights, of them."""
    c = blocks * BLOCK + more * max(8, c_per_group)
    pads, strides = {"pad_h": pad[0], "pad_w": pad[1]}, {"stride_h": stride, "stride_w": stride}
    return ConvProblem(n, c, h, w, c, G=c // c_per_group, **pads, **strides)


def wrong(
    kernel: Any, p: ConvProblem, operands: Operands, outcome: Outcome, of_terms: float = 2.0**-20
) -> str:
    """What is wrong with an outcome, in words; empty if nothing is.

    ``of_terms``: the error that sums may have, relative to their terms.
    """
    if outcome.faults:
        return outcome.faults
    expected, got = emulator.exact(kernel.pass_name, p, operands), outcome.output.double()
    # float32 sums, one rounding of the result, and the smallest numbers of float16.
    allowed = emulator.magnitude(kernel.pass_name, p, operands) * of_terms
    allowed += expected.abs() * ROUNDING[kernel.dtype] + 2.0**-25
    right = ((got - expected).abs() <= allowed) & expected.isfinite()
    right |= (got == expected) | (got.isnan() & expected.isnan())
    if bool(right.all()):
        return ""
    place = tuple((~right).nonzero()[0].tolist())
    return f"{int((~right).sum())} wrong, at {place} {got[place]} instead of {expected[place]}"


@pytest.mark.parametrize("name", SELF_TESTS)
def test_emulator(name: str):
    """What the emulator says of itself; ctest runs these as well."""
    done = subprocess.run([emulator.self_test(name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pass_name", PASSES)
def test_oracle(pass_name: str, stride: int):
    p = problem(4, stride, 2, 7, 6, (1, 2), 0, 2)
    operands = Operands.random(p, torch.float16, bias=True)
    x, w, y, bias = operands.x, operands.w, operands.y, operands.bias
    expected = {
        "fprop": lambda: reference.fprop(x, w, bias, p),
        "dgrad": lambda: reference.dgrad(y, w, p),
        "wgrad": lambda: reference.wgrad(y, x, p),
    }[pass_name]()
    torch.testing.assert_close(emulator.exact(pass_name, p, operands), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("pass_name", "c_per_group", "stride"), COMBINATIONS)
def test_shapes(pass_name: str, c_per_group: int, stride: int, dtype: str):
    for kernel in kernels_for(pass_name, c_per_group, stride, dtype):
        for i, shape in enumerate(SHAPES):
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
    p = problem(c_per_group, stride, 3, 6, 9, (1, 1), 1, 1)
    for kernel in kernels_for(pass_name, c_per_group, stride, "float16"):
        operands = Operands.random(p, torch.float16, bias=True)
        first, *others = (
            emulator.run(kernel, p, operands, sm_count=3, schedule=schedule)
            for schedule in range(3)
        )
        for other in others:
            assert not other.faults
            assert torch.equal(other.output, first.output)


def plants(p: ConvProblem) -> dict[str, list[tuple[int, ...]]]:
    """For each operand the places of its last two dimensions where a value may matter."""

    def border(h: int, w: int) -> list[tuple[int, ...]]:
        return list(itertools.product((0, h // 2, h - 1), (0, w // 2, w - 1)))

    return {
        "x": border(p.H, p.W),
        "w": list(itertools.product(range(p.R), range(p.S))),
        "y": border(p.P, p.Q),
    }


def planted(t: Tensor, places: list[tuple[int, ...]], p: ConvProblem, value: float) -> Tensor:
    """``t`` with one value in every second group, each at another place and channel."""
    out = t.clone()
    per_group = (t.shape[0] if t.shape == p.weight_size else t.shape[1]) // p.G
    for turn, group in enumerate(range(0, p.G, 2)):
        row, column = places[turn % len(places)]
        channel = group * per_group + turn % per_group
        if t.shape == p.weight_size:
            out[channel, (turn * 3) % p.c_per_group, row, column] = value
        else:
            out[turn % p.N, channel, row, column] = value
    return out


# From 16 channels per group on the code that looks for such values is the same, and takes long.
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("pass_name", "c_per_group", "stride"), [c for c in COMBINATIONS if c[1] <= 16]
)
def test_non_finite_values_stay_where_they_belong(
    pass_name: str, c_per_group: int, stride: int, value: float
):
    """In their group and in the taps that meet them; what they do not reach keeps its bits."""
    dtype = "bfloat16" if value < 0 else "float16"
    for kernel in kernels_for(pass_name, c_per_group, stride, dtype):
        check_non_finite(kernel, c_per_group, stride, value)


def check_non_finite(kernel: Any, c_per_group: int, stride: int, value: float) -> None:
    check_non_finite_in(
        kernel,
        problem(c_per_group, stride, 3, 5, 7, (1, 1), max(1, c_per_group // 16), 1),
        value,
    )


def check_non_finite_in(
    kernel: Any,
    p: ConvProblem,
    value: float,
    of_terms: float = 2.0**-20,
    same_bits: bool = True,
) -> None:
    """Plant the value in every operand that the kernel reads and compare with the oracle.

    ``same_bits``: whether results that it does not reach must keep their bits.
    """
    pass_name = kernel.pass_name
    read = {"fprop": ("x", "w"), "dgrad": ("y", "w"), "wgrad": ("x", "y")}[pass_name]
    operands = Operands.random(p, emulator.DTYPES[kernel.dtype], bias=True)
    clean = emulator.run(kernel, p, operands, sm_count=1)
    for name in read:
        places = plants(p)[name]
        planted_groups = (p.G + 1) // 2
        for first in range(0, len(places), planted_groups):
            bad = dataclasses.replace(
                operands,
                **{
                    name: planted(
                        getattr(operands, name), places[first:] + places[:first], p, value
                    )
                },
            )
            outcome = emulator.run(kernel, p, bad, sm_count=1)
            where = f"{kernel.name}: {value} in {name}, places from {first}"
            problems = wrong(kernel, p, bad, outcome, of_terms)
            assert not problems, f"{where}: {problems}"
            untouched = emulator.exact(pass_name, p, bad).isfinite()
            same = not same_bits or torch.equal(outcome.output[untouched], clean.output[untouched])
            assert same, f"{where}: results changed that it does not reach"


# Faults that change nothing, by the beginning of the line that they are planted in.
HARMLESS = {
    # Nothing is under way any more; the wait says so to the reader.
    "drop": ("device::cp_async_wait<0>();",),
    "weaken wait": ("device::cp_async_wait<0>();",),
    # A finite output is recomputed as well, and comes out right.
    "ignore predicate": ("device::store_global_2(",),
    # The Inf that is overlooked spoils what is recomputed because of another.
    # Another output's bias, added to an infinity.
    "stale address": ("const bool nonfinite = Nonfinite<T>::any(device::load_shared_16(weights",),
    "stale pointer": ("ExactSum sum{device::to_float<T>(device::load_global_2(bias",),
}


def source(where: str) -> str:
    """The line of a kernel's source."""
    file, line = where.split(":")
    (path,) = (emulator.ROOT / "csrc" / "cuda").rglob(file)
    return path.read_text().splitlines()[int(line) - 1].strip()


# Kernels of their own; dgrad at stride 1 is the kernel of fprop.
FAMILIES = [
    (pass_name, c_per_group, stride)
    for pass_name, c_per_group, stride in COMBINATIONS
    if c_per_group in (4, 16) and (pass_name, stride) != ("dgrad", 1)
]


@pytest.mark.parametrize(("pass_name", "c_per_group", "stride"), FAMILIES)
def test_planted_faults_are_noticed(pass_name: str, c_per_group: int, stride: int):
    """One fault at each call of a leaf in the kernel's source: a report or a wrong result."""
    kernel = kernels_for(pass_name, c_per_group, stride, "float16")[0]
    assert unnoticed_faults(kernel, c_per_group, stride) == []


def unnoticed_faults(kernel: Any, c_per_group: int, stride: int) -> list[str]:
    """The faults that can be planted into a kernel, are not harmless and nothing tells of.

    Planar kernels get images of more rows than are in shared memory at a time.
    """
    pass_name = kernel.pass_name
    # What fprop and dgrad do about Inf is the same source at 16 channels per group as at 4, and
    # takes long there; without Inf it makes no difference which addresses are looked at for Inf.
    with_inf = c_per_group == 4 or pass_name == "wgrad"
    # One block walks over everything, then meets Inf as well; many blocks share the work.
    full_line = (6, 27) if stride == 1 else (8, 58)
    size = full_line if with_inf else (6, 7)
    if kernel.planar:
        size = (20, size[1])
    one = problem(c_per_group, stride, 2, *size, (1, 1), 1, 0)
    many = problem(c_per_group, stride, 2, 14, 6, (1, 1), 1, 0)
    clean = Operands.random(one, torch.float16, bias=True)
    infinite = Operands.random(one, torch.float16, bias=True)
    for t in (infinite.x, infinite.y):
        t.view(-1)[:: t.numel() // 5] = t.view(-1)[-1] = math.inf
    # The last tap of one channel, the first of another.
    infinite.w.view(-1)[-1] = infinite.w.view(-1)[-18] = math.inf
    cases = [
        (one, clean, 1),
        *([(one, infinite, 1)] if with_inf else []),
        (many, Operands.random(many, torch.float16, bias=False), 132),
    ]
    missed: dict[Any, bool] = {}
    for p, given, sm_count in cases:
        right = emulator.run(kernel, p, given, sm_count=sm_count)
        assert not wrong(kernel, p, given, right)
        for launch in right.launches:
            for fault in emulator.module().mutations_of(launch.counts):
                key = (fault.kind, fault.where, fault.column)
                if missed.get(key) is False or (fault.kind == "stale address" and not with_inf):
                    continue
                outcome = emulator.run(kernel, p, given, sm_count=sm_count, mutation=fault)
                if outcome.effects:
                    missed[key] = not wrong(kernel, p, given, outcome)
    assert len(missed) >= 20
    return [
        f"{kind} at {where}: {source(where)}"
        for (kind, where, _), unnoticed in missed.items()
        if unnoticed and not source(where).startswith(HARMLESS.get(kind, ("none",)))
    ]


@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
@pytest.mark.parametrize("c_per_group", [16, 32])
def test_every_configuration_gives_the_same_bits(pass_name: str, c_per_group: int):
    """So that which one was measured to be faster changes no result."""
    p = problem(c_per_group, 1, 5, 6, 9, (1, 1), 1, 1)
    operands = emulator.Operands.random(p, torch.float16, bias=pass_name == "fprop")
    able = [
        kernel
        for kernel in emulator.kernels(pass_name)
        if kernel.dtype == "float16" and not kernel.refusal(emulator.extents(p))
    ]
    assert len(able) == 2
    first, second = (emulator.run(kernel, p, operands, sm_count=3) for kernel in able)
    assert not first.faults + second.faults
    assert torch.equal(first.output, second.output)


# One row of each pass: layers of 4, 8 and 16 channels per group.
UNIT_STRIDE = [layer for layer in network("resnext50") if layer.stride == 1]
COUNTED = [Row(layer, name, 64) for layer, name in zip(UNIT_STRIDE, PASSES, strict=False)]
COUNTED += [Row(UNIT_STRIDE[1], "fprop", 64, tail=tail) for tail in TAILS]


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row.pass_name} {row.tail} {row.layer}")
def test_table_of_counts_is_up_to_date(row: Row):
    """docs/cuda-counts.md against the kernels: print it anew after a change to one of them."""
    table = (emulator.ROOT / "docs" / "cuda-counts.md").read_text()
    printed = [cell.strip() for cell in row.cells()]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert printed in rows


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row.pass_name} {row.tail} {row.layer}")
def test_traffic_is_what_it_must_be(row: Row):
    c_per_group = row.layer.C // row.layer.G
    assert row.dram_sectors <= (1.2 if row.pass_name == "wgrad" else 1.05) * row.min_sectors
    assert row.mma <= (3.1 if c_per_group == 4 else 1.3)
    assert row.kilobytes_in_flight >= 16
    assert row.filled >= 0.9
    times = row.times()
    assert max(times, key=lambda name: times[name]) == "DRAM"
