"""Times contenders side by side: interleaved, on inputs that are not in the cache."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How long to measure: at least ``repeats`` rounds and ``min_time`` seconds per contender."""

    min_time: float = 0.4
    repeats: int = 20
    max_repeats: int = 2000

    def enough(self, rounds: int, seconds: float, contenders: int) -> bool:
        """Whether ``rounds`` that took ``seconds`` in all suffice; slow calls end after three."""
        if rounds >= self.max_repeats:
            return True
        wanted = self.min_time * contenders
        slow = rounds >= 3 and seconds >= 10 * wanted > 0
        return slow or (rounds >= self.repeats and seconds >= wanted)


@dataclass(frozen=True)
class Call:
    """One call to be timed, and where its result goes afterwards, untimed."""

    run: Callable[[], Tensor]
    keep: Callable[[Tensor], None]


class Stopwatch(Protocol):
    """Times a batch of calls one by one."""

    rounds_per_batch: int

    def __call__(self, calls: Sequence[Call]) -> list[float]:
        """Seconds of each call, in order."""


class CpuStopwatch:
    """Wall clock around each call."""

    rounds_per_batch = 1

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock

    def __call__(self, calls: Sequence[Call]) -> list[float]:
        seconds = []
        for call in calls:
            begin = self._clock()
            result = call.run()
            seconds.append((self._clock() - begin) * 1e-9)
            call.keep(result)
        return seconds


class CudaStopwatch:
    """Events around each call, all queued behind a sleeping kernel.

    While the device sleeps the host queues the batch, so that the events see the device's time
    and not the host's. If the sleep was over before the queue was full, the batch is repeated
    behind a longer one.
    """

    rounds_per_batch = 10
    _LONGEST_SLEEP = 1 << 28

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sleep = 1 << 22

    def __call__(self, calls: Sequence[Call]) -> list[float]:
        with torch.cuda.device(self._device):
            while True:
                seconds, starved = self._batch(calls)
                if not starved or self._sleep >= self._LONGEST_SLEEP:
                    return seconds
                self._sleep *= 2

    def _batch(self, calls: Sequence[Call]) -> tuple[list[float], bool]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
        torch.cuda.synchronize()
        torch.cuda._sleep(self._sleep)
        for call, (start, end) in zip(calls, events, strict=True):
            start.record()
            result = call.run()
            end.record()
            call.keep(result)
        starved = events[0][0].query()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events], starved


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch for a device."""
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()


def interleave(
    contenders: Sequence[Callable[[int], Tensor]],
    slots: int,
    watch: Stopwatch,
    budget: Budget,
    rng: random.Random,
) -> list[list[float]]:
    """Seconds of each contender in each round; every round calls each once, in random order.

    Each call gets the next of ``slots`` sets of inputs, so that a set comes round again only
    after all the others were used. Results live until their slot comes round, so that the
    memory of the next result is cold as well.
    """
    samples: list[list[float]] = [[] for _ in contenders]
    results: list[Tensor | None] = [None] * slots
    slot = 0
    spent, warm = 0.0, False
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while True:
            order: list[int] = []
            calls: list[Call] = []
            for _ in range(watch.rounds_per_batch):
                shuffled = rng.sample(range(len(contenders)), len(contenders))
                for index in shuffled:
                    calls.append(_call(contenders[index], slot, results))
                    slot = (slot + 1) % slots
                order += shuffled
            seconds = watch(calls)
            if not warm:  # the first batch warms up caches, pools and clocks
                warm = True
                continue
            for index, value in zip(order, seconds, strict=True):
                samples[index].append(value)
            spent += sum(seconds)
            if budget.enough(len(samples[0]), spent, len(contenders)):
                return samples
    finally:
        if was_enabled:
            gc.enable()


def _call(contender: Callable[[int], Tensor], slot: int, results: list[Tensor | None]) -> Call:
    def keep(result: Tensor) -> None:
        results[slot] = result

    return Call(lambda: contender(slot), keep)


def slots_for(bytes_per_set: int, cache: int, largest: int = 1024) -> int:
    """Sets of inputs such that between two uses of one more than the cache has passed."""
    return min(largest, 1 + max(1, math.ceil(1.5 * cache / max(1, bytes_per_set))))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of their time by ours: what disturbs a round disturbs both."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def recycle_memory() -> bool:
    """Ask glibc to reuse freed memory of any size; whether it took the request.

    By default every result beyond 32 MiB comes as fresh pages from the kernel, at the cost of a
    page fault per 4 KiB, whichever kernel fills it. Allocators meant for such programs
    (jemalloc, tcmalloc) keep the pages, and so does a model's steady state.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    largest = (1 << 31) - 1
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, largest))
