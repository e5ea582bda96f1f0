// Rows of x and dy on their way into shared memory, for the weight gradient.
//
// A step of the walk brings one row of dy and one row of x, or at stride 2 a pair of rows of x, the
// even and the odd columns of each apart, into a stage of either. Such a run of pixels consists of
// planes of 16-byte slots, one slot per pixel. Columns count from the left padding, so output
// column q meets slot q + s at stride 1, and even column q + s / 2 or odd column q at stride 2: a
// tap is a constant distance. The slots of the padding, and those beyond the tile, are filled with
// zeros.
#pragma once

#include "cuda/device/device.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

template <int kId, typename T>
struct WgradTraits {
  static constexpr WgradConfig kConfig = kWgradConfigs[kId];
  using Element = T;

  static constexpr int kPerGroup = kConfig.c_per_group;
  static constexpr int kStride = kConfig.stride;
  static constexpr int kChannels = kConfig.channels;
  static constexpr int kSlots = kConfig.slots;
  static constexpr int kPlanes = kConfig.planes();
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kStages = kConfig.stages;
  static constexpr int kBlocksPerSm = kConfig.blocks_per_sm;

  static constexpr int kPlaneBytes = kConfig.plane_bytes();
  static constexpr int kRunBytes = kConfig.run_bytes();
  static constexpr int kXStageBytes = kConfig.x_stage_bytes();
  static constexpr int kXRingBytes = kXStageBytes * kConfig.x_stages();
  static constexpr int kRingBytes = kConfig.ring_bytes();

  static constexpr int kWarpsPerPart = kConfig.warps_per_part();
  static constexpr int kParts = kConfig.k_split;
  static constexpr int kCoTiles = kConfig.co_tiles;
  static constexpr int kSumLines = kConfig.sum_lines();
  static constexpr int kSumLineBytes = kConfig.sum_line_bytes();

  // Slots that one thread brings of each run, and how far apart they are.
  static constexpr int kSlotStep = kThreads / kPlanes;
  static constexpr int kSlotsPerThread = kSlots / kSlotStep;

  static constexpr int kTilesPerWarp = kSlots / 16 / kParts;

  // Where the pixels of tap s lie, from those of the output.
  GC_DEVICE static constexpr int tap_offset(int s) {
    return kStride == 1 ? 16 * s : s == 1 ? kRunBytes : 16 * (s / 2);
  }
  // Row A of a step meets the step's row of dy with this r, and the one before it with r = 2.
  // Row B meets the step's row of dy with the third r.
  static constexpr int kRowA = kStride == 1 ? 1 : 0;
  static constexpr int kRowB = 1 - kRowA;

  static_assert(kStride == 1 || kStride == 2);
  static_assert(kChannels % kPerGroup == 0, "a block has whole groups");
  static_assert(kPlanes == 4 || kPlanes == 8, "the bank pattern of plane_bytes()");
  static_assert(kThreads % kPlanes == 0 && kSlots % kSlotStep == 0);
  static_assert(kTilesPerWarp * 16 * kParts == kSlots);
  static_assert(kStages >= 3 && kStages <= 8, "eight steps of four bits in a register");
};

// What a step can compute, once its rows have arrived.
inline constexpr uint32_t kStepRowA = 1;      // row A with its row of dy
inline constexpr uint32_t kStepRowB = 2;      // row B with its row of dy
inline constexpr uint32_t kStepDyBefore = 4;  // row A with the row of dy before
inline constexpr uint32_t kStepRows = 7;
inline constexpr uint32_t kStepLive = 8;  // the walk has not ended
inline constexpr int kStepBits = 4;

// Shared addresses of the stages of a step.
template <class Traits>
struct WgradStage {
  uint32_t x, dy;

