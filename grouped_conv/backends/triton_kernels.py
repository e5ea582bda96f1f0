"""Triton kernels of the three passes; ``triton.py`` turns problems into launches.

fprop and dgrad are sums over taps of small matrix products, ``out[m, k] += in[m, c] w[tap, c, k]``:
``m`` runs over pixels, ``c`` over the channels that are read and ``k`` over those written::

    fprop  y[n,p,q,k]  = sum_{r,s,c} x[n, p*stride-pad+r, q*stride-pad+s, c]     * w[k,c,r,s]
    dgrad  dx[n,h,w,c] = sum_{r,s,k} dy[n, (h+pad-r)/stride, (w+pad-s)/stride, k] * w[k,c,r,s]
    wgrad  dw[k,c,r,s] = sum_{n,p,q} dy[n,p,q,k] * x[n, p*stride-pad+r, q*stride-pad+s, c]

*Packing.* ``tl.dot`` multiplies no fewer than 16 channels. A slab is as many whole groups as fit
into 16, or one group; of the channels of a slab, ``BLOCK_C`` are read at a time, and ``BLOCK_K``
written by one program. ``pack_weights_kernel`` lays the weight out as programs read it, with zeros
between groups: ``[slab, block of k, tap, block of c, BLOCK_C, BLOCK_K]``.

*Pixels.* A tile is ``BLOCK_ROWS`` rows by ``BLOCK_Q`` columns. Rows are counted through all images,
so that narrow images fill a tile together. Offsets between images have 64 bits, others 32.

*Values that are not finite.* A zero of the packing or of the padding times Inf is NaN, in a group
or at a tap that has nothing to do with the Inf. Sums that are all finite prove that no such product
was made; otherwise a program sums again, slowly, without the products that do not exist.

Sums are in float32 and in fixed order: results have the same bits in every run.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types Python's annotations do not express.

from __future__ import annotations

import triton
import triton.language as tl

TAPS = tl.constexpr(9)
"""All filters are 3 by 3."""


@triton.jit
def _all_finite(values):
    """Whether no element of a 2-D tile is Inf or NaN."""
    return tl.max(tl.max(tl.where(tl.abs(values) < float("inf"), 0, 1), 1), 0) == 0


@triton.jit
def _tile_of_pixels(tile, columns, BLOCK_ROWS: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Row (through all images) and column of each pixel of a tile; rows run beyond the last."""
    tiles_per_row = tl.cdiv(columns, BLOCK_Q)
    i = tl.arange(0, BLOCK_ROWS * BLOCK_Q)
    row = tile // tiles_per_row * BLOCK_ROWS + i // BLOCK_Q
    column = tile % tiles_per_row * BLOCK_Q + i % BLOCK_Q
    return row, column


