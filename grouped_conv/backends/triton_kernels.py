"""Triton kernels of fprop and dgrad; ``triton.py`` turns problems into launches.

fprop and dgrad are sums over taps of small matrix products, ``out[m, k] += in[m, c] w[tap, c, k]``:
``m`` runs over pixels, ``c`` over the channels that are read and ``k`` over those written::

    fprop  y[n,p,q,k]  = sum_{r,s,c} x[n, p*stride-pad+r, q*stride-pad+s, c]     * w[k,c,r,s]
    dgrad  dx[n,h,w,c] = sum_{r,s,k} dy[n, (h+pad-r)/stride, (w+pad-s)/stride, k] * w[k,c,r,s]

*Packing.* ``tl.dot`` multiplies no fewer than 16 channels. A slab is as many whole groups as fit
into 16, or one group; of the channels of a slab, ``BLOCK_C`` are read at a time, and ``BLOCK_K``
written by one program. ``pack_weights_kernel`` lays the weight out as programs read it, with zeros
between groups: ``[slab, block of k, tap, block of c, BLOCK_C, BLOCK_K]``.

*Pixels.* A tile is ``BLOCK_M`` pixels in rows of ``BLOCK_Q``. Rows are counted through all images,
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
def _tile_of_pixels(tile, columns, BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Row (through all images) and column of each pixel of a tile; rows run beyond the last."""
    tiles_per_row = tl.cdiv(columns, BLOCK_Q)
    i = tl.arange(0, BLOCK_M)
    row = tile // tiles_per_row * (BLOCK_M // BLOCK_Q) + i // BLOCK_Q
    column = tile % tiles_per_row * BLOCK_Q + i % BLOCK_Q
    return row, column


