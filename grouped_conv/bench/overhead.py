"""What a call costs when there is next to nothing to compute: ours by PyTorch's, on 1×32×4×4.

``python -m grouped_conv.bench.overhead`` prints one row per way of calling. A call that the kernels
take pays for our choice and operator, one that ATen takes for the choice alone, on top of ATen's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from grouped_conv.bench.machine import describe
from grouped_conv.functional import explain, grouped_conv2d
from grouped_conv.modules import GroupedConv2d

SHAPE = (1, 32, 4, 4)
LIMIT = 1.5
"""The most that a call may take, in calls of F.conv2d."""

_ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """A way of calling, ours and PyTorch's."""

    name: str
    backend: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    records: bool = False
    """Whether autograd records the call."""


@dataclass(frozen=True)
class Overhead:
    """Microseconds of one call, medians, and the median ratio of neighbouring measurements."""

    name: str
    backend: str
    ours: float
    theirs: float
    ratio: float


def _tensors(groups: int, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    sizes = SHAPE, (SHAPE[1], SHAPE[1] // groups, 3, 3)
    x, w = (torch.randn(size).to(dtype).contiguous(memory_format=layout) for size in sizes)
    return [x, w, torch.randn(SHAPE[1]).to(dtype)]


def _call(
    name: str,
    groups: int = 8,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Case:
    x, w, b = _tensors(groups, dtype, layout)
    return Case(
        name,
        explain(x, w, b, 1, 1, 1, groups).backend,
        lambda: grouped_conv2d(x, w, b, 1, 1, 1, groups),
        lambda: F.conv2d(x, w, b, 1, 1, 1, groups),
    )


def _module() -> Case:
    x = torch.randn(SHAPE)
    ours, theirs = (c(SHAPE[1], SHAPE[1], 3, 1, 1, groups=8) for c in (GroupedConv2d, nn.Conv2d))
    ours.load_state_dict(theirs.state_dict())
    return Case("module", "native", lambda: ours(x), lambda: theirs(x))


def _training(name: str, backward: bool) -> Case:
    tensors = [t.requires_grad_() for t in _tensors(8, torch.float32, torch.contiguous_format)]
    dy = torch.randn(SHAPE)

    def step(conv: Callable[..., Tensor]) -> Any:
        y = conv(*tensors, 1, 1, 1, 8)
        return torch.autograd.grad(y, tensors, dy) if backward else y

    return Case(name, "native", lambda: step(grouped_conv2d), lambda: step(F.conv2d), records=True)


def cases() -> Iterator[Case]:
    """All ways of calling."""
    yield _call("function")
    yield _call("function, channels_last", layout=torch.channels_last)
    yield _call("function, bfloat16", dtype=torch.bfloat16)
    yield _module()
    yield _training("recorded", backward=False)
    yield _training("forward and backward", backward=True)
    yield _call("one group", groups=1)
    yield _call("one group, channels_last", groups=1, layout=torch.channels_last)
    yield _call("depthwise", groups=SHAPE[1])
    yield _call("float64", dtype=torch.float64)


def measure(case: Case, seconds: float = 0.5) -> Overhead:
    """Time a case, for about so long in all, ours and theirs in turn."""
    timers = [
        Timer("f()", globals={"f": f}, num_threads=torch.get_num_threads())
        for f in (case.ours, case.theirs)
    ]
    with torch.set_grad_enabled(case.records):
        once = sum(timer.timeit(100).median for timer in timers)
        calls = max(1, int(seconds / once / _ROUNDS))
        rounds = [[timer.timeit(calls).median for timer in timers] for _ in range(_ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    return Overhead(case.name, case.backend, ours * 1e6, theirs * 1e6, ratio)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a call takes more than it may."""
    from tabulate import tabulate  # type: ignore[import-untyped,unused-ignore]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="time to spend on each row")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("\n".join(describe(torch.device("cpu")).lines()))
    rows = [measure(case, options.seconds) for case in cases()]
    table = [(r.name, r.backend, r.ours, r.theirs, r.ratio) for r in rows]
    headers = ("call", "taken by", "ours, µs", "PyTorch's, µs", "ratio")
    print(tabulate(table, headers, floatfmt=("", "", ".1f", ".1f", ".2f")))
    return int(any(row.ratio > LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
