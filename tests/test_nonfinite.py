"""Inf and NaN stay where mathematics puts them: in their group, in the taps that meet them."""

from __future__ import annotations

import pytest
import torch
from support import LAYOUTS

from grouped_conv import reference
from grouped_conv.problem import ConvProblem

OPS = torch.ops.grouped_conv
GROUPS = 8
CASES = [
    (c, k, stride)
    for c, k in ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (5, 7))
    for stride in (1, 2)
]


def planted(t: torch.Tensor, channel: int, value: float) -> torch.Tensor:
    """t with one element replaced, in the middle of the image."""
    out = t.clone(memory_format=torch.preserve_format)
    out[0, channel, t.shape[2] // 2, t.shape[3] // 2] = value
    return out


def made(c: int, k: int, stride: int, dtype: torch.dtype, layout: str):
    p = ConvProblem(2, GROUPS * c, 9, 11, GROUPS * k, 3, 3, GROUPS, 1, 1, stride, stride)
    x, dy = (
        torch.randn(size).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        for size in (p.input_size, p.output_size)
    )
    return p, x, torch.randn(p.weight_size).to(dtype), dy


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("c", "k", "stride"), CASES)
def test_other_groups_do_not_notice(c, k, stride, dtype, layout: str, value: float):
    p, x, w, dy = made(c, k, stride, dtype, layout)
    a = (p.stride, p.padding, p.dilation, p.G)
    for group in (0, 3, GROUPS - 1):
        bad_x, bad_dy = (
            planted(x, group * c + c // 2, value),
            planted(dy, group * k + k // 2, value),
        )
        results = {
            "fprop": (OPS.fprop(bad_x, w, None, *a), OPS.fprop(x, w, None, *a), 1),
            "dgrad": (
                OPS.dgrad(bad_dy, w, p.input_size, *a, layout == "nhwc"),
                OPS.dgrad(dy, w, p.input_size, *a, layout == "nhwc"),
                1,
            ),
            "wgrad of x": (
                OPS.wgrad(dy, bad_x, p.weight_size, *a, False),
                OPS.wgrad(dy, x, p.weight_size, *a, False),
                0,
            ),
            "wgrad of dy": (
                OPS.wgrad(bad_dy, x, p.weight_size, *a, False),
                OPS.wgrad(dy, x, p.weight_size, *a, False),
                0,
            ),
        }
        for name, (bad, good, dim) in results.items():
            bad_groups, good_groups = bad.chunk(GROUPS, dim), good.chunk(GROUPS, dim)
            for g in range(GROUPS):
                if g == group:
                    assert not bad_groups[g].isfinite().all(), name
                else:
                    assert torch.equal(bad_groups[g], good_groups[g]), (name, g)


@pytest.mark.parametrize(("c", "k", "stride"), CASES)
def test_weight_gradient_skips_padding(c, k, stride, layout: str):
    """A pixel at the border meets some taps only; Inf there must leave the others finite."""
    p, x, _, dy = made(c, k, stride, torch.float32, layout)
    a = (p.stride, p.padding, p.dilation, p.G)
    marked = torch.zeros(p.input_size)
    for row, col in ((0, 0), (0, p.W - 1), (p.H - 1, 0), (p.H - 1, p.W - 1)):
        bad = x.clone(memory_format=torch.preserve_format)
        bad[0, 0, row, col] = float("inf")
        marked.zero_()[0, 0, row, col] = 1
        met = reference.wgrad(torch.ones(p.output_size), marked, p) != 0
        finite = OPS.wgrad(dy, bad, p.weight_size, *a, False).isfinite()
        assert torch.equal(finite, ~met)
