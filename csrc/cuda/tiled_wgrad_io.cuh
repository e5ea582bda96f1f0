// Pixels of x and dy on their way into shared memory, for the tiled weight gradient.
//
// A stage is a run of pixels (n, p, q) of dy. For each it has, in slots of 16 bytes of neighbouring
// channels, the channels of dy of the block's columns, and what x has at each of the block's rows:
// slot i of a tile is some channels at tap i / (slots of a tap). A thread brings slots of one
// pixel. Where x lies in the padding, and beyond the channels, taps, groups and pixels that there
// are, the stage has zeros.
#pragma once

#include "cuda/device/device.h"
#include "cuda/tiled_wgrad_launch.h"

namespace grouped_conv::cuda {

template <TiledMath kMath>
struct TiledWgradElement {
  using type = float;
};
template <>
struct TiledWgradElement<TiledMath::kFloat16> {
  using type = Float16;
};
template <>
struct TiledWgradElement<TiledMath::kBFloat16> {
  using type = BFloat16;
};

template <int kId, TiledMath kHow, bool kIsVector>
struct TiledWgradTraits {
  static constexpr TiledWgradConfig kConfig = kTiledWgradConfigs[kId];
  static constexpr bool kVector = kIsVector;
  static constexpr TiledMath kMath = kHow;
  using Element = typename TiledWgradElement<kHow>::type;

  static constexpr int kElementBytes = tiled_element_bytes(kHow);
  static constexpr int kSlotElements = 16 / kElementBytes;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kBlocksPerSm = kConfig.blocks_per_sm;
  static constexpr int kPixels = kConfig.pixels(kElementBytes);
  static constexpr int kGroups = kConfig.groups;
  static constexpr int kRows = kConfig.rows, kCols = kConfig.cols;
  static constexpr int kStages = TiledWgradConfig::stages(kIsVector);

  // Slots of a pixel: of a tile, and of the block.
  static constexpr int kXSlotsOfGroup = kRows / kSlotElements;
  static constexpr int kDySlotsOfGroup = kCols / kSlotElements;
  static constexpr int kXSlots = kGroups * kXSlotsOfGroup;
  static constexpr int kDySlots = kGroups * kDySlotsOfGroup;
  static constexpr int kXPitch = kConfig.x_pitch_bytes(kElementBytes);
  static constexpr int kDyPitch = kConfig.dy_pitch_bytes(kElementBytes);
  static constexpr int kXBytes = kPixels * kXPitch;
  static constexpr int kStageBytes = kConfig.stage_bytes(kElementBytes);
  static constexpr int kTableOffset = kStages * kStageBytes;

  // Threads of a pixel, and the slots of each.
  static constexpr int kSlotStep = kThreads / kPixels;
  static constexpr int kXSlotsOfThread = (kXSlots + kSlotStep - 1) / kSlotStep;
  static constexpr int kDySlotsOfThread = kDySlots / kSlotStep;

  static constexpr int kWarpsOfGroup = kConfig.warps_of_group();
  static constexpr int kWarpCols = kCols / kConfig.col_warps;

  // Where a sum is on its way out. Columns lie so far apart that the stores of a warp, eight rows
  // of every second column, meet every bank once.
  GC_DEVICE static constexpr uint32_t sum_offset(int group, int row, int col) {
    return uint32_t(4 * ((group * kCols + col) * (kRows + 4) + row));
  }

  static_assert(kRows % kTiledWgradWarpRows == 0 && kCols % (8 * kConfig.col_warps) == 0);
  static_assert(4 * kGroups * kCols * (kRows + 4) <= 2 * kStageBytes, "room for the sums");
  static_assert(kThreads % kPixels == 0 && kDySlots % kSlotStep == 0);
  static_assert(kPixels % (kElementBytes == 2 ? 16 : 8) == 0, "whole steps of mma");
};

// A pixel of dy, beyond the last image where n is N.
struct TiledWgradPixel {
  int n, p, q;