@triton.jit
def _channels(
    slab,
    block,
    groups,
    PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Channels of a block: their numbers in the slab and in the tensor, and which exist."""
    SLAB: tl.constexpr = GROUPS_PER_SLAB * PER_GROUP
    local = block * BLOCK + tl.arange(0, BLOCK)
    channel = slab * SLAB + local
    return local, channel, (local < SLAB) & (channel < groups * PER_GROUP)


@triton.jit
def _load_pixels(image, h, w, channel, stride_h, stride_w, stride_c, mask):
    """Tile ``[pixels, channels]`` of images, whose pointers are given for each pixel."""
    pixels = image[:, None] + (h * stride_h + w * stride_w)[:, None]
    return tl.load(pixels + (channel * stride_c)[None, :], mask=mask, other=0.0)


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
def _tap(turn, first_r, first_s, count_s, h, w, STEP: tl.constexpr, MOVE: tl.constexpr):
    """Number of the tap of a turn, and the row and column that it reads."""
    if STEP == 1:  # all nine in their order
        return turn, h + turn // 3 * MOVE, w + turn % 3 * MOVE
    i, j = turn // count_s, turn % count_s
    return (first_r + i * STEP) * 3 + first_s + j * STEP, h + i * MOVE, w + j * MOVE


@triton.jit
def _sums_of_taps(
    image,
    pixel,
    h,
    w,
    H,
    W,
    stride_h,
    stride_w,
    stride_c,
    first_r,
    first_s,
    count_r,
    count_s,
    slab,
    groups,
    weights,
    k_local,
    k_exists,
    IN_PER_GROUP: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr,
    GROUPS_PER_SLAB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEP: tl.constexpr,
    MOVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``[BLOCK_M, BLOCK_K]`` sums over taps and the channels that are read: fprop's and dgrad's.

    Taps are ``first_r + i * STEP`` for i below count_r, and so for s; tap i, j reads at
    ``h + i * MOVE, w + j * MOVE``, from ``image``, a pointer for each pixel. The loop runs over the
    taps and the blocks of channels of the slab; each turn loads a tile of the image, zero in the
    padding, and a tile of the packed weight, some turns ahead (``num_stages``), and multiplies them
    on tensor cores. The second loop is for values that are not finite.
    """
    C_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * IN_PER_GROUP + BLOCK_C - 1) // BLOCK_C
    w_tile = tl.arange(0, BLOCK_C)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for i in range(count_r * count_s * C_BLOCKS):
        turn, block = i // C_BLOCKS, i % C_BLOCKS
        tap, row, column = _tap(turn, first_r, first_s, count_s, h, w, STEP, MOVE)
        inside = pixel & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        _, c, c_exists = _channels(slab, block, groups, IN_PER_GROUP, GROUPS_PER_SLAB, BLOCK_C)
        mask = inside[:, None] & c_exists[None, :]
        a = _load_pixels(image, row, column, c, stride_h, stride_w, stride_c, mask)
        b = tl.load(weights + (tap * C_BLOCKS + block) * (BLOCK_C * BLOCK_K) + w_tile)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if not _all_finite(acc):
        acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for i in range(count_r * count_s * IN_PER_GROUP):
            turn, c = i // IN_PER_GROUP, k_local // OUT_PER_GROUP * IN_PER_GROUP + i % IN_PER_GROUP
            tap, row, column = _tap(turn, first_r, first_s, count_s, h, w, STEP, MOVE)
            inside = pixel & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            exists = inside[:, None] & k_exists[None, :]
            c_slab = slab * GROUPS_PER_SLAB * IN_PER_GROUP + c
            a = _load_pixels(image, row, column, c_slab, stride_h, stride_w, stride_c, exists)
            at = (tap * C_BLOCKS + c // BLOCK_C) * BLOCK_C + c % BLOCK_C
            b = tl.load(weights + at * BLOCK_K + tl.arange(0, BLOCK_K), mask=k_exists, other=0.0)
            product = a.to(tl.float32) * b.to(tl.float32)[None, :]
            acc += tl.where(exists, product, 0.0)
    return acc


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
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    RELU: tl.constexpr,
):
    """``y = act(scale * (conv(x, w) + bias) + shift + residual)``; absent parts are None.

    A program computes a tile of pixels of BLOCK_K output channels. Programs that read the same
    pixels have neighbouring numbers, so that x comes from the L2 cache, and taps overlap in the L1
    cache. Any strides; channels or columns should be dense.
    """
    C_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * C_PER_GROUP + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * K_PER_GROUP + BLOCK_K - 1) // BLOCK_K
    units = tl.cdiv(groups, GROUPS_PER_SLAB) * K_BLOCKS
    unit = tl.program_id(0) % units
    row, q = _tile_of_pixels(tl.program_id(0) // units, Q, BLOCK_M, BLOCK_Q)
    n, p = row // P, row % P
    pixel = (row < N * P) & (q < Q)
    slab = unit // K_BLOCKS
    k_local, k, k_exists = _channels(
        slab, unit % K_BLOCKS, groups, K_PER_GROUP, GROUPS_PER_SLAB, BLOCK_K
    )
    x_image = x_ptr + n.to(tl.int64) * stride_xn
    weights = packed_ptr + unit * (TAPS * C_BLOCKS * BLOCK_C * BLOCK_K)
    acc = _sums_of_taps(
        x_image, pixel, p * STRIDE - pad_h, q * STRIDE - pad_w, H, W,
        stride_xh, stride_xw, stride_xc, 0, 0, 3, 3, slab, groups, weights, k_local, k_exists,
        C_PER_GROUP, K_PER_GROUP, GROUPS_PER_SLAB, BLOCK_C, BLOCK_K, BLOCK_M, 1, 1, PRECISION,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k, mask=k_exists, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + k, mask=k_exists, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + k, mask=k_exists, other=0.0).to(tl.float32)[None, :]
    y_image = n.to(tl.int64) * stride_yn
    y_offset = (
        y_image[:, None] + (p * stride_yp + q * stride_yq)[:, None] + (k * stride_yk)[None, :]
    )
    written = pixel[:, None] & k_exists[None, :]
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
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx from dy and the packed weight, in STRIDE x STRIDE phases of pixels.

    The pixels of a phase, h = STRIDE * i + phase_h, meet the same taps: every r with (h + pad - r)
    a multiple of STRIDE. So a program has 9 taps at stride 1, and 1, 2, 2 or 4 at stride 2, and no
    tap is multiplied that does not count. BLOCK_C counts channels of dy, which are summed over, and
    BLOCK_K channels of dx.
    """
    C_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * K_PER_GROUP + BLOCK_C - 1) // BLOCK_C
    K_BLOCKS: tl.constexpr = (GROUPS_PER_SLAB * C_PER_GROUP + BLOCK_K - 1) // BLOCK_K
    units = tl.cdiv(groups, GROUPS_PER_SLAB) * K_BLOCKS
    pid = tl.program_id(0)
    unit = pid % units
    phase = pid // units % (STRIDE * STRIDE)
    phase_h, phase_w = phase // STRIDE, phase % STRIDE
    rows, columns = tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE)
    row, column = _tile_of_pixels(pid // (units * STRIDE * STRIDE), columns, BLOCK_M, BLOCK_Q)
    n, h, w = row // rows, row % rows * STRIDE + phase_h, column * STRIDE + phase_w
    pixel = (row < N * rows) & (h < H) & (w < W)
    first_r, first_s = (phase_h + pad_h) % STRIDE, (phase_w + pad_w) % STRIDE
    count_r, count_s = (2 - first_r) // STRIDE + 1, (2 - first_s) // STRIDE + 1
    slab = unit // K_BLOCKS
    c_local, c, c_exists = _channels(
        slab, unit % K_BLOCKS, groups, C_PER_GROUP, GROUPS_PER_SLAB, BLOCK_K
    )
    dy_image = dy_ptr + n.to(tl.int64) * stride_yn
    weights = packed_ptr + unit * (TAPS * C_BLOCKS * BLOCK_C * BLOCK_K)
    acc = _sums_of_taps(
        dy_image, pixel, (h + pad_h - first_r) // STRIDE, (w + pad_w - first_s) // STRIDE, P, Q,
        stride_yp, stride_yq, stride_yk, first_r, first_s, count_r, count_s, slab, groups,
        weights, c_local, c_exists,
        K_PER_GROUP, C_PER_GROUP, GROUPS_PER_SLAB, BLOCK_C, BLOCK_K, BLOCK_M, STRIDE, -1, PRECISION,
    )  # fmt: skip
    dx_image = dx_ptr + n.to(tl.int64) * stride_xn
    tl.store(
        dx_image[:, None] + (h * stride_xh + w * stride_xw)[:, None] + (c * stride_xc)[None, :],
        acc.to(dx_ptr.dtype.element_ty),
        mask=pixel[:, None] & c_exists[None, :],
    )