  GC_DEVICE static WgradStage first(uint32_t shared) {
    return {shared, shared + Traits::kXRingBytes};
  }
  GC_DEVICE WgradStage next(uint32_t shared) const {
    const uint32_t next_x = x + Traits::kXStageBytes, next_dy = dy + Traits::kRunBytes;
    const WgradStage wrapped = first(shared);
    return {next_x == wrapped.dy ? wrapped.x : next_x,
            next_dy == shared + Traits::kRingBytes ? wrapped.dy : next_dy};
  }
};

// Which columns of a tile exist. Padding, and the gaps between images side by side, are zeros in
// shared memory; the convolution has no product with them.
struct WgradColumns {
  int first_x;  // column of x that the first output column meets with s = 0
  int outputs;

  GC_DEVICE bool meet(const WgradArgs& args, int slot, int s) const {
    const int image = slot / args.plan.pitch, column = slot - image * args.plan.pitch;
    return image < args.plan.images && column < outputs &&
           uint32_t(first_x + column * args.stride + s) < uint32_t(args.W);
  }
};

// Walks down the rows that are the block's share, and brings the rows of one step at a time.
// Step t of a tile brings row t of dy, and with it, counted from the top padding, row t + 1 of x
// (row A; row B is row A of the step before) or rows 2t and 2t + 1 (A and B).
template <class Traits>
class WgradLoader {
 public:
  GC_DEVICE WgradLoader(const WgradArgs& args, int first_channel, int split)
      : args_(args), pixel_bytes_(2u * uint32_t(args.C)) {
    const WgradPlan& plan = args.plan;
    const int plane = device::thread_index() % Traits::kPlanes;
    const int first_slot = device::thread_index() / Traits::kPlanes;
    const int channel = first_channel + 8 * plane;
    target_ = uint32_t(plane * Traits::kPlaneBytes + 16 * first_slot);
    GC_UNROLL
    for (int i = 0; i < Traits::kSlotsPerThread; ++i) {
      const int slot = first_slot + i * Traits::kSlotStep;
      const int image = slot / plan.pitch;
      const int column = slot - image * plan.pitch;
      const bool used = image < plan.images && channel < args.C;
      image_[i] = used ? image : kNever;
      column_[i] = column;
      const uint32_t image_or_first = used ? uint32_t(image) : 0;
      x_offset_[i] =
          (image_or_first * uint32_t(args.H * args.W) + uint32_t(column * Traits::kStride)) *
              pixel_bytes_ +
          2 * channel;
      dy_offset_[i] =
          (image_or_first * uint32_t(args.P * args.Q) + uint32_t(column)) * pixel_bytes_ +
          2 * channel;
    }
    const int first_row = int(int64_t(plan.rows) * split / plan.splits);
    rows_left_ = int(int64_t(plan.rows) * (split + 1) / plan.splits) - first_row;
    const int tile = first_row / args.P;
    begin_ = first_row - tile * args.P;
    image_group_ = tile / plan.strips;
    strip_ = tile - image_group_ * plan.strips;
    enter_tile();
  }

  // The columns of the next step's tile.
  GC_DEVICE WgradColumns columns() const { return {first_x_column_, columns_left_}; }

  // Starts the copies of the next step into `stage`. Returns what the step can compute.
  GC_DEVICE uint32_t load_step(const WgradStage<Traits>& stage) {
    uint32_t step = 0;
    if (rows_left_ > 0) {
      const int row_a = row_a_of(step_);
      const int row_b = Traits::kStride == 1 ? row_a - 1 : row_a + 1;
      const bool has_a = inside(row_a);
      const bool has_b = inside(row_b);
      const bool has_dy = step_ >= begin_ && step_ < end_;
      if (has_a) load_x_row(stage.x, row_a);
      if (Traits::kStride == 2 && has_b && has_dy) {
        load_x_row(stage.x + 2 * Traits::kRunBytes, row_b);
      }
      if (has_dy) load_dy_row(stage.dy, step_);
      step = kStepLive | (has_a && has_dy ? kStepRowA : 0) | (has_b && has_dy ? kStepRowB : 0) |
             (has_a && step_ > begin_ ? kStepDyBefore : 0);
      if (step_++ == last_step_) leave_tile();
    }
    device::cp_async_commit();
    return step;
  }

