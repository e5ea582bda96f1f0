"""The oracle against PyTorch's float64 convolution and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import Case, random_cases

from grouped_conv import reference
from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once


@pytest.mark.parametrize("case", random_cases(60, seed=11), ids=str)
def test_oracle_is_pytorch_s_float64(case: Case):
    p = case.problem
    x, w, b, dy = (None if t is None else t.double() for t in case.tensors())
    x.requires_grad_()
    w.requires_grad_()
    y = F.conv2d(x, w, b, p.stride, p.padding, p.dilation, p.G)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    for ours, theirs in (
        (reference.fprop(x.detach(), w.detach(), b, p), y),
        (reference.dgrad(dy, w.detach(), p), dx),
        (reference.wgrad(dy, x.detach(), p), dw),
    ):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_oracle_computes_in_float64(dtype: torch.dtype):
    p = ConvProblem(N=1, C=8, H=5, W=5, K=8, G=2, pad_h=1, pad_w=1)
    x = torch.randn(p.input_size).to(dtype)
    w = torch.randn(p.weight_size).to(dtype)
    dy = torch.randn(p.output_size).to(dtype)
    for narrow, wide in (
        (reference.fprop(x, w, None, p), reference.fprop(x.double(), w.double(), None, p)),
        (reference.dgrad(dy, w, p), reference.dgrad(dy.double(), w.double(), p)),
        (reference.wgrad(dy, x, p), reference.wgrad(dy.double(), x.double(), p)),
    ):
        assert narrow.dtype == torch.float64
        assert torch.equal(narrow, wide)


def test_one_product_by_hand():
    p = ConvProblem(N=1, C=2, H=1, W=1, K=2, R=1, S=1, G=2)
    x = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)
    w = torch.tensor([5.0, 7.0]).reshape(2, 1, 1, 1)
    y = reference.fprop(x, w, torch.tensor([0.5, 0.25]), p)
    assert y.flatten().tolist() == [10.5, 21.25]