@triton.jit
def pack_weights_kernel(
    w_ptr,
    packed_ptr,
    groups,
    stride_in,
    stride_out,
    stride_r,
    stride_s,
    group_stride,
    IN_PER_GROUP: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The weight as fprop reads it (in: channels of x) or dgrad (in: channels of dy).

    One program writes one ``[BLOCK_C, BLOCK_K]`` tile, of one tap; zeros where input and output
    channel are of different groups or do not exist. No sums.
    """
    C_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * IN_PER_GROUP + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * OUT_PER_GROUP + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    tap = pid // C_BLOCKS % TAPS
    unit = pid // (C_BLOCKS * TAPS)
    c = pid % C_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    k = unit % K_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    first = unit // K_BLOCKS * GROUPS_PER_SLAB
    group = first + k // OUT_PER_GROUP
    same = (c // IN_PER_GROUP)[:, None] == (k // OUT_PER_GROUP)[None, :]
    exists = (k < GROUPS_PER_SLAB * OUT_PER_GROUP) & (group < groups)
    offset_in = c % IN_PER_GROUP * stride_in
    offset_out = group * group_stride + k % OUT_PER_GROUP * stride_out
    tap_offset = tap // 3 * stride_r + tap % 3 * stride_s
    w = tl.load(
        w_ptr + tap_offset + offset_in[:, None] + offset_out[None, :],
        mask=same & exists[None, :],
        other=0.0,
    )
    i = tl.arange(0, BLOCK_C)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    tl.store(packed_ptr + pid * (BLOCK_C * BLOCK_K) + i, w)


@triton.jit
def fprop_kernel(
    x_ptr,
    packed_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    N,
    H,
    W,
    P,
    Q,
    groups,
    pad_h,
    pad_w,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_yn,
    stride_yk,
    stride_yp,
    stride_yq,
    STRIDE: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    RELU: tl.constexpr,
):
    """``y = act(scale * (conv(x, w) + bias) + shift + residual)``; absent parts are None.

    A program computes a tile of pixels of BLOCK_K output channels. Its loop runs over the taps and
    the blocks of input channels of the slab; each turn loads a tile of x, zero in the padding, and
    a tile of the packed weight, some turns ahead (``num_stages``), and multiplies them on tensor
    cores. Programs that read the same pixels have neighbouring numbers, so that x comes from the L2
    cache, and taps overlap in the L1 cache. Any strides; channels or columns should be dense.
    """
    SLAB_C: tl.constexpr = GROUPS_PER_SLAB * C_PER_GROUP
    SLAB_K: tl.constexpr = GROUPS_PER_SLAB * K_PER_GROUP
    C_BLOCKS: tl.constexpr = (SLAB_C + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (SLAB_K + BLOCK_K - 1) // BLOCK_K
    units = tl.cdiv(groups, GROUPS_PER_SLAB) * K_BLOCKS
    unit = tl.program_id(0) % units
    row, q = _tile_of_pixels(tl.program_id(0) // units, Q, BLOCK_ROWS, BLOCK_Q)
    n, p = row // P, row % P
    pixel = (row < N * P) & (q < Q)
    top, left = p * STRIDE - pad_h, q * STRIDE - pad_w
    slab = unit // K_BLOCKS
    c_local = tl.arange(0, BLOCK_C)
    c_first = slab * SLAB_C
    k_local = unit % K_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    k = slab * SLAB_K + k_local
    channel = (k_local < SLAB_K) & (k < groups * K_PER_GROUP)
    x_image = x_ptr + n.to(tl.int64) * stride_xn
    weights = packed_ptr + unit * (TAPS * C_BLOCKS * BLOCK_C * BLOCK_K)
    w_tile = c_local[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]

    acc = tl.zeros((BLOCK_ROWS * BLOCK_Q, BLOCK_K), tl.float32)
    for i in range(TAPS * C_BLOCKS):
        tap, c = i // C_BLOCKS, i % C_BLOCKS * BLOCK_C + c_local
        h, w = top + tap // 3, left + tap % 3
        inside = pixel & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        read = (c < SLAB_C) & (c_first + c < groups * C_PER_GROUP)
        a = tl.load(
            x_image[:, None]
            + (h * stride_xh + w * stride_xw)[:, None]
            + ((c_first + c) * stride_xc)[None, :],
            mask=inside[:, None] & read[None, :],
            other=0.0,
        )
        b = tl.load(weights + i * (BLOCK_C * BLOCK_K) + w_tile)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if not _all_finite(acc):
        acc = tl.zeros((BLOCK_ROWS * BLOCK_Q, BLOCK_K), tl.float32)
        for i in range(TAPS * C_PER_GROUP):
            tap = i // C_PER_GROUP
            c = k_local // K_PER_GROUP * C_PER_GROUP + i % C_PER_GROUP
            h, w = top + tap // 3, left + tap % 3
            inside = pixel & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            exists = inside[:, None] & channel[None, :]
            a = tl.load(
                x_image[:, None]
                + (h * stride_xh + w * stride_xw)[:, None]
                + ((c_first + c) * stride_xc)[None, :],
                mask=exists,
                other=0.0,
            )
            at = (tap * C_BLOCKS + c // BLOCK_C) * BLOCK_C + c % BLOCK_C
            b = tl.load(weights + at * BLOCK_K + tl.arange(0, BLOCK_K), mask=channel, other=0.0)
            product = a.to(tl.float32) * b.to(tl.float32)[None, :]
            acc += tl.where(exists, product, 0.0)

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k, mask=channel, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + k, mask=channel, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + k, mask=channel, other=0.0).to(tl.float32)[None, :]
    y_image = n.to(tl.int64) * stride_yn
    y_offset = (
        y_image[:, None] + (p * stride_yp + q * stride_yq)[:, None] + (k * stride_yk)[None, :]
    )
    written = pixel[:, None] & channel[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + y_offset, mask=written, other=0.0).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0.0, 0.0, acc)  # keeps NaN
    tl.store(y_ptr + y_offset, acc.to(y_ptr.dtype.element_ty), mask=written)


@triton.jit
def dgrad_kernel(
    dy_ptr,
    packed_ptr,
    dx_ptr,
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
    STRIDE: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx from dy and the packed weight, in STRIDE x STRIDE phases of pixels.

    The pixels of a phase, h = STRIDE * i + phase_h, meet the same taps: every r with (h + pad - r)
    a multiple of STRIDE. So a program has 9 taps at stride 1, and 1, 2, 2 or 4 at stride 2, and no
    tap is multiplied that does not count. For the rest it is fprop_kernel, where BLOCK_C counts
    channels of dy, which are summed over, and BLOCK_K channels of dx.
    """
    SLAB_IN: tl.constexpr = GROUPS_PER_SLAB * K_PER_GROUP
    SLAB_OUT: tl.constexpr = GROUPS_PER_SLAB * C_PER_GROUP
    C_BLOCKS: tl.constexpr = (SLAB_IN + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (SLAB_OUT + BLOCK_K - 1) // BLOCK_K
    units = tl.cdiv(groups, GROUPS_PER_SLAB) * K_BLOCKS
    pid = tl.program_id(0)
    unit = pid % units
    phase = pid // units % (STRIDE * STRIDE)
    phase_h, phase_w = phase // STRIDE, phase % STRIDE
    rows, columns = tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE)
    row, column = _tile_of_pixels(pid // (units * STRIDE * STRIDE), columns, BLOCK_ROWS, BLOCK_Q)
    n, h, w = row // rows, row % rows * STRIDE + phase_h, column * STRIDE + phase_w
    pixel = (row < N * rows) & (h < H) & (w < W)
    first_r, first_s = (phase_h + pad_h) % STRIDE, (phase_w + pad_w) % STRIDE
    count_r, count_s = (2 - first_r) // STRIDE + 1, (2 - first_s) // STRIDE + 1
    bottom, right = (h + pad_h - first_r) // STRIDE, (w + pad_w - first_s) // STRIDE
    slab = unit // K_BLOCKS
    k_local = tl.arange(0, BLOCK_C)
    k_first = slab * SLAB_IN
    c_local = unit % K_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    c = slab * SLAB_OUT + c_local
    channel = (c_local < SLAB_OUT) & (c < groups * C_PER_GROUP)
    dy_image = dy_ptr + n.to(tl.int64) * stride_yn
    weights = packed_ptr + unit * (TAPS * C_BLOCKS * BLOCK_C * BLOCK_K)
    w_tile = k_local[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]

    acc = tl.zeros((BLOCK_ROWS * BLOCK_Q, BLOCK_K), tl.float32)
    for i in range(count_r * count_s * C_BLOCKS):
        turn_r, turn_s = i // C_BLOCKS // count_s, i // C_BLOCKS % count_s
        tap = (first_r + turn_r * STRIDE) * 3 + first_s + turn_s * STRIDE
        k = i % C_BLOCKS * BLOCK_C + k_local
        p, q = bottom - turn_r, right - turn_s
        inside = pixel & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
        read = (k < SLAB_IN) & (k_first + k < groups * K_PER_GROUP)
        a = tl.load(
            dy_image[:, None]
            + (p * stride_yp + q * stride_yq)[:, None]
            + ((k_first + k) * stride_yk)[None, :],
            mask=inside[:, None] & read[None, :],
            other=0.0,
        )
        b = tl.load(weights + (tap * C_BLOCKS + i % C_BLOCKS) * (BLOCK_C * BLOCK_K) + w_tile)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if not _all_finite(acc):
        acc = tl.zeros((BLOCK_ROWS * BLOCK_Q, BLOCK_K), tl.float32)
        for i in range(count_r * count_s * K_PER_GROUP):
            turn_r, turn_s = i // K_PER_GROUP // count_s, i // K_PER_GROUP % count_s
            tap = (first_r + turn_r * STRIDE) * 3 + first_s + turn_s * STRIDE
            k = c_local // C_PER_GROUP * K_PER_GROUP + i % K_PER_GROUP
            p, q = bottom - turn_r, right - turn_s
            inside = pixel & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
            exists = inside[:, None] & channel[None, :]
            a = tl.load(
                dy_image[:, None]
                + (p * stride_yp + q * stride_yq)[:, None]
                + ((k_first + k) * stride_yk)[None, :],
                mask=exists,
                other=0.0,
            )
            at = (tap * C_BLOCKS + k // BLOCK_C) * BLOCK_C + k % BLOCK_C
            b = tl.load(weights + at * BLOCK_K + tl.arange(0, BLOCK_K), mask=channel, other=0.0)
            product = a.to(tl.float32) * b.to(tl.float32)[None, :]
            acc += tl.where(exists, product, 0.0)

    dx_image = dx_ptr + n.to(tl.int64) * stride_xn
    tl.store(
        dx_image[:, None] + (h * stride_xh + w * stride_xw)[:, None] + (c * stride_xc)[None, :],
        acc.to(dx_ptr.dtype.element_ty),
        mask=pixel[:, None] & channel[None, :],
    )


@triton.jit
def _wgrad_sums(
    dy_slab,
    x_slab,
    first_tile,
    last_tile,
    r,
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
    BLOCK_ROWS: tl.constexpr,
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
        row, q = _tile_of_pixels(tile, Q, BLOCK_ROWS, BLOCK_Q)
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
        inside0 = inside & (left >= 0) & (left < W)
        inside1 = inside & (left + 1 >= 0) & (left + 1 < W)
        inside2 = inside & (left + 2 >= 0) & (left + 2 < W)
        x0 = tl.load(
            x_row + (left * stride_xw)[:, None], mask=inside0[:, None] & c_exists, other=0.0
        )
        x1 = tl.load(
            x_row + ((left + 1) * stride_xw)[:, None], mask=inside1[:, None] & c_exists, other=0.0
        )
        x2 = tl.load(
            x_row + ((left + 2) * stride_xw)[:, None], mask=inside2[:, None] & c_exists, other=0.0
        )
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
    tiles,
    tiles_per_split,
    STRIDE: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial sums of dw, float32 ``[splits, 9, K, C/G]``, for wgrad_reduce_kernel to add up.

    A program takes one row of the filter, BLOCK_K x BLOCK_C channels of a slab and every tile of
    pixels of its split: dy transposed times x, shifted by each of three taps. What it sums up
    between different groups of a slab is dropped, so groups cannot disturb each other.
    """
    SLAB_C: tl.constexpr = GROUPS_PER_SLAB * C_PER_GROUP
    SLAB_K: tl.constexpr = GROUPS_PER_SLAB * K_PER_GROUP
    C_BLOCKS: tl.constexpr = (SLAB_C + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (SLAB_K + BLOCK_K - 1) // BLOCK_K
    slabs = tl.cdiv(groups, GROUPS_PER_SLAB)
    pid = tl.program_id(0)
    r = pid % 3
    c_local = pid // 3 % C_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    k_local = pid // (3 * C_BLOCKS) % K_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    slab = pid // (3 * C_BLOCKS * K_BLOCKS) % slabs
    split = pid // (3 * C_BLOCKS * K_BLOCKS * slabs)
    c, k = slab * SLAB_C + c_local, slab * SLAB_K + k_local
    k_exists = ((k_local < SLAB_K) & (k < groups * K_PER_GROUP))[None, :]
    c_exists = ((c_local < SLAB_C) & (c < groups * C_PER_GROUP))[None, :]
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    dy_slab = dy_ptr + (k * stride_yk)[None, :]
    x_slab = x_ptr + (c * stride_xc)[None, :]
    acc0, acc1, acc2 = _wgrad_sums(
        dy_slab, x_slab, first, last, r, N, H, W, P, Q, pad_h, pad_w,
        stride_yn, stride_yp, stride_yq, stride_xn, stride_xh, stride_xw, k_exists, c_exists,
        STRIDE, BLOCK_C, BLOCK_K, BLOCK_ROWS, BLOCK_Q, PRECISION, False,
    )  # fmt: skip
    if not (_all_finite(acc0) and _all_finite(acc1) and _all_finite(acc2)):
        acc0, acc1, acc2 = _wgrad_sums(
            dy_slab, x_slab, first, last, r, N, H, W, P, Q, pad_h, pad_w,
            stride_yn, stride_yp, stride_yq, stride_xn, stride_xh, stride_xw, k_exists, c_exists,
            STRIDE, BLOCK_C, BLOCK_K, BLOCK_ROWS, BLOCK_Q, PRECISION, True,
        )  # fmt: skip
    same = (k_local // K_PER_GROUP)[:, None] == (c_local // C_PER_GROUP)[None, :]
    kept = same & tl.trans(k_exists) & c_exists
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