 private:
  static constexpr int kNever = 0x7fffffff;

  GC_DEVICE int row_a_of(int step) const {
    return (Traits::kStride == 1 ? step + 1 : 2 * step) - args_.pad_h;
  }
  GC_DEVICE bool inside(int row) const { return uint32_t(row) < uint32_t(args_.H); }

  // Rows begin_ .. of the output in this tile: as many as it has, or as are left. Rows of x above
  // the first and below the last need a step of their own, unless they are padding.
  GC_DEVICE void enter_tile() {
    end_ = args_.P - begin_ < rows_left_ ? args_.P : begin_ + rows_left_;
    step_ = Traits::kStride == 1 && inside(row_a_of(begin_ - 1)) ? begin_ - 1 : begin_;
    last_step_ = inside(row_a_of(end_)) ? end_ : end_ - 1;
    const int image = image_group_ * args_.plan.images;
    images_left_ = args_.N - image;
    const int column = strip_ * args_.plan.strip;
    columns_left_ = args_.Q - column < args_.plan.strip ? args_.Q - column : args_.plan.strip;
    first_x_column_ = column * Traits::kStride - args_.pad_w;
    x_ = args_.x + (int64_t(image) * args_.H * args_.W + first_x_column_) * pixel_bytes_;
    dy_ = args_.dy + (int64_t(image) * args_.P * args_.Q + column) * pixel_bytes_;
  }

  GC_DEVICE void leave_tile() {
    rows_left_ -= end_ - begin_;
    begin_ = 0;
    if (++strip_ == args_.plan.strips) {
      strip_ = 0;
      ++image_group_;
    }
    enter_tile();
  }

  GC_DEVICE void load_x_row(uint32_t run, int row) const {
    const unsigned char* source = x_ + uint32_t(row) * (uint32_t(args_.W) * pixel_bytes_);
    GC_UNROLL
    for (int i = 0; i < Traits::kSlotsPerThread; ++i) {
      const uint32_t target = run + target_ + 16 * i * Traits::kSlotStep;
      const bool image = image_[i] < images_left_;
      const int column = first_x_column_ + column_[i] * Traits::kStride;
      device::cp_async_16(target, source + x_offset_[i], image && on_row(column));
      if constexpr (Traits::kStride == 2) {
        const bool needed = image && column_[i] < columns_left_ && on_row(column + 1);
        device::cp_async_16(target + Traits::kRunBytes, source + x_offset_[i] + pixel_bytes_,
                            needed);
      }
    }
  }
  GC_DEVICE bool on_row(int column) const { return uint32_t(column) < uint32_t(args_.W); }

  GC_DEVICE void load_dy_row(uint32_t run, int row) const {
    const unsigned char* source = dy_ + uint32_t(row) * (uint32_t(args_.Q) * pixel_bytes_);
    GC_UNROLL
    for (int i = 0; i < Traits::kSlotsPerThread; ++i) {
      const uint32_t target = run + target_ + 16 * i * Traits::kSlotStep;
      const bool valid = image_[i] < images_left_ && column_[i] < columns_left_;
      device::cp_async_16(target, source + dy_offset_[i], valid);
    }
  }

  const WgradArgs& args_;
  const uint32_t pixel_bytes_;
  // The thread's slots.
  uint32_t target_;
  int image_[Traits::kSlotsPerThread], column_[Traits::kSlotsPerThread];
  uint32_t x_offset_[Traits::kSlotsPerThread], dy_offset_[Traits::kSlotsPerThread];
  // The tile, and the rows of it.
  int image_group_, strip_;
  int rows_left_, begin_, end_;
  int step_, last_step_;
  int images_left_, columns_left_, first_x_column_;
  const unsigned char* x_;
  const unsigned char* dy_;
};

}  // namespace grouped_conv::cuda
