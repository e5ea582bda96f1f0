"""The weight gradient by Winograd's algorithm: where it is used, and every shape of its tiles."""

from __future__ import annotations

import pytest
import torch
from support import LAYOUTS, assert_as_accurate, exact, poisoned, threads, view

from grouped_conv import reference
from grouped_conv.problem import ConvProblem

OPS = torch.ops.grouped_conv
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# N, groups, channels in and out per group, height, width, padding. In channels_last this algorithm
# computes the gradient from 8 images on, from 4 with 700 pixels of dy, and from 1500 pixels; in
# NCHW from 128 pixels. Behind the twelfth of these there are about as many or fewer.
PROBLEMS = [
    (8, 2, 16, 16, 14, 14, 1, 1),
    (8, 3, 32, 32, 7, 7, 1, 1),
    (9, 2, 24, 40, 5, 6, 1, 0),
    (8, 1, 33, 17, 3, 9, 2, 2),
    (11, 2, 20, 16, 1, 1, 1, 1),
    (8, 5, 48, 56, 4, 3, 0, 1),
    (8, 1, 64, 64, 1, 12, 1, 3),
    (1, 3, 16, 18, 40, 41, 1, 1),
    (2, 1, 17, 31, 29, 33, 0, 0),
    (3, 1, 128, 16, 23, 23, 1, 1),
    (40, 4, 16, 16, 7, 5, 1, 1),
    (1, 1, 16, 16, 9, 203, 1, 1),
    (3, 2, 16, 16, 14, 14, 1, 1),
    (4, 2, 24, 24, 14, 13, 1, 1),
    (1, 2, 16, 16, 12, 12, 1, 1),
    (4, 1, 32, 48, 7, 7, 1, 1),
    (2, 1, 32, 32, 7, 7, 1, 1),
    (1, 2, 32, 32, 38, 38, 1, 1),
    (0, 2, 16, 16, 14, 14, 1, 1),
]


def made(shape: tuple[int, ...], dtype: torch.dtype, layout: str, kind: str = "dense"):
    n, groups, c, k, h, w, pad_h, pad_w = shape
    p = ConvProblem(n, groups * c, h, w, groups * k, 3, 3, groups, pad_h, pad_w)
    g = torch.Generator().manual_seed(n + c + h)
    x = view(torch.randn(p.input_size, generator=g), kind, layout, dtype)
    dy = view(torch.randn(p.output_size, generator=g), kind, layout, dtype)
    return p, x, dy


def wgrad(p: ConvProblem, x: torch.Tensor, dy: torch.Tensor, channels_last: bool = False):
    return OPS.wgrad(dy, x, p.weight_size, p.stride, p.padding, p.dilation, p.G, channels_last)


def pytorch(p: ConvProblem, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    w = x.new_empty(p.weight_size)
    geometry = (None, p.stride, p.padding, p.dilation, False, (0, 0), p.G)
    return torch.ops.aten.convolution_backward(dy, x, w, *geometry, (False, True, False))[1]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", PROBLEMS, ids=str)
def test_as_accurate_as_pytorch(shape: tuple[int, ...], dtype: str, layout: str):
    p, x, dy = made(shape, FLOATS[dtype], layout)
    with poisoned(), threads(2):
        ours = [wgrad(p, x, dy, channels_last) for channels_last in (False, True)]
    assert torch.equal(*ours)
    assert ours[1].is_contiguous(memory_format=torch.channels_last)
    known = exact(x, x.new_zeros(p.weight_size), None, dy, p)
    assert_as_accurate(ours[0], pytorch(p, x, dy), known.dw, known.dw_scale)


@pytest.mark.parametrize("kind", ["offset", "other", "channels", "columns"])
@pytest.mark.parametrize("shape", PROBLEMS[:3], ids=str)
def test_strided_views(shape: tuple[int, ...], kind: str, layout: str):
    p, x, dy = made(shape, torch.float32, layout, kind)
    dense = LAYOUTS["nhwc" if x.is_contiguous(memory_format=torch.channels_last) else "nchw"]
    known = exact(x, x.new_zeros(p.weight_size), None, dy, p)
    assert_as_accurate(
        wgrad(p, x, dy),
        pytorch(p, x.contiguous(memory_format=dense), dy.contiguous(memory_format=dense)),
        known.dw,
        known.dw_scale,
    )


@pytest.mark.parametrize("shape", PROBLEMS[:12], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], layout: str):
    p, x, dy = made(shape, torch.float32, layout)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            results.append(wgrad(p, x, dy))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("shape", PROBLEMS[:4], ids=str)
def test_values_that_are_not_finite_reach_what_they_meet(
    shape: tuple[int, ...], value: float, layout: str
):
    """As in the sum of products: the taps that meet the pixel, of its channel; the rest exact."""
    p, x, dy = made(shape, torch.float32, layout)
    good = wgrad(p, x, dy)
    for bad, other, channel in ((x, dy, 1), (dy, x, p.k_per_group - 1)):
        for row, col in ((0, 0), (-1, -1), (bad.shape[2] // 2, bad.shape[3] // 2)):
            place = (-1, channel, row, col)
            marked = torch.zeros_like(bad)
            marked[place] = 1
            kept = bad[place].clone()
            bad[place] = value
            ours = wgrad(p, x, dy)
            bad[place] = kept
            # What each weight multiplies the value by; zero where they do not meet.
            pair = (other, marked) if bad is x else (marked, other)
            factor = reference.wgrad(*(t.double() for t in pair), p)
            expected = factor * value
            expected[factor == 0] = 0
            assert torch.equal(ours.isnan(), expected.isnan())
            assert torch.equal(ours.isposinf(), expected.isposinf())
            assert torch.equal(ours.isneginf(), expected.isneginf())
            for group in range(1, p.G):
                rows = slice(group * p.k_per_group, (group + 1) * p.k_per_group)
                assert torch.equal(ours[rows], good[rows])


@pytest.mark.parametrize("huge", [1e38, 3e38])
def test_sums_that_overflow_in_the_transform_alone(huge: float, layout: str):
    p, x, dy = made((8, 2, 16, 16, 6, 6, 1, 1), torch.float32, layout)
    x[:, 3] = huge
    dy *= 2e-3
    ours = wgrad(p, x, dy)
    known = exact(x, x.new_zeros(p.weight_size), None, dy, p)
    assert ours.isfinite().all()
    assert torch.allclose(ours.double(), known.dw, rtol=1e-4, atol=1e-4 * known.dw_scale)
