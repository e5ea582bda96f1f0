// What the row-streaming kernels share: compile-time traits, a block's part of the work,
// and how each walk maps steps and slots to rows and columns.
//
// A step is numbered from the top of the image; it reads `input_rows` rows and finishes one line of
// output (one row; two in dgrad at stride 2). Rows of padding between two images are not walked
// through: where `tail` holds, the last line of an image needs no more input after its last step
// and leaves during the first step of the next image.
#pragma once

#include "cuda/device/device.h"
#include "cuda/rowstream_args.h"

namespace grouped_conv::cuda {

// ConfigOf has the configuration and kPlanar: tensors are NCHW, else NHWC.
template <class ConfigOf, typename Element>
struct RowstreamTraitsOf {
  using T = Element;
  static constexpr RowstreamConfig kConfig = ConfigOf::kConfig;
  static constexpr bool kPlanar = ConfigOf::kPlanar;
  static constexpr Walk kWalk = kConfig.walk;
  static constexpr int kCpg = kConfig.c_per_group;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kPlanes = kConfig.planes();
  static constexpr int kSlots = kConfig.slots();
  static constexpr int kTiles = kConfig.tiles;
  static constexpr int kSlabs = kConfig.slabs;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kRows = kConfig.input_rows();
  static constexpr int kRuns = kConfig.input_runs();
  static constexpr int kOutputRows = kConfig.output_rows();
  static constexpr int kOutputRuns = kConfig.output_runs();

  static constexpr int kChannels = kConfig.channels;
  static constexpr int kTilesAtOnce = kConfig.tiles_at_once;
  static constexpr int kHalo = kConfig.halo();
  static constexpr int kInputPlaneBytes = kConfig.input_plane_bytes();
  static constexpr int kOddRunBytes = kConfig.odd_run_bytes();
  static constexpr int kInputRowBytes = kConfig.input_row_bytes();
  static constexpr int kStageBytes = kConfig.stage_bytes();
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kOutputPlaneBytes = kConfig.output_plane_bytes();
  static constexpr int kOutputRunBytes = kConfig.output_run_bytes();
  static constexpr int kLineBytes = kConfig.line_bytes();
  static constexpr int kWeightRowBytes = kConfig.weight_row_bytes();
  static constexpr int kWeightBytes = kConfig.weight_bytes();
  static constexpr bool kWeightsFirst = kConfig.weights_first();

  // A thread brings and takes the same plane of every kSlotStep-th slot.
  static constexpr int kSlotStep = kThreads / kPlanes;
  static constexpr int kPerThread = kSlots / kSlotStep;
  // Planes of input that an output slab needs.
  static constexpr int kDepth = kCpg <= 8 ? 1 : kCpg / 8;
  // Groups of 4 channels share a slab, whose weights are block-diagonal.
  static constexpr bool kSharedSlab = kCpg < 8;

