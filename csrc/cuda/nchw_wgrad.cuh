// nchw_wgrad_kernel: dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,stride p - pad + r,...] of NCHW
// tensors, as partial sums; wgrad_reduce_kernel (wgrad_reduce.cuh) adds them up.
//
// Work: a block has a slab of channels and a share of the bands of all images: some rows of dy, or
//   whole images, with the rows of x that they meet (nchw_wgrad_rows.cuh). Narrow images lie side
//   by side. Bands come to shared memory as they are, in aligned words of 16 bytes, whatever the
//   width of an image; what two bands share of x is in one of them only, and dy's last rows are
//   looked at again where they lie. Where a share ends inside an image, two rows of x come twice.
// A band: wait for it, one barrier, start the copies of the next one, multiply. Warps share the
//   channels, the slots of a row (slot_parts) and the rows of a band (row_parts). A warp walks down
//   16 slots: each row of x and dy comes to registers once, in words of two pixels that are shifted
//   by a pixel where rows begin in the middle of a word.
// Memory: two bands of x, three of dy, or two of whole images. The sums stay in registers, as in
//   wgrad.cuh, and leave through shared memory.
// Inf and NaN: columns of padding, and rows that are not the block's, are multiplied as zeros. A
//   block with NaN in its sums walks again without such products.
// float16 and bfloat16, float accumulation, no atomics: the same bits in each run. Supports: as
//   wgrad.cuh.
#pragma once

#include <type_traits>

#include "cuda/nchw_wgrad_rows.cuh"
#include "cuda/nchw_wgrad_tiles.cuh"