  GC_DEVICE static TiledWgradPixel first(const TiledWgradArgs& args, int64_t index) {
    const int64_t row = index / args.Q;
    const int n = int(row / args.P);
    return {n, int(row - int64_t(n) * args.P), int(index - row * args.Q)};
  }
  // `pixels` later; few.
  GC_DEVICE TiledWgradPixel later(const TiledWgradArgs& args, int pixels) const {
    const int column = q + pixels, row = p + column / args.Q;
    return {n + row / args.P, row % args.P, column % args.Q};
  }
  // In the next stage.
  GC_DEVICE void advance(const TiledWgradArgs& args) {
    q += args.step_q;
    p += args.step_p + (q >= args.Q);
    n += args.step_n;
    q -= q >= args.Q ? args.Q : 0;
    if (p >= args.P) {
      p -= args.P;
      ++n;
    }
  }
};

// The part of the problem that a block computes.
struct TiledWgradTile {
  int first_group, row_tile, col_tile;
  int split, first_chunk, chunks;

  // `groups` are those of a block.
  GC_DEVICE TiledWgradTile(const TiledWgradArgs& args, int groups) {
    const TiledWgradPlan& plan = args.plan;
    int index = device::block_index_x();
    row_tile = index % plan.row_tiles;
    index /= plan.row_tiles;
    col_tile = index % plan.col_tiles;
    index /= plan.col_tiles;
    split = index / plan.group_blocks;
    first_group = (index - split * plan.group_blocks) * groups;
    first_chunk = int(int64_t(plan.chunks) * split / plan.splits);
    chunks = int(int64_t(plan.chunks) * (split + 1) / plan.splits) - first_chunk;
  }
};

// What a row of a tile is: a channel at a tap. `live` of the channels from there to the end of the
// slot exist, with the tap and the group.
struct TiledWgradRow {
  int r, s, c;
  int live;

  template <class Traits>
  GC_DEVICE static TiledWgradRow of_slot(const TiledWgradArgs& args, const TiledWgradTile& tile,
                                         int group, int slot_of_group) {
    const int slots_of_tap = (args.c_per_group + Traits::kSlotElements - 1) / Traits::kSlotElements;
    const int slot = tile.row_tile * Traits::kXSlotsOfGroup + slot_of_group;
    const int tap = slot / slots_of_tap;
    TiledWgradRow row;
    row.r = tap / args.S;
    row.s = tap - row.r * args.S;
    row.c = (slot - tap * slots_of_tap) * Traits::kSlotElements;
    row.live = row.r < args.R && group < args.G ? args.c_per_group - row.c : 0;
    return row;
  }
};

// Where a slot of a pixel is found: from the pixel's first tap in x, or from the pixel in dy, in
// bytes, and in rows and columns of x. The first `live` elements exist.
struct TiledWgradSource {
  int offset, dh, dw, live;

  static constexpr int kNever = 1 << 30;  // beyond any row of x

