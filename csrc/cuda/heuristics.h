// Which of the kernels computes a pass of a problem, and how it is cut up: a pure
// function of the problem and the GPU. Plain C++ without CUDA, so that it is tested without a GPU
// and tells Python which kernel would run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "cuda/configs.h"
#include "cuda/launch.h"
#include "cuda/nchw_configs.h"
#include "cuda/nchw_wgrad_configs.h"
#include "cuda/rowstream_launch.h"
#include "cuda/tiled_configs.h"
#include "cuda/tiled_wgrad_configs.h"
#include "cuda/wgrad_configs.h"
#include "problem.h"

namespace grouped_conv::cuda {

// What a choice depends on beside the problem. Shared memory is not among it: every configuration
// fits the least that a block can have from compute capability 8.0 on.
struct DeviceTraits {
  int sm_count;
};

inline constexpr int kSharedBytesOfBlock = 99 * 1024;  // 8.6, 8.9 and 12.0; others have more

namespace detail {

constexpr bool all_fit_shared_memory() {
  for (const RowstreamConfig& c : kRowstreamConfigs) {
    if (c.shared_bytes() > kSharedBytesOfBlock) return false;
  }
  for (const WgradConfig& c : kWgradConfigs) {
    if (c.shared_bytes() > kSharedBytesOfBlock) return false;
  }
  for (const RowstreamConfig& c : kNchwConfigs) {
    if (most_nchw_shared_bytes(c) > kSharedBytesOfBlock) return false;
  }
  for (const NchwWgradConfig& c : kNchwWgradConfigs) {
    if (c.sum_bytes() > c.most_shared_bytes()) return false;
    if (c.most_shared_bytes() > kSharedBytesOfBlock) return false;
  }
  for (const TiledConfig& c : kTiledConfigs) {
    if (std::max(c.shared_bytes(false), c.shared_bytes(true)) > kSharedBytesOfBlock) return false;
  }
  for (const TiledWgradConfig& c : kTiledWgradConfigs) {
    for (const int bytes : {2, 4}) {
      if (c.shared_bytes(bytes, true) > kSharedBytesOfBlock) return false;
    }
  }
  return true;
}
static_assert(all_fit_shared_memory());

}  // namespace detail

inline bool has_wgrad_config(const ConvProblem& p) {
  return std::any_of(std::begin(kWgradConfigs), std::end(kWgradConfigs),
                     [&](const WgradConfig& c) { return wgrad_supports(c, p); });
}

inline bool has_rowstream_config(Pass pass, const ConvProblem& p) {
  return std::any_of(std::begin(kRowstreamConfigs), std::end(kRowstreamConfigs),
                     [&](const RowstreamConfig& c) { return rowstream_supports(c, pass, p); });
}

// Whether x and y are NHWC or NCHW.
enum class Layout { kChannelsLast, kPlanar };

// Why the row-streaming kernels do not compute a pass; nullptr: they do. What does not depend on
// the batch and the image is mirrored in backends/native.py.
inline const char* rowstream_refusal(Pass pass, const ConvProblem& p, DType dtype) {
  if (dtype != DType::kFloat16 && dtype != DType::kBFloat16) {
    return "the row-streaming kernels compute in 16 bits";
  }
  if (p.R != 3 || p.S != 3) return "the row-streaming kernels are for 3x3 filters";
  if (p.dilation_h != 1 || p.dilation_w != 1) {
    return "the row-streaming kernels are for dilation 1";
  }
  if (p.stride_h != p.stride_w || p.stride_h > 2) {
    return "the row-streaming kernels are for strides 1 and 2, equal in both directions";
  }
  if (p.pad_h > 2 || p.pad_w > 2) {
    return "the row-streaming kernels are for paddings up to 2";
  }
  const int64_t c = p.c_per_group();
  if (c != p.k_per_group() || (c != 4 && c != 8 && c != 16 && c != 32 && c != 64)) {
    return "the row-streaming kernels are for 4, 8, 16, 32 or 64 channels per group, in and out "
           "alike";
  }
  if (p.C % 8 != 0) return "the row-streaming kernels are for a multiple of 8 channels";
  if (pass == Pass::kWgrad ? !has_wgrad_config(p) : !has_rowstream_config(pass, p)) {
    return "the row-streaming kernels are for images and batches that have pixels, and for images "
           "below 2 GiB";
  }
  return nullptr;
}

// Who computes: the row-streaming kernels for NHWC tensors, or those for NCHW tensors; the tiled
// kernels of fprop and dgrad, or those of wgrad.
enum class Family { kRowstream, kNchw, kTiled, kTiledWgrad };

// How one of them computes a pass.
struct FastPlan {
  Family family;
  const char* name;
  int64_t workspace_bytes;
  int64_t blocks;
  int threads;
  int shared_bytes;
  RowstreamPlan rowstream;   // fprop and dgrad, NHWC
  NchwPlan nchw;             // fprop and dgrad, NCHW
  WgradPlan wgrad;           // wgrad, NHWC
  NchwWgradPlan nchw_wgrad;  // wgrad, NCHW
  TiledPlan tiled;
  TiledWgradPlan tiled_wgrad;
};

// The plan of fprop or dgrad by the configuration of a name, or where there is none that computes
// the pass with the tail, by the one that is expected to be fastest.
inline RowstreamPlan plan_rowstream_preferring(std::string_view name, Pass pass,
                                               const ConvProblem& p, int sm_count, Tail tail) {
  for (int i = 0; i < kRowstreamConfigCount; ++i) {
    const RowstreamConfig& config = kRowstreamConfigs[i];
    if (name == config.name && rowstream_supports(config, pass, p) && rowstream_has(config, tail)) {
      return plan_rowstream(i, pass, p, sm_count);
    }
  }
  return plan_rowstream(pass, p, sm_count, tail);
}

// The plan of a pass that rowstream_refusal does not refuse: of the weight gradient's kernels the
// only one that computes it, of the others the one that is expected to be fastest; for NHWC the one
// that is preferred, if it computes the pass.
inline FastPlan plan_fast(Pass pass, const ConvProblem& p, const DeviceTraits& device,
                          Layout layout = Layout::kChannelsLast, Tail tail = Tail::kNone,
                          std::string_view preferred = {}) {
  FastPlan plan{};
  if (layout == Layout::kPlanar && pass == Pass::kWgrad) {
    plan.family = Family::kNchw;
    plan.nchw_wgrad = plan_nchw_wgrad(p, device.sm_count);
    const NchwWgradConfig& config = kNchwWgradConfigs[plan.nchw_wgrad.tiles.config];
    plan.name = config.name;
    plan.workspace_bytes = plan.nchw_wgrad.tiles.workspace_bytes(p);
    plan.blocks = plan.nchw_wgrad.blocks();
    plan.threads = config.threads();
    plan.shared_bytes = plan.nchw_wgrad.shared_bytes();
  } else if (layout == Layout::kPlanar) {
    plan.family = Family::kNchw;
    plan.nchw = plan_nchw(pass, p, device.sm_count);
    const RowstreamConfig& config = kNchwConfigs[plan.nchw.tiles.config];
    plan.name = config.name;
    plan.blocks = plan.nchw.tiles.blocks();
    plan.threads = config.threads();
    plan.shared_bytes = plan.nchw.shared_bytes();
  } else if (pass == Pass::kWgrad) {
    int index = 0;
    while (!wgrad_supports(kWgradConfigs[index], p)) ++index;
    const WgradConfig& config = kWgradConfigs[index];
    plan.wgrad = plan_wgrad(index, p, device.sm_count);
    plan.name = config.name;
    plan.workspace_bytes = plan.wgrad.workspace_bytes(p);
    plan.blocks = plan.wgrad.blocks();
    plan.threads = config.threads();
    plan.shared_bytes = config.shared_bytes();
  } else {
    plan.rowstream = plan_rowstream_preferring(preferred, pass, p, device.sm_count, tail);
    if (tail == Tail::kStatistics) {
      plan.workspace_bytes = statistics_bytes(statistics_rows_of(plan.rowstream), p.K);
    }
    const RowstreamConfig& config = kRowstreamConfigs[plan.rowstream.config];
    plan.name = config.name;
    plan.blocks = plan.rowstream.blocks();
    plan.threads = config.threads();
    plan.shared_bytes = config.shared_bytes();
  }
  return plan;
}

// Why no tiled kernel computes a pass; nullptr: one does.
inline const char* any_tiled_refusal(Pass pass, const ConvProblem& p, DType dtype) {
  return pass == Pass::kWgrad ? tiled_wgrad_refusal(p, dtype) : tiled_refusal(pass, p, dtype);
}

inline FastPlan plan_fast_tiled_wgrad(const ConvProblem& p, TiledMath math,
                                      const DeviceTraits& device, Layout layout) {
  FastPlan plan{};
  plan.family = Family::kTiledWgrad;
  plan.tiled_wgrad = plan_tiled_wgrad(math, layout == Layout::kPlanar, p, device.sm_count);
  const TiledWgradConfig& config = kTiledWgradConfigs[plan.tiled_wgrad.config];
  plan.name = config.name;
  plan.workspace_bytes = plan.tiled_wgrad.workspace_bytes(p);
  plan.blocks = plan.tiled_wgrad.blocks();
  plan.threads = config.threads();
  plan.shared_bytes = config.shared_bytes(tiled_element_bytes(math), plan.tiled_wgrad.vector);
  return plan;
}

// The plan of a pass that any_tiled_refusal does not refuse.
inline FastPlan plan_fast_tiled(Pass pass, const ConvProblem& p, TiledMath math,
                                const DeviceTraits& device, Layout layout) {
  if (pass == Pass::kWgrad) return plan_fast_tiled_wgrad(p, math, device, layout);
  FastPlan plan{};
  plan.family = Family::kTiled;
  plan.tiled = plan_tiled(pass, p, math, layout == Layout::kChannelsLast, device.sm_count);
  plan.name = kTiledConfigs[plan.tiled.config].name;
  plan.workspace_bytes = plan.tiled.workspace_bytes();
  plan.blocks = plan.tiled.blocks();
  plan.threads = kTiledThreads;
  plan.shared_bytes = plan.tiled.shared_bytes();
  return plan;
}

}  // namespace grouped_conv::cuda