  static_assert(kCpg == 4 || kCpg == 8 || kCpg == 16 || kCpg == 32 || kCpg == 64);
  static_assert(kConfig.channels % 8 == 0 && kConfig.channels % kCpg == 0,
                "a block has whole groups");
  static_assert(kPlanes == 4 || kPlanes % 8 == 0, "plane_bytes() knows these");
  static_assert(kPlanes % kSlabs == 0 && kDepth % kSlabs == 0,
                "the slabs of a warp are of one group");
  static_assert(kPlanar || kSlots % kSlotStep == 0, "each thread has as many slots");
  static_assert(kTiles % kConfig.tiles_at_once == 0);
  static_assert(kStages >= 2, "one stage is read while another fills");
};

template <int kId>
struct RowstreamConfigOf {
  static constexpr RowstreamConfig kConfig = kRowstreamConfigs[kId];
  static constexpr bool kPlanar = false;
  static_assert(kConfig.shared_bytes() <= 99 * 1024, "what sm_86, sm_89 and sm_120 have");
};

template <int kId, typename Element>
struct RowstreamTraits : RowstreamTraitsOf<RowstreamConfigOf<kId>, Element> {};

// Steps and rows of one strip of lines, in one image.
struct Steps {
  int begin, end;
  int lead;   // steps before the one that finishes the first line
  bool tail;  // the last line leaves with the next image's first step
};

struct LineRange {
  int begin, end;
};

template <Walk kWalk>
struct WalkMap;

// Step v reads row v - pad and adds it to outputs v, v - 1 and v - 2, which it finishes.
template <>
struct WalkMap<Walk::kUnitStride> {
  GC_DEVICE static Steps steps(const RowstreamArgs& args, int line, int line_end) {
    const int skipped = args.pad_h > 0 ? 1 : 0;
    Steps s;
    s.begin = line > skipped ? line : skipped;
    s.end = line_end + 2 < args.output_h + 2 - skipped ? line_end + 2 : args.output_h + 2 - skipped;
    s.lead = line + 2 - s.begin;
    s.tail = skipped == 1 && line_end == args.output_h;
    return s;
  }
  GC_DEVICE static int input_row(const RowstreamArgs& args, int step, int) {
    return step - args.pad_h;
  }
  GC_DEVICE static int input_column(const RowstreamArgs& args, int slot, int) {
    return slot - args.pad_w;
  }
  GC_DEVICE static LineRange lines_with(const RowstreamArgs&, int line, int line_end, int) {
    return {line, line_end};
  }
  GC_DEVICE static int output_row(const RowstreamArgs&, int line, int) { return line; }
  GC_DEVICE static int output_column(const RowstreamArgs&, int slot, int) { return slot; }
};

// With the padding counted, step u reads rows 2u + 1 and 2u + 2: taps r = 1, 2 of output u, which
// it finishes, and r = 0 of output u + 1. Runs are the even and the odd columns.
template <>
struct WalkMap<Walk::kFpropStride2> {
  GC_DEVICE static Steps steps(const RowstreamArgs& args, int line, int line_end) {
    Steps s;
    s.begin = line > 0 || args.pad_h == 0 ? line - 1 : 0;
    s.end = line_end;
    s.lead = line - s.begin;
    s.tail = false;
    return s;
  }
  GC_DEVICE static int input_row(const RowstreamArgs& args, int step, int row) {
    return 2 * step + 1 + row - args.pad_h;
  }
  GC_DEVICE static int input_column(const RowstreamArgs& args, int slot, int run) {
    return 2 * slot + run - args.pad_w;
  }
  GC_DEVICE static LineRange lines_with(const RowstreamArgs&, int line, int line_end, int) {
    return {line, line_end};
  }
  GC_DEVICE static int output_row(const RowstreamArgs&, int line, int) { return line; }
  GC_DEVICE static int output_column(const RowstreamArgs&, int slot, int) { return slot; }
};

// With the padding counted, step a reads row a of dy: taps r = 0 of row 2a and r = 1 of row 2a + 1
// of dx, which it finishes, and r = 2 of row 2a + 2. Columns likewise: slot b of output has columns
// 2b and 2b + 1 (runs), from columns b - 1 and b of dy, which lie in slots b and b + 1.
template <>
struct WalkMap<Walk::kDgradStride2> {
  GC_DEVICE static Steps steps(const RowstreamArgs& args, int line, int line_end) {
    const int first = args.pad_h / 2;
    const int line_first = first + line;
    Steps s;
    s.tail = args.pad_h == 1 && args.output_h % 2 == 0 && line_end == args.plan.lines;
    s.begin = line_first > 0 ? line_first - 1 : 0;
    s.end = first + line_end - (s.tail ? 1 : 0);
    s.lead = line_first - s.begin;
    return s;
  }
  GC_DEVICE static int input_row(const RowstreamArgs&, int step, int) { return step; }
  GC_DEVICE static int input_column(const RowstreamArgs& args, int slot, int) {
    return args.pad_w / 2 + slot - 1;
  }
  // The first line may have no even row, the last one no odd row.
  GC_DEVICE static LineRange lines_with(const RowstreamArgs& args, int line, int line_end,
                                        int row) {
    return {line + (output_row(args, line, row) < 0 ? 1 : 0),
            line_end - (output_row(args, line_end - 1, row) >= args.output_h ? 1 : 0)};
  }
  GC_DEVICE static int output_row(const RowstreamArgs& args, int line, int row) {
    return 2 * (args.pad_h / 2 + line) + row - args.pad_h;
  }
  GC_DEVICE static int output_column(const RowstreamArgs& args, int slot, int run) {
    return 2 * (args.pad_w / 2 + slot) + run - args.pad_w;
  }
};

// What a block does: `tiles` tiles of images, in each the same lines, slots and channels.
struct BlockWork {
  int channel;
  int slot;  // of the image's row, that the block's slot 0 is
  int line, line_end;
  int image, images_left;
  int tiles;
  Steps steps;

  GC_DEVICE int steps_per_tile() const { return steps.end - steps.begin; }
};

// Blocks that share pixels are neighbours, so that they find them in the L2 cache.
template <class Traits>
GC_DEVICE BlockWork block_work(const RowstreamArgs& args) {
  const RowstreamPlan& plan = args.plan;
  BlockWork work;
  int index = device::block_index_x();
  work.channel = index % plan.channel_blocks * Traits::kChannels;
  index /= plan.channel_blocks;
  work.slot = index % plan.strips * plan.strip;
  index /= plan.strips;
  work.line = index % plan.row_strips * plan.row_strip;
  index /= plan.row_strips;
  work.line_end = work.line + plan.row_strip < plan.lines ? work.line + plan.row_strip : plan.lines;
  work.image = index * plan.tiles * plan.images;
  work.images_left = args.batch - work.image;
  const int tiles = (work.images_left + plan.images - 1) / plan.images;
  work.tiles = tiles < plan.tiles ? tiles : plan.tiles;
  work.steps = WalkMap<Traits::kWalk>::steps(args, work.line, work.line_end);
  return work;
}

// A block's slot as one of an image of its tile.
struct Pixel {
  int image;
  int slot;      // in the image's row
  bool in_tile;  // the tile has the image
};

GC_DEVICE Pixel pixel_of_slot(const RowstreamArgs& args, int slot) {
  const int image = slot / args.plan.pitch;
  return {image, slot - image * args.plan.pitch, image < args.plan.images};
}

}  // namespace grouped_conv::cuda