  GC_DEVICE static TiledWgradSource load(uint32_t at) {
    const device::Bytes16 v = device::load_shared_16(at);
    return {int(v.word[0]), int(v.word[1]), int(v.word[2]), int(v.word[3])};
  }
  GC_DEVICE void store(uint32_t at, bool active) const {
    device::store_shared_16(at, {{uint32_t(offset), uint32_t(dh), uint32_t(dw), uint32_t(live)}},
                            active);
  }
};

// Writes the sources of the block's slots, those of x and then those of dy, into shared memory:
// they are the same for all pixels.
template <class Traits>
GC_DEVICE void tiled_wgrad_find_sources(const TiledWgradArgs& args, const TiledWgradTile& tile,
                                        uint32_t table) {
  for (int first = 0; first < Traits::kXSlots; first += Traits::kThreads) {
    const int slot = first + device::thread_index();
    const int in_block = slot / Traits::kXSlotsOfGroup;
    const int group = tile.first_group + in_block;
    const auto row =
        TiledWgradRow::of_slot<Traits>(args, tile, group, slot - in_block * Traits::kXSlotsOfGroup);
    TiledWgradSource source{0, TiledWgradSource::kNever, 0, 0};
    if (row.live > 0) {
      source.dh = row.r * args.dilation_h;
      source.dw = row.s * args.dilation_w;
      source.offset = source.dh * args.x_strides.row + source.dw * args.x_strides.column +
                      (group * args.c_per_group + row.c) * args.x_strides.channel;
      source.live = row.live;
    }
    source.store(table + 16 * slot, slot < Traits::kXSlots);
  }
  for (int first = 0; first < Traits::kDySlots; first += Traits::kThreads) {
    const int slot = first + device::thread_index();
    const int in_block = slot / Traits::kDySlotsOfGroup;
    const int group = tile.first_group + in_block;
    const int k = tile.col_tile * Traits::kCols +
                  (slot - in_block * Traits::kDySlotsOfGroup) * Traits::kSlotElements;
    TiledWgradSource source{};
    if (group < args.G && k < args.k_per_group) {
      source.offset = (group * args.k_per_group + k) * args.dy_strides.channel;
      source.live = args.k_per_group - k;
    }
    source.store(table + 16 * (Traits::kXSlots + slot), slot < Traits::kDySlots);
  }
}

template <class Traits>
class TiledWgradLoader {
 public:
  GC_DEVICE TiledWgradLoader(const TiledWgradArgs& args, const TiledWgradTile& tile, uint32_t table)
      : args_(args) {
    // Lanes go along what is contiguous.
    const int thread = device::thread_index();
    const bool by_pixel = !Traits::kVector && args.plan.planar;
    const int pixel = by_pixel ? thread % Traits::kPixels : thread / Traits::kSlotStep;
    first_slot_ = by_pixel ? thread / Traits::kPixels : thread % Traits::kSlotStep;
    sources_ = table + 16 * first_slot_;
    x_target_ = uint32_t(pixel * Traits::kXPitch + 16 * first_slot_);
    dy_target_ = uint32_t(Traits::kXBytes + pixel * Traits::kDyPitch + 16 * first_slot_);
    pixel_ = TiledWgradPixel::first(args, int64_t(tile.first_chunk) * Traits::kPixels + pixel);
    chunks_left_ = tile.chunks;
  }

  // Starts the copies of the next stage.
  GC_DEVICE void copy(uint32_t stage) {
    static_assert(Traits::kVector);
    if (chunks_left_ > 0) {
      const Place place(args_, pixel_);
      GC_UNROLL
      for (int i = 0; i < Traits::kXSlotsOfThread; ++i) {
        const TiledWgradSource source = x_source(i);
        device::cp_async_16_cached(stage + x_target(i), place.x + source.offset,
                                   place.meets(args_, source), is_x_slot(i));
      }
      GC_UNROLL
      for (int i = 0; i < Traits::kDySlotsOfThread; ++i) {
        const TiledWgradSource source = dy_source(i);
        device::cp_async_16(stage + dy_target(i), place.dy + source.offset,
                            place.exists && source.live > 0);
      }
      advance();
      --chunks_left_;
    }
    device::cp_async_commit();
  }

  // One of kParts shares of the next stage's slots, on its way in registers.
  template <int kParts>
  struct Slots {
    static constexpr int kX = (Traits::kXSlotsOfThread + kParts - 1) / kParts;
    static constexpr int kDy = (Traits::kDySlotsOfThread + kParts - 1) / kParts;
    device::Bytes16 x[kX], dy[kDy];
  };
  template <int kParts>
  GC_DEVICE void fetch(Slots<kParts>& slots, int part, bool active = true) const {
    static_assert(!Traits::kVector);
    using Share = Slots<kParts>;
    const Place place(args_, pixel_);
    GC_UNROLL
    for (int i = part * Share::kX; i < limit((part + 1) * Share::kX, Traits::kXSlotsOfThread);
         ++i) {
      const TiledWgradSource source = x_source(i);
      slots.x[i - part * Share::kX] =
          gather(place.x + source.offset, args_.x_strides.channel,
                 active && is_x_slot(i) && place.meets(args_, source) ? source.live : 0);
    }
    GC_UNROLL
    for (int i = part * Share::kDy; i < limit((part + 1) * Share::kDy, Traits::kDySlotsOfThread);
         ++i) {
      const TiledWgradSource source = dy_source(i);
      slots.dy[i - part * Share::kDy] = gather(place.dy + source.offset, args_.dy_strides.channel,
                                               active && place.exists ? source.live : 0);
    }
  }
  template <int kParts>
  GC_DEVICE void put(uint32_t stage, const Slots<kParts>& slots, int part) const {
    using Share = Slots<kParts>;
    GC_UNROLL
    for (int i = part * Share::kX; i < limit((part + 1) * Share::kX, Traits::kXSlotsOfThread);
         ++i) {
      device::store_shared_16(stage + x_target(i), slots.x[i - part * Share::kX], is_x_slot(i));
    }
    GC_UNROLL
    for (int i = part * Share::kDy; i < limit((part + 1) * Share::kDy, Traits::kDySlotsOfThread);
         ++i) {
      device::store_shared_16(stage + dy_target(i), slots.dy[i - part * Share::kDy]);
    }
  }
  GC_DEVICE void advance() { pixel_.advance(args_); }

