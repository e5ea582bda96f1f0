"""Measures rows: verify, then time, one after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grouped_conv import functional
from grouped_conv.bench import memory
from grouped_conv.bench.peers import Case, Contender, Operands, Work, ours, peers
from grouped_conv.bench.problems import Layer
from grouped_conv.bench.results import Peer, Row, Timing
from grouped_conv.bench.roofline import DTYPES, Roofline
from grouped_conv.bench.timing import (
    Budget,
    Stopwatch,
    interleave,
    paired_ratio,
    quartiles,
    slots_for,
)
from grouped_conv.bench.verify import Accuracy, Mismatch, exact_part, plausible, verify


@dataclass(frozen=True)
class Plan:
    """What to measure, and how."""

    layers: Sequence[Layer]
    passes: Sequence[Work]
    dtypes: Sequence[str]
    layouts: Sequence[str]
    batches: Sequence[int]
    device: torch.device
    backend: str = "auto"
    peers: tuple[str, ...] = ("torch",)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    memory: bool = False

    def groups(self) -> list[list[tuple[Layer, Case]]]:
        """Cases, table by table."""
        return [
            [
                (layer, Case(layer.problem(batch), pass_name, dtype, layout, self.device))
                for layer in self.layers
            ]
            for pass_name in self.passes
            for dtype in self.dtypes
            for layout in self.layouts
            for batch in self.batches
        ]


def blank_row(layer: Layer, case: Case, roofline: Roofline) -> Row:
    """What is known of a row before anything ran; its status is an error until it did."""
    floor, bound = roofline.floor(case.problem, case.dtype, case.residual_bytes)
    return Row(
        layer=str(layer),
        pass_name=case.pass_name,
        dtype=case.dtype,
        layout=case.layout,
        batch=case.problem.N,
        flops=case.problem.flops,
        min_bytes=case.problem.min_bytes(DTYPES[case.dtype]) + case.residual_bytes,
        floor=floor,
        bound=bound,
        status="error",
    )


@torch.no_grad()
def measure_row(
    layer: Layer, case: Case, plan: Plan, roofline: Roofline, cache: int, watch: Stopwatch
) -> Row:
    """Verify and time one case. What fails is told in the row; nothing is raised."""
    row = blank_row(layer, case, roofline)
    try:
        row = _decided(row, case, plan)
        return row if row.status == "refused" else _measure(row, case, plan, cache, watch)
    except Mismatch as wrong:
        return replace(row, status="mismatch", message=str(wrong))
    except Exception as error:
        return replace(row, message=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _decided(row: Row, case: Case, plan: Plan) -> Row:
    """The row with the library's choice of kernel; refused where a named backend cannot."""
    try:
        decision = functional.decide(
            case.problem,
            DTYPES[case.dtype],
            case.device,
            case.layout == "nhwc",
            case.decided_as,
            backend=plan.backend,
        )
    except RuntimeError as error:
        if plan.backend == "auto":
            raise
        return replace(row, status="refused", message=_first_line(error))
    refused = [[name, reason] for name, reason in decision.refused]
    return replace(row, backend=decision.backend, kernel=decision.kernel, refused=refused)


def _measure(row: Row, case: Case, plan: Plan, cache: int, watch: Stopwatch) -> Row:
    base = Operands.random(case, plan.seed)
    mine = ours(case, plan.backend)
    cold, result = _first_call(mine, base.copy(case))
    entrants: list[tuple[Contender, float]] = [(mine, cold)]
    notes: list[str] = []
    exact = exact_part(case, base)
    accuracy: Accuracy | None = None
    torch_result: Tensor | None = None
    for make in peers(case, plan.peers):
        try:
            peer = make()
            peer_cold, peer_result = _first_call(peer, base.copy(peer.case))
        except Exception as error:
            if torch_result is None:
                raise  # without PyTorch's own result there is nothing to judge ours by
            notes.append(f"a peer failed: {type(error).__name__}: {_first_line(error)}")
            continue
        if torch_result is None:
            torch_result = peer_result
            accuracy = verify(case, exact, result, torch_result)
        elif not plausible(exact, peer_result, torch_result):
            notes.append(f"{peer.name} computes something else and is left out")
            continue
        entrants.append((peer, peer_cold))
    del result, torch_result, peer_result

    timings, ratios = _time(entrants, base, plan, cache, watch)
    used = memory.measure(case, plan.backend, torch.get_num_threads()) if plan.memory else None
    return replace(
        row,
        status="ok",
        ours=timings[0],
        peers=[
            Peer(contender.name, contender.case.layout, timing, ratio)
            for (contender, _), timing, ratio in zip(entrants[1:], timings[1:], ratios, strict=True)
        ],
        accuracy=accuracy,
        memory=used,
        notes=notes,
    )


def _first_call(contender: Contender, operands: Operands) -> tuple[float, Tensor]:
    """Seconds and result of the very first call with this shape."""
    _synchronize(contender.case.device)
    begin = time.perf_counter()
    result = contender.run(operands)
    _synchronize(contender.case.device)
    return time.perf_counter() - begin, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(
    entrants: list[tuple[Contender, float]],
    base: Operands,
    plan: Plan,
    cache: int,
    watch: Stopwatch,
) -> tuple[list[Timing], list[float]]:
    """Steady-state timings of all contenders, and each peer's time by ours."""
    case = entrants[0][0].case
    per_set = case.problem.min_bytes(DTYPES[case.dtype]) + case.residual_bytes
    slots = slots_for(per_set, cache)
    layouts = {contender.case.layout: contender.case for contender, _ in entrants}
    sets = {
        layout: [base.copy(in_layout) for _ in range(slots)]
        for layout, in_layout in layouts.items()
    }

    def bound(contender: Contender) -> Callable[[int], Tensor]:
        inputs = sets[contender.case.layout]
        return lambda slot: contender.run(inputs[slot])

    samples = interleave(
        [bound(contender) for contender, _ in entrants],
        slots,
        watch,
        plan.budget,
        random.Random(plan.seed),
    )
    timings = []
    for (_, cold), seconds in zip(entrants, samples, strict=True):
        low, median, high = quartiles(seconds)
        timings.append(Timing(median, low, high, min(seconds), len(seconds), cold))
    return timings, [paired_ratio(samples[0], theirs) for theirs in samples[1:]]
