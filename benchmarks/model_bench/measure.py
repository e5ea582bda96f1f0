"""Measures cases: verify, time side by side, then memory and where the time went."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from grouped_conv.bench.memory import high_water
from grouped_conv.bench.timing import Budget, interleave, paired_ratio, quartiles, stopwatch
from model_bench.cases import BASE, REPLACED, Case, cardinality, images, network, refusal, step

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference from nn.Conv2d's result, over the largest of the results."""

SLOTS = 2
"""Batches that take turns; a model's weights and activations outgrow any cache anyway."""

PROFILED_STEPS = 3

CLASSES = {
    "batch norm": ("batch_norm",),
    "relu": ("relu", "threshold", "clamp_min"),
    "pool": ("pool", "aten::mean"),
    "linear": ("addmm", "aten::mm", "linear", "log_softmax", "nll_loss"),
    "optimizer": ("optimizer", "_foreach", "zero_"),
    "add": ("aten::add",),
    "copies": ("copy_", "aten::to", "contiguous", "clone", "reorder", "fill_", "empty"),
}
"""Operators by parts of their names; the first class that fits."""


@dataclass(frozen=True)
class Row:
    """One case; times are seconds per step."""

    model: str
    variant: str
    mode: str
    dtype: str
    layout: str
    batch: int
    size: int
    status: str
    message: str = ""
    median: float | None = None
    low: float | None = None
    high: float | None = None
    steps: int = 0
    images_per_second: float | None = None
    ratio: float | None = None
    """Median over the rounds of nn.Conv2d's time by this one's."""
    bound: float | None = None
    """Amdahl's: the ratio if what this variant replaces took no time at all."""
    peak_bytes: int | None = None
    """By how much the first step raises the memory in use at its highest."""
    shares: dict[str, float] = field(default_factory=dict)
    """Part of the time in each class of operators."""


def blank(case: Case, status: str, message: str = "") -> Row:
    return Row(
        case.model,
        case.variant,
        case.mode,
        case.dtype,
        case.layout,
        case.batch,
        case.size,
        status,
        message,
    )


def measure_group(
    cases: Sequence[Case], budget: Budget, seed: int, *, memory: bool, shares: bool
) -> list[Row]:
    """All variants of one model in one setting, side by side. What fails is told in its row.

    The first case must be the one with nn.Conv2d, which the others are held to.
    """
    base = cases[0]
    if base.variant != BASE:
        raise ValueError(f"the first variant must be {BASE}")
    rows = {case: blank(case, "skipped", reason) for case in cases if (reason := refusal(case))}
    batches = images(base, SLOTS)
    runs: dict[Case, Callable[[Tensor], Tensor]] = {}
    expected: Tensor | None = None
    for case in cases:
        if case in rows:
            continue
        try:
            run = step(case, network(case))
            result = run(batches[0]).float()
        except Exception as error:
            if expected is None:
                raise  # without nn.Conv2d's result there is nothing to judge others by
            first_line = next(iter(str(error).splitlines()), "")
            rows[case] = blank(case, "error", f"{type(error).__name__}: {first_line}")
            continue
        if expected is None:
            expected = result
        difference = float((result - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE[case.dtype]:
            rows[case] = blank(case, "mismatch", f"differs by {difference:.2g} from {BASE}")
            continue
        runs[case] = run

    def bound(run: Callable[[Tensor], Tensor]) -> Callable[[int], Tensor]:
        return lambda slot: run(batches[slot])

    timed = list(runs)
    samples = interleave(
        [bound(run) for run in runs.values()],
        SLOTS,
        stopwatch(base.device),
        budget,
        random.Random(seed),
    )
    parts = {case: profiled(case, run, batches[0]) for case, run in runs.items()} if shares else {}
    runs.clear()
    for case, seconds in zip(timed, samples, strict=True):
        low, median, high = quartiles(seconds)
        replaced = REPLACED.get(case.variant)
        limit = None
        if replaced is not None and shares:
            limit = 1.0 / max(1.0 - sum(parts[base].get(name, 0.0) for name in replaced), 1e-9)
        rows[case] = Row(
            case.model,
            case.variant,
            case.mode,
            case.dtype,
            case.layout,
            case.batch,
            case.size,
            "ok",
            median=median,
            low=low,
            high=high,
            steps=len(seconds),
            images_per_second=case.batch / median,
            ratio=paired_ratio(seconds, samples[0]),
            bound=limit,
            peak_bytes=peak(case) if memory else None,
            shares=parts.get(case, {}),
        )
    return [rows[case] for case in cases]


def profiled(case: Case, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, float]:
    """Part of the time of a few steps in each class of operators, by torch.profiler."""
    cuda = case.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as found:
        for _ in range(PROFILED_STEPS):
            run(x)
        if cuda:
            torch.cuda.synchronize()
    groups = cardinality(case.model)
    totals: dict[str, float] = {}
    for event in found.key_averages(group_by_input_shape=True):
        time = event.self_device_time_total if cuda else event.self_cpu_time_total
        name = operator_class(event.key, event.input_shapes or [], groups)
        totals[name] = totals.get(name, 0.0) + time
    whole = sum(totals.values())
    if not whole:
        return {}
    return {name: time / whole for name, time in sorted(totals.items(), key=lambda item: -item[1])}


def operator_class(name: str, shapes: Sequence[Sequence[int]], groups: int) -> str:
    """Class of an operator. A grouped 3x3 of these models is known by its weight, ``[K, K/G, 3,
    3]``."""
    if "grouped_conv::" in name:
        return "grouped 3x3"
    if "conv" in name:
        grouped = any(
            len(shape) == 4 and list(shape[2:]) == [3, 3] and shape[0] == groups * shape[1]
            for shape in shapes
        )
        return "grouped 3x3" if grouped and groups > 1 else "dense convolution"
    lower = name.lower()
    for known, patterns in CLASSES.items():
        if any(pattern in lower for pattern in patterns):
            return known
    return "other"


def peak(case: Case) -> int:
    """Bytes by which a step raises the memory in use; on a CPU in a process of its own."""
    if case.device.type == "cuda":
        return _first_step(case, 0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_first_step, case, torch.get_num_threads()).result()


def _first_step(case: Case, threads: int) -> int:
    if threads:
        torch.set_num_threads(threads)
    run = step(case, network(case))
    x = images(case, 1)[0]
    if case.device.type == "cpu":
        return high_water(lambda: run(x))
    run(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