namespace grouped_conv::cuda {

template <class Traits>
using NchwWgradTile =
    std::conditional_t<(Traits::kPerGroup <= 8), NchwWgradSlab<Traits>, NchwWgradSquare<Traits>>;

// Zeroes the bands: what is not written later is read beside what is, and dropped.
template <class Traits>
GC_DEVICE void nchw_wgrad_clear(const NchwWgradArgs& args, uint32_t shared) {
  GC_NO_UNROLL
  for (int at = 16 * device::thread_index(); at < args.band_bytes; at += 16 * Traits::kThreads) {
    device::store_shared_16(shared + at, {});
  }
}

// A tensor's part of a band on its way to `place`.
template <class Traits>
GC_DEVICE void nchw_wgrad_load(const PlanarTensor<Traits>& tensor, const unsigned char* data,
                               const BandArea& area, int images, uint32_t place) {
  tensor.for_each_word(area, images, [&](int64_t offset, uint32_t target, int, int, bool active) {
    device::cp_async_16(place + target, data + offset, true, active);
  });
}

// The warp's part of a band.
template <bool kExact, class Traits>
GC_DEVICE void nchw_wgrad_multiply(const NchwWgradRows<Traits>& rows, NchwWgradTile<Traits>& tile,
                                   int slot_part, int row_part) {
  const NchwWgradBand& band = rows.band();
  const int steps = band.step_end - band.step;
  const int begin = band.step + steps * row_part / Traits::kRowParts;
  const int end = band.step + steps * (row_part + 1) / Traits::kRowParts;
  const int channel = tile.dy_channel();
  constexpr int kDyRows = Traits::kDyRows;
  GC_NO_UNROLL
  for (int i = 0; i < Traits::kTilesPerPart; ++i) {
    const NchwWgradPixels<Traits> lane(rows.args(), band,
                                       16 * (slot_part * Traits::kTilesPerPart + i));
    uint32_t dy[kDyRows][NchwWgradTile<Traits>::kDyPlanes][2];
    GC_UNROLL
    for (int before = 1; before < kDyRows; ++before) {
      rows.template load_dy<true>(dy[before], lane, begin - before, channel);
    }
    GC_NO_UNROLL
    for (int step = begin; step < end; ++step) {
      rows.template load_dy<false>(dy[0], lane, step, channel);
      tile.template add_step<kExact>(rows, lane, step, dy);
      GC_UNROLL
      for (int before = kDyRows - 1; before > 0; --before) {
        GC_UNROLL
        for (int j = 0; j < 2 * NchwWgradTile<Traits>::kDyPlanes; ++j) {
          dy[before][j / 2][j % 2] = dy[before - 1][j / 2][j % 2];
        }
      }
    }
  }
}

// The walk over a share of bands, those of [begin, end).
template <bool kExact, class Traits>
GC_DEVICE void nchw_wgrad_walk(const NchwWgradArgs& args, NchwWgradTile<Traits>& tile,
                               uint32_t shared, int first_channel, int begin, int end, int part) {
  const WgradArgs& sizes = args.wgrad;
  const uint32_t x_places = shared + NchwWgradPlan::kGap;
  const uint32_t dy_places = x_places + 2 * args.x_place_bytes;
  const auto load = [&](int index, uint32_t x_at, uint32_t dy_at) {
    if (index < end) {
      const NchwWgradBand band(args, index, begin, end);
      nchw_wgrad_load<Traits>({args.x, sizes.H, sizes.W, sizes.C, first_channel, band.image},
                              sizes.x, band.x, band.images, x_at);
      nchw_wgrad_load<Traits>({args.dy, sizes.P, sizes.Q, sizes.C, first_channel, band.image},
                              sizes.dy, band.dy, band.images, dy_at);
    }
    device::cp_async_commit();
  };
  uint32_t x_at = x_places, dy_at = dy_places, dy_before_at = dy_places;
  load(begin, x_at, dy_at);
  GC_NO_UNROLL
  for (int index = begin; index < end; ++index) {
    device::cp_async_wait<0>();
    device::sync_threads();
    const uint32_t next_x_at = x_at == x_places ? x_places + args.x_place_bytes : x_places;
    const bool wraps = dy_at == dy_places + (args.dy_places - 1) * args.dy_place_bytes;
    const uint32_t next_dy_at = wraps ? dy_places : dy_at + args.dy_place_bytes;
    load(index + 1, next_x_at, next_dy_at);
    const NchwWgradBand band(args, index, begin, end);
    const NchwWgradRows<Traits> rows(args, band, x_at, dy_at, dy_before_at);
    nchw_wgrad_multiply<kExact>(rows, tile, part / Traits::kRowParts, part % Traits::kRowParts);
    dy_before_at = dy_at;
    dy_at = next_dy_at;
    x_at = next_x_at;
  }
}

template <int kId, typename T>
GC_GLOBAL((NchwWgradTraits<kId, T>::kThreads), (NchwWgradTraits<kId, T>::kBlocksPerSm))
nchw_wgrad_kernel(const GC_GRID_CONSTANT NchwWgradArgs args) {
  using Traits = NchwWgradTraits<kId, T>;
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const WgradPlan& plan = args.wgrad.plan;
  const int split = device::block_index_x() / plan.channel_blocks;
  const int first_channel =
      (device::block_index_x() - split * plan.channel_blocks) * Traits::kChannels;
  const int begin = int(int64_t(plan.rows) * split / plan.splits);
  const int end = int(int64_t(plan.rows) * (split + 1) / plan.splits);
  const int part = device::warp_index() / Traits::kWarpsPerPart;

  nchw_wgrad_clear<Traits>(args, shared);
  device::sync_threads();
  NchwWgradTile<Traits> tile(device::warp_index() % Traits::kWarpsPerPart);
  nchw_wgrad_walk<false, Traits>(args, tile, shared, first_channel, begin, end, part);
  if (device::sync_threads_or(tile.has_nan())) {
    tile.clear();
    nchw_wgrad_walk<true, Traits>(args, tile, shared, first_channel, begin, end, part);
    device::sync_threads();
  }
  wgrad_write_partials<Traits>(args.wgrad, tile, shared, first_channel, split, part);
}

}  // namespace grouped_conv::cuda
