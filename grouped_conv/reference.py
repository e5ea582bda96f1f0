"""The float64 oracle: slow, obvious, and independent of every kernel that it judges.

Each function is the textbook sum, one pair of taps at a time, written with nothing but slicing
and an einsum over the channels of a group. Nothing here calls a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grouped_conv.problem import ConvProblem


def _padded(x: Tensor, p: ConvProblem) -> Tensor:
    """x in float64 as ``[N, G, C/G, H + 2 pad_h, W + 2 pad_w]``, zeros in the padding."""
    out = x.new_zeros(
        (p.N, p.G, p.c_per_group, p.H + 2 * p.pad_h, p.W + 2 * p.pad_w), dtype=torch.float64
    )
    inner = out[..., p.pad_h : p.pad_h + p.H, p.pad_w : p.pad_w + p.W]
    inner.copy_(x.reshape(p.N, p.G, p.c_per_group, p.H, p.W))
    return out


def _tap(padded: Tensor, p: ConvProblem, r: int, s: int) -> Tensor:
    """View of the padded input that tap (r, s) multiplies: ``[N, G, C/G, P, Q]``."""
    top, left = r * p.dilation_h, s * p.dilation_w
    return padded[
        ...,
        top : top + (p.P - 1) * p.stride_h + 1 : p.stride_h,
        left : left + (p.Q - 1) * p.stride_w + 1 : p.stride_w,
    ]


def fprop(x: Tensor, w: Tensor, bias: Tensor | None, p: ConvProblem) -> Tensor:
    """``y[n,k,p,q] = b[k] + sum_{c,r,s} x[n,c,p*stride-pad+r*dil,...] * w[k,c,r,s]``, float64."""
    padded = _padded(x, p)
    w64 = w.to(torch.float64).reshape(p.G, p.k_per_group, p.c_per_group, p.R, p.S)
    y = padded.new_zeros((p.N, p.G, p.k_per_group, p.P, p.Q))
    for r in range(p.R):
        for s in range(p.S):
            y += torch.einsum("ngcpq,gkc->ngkpq", _tap(padded, p, r, s), w64[..., r, s])
    y = y.reshape(p.output_size)
    return y if bias is None else y + bias.to(torch.float64)[:, None, None]


def dgrad(dy: Tensor, w: Tensor, p: ConvProblem) -> Tensor:
    """Gradient with respect to x, ``[N, C, H, W]``, float64: each tap scattered back."""
    dy64 = dy.to(torch.float64).reshape(p.N, p.G, p.k_per_group, p.P, p.Q)
    w64 = w.to(torch.float64).reshape(p.G, p.k_per_group, p.c_per_group, p.R, p.S)
    padded = dy64.new_zeros((p.N, p.G, p.c_per_group, p.H + 2 * p.pad_h, p.W + 2 * p.pad_w))
    for r in range(p.R):
        for s in range(p.S):
            _tap(padded, p, r, s).add_(torch.einsum("ngkpq,gkc->ngcpq", dy64, w64[..., r, s]))
    inner = padded[..., p.pad_h : p.pad_h + p.H, p.pad_w : p.pad_w + p.W]
    return inner.reshape(p.input_size)


def wgrad(dy: Tensor, x: Tensor, p: ConvProblem) -> Tensor:
    """Gradient with respect to w, ``[K, C/G, R, S]``, float64."""
    padded = _padded(x, p)
    dy64 = dy.to(torch.float64).reshape(p.N, p.G, p.k_per_group, p.P, p.Q)
    dw = dy64.new_zeros((p.G, p.k_per_group, p.c_per_group, p.R, p.S))
    for r in range(p.R):
        for s in range(p.S):
            dw[..., r, s] = torch.einsum("ngkpq,ngcpq->gkc", dy64, _tap(padded, p, r, s))
    return dw.reshape(p.weight_size)
