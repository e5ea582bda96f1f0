// The arguments of the weight-gradient kernels for NCHW tensors, and the two launches that make one
// pass: plain C++, for the launcher and for the emulator.
#pragma once

#include "cuda/nchw_wgrad_configs.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

struct NchwWgradArgs {
  WgradArgs wgrad;  // but x and dy are dense NCHW
  NchwBands x, dy;
  int rows_of_band, bands_of_tile;
  int x_place_bytes, dy_place_bytes, dy_places, band_bytes;
};

inline NchwWgradArgs make_nchw_wgrad_args(const ConvProblem& p, const NchwWgradPlan& plan,
                                          const void* x, const void* dy, void* partials, void* dw,
                                          bool channels_last) {
  return {make_wgrad_args(p, plan.tiles, x, dy, partials, dw, channels_last),
          plan.x,
          plan.dy,
          plan.rows_of_band,
          plan.bands_of_tile,
          plan.x_place_bytes(),
          plan.dy_place_bytes(),
          plan.dy_places,
          plan.band_bytes()};
}

constexpr WgradLaunch nchw_wgrad_launch(const NchwWgradPlan& plan) {
  return {plan.blocks(), kNchwWgradConfigs[plan.tiles.config].threads(), plan.shared_bytes()};
}

// Enqueues both kernels; see launch_wgrad.
int launch_nchw_wgrad(const ConvProblem& problem, DType dtype, const NchwWgradPlan& plan,
                      const void* x, const void* dy, void* workspace, void* dw, bool channels_last,
                      void* stream);

// The same for one element type, Float16 or BFloat16 (nchw_wgrad_launch.cuh, instantiated in a .cu
// file for each).
template <typename T>
int launch_nchw_wgrad_kernels(const NchwWgradArgs& args, const NchwWgradPlan& plan, void* stream);

}  // namespace grouped_conv::cuda
