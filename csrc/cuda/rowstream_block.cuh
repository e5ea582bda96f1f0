// What every row-streaming kernel does before its first step.
#pragma once

#include "cuda/rowstream_exact.cuh"
#include "cuda/rowstream_math.cuh"

namespace grouped_conv::cuda {

// The block's shared memory: the ring of stages, then two lines of output, which take turns. The
// weights lie where the lines will be, or at the very beginning.
template <class Traits>
struct SharedLayout {
  uint32_t stages, lines, weights;

  GC_DEVICE explicit SharedLayout(uint32_t begin)
      : stages(begin),
        lines(begin + Traits::kRingBytes),
        weights(Traits::kWeightsFirst ? stages : lines) {}
};

// The warp's part of the block: 16-slot tiles from `slot` on, output slabs from `slab` on.
template <class Traits>
struct WarpPart {
  static constexpr int kSlabWarps = Traits::kPlanes / Traits::kSlabs;
  int slot, slab;

  GC_DEVICE WarpPart()
      : slot(device::warp_index() / kSlabWarps * Traits::kTiles * 16),
        slab(device::warp_index() % kSlabWarps * Traits::kSlabs) {}

  // Bytes from a stage to the warp's first slot of its group's first plane, and from a line of
  // output to its first slot of its first plane.
  GC_DEVICE uint32_t input_offset() const {
    return slot * 16 + slab / Traits::kDepth * Traits::kDepth * Traits::kInputPlaneBytes;
  }
  GC_DEVICE uint32_t output_offset() const { return slot * 16 + slab * Traits::kOutputPlaneBytes; }
};

// Calls function(source, target) for the pieces of 16 bytes of the block's weights that are this
// thread's: offsets in global and in shared memory. In both orders the weights of a block are one
// piece of global memory.
template <class Traits, typename Function>
GC_DEVICE void for_each_weight_piece(const Function& function) {
  constexpr int kRowBytes = 18 * Traits::kCpg;
  constexpr int kPadding = Traits::kWeightRowBytes - kRowBytes;
  static_assert(kPadding == 0 || kRowBytes % 16 == 0, "a piece is of one row");
  for (int at = device::thread_index() * 16; at < Traits::kChannels * kRowBytes;
       at += Traits::kThreads * 16) {
    function(at, at + at / kRowBytes * kPadding);
  }
}

// Starts to bring the block's weights to shared memory, as a group of copies.
template <class Traits>
GC_DEVICE void prefetch_weights(const RowstreamArgs& args, const BlockWork& work, uint32_t target) {
  constexpr int kRowBytes = 18 * Traits::kCpg;
  const char* weights = static_cast<const char*>(args.weight) + int64_t(work.channel) * kRowBytes;
  const int bytes = (args.channels - work.channel) * kRowBytes;
  for_each_weight_piece<Traits>(
      [&](int from, int to) { device::cp_async_16(target + to, weights + from, from < bytes); });
  device::cp_async_commit();
}

// Zeroes what is not finite among the weights that this thread has brought, and tells whether
// something was.
template <class Traits>
GC_DEVICE bool clear_nonfinite_weights(uint32_t weights) {
  using T = typename Traits::T;
  bool found = false;
  for_each_weight_piece<Traits>([&](int, int at) {
    const bool nonfinite = Nonfinite<T>::any(device::load_shared_16(weights + at));
    if (nonfinite) Nonfinite<T>::clear(weights + at);
    found |= nonfinite;
  });
  return found;
}

// Brings the weights of the warp to registers and starts the stream of rows, in the order that the
// layout of shared memory asks for. `nonfinite` tells whether this thread met a weight that is not
// finite.
template <class Traits>
GC_DEVICE WeightTile<Traits> start_block(const RowstreamArgs& args, const BlockWork& work,
                                         const SharedLayout<Traits>& shared, int first_n,
                                         InputStream<Traits>& rows, bool& nonfinite) {
  prefetch_weights<Traits>(args, work, shared.weights);
  if constexpr (!Traits::kWeightsFirst) rows.start(shared.stages);
  device::cp_async_wait<Traits::kWeightsFirst ? 0 : Traits::kStages - 1>();
  nonfinite = clear_nonfinite_weights<Traits>(shared.weights);
  device::sync_threads();
  const WeightTile<Traits> weights(args.shared_order, shared.weights, first_n);
  if constexpr (Traits::kWeightsFirst) {
    device::sync_threads();
    rows.start(shared.stages);
  }
  return weights;
}

}  // namespace grouped_conv::cuda
