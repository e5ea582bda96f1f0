"""Judges a result before it is timed: against the float64 oracle, beside PyTorch's own error.

The oracle is slow, so on large problems it computes a part of the result, exactly: whole images
for fprop and dgrad (the first, the last and some between), whole filters' taps for some groups
and channels for wgrad. Everything else is compared with PyTorch's result of the same call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouped_conv import reference
from grouped_conv.bench.peers import Case, Operands
from grouped_conv.problem import ConvProblem

ALLOWED = 1.5
# What the oracle does in about a quarter of a second: products, and values that a tap touches.
_ORACLE_FLOPS = 1e9
_ORACLE_TOUCHES = 3e7


@dataclass(frozen=True)
class Accuracy:
    """Errors against float64, relative to the rms of the exact result, and PyTorch's own."""

    rms: float
    max: float
    torch_rms: float
    torch_max: float
    checked: str

    @property
    def ratio(self) -> float:
        """Our rms error over PyTorch's; 1 where both are exact."""
        if self.torch_rms == 0:
            return 1.0 if self.rms == 0 else math.inf
        return self.rms / self.torch_rms


class Mismatch(Exception):
    """A result is wrong, or less accurate than is allowed."""


@dataclass(frozen=True)
class Exact:
    """A part of the exact result, how to cut the same part out of a result, and its name."""

    values: Tensor
    select: Callable[[Tensor], Tensor]
    name: str


def spread(count: int, total: int) -> list[int]:
    """``count`` of ``range(total)``, evenly spread, with the first and the last."""
    if count >= total:
        return list(range(total))
    count = max(2, count)
    return sorted({round(i * (total - 1) / (count - 1)) for i in range(count)})


def _cost(p: ConvProblem) -> float:
    """The oracle's work on a problem; 1 is what may be spent on a row."""
    touched = p.N * (p.C * p.H * p.W + p.K * p.P * p.Q) * p.R * p.S
    return max(p.flops / _ORACLE_FLOPS, touched / _ORACLE_TOUCHES)


def exact_part(case: Case, operands: Operands, budget: float = 1.0) -> Exact:
    """The oracle's result, or as much of it as the budget allows."""
    if case.pass_name == "wgrad":
        return _exact_wgrad(case, operands, budget)
    p = case.problem
    images = spread(int(p.N * budget / _cost(p)), p.N)
    part = replace(p, N=len(images))
    if case.pass_name in ("fprop", "fprop_affine"):
        values = reference.fprop(operands.x[images], operands.w, None, part)
        if case.pass_name == "fprop_affine":
            scale, shift = (t.double()[:, None, None] for t in (operands.scale, operands.shift))
            values = (values * scale + shift + operands.dy[images].double()).relu()
    else:
        values = reference.dgrad(operands.dy[images], operands.w, part)
    name = "all" if len(images) == p.N else f"{len(images)} of {p.N} images"
    return Exact(values, lambda result: result[images], name)


def _exact_wgrad(case: Case, operands: Operands, budget: float) -> Exact:
    """All images and pixels, for some groups and, where that is still too much, channels."""
    p = case.problem
    groups = spread(int(p.G * budget / _cost(p)), p.G)
    share = min(1.0, math.sqrt(budget / _cost(p) * p.G / len(groups)))
    ks = spread(math.ceil(share * p.k_per_group), p.k_per_group)
    cs = spread(math.ceil(share * p.c_per_group), p.c_per_group)
    g = len(groups)
    k_index = torch.tensor([[group * p.k_per_group + k for k in ks] for group in groups])
    c_index = torch.tensor([[group * p.c_per_group + c for c in cs] for group in groups])
    part = replace(p, G=g, C=g * len(cs), K=g * len(ks))
    device = operands.x.device
    values = reference.wgrad(
        operands.dy[:, k_index.flatten().to(device)],
        operands.x[:, c_index.flatten().to(device)],
        part,
    )

    def select(result: Tensor) -> Tensor:
        filters = result[k_index.flatten().to(result.device)]
        return filters[:, torch.tensor(cs, device=result.device)]

    whole = part == p
    return Exact(values, select, "all" if whole else f"{g} of {p.G} groups, {len(cs)} channels")


def _errors(result: Tensor, exact: Exact, scale: float) -> tuple[float, float]:
    """rms and largest error of the exact part, over ``scale``."""
    error = exact.select(result).to(torch.float64) - exact.values
    return error.square().mean().sqrt().item() / scale, error.abs().max().item() / scale


def verify(case: Case, exact: Exact, result: Tensor, torch_result: Tensor) -> Accuracy:
    """Accuracy of our result; raises ``Mismatch`` where it is wrong or too far from exact.

    Allowed is PyTorch's own error times ``ALLOWED``, and beside it a quarter (rms) or two and a
    half (largest error) roundings of the fp32 accumulator: over few elements the largest error
    is a matter of luck.
    """
    if result.shape != torch_result.shape or result.dtype != torch_result.dtype:
        raise Mismatch(
            f"the result is {result.dtype} {tuple(result.shape)}, "
            f"PyTorch's is {torch_result.dtype} {tuple(torch_result.shape)}"
        )
    if case.pass_name != "wgrad" and not result.is_contiguous(memory_format=case.memory_format):
        raise Mismatch(f"the result is not in {case.layout}: its strides are {result.stride()}")
    scale = max(exact.values.square().mean().sqrt().item(), torch.finfo(torch.float64).tiny)
    rms, largest = _errors(result, exact, scale)
    torch_rms, torch_largest = _errors(torch_result, exact, scale)
    rounding = torch.finfo(torch.float32).eps
    # Each condition is written so that a NaN fails it.
    if not (rms <= ALLOWED * torch_rms + 0.25 * rounding):
        raise Mismatch(f"rms error {rms:.2e} of the exact rms, PyTorch's {torch_rms:.2e}")
    if not (largest <= ALLOWED * torch_largest + 2.5 * rounding):
        raise Mismatch(
            f"largest error {largest:.2e} of the exact rms, PyTorch's {torch_largest:.2e}"
        )
    elsewhere = (result - torch_result).abs().max().item() / scale
    if not (elsewhere <= 4 * (largest + torch_largest + rounding)):
        raise Mismatch(
            f"outside the part compared with float64 ({exact.name}) it differs from PyTorch's "
            f"result by {elsewhere:.2e} of the exact rms"
        )
    return Accuracy(rms, largest, torch_rms, torch_largest, exact.name)


def plausible(exact: Exact, result: Tensor, torch_result: Tensor) -> bool:
    """Whether a peer computes the same thing, at ten times PyTorch's error or better."""
    if result.shape != torch_result.shape:
        return False
    rms, _ = _errors(result, exact, 1.0)
    torch_rms, _ = _errors(torch_result, exact, 1.0)
    return rms <= 10 * torch_rms
