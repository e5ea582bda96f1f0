"""Triton kernels of the weight gradient; ``triton_kernels.py`` has the other passes and the terms::

    wgrad  dw[k,c,r,s] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*stride-pad+r, q*stride-pad+s, c]

Pixels are what is summed over, so they are cut into splits, whose sums go to a workspace and are
added up by a second kernel in a fixed order.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types Python's annotations do not express.

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.backends.triton_kernels import TAPS, _all_finite, _channels, _tile_of_pixels


@triton.jit
def _x_tile(x_row, w, inside, W, stride_xw, c_exists):
    """A tile of x at columns w, zero in the padding, and which of its pixels are not padding."""
    inside = inside & (w >= 0) & (w < W)
    tile = tl.load(x_row + (w * stride_xw)[:, None], mask=inside[:, None] & c_exists, other=0.0)
    return tile, inside


@triton.jit
def _wgrad_sums(
    dy_slab,
    x_slab,
    r,
    first_tile,
    last_tile,
    N,
    H,
    W,
    P,
    Q,
    pad_h,
    pad_w,
    stride_yn,
    stride_yp,
    stride_yq,
    stride_xn,
    stride_xh,
    stride_xw,
    k_exists,
    c_exists,
    STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Sums for the three taps of filter row r, ``[BLOCK_K, BLOCK_C]`` each, over some tiles.

    EXACT: dy is zero, too, where a tap reads padding, so that its Inf meets no zero of x.
    """
    acc0 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    acc1 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    acc2 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for tile in range(first_tile, last_tile):
        row, q = _tile_of_pixels(tile, Q, BLOCK_M, BLOCK_Q)
        n, p = row // P, row % P
        h, left = p * STRIDE - pad_h + r, q * STRIDE - pad_w
        pixel = (row < N * P) & (q < Q)
        inside = pixel & (h >= 0) & (h < H)
        dy = tl.load(
            dy_slab + (n.to(tl.int64) * stride_yn + p * stride_yp + q * stride_yq)[:, None],
            mask=inside[:, None] & k_exists,
            other=0.0,
        )
        x_row = x_slab + (n.to(tl.int64) * stride_xn + h * stride_xh)[:, None]
        x0, inside0 = _x_tile(x_row, left, inside, W, stride_xw, c_exists)
        x1, inside1 = _x_tile(x_row, left + 1, inside, W, stride_xw, c_exists)
        x2, inside2 = _x_tile(x_row, left + 2, inside, W, stride_xw, c_exists)
        dy0, dy1, dy2 = dy, dy, dy
        if EXACT:
            zero = tl.zeros_like(dy)
            dy0 = tl.where(inside0[:, None], dy, zero)
            dy1 = tl.where(inside1[:, None], dy, zero)
            dy2 = tl.where(inside2[:, None], dy, zero)
        acc0 = tl.dot(tl.trans(dy0), x0, acc0, input_precision=PRECISION)
        acc1 = tl.dot(tl.trans(dy1), x1, acc1, input_precision=PRECISION)
        acc2 = tl.dot(tl.trans(dy2), x2, acc2, input_precision=PRECISION)
    return acc0, acc1, acc2


@triton.jit
def wgrad_kernel(
    dy_ptr,
    x_ptr,
    partial_ptr,
    N,
    H,
    W,
    P,
    Q,
    groups,
    pad_h,
    pad_w,
    stride_yn,
    stride_yk,
    stride_yp,
    stride_yq,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    splits,
    STRIDE: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial sums of dw, float32 ``[splits, 9, K, C/G]``, for wgrad_reduce_kernel to add up.

    A program takes one row of the filter, BLOCK_K x BLOCK_C channels of a slab and every tile of
    pixels of its split: dy transposed times x, shifted by each of three taps. What it sums up
    between different groups of a slab is dropped, so groups cannot disturb each other.
    """
    C_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * C_PER_GROUP + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * K_PER_GROUP + BLOCK_K - 1) // BLOCK_K
    slabs = tl.cdiv(groups, GROUPS_PER_SLAB)
    pid = tl.program_id(0)
    r = pid % 3
    slab = pid // (3 * C_BLOCKS * K_BLOCKS) % slabs
    split = pid // (3 * C_BLOCKS * K_BLOCKS * slabs)
    c_local, c, c_exists = _channels(
        slab, pid // 3 % C_BLOCKS, groups, C_PER_GROUP, GROUPS_PER_SLAB, BLOCK_C
    )
    k_local, k, k_exists = _channels(
        slab, pid // (3 * C_BLOCKS) % K_BLOCKS, groups, K_PER_GROUP, GROUPS_PER_SLAB, BLOCK_K
    )
    tiles = tl.cdiv(N * P, BLOCK_M // BLOCK_Q) * tl.cdiv(Q, BLOCK_Q)
    each = tl.cdiv(tiles, splits)
    first = tl.minimum(split * each, tiles)
    last = tl.minimum(first + each, tiles)
    dy_slab = dy_ptr + (k * stride_yk)[None, :]
    x_slab = x_ptr + (c * stride_xc)[None, :]
    acc0, acc1, acc2 = _wgrad_sums(
        dy_slab, x_slab, r, first, last, N, H, W, P, Q, pad_h, pad_w,
        stride_yn, stride_yp, stride_yq, stride_xn, stride_xh, stride_xw,
        k_exists[None, :], c_exists[None, :],
        STRIDE, BLOCK_C, BLOCK_K, BLOCK_M, BLOCK_Q, PRECISION, False,
    )  # fmt: skip
    if not (_all_finite(acc0) and _all_finite(acc1) and _all_finite(acc2)):
        acc0, acc1, acc2 = _wgrad_sums(
            dy_slab, x_slab, r, first, last, N, H, W, P, Q, pad_h, pad_w,
            stride_yn, stride_yp, stride_yq, stride_xn, stride_xh, stride_xw,
            k_exists[None, :], c_exists[None, :],
            STRIDE, BLOCK_C, BLOCK_K, BLOCK_M, BLOCK_Q, PRECISION, True,
        )  # fmt: skip
    same = (k_local // K_PER_GROUP)[:, None] == (c_local // C_PER_GROUP)[None, :]
    kept = same & k_exists[:, None] & c_exists[None, :]
    filters = groups * K_PER_GROUP
    tap = split.to(tl.int64) * TAPS + r * 3
    out = partial_ptr + tap * filters * C_PER_GROUP
    out = out + k[:, None] * C_PER_GROUP + (c_local % C_PER_GROUP)[None, :]
    tl.store(out, acc0, mask=kept)
    tl.store(out + filters * C_PER_GROUP, acc1, mask=kept)
    tl.store(out + 2 * filters * C_PER_GROUP, acc2, mask=kept)


@triton.jit
def wgrad_reduce_kernel(
    partial_ptr,
    dw_ptr,
    splits,
    filters,
    stride_wk,
    stride_wc,
    stride_wr,
    stride_ws,
    C_PER_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw from partial sums, added in the order of the splits; one element per lane."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = filters * C_PER_GROUP
    exists = i < TAPS * size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        part = partial_ptr + tl.cast(split, tl.int64) * TAPS * size
        total += tl.load(part + i, mask=exists, other=0.0)
    tap, k, c = i // size, i % size // C_PER_GROUP, i % C_PER_GROUP
    offset = k * stride_wk + c * stride_wc + tap // 3 * stride_wr + tap % 3 * stride_ws
    tl.store(dw_ptr + offset, total.to(dw_ptr.dtype.element_ty), mask=exists)
