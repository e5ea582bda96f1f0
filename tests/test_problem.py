"""ConvProblem: output extents, sizes, costs, and the C++ twin of the formula."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from grouped_conv import _C
from grouped_conv.problem import PASSES, ConvProblem, output_extent

pytestmark = pytest.mark.once

EXTENTS = list(itertools.product((1, 2, 3, 7, 8, 31), (1, 2, 3, 5), (0, 1, 3), (1, 2, 3), (1, 2)))


def test_output_extent_counts_the_positions_of_the_kernel():
    for size, kernel, padding, stride, dilation in EXTENTS:
        last = size + 2 * padding - dilation * (kernel - 1)
        fits = len(range(0, last, stride))
        assert max(0, output_extent(size, kernel, padding, stride, dilation)) == fits


def test_output_extent_is_pytorch_s():
    for size, kernel, padding, stride, dilation in EXTENTS:
        extent = output_extent(size, kernel, padding, stride, dilation)
        if extent < 1:
            continue
        x = torch.empty(1, 1, size, size, device="meta")
        w = torch.empty(1, 1, kernel, kernel, device="meta")
        y = F.conv2d(x, w, None, stride, padding, dilation)
        assert y.shape == (1, 1, extent, extent)


def test_output_extent_is_the_compiled_one():
    for arguments in EXTENTS:
        assert _C.output_extent(*arguments) == output_extent(*arguments)


def test_sizes():
    p = ConvProblem(N=2, C=12, H=9, W=7, K=18, R=3, S=5, G=6, pad_h=1, pad_w=2, stride_h=2)
    assert (p.c_per_group, p.k_per_group) == (2, 3)
    assert (p.P, p.Q) == (5, 7)
    assert p.input_size == (2, 12, 9, 7)
    assert p.weight_size == (18, 2, 3, 5)
    assert p.output_size == (2, 18, 5, 7)
    assert (p.stride, p.padding, p.dilation) == ((2, 1), (1, 2), (1, 1))


def test_from_sizes_is_the_inverse_of_the_sizes():
    p = ConvProblem(2, 12, 9, 7, 18, 3, 5, 6, 1, 2, 2, 1, 1, 2)
    sizes = (p.input_size, p.weight_size, p.stride, p.padding, p.dilation, p.G)
    assert ConvProblem.from_sizes(*sizes) == p


def test_costs_of_a_resnext_layer():
    p = ConvProblem(N=1, C=128, H=56, W=56, K=128, G=32, pad_h=1, pad_w=1)
    assert p.flops == 2 * 56 * 56 * 128 * 4 * 9
    elements = 2 * 128 * 56 * 56 + 128 * 4 * 9
    assert p.min_bytes(torch.float32) == 4 * elements
    assert p.min_bytes(torch.bfloat16) == 2 * elements


def test_is_a_hashable_value():
    p = ConvProblem(1, 4, 5, 5, 4)
    assert hash(p) == hash(dataclasses.replace(p))
    assert dataclasses.replace(p, N=2) != p
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.N = 2


def test_str_names_what_differs_from_the_usual():
    p = ConvProblem(N=8, C=128, H=56, W=28, K=256, G=32, pad_h=1, pad_w=1, stride_h=2, stride_w=2)
    assert str(p) == "N8 C128 56x28 K256 G32 3x3 s2 p1"
    q = dataclasses.replace(p, stride_w=1, pad_w=0, dilation_h=2)
    assert str(q) == "N8 C128 56x28 K256 G32 3x3 s(2, 1) p(1, 0) d(2, 1)"


def test_passes():
    assert PASSES == ("fprop", "dgrad", "wgrad")
