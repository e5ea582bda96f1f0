"""Tables of measured choices for tests: written by hand, and what they lead to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from grouped_conv import Workload, explain, functional, measured
from grouped_conv.measured import Entry
from grouped_conv.problem import PASSES, ConvProblem

CPU = torch.device("cpu")
PROBLEM = ConvProblem(2, 16, 6, 5, 16, G=4, pad_h=1, pad_w=1)
NATIVE, ATEN = {"native": 1.5, "aten": 2.5}, {"aten": 1.5, "native": 2.5}


def forget() -> None:
    measured.forget()
    functional.forget()


def tensors(p: ConvProblem = PROBLEM) -> tuple[Tensor, Tensor]:
    return torch.randn(p.input_size), torch.randn(p.weight_size)


def attributes(p: ConvProblem = PROBLEM) -> tuple:
    return p.stride, p.padding, p.dilation, p.G


def explained(p: ConvProblem = PROBLEM, **keywords):
    x, w = tensors(p)
    return explain(x, w, None, *attributes(p), **keywords)


def table_of(times: dict[str, float], *problems: ConvProblem, passes=PASSES) -> Path:
    """Write a table by hand, as another process would have."""
    entry = Entry(tuple(times.items()), "")
    rows = {Workload(p).key(name): entry for p in problems or (PROBLEM,) for name in passes}
    path = Path(measured.write(CPU, rows))
    forget()
    return path