  // The whole next stage at once.
  GC_DEVICE void bring(uint32_t stage) {
    constexpr int kParts = Traits::kXSlotsOfThread;
    GC_UNROLL
    for (int part = 0; part < kParts; ++part) {
      Slots<kParts> slots;
      fetch(slots, part);
      put(stage, slots, part);
    }
    advance();
  }

 private:
  // Where the thread's pixel is in dy, and its first tap in x.
  struct Place {
    bool exists;
    int h, w;
    const unsigned char* x;
    const unsigned char* dy;

    GC_DEVICE Place(const TiledWgradArgs& args, const TiledWgradPixel& at) {
      exists = at.n < args.N;
      h = at.p * args.stride_h - args.pad_h;
      w = at.q * args.stride_w - args.pad_w;
      const TiledWgradStrides &of_x = args.x_strides, &of_dy = args.dy_strides;
      x = args.x + at.n * of_x.image + (int64_t(h) * of_x.row + int64_t(w) * of_x.column);
      dy = args.dy + at.n * of_dy.image + (at.p * of_dy.row + at.q * of_dy.column);
    }
    GC_DEVICE bool meets(const TiledWgradArgs& args, const TiledWgradSource& source) const {
      return exists && uint32_t(h + source.dh) < uint32_t(args.H) &&
             uint32_t(w + source.dw) < uint32_t(args.W);
    }
  };

  // Of the thread's i-th slot; beyond the last one of x, something.
  GC_DEVICE TiledWgradSource x_source(int i) const {
    return TiledWgradSource::load(sources_ + 16 * i * Traits::kSlotStep);
  }
  GC_DEVICE TiledWgradSource dy_source(int i) const {
    return TiledWgradSource::load(sources_ + 16 * (Traits::kXSlots + i * Traits::kSlotStep));
  }
  GC_DEVICE static constexpr int limit(int a, int b) { return a < b ? a : b; }
  GC_DEVICE uint32_t x_target(int i) const { return x_target_ + 16 * i * Traits::kSlotStep; }
  GC_DEVICE uint32_t dy_target(int i) const { return dy_target_ + 16 * i * Traits::kSlotStep; }
  GC_DEVICE bool is_x_slot(int i) const {
    if constexpr (Traits::kXSlots % Traits::kSlotStep == 0) return true;
    return first_slot_ + i * Traits::kSlotStep < Traits::kXSlots;
  }

  // The first `live` elements of a slot.
  GC_DEVICE static device::Bytes16 gather(const unsigned char* source, int step, int live) {
    device::Bytes16 slot;
    GC_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (Traits::kElementBytes == 4) {
        slot.word[i] = device::load_global_4(source + int64_t(i) * step, i < live);
      } else {
        const uint32_t low = device::load_global_2(source + int64_t(2 * i) * step, 2 * i < live);
        const uint32_t high =
            device::load_global_2(source + int64_t(2 * i + 1) * step, 2 * i + 1 < live);
        slot.word[i] = low | high << 16;
      }
    }
    return slot;
  }

  const TiledWgradArgs& args_;
  TiledWgradPixel pixel_;
  int chunks_left_;
  int first_slot_;
  uint32_t sources_, x_target_, dy_target_;
};

}  // namespace grouped_conv::cuda
