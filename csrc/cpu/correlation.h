// fprop and dgrad are both correlations: every output is a sum over taps and over the channels of
// its group of one input tensor. This header reduces either pass to a Correlation; direct_conv.h
// computes it.
//
//   fprop            out = y, in = x, the taps as they are
//   dgrad, stride 1  out = dx, in = dy, the taps reversed in both directions, C and K exchanged
//   dgrad, stride 2  four such correlations, one per parity of the row and of the column of dx:
//                    with h + pad_h = 2m only r = 2 (row m - 1 of dy) and r = 0 (row m) meet row h,
//                    with h + pad_h = 2m + 1 only r = 1 (row m)
#pragma once

#include <cstdint>

#include "elements.h"
#include "kernels.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// One axis of a correlation's phase: output index = grid * out_step + out_offset, and tap t of the
// phase reads input index grid * stride + in_offset + t. Grid runs over [begin, end).
struct PhaseAxis {
  int taps;
  int tap_index[3];  // tap t of the phase is this index of the 3x3 kernel
  int64_t in_offset;
  int64_t out_offset;
  int64_t begin, end;
};

struct Correlation {
  int64_t N, in_channels, in_h, in_w, out_channels, out_h, out_w;
  int64_t groups, in_per_group, out_per_group;
  int stride;    // of the input index
  int out_step;  // of the output index
  int axis_phases;
  PhaseAxis rows[2], cols[2];
  // w[out lane channel][in channel]: element strides of the two, in units of one 3x3 kernel, and of
  // the group that both belong to.
  int64_t w_out_stride, w_in_stride, w_group_stride;
  bool fprop;            // an output channel's weights lie together
  bool w_channels_last;  // [K, R, S, C/G]: the strides above do not apply
};

inline PhaseAxis fprop_axis(int64_t out_extent, int64_t pad) {
  return {3, {0, 1, 2}, -pad, 0, 0, out_extent};
}

inline PhaseAxis dgrad_axis(int64_t out_extent, int64_t pad) {
  return {3, {2, 1, 0}, pad - 2, 0, 0, out_extent};
}

// Grid index m runs over the input positions of one parity: 2m + parity - pad in [0, extent).
inline PhaseAxis dgrad_phase(int parity, int64_t extent, int64_t pad) {
  const int64_t offset = parity - pad;
  const int64_t begin = offset >= 0 ? 0 : (1 - offset) / 2;
  const int64_t end = extent - 1 < offset ? begin : (extent - 1 - offset) / 2 + 1;
  if (parity == 0) return {2, {2, 0, 0}, -1, offset, begin, max64(begin, end)};
  return {1, {1, 0, 0}, 0, offset, begin, max64(begin, end)};
}

inline Correlation make_correlation(const PassArgs& args) {
  const ConvProblem& p = args.problem;
  Correlation c{};
  c.N = p.N;
  c.groups = p.G;
  const int64_t c_per_group = p.C / p.G, k_per_group = p.K / p.G;
  c.w_group_stride = k_per_group * c_per_group;
  c.fprop = args.pass == Pass::kFprop;
  c.w_channels_last = args.w_layout == Layout::kNHWC;
  if (c.fprop) {
    c.in_channels = p.C, c.in_h = p.H, c.in_w = p.W, c.in_per_group = c_per_group;
    c.out_channels = p.K, c.out_h = p.P, c.out_w = p.Q, c.out_per_group = k_per_group;
    c.w_out_stride = c_per_group, c.w_in_stride = 1;
    c.stride = static_cast<int>(p.stride_h), c.out_step = 1, c.axis_phases = 1;
    c.rows[0] = fprop_axis(p.P, p.pad_h);
    c.cols[0] = fprop_axis(p.Q, p.pad_w);
    return c;
  }
  c.in_channels = p.K, c.in_h = p.P, c.in_w = p.Q, c.in_per_group = k_per_group;
  c.out_channels = p.C, c.out_h = p.H, c.out_w = p.W, c.out_per_group = c_per_group;
  c.w_out_stride = 1, c.w_in_stride = c_per_group;
  c.stride = 1, c.out_step = static_cast<int>(p.stride_h), c.axis_phases = c.out_step;
  if (c.out_step == 1) {
    c.rows[0] = dgrad_axis(p.H, p.pad_h);
    c.cols[0] = dgrad_axis(p.W, p.pad_w);
  } else {
    for (int parity = 0; parity < 2; ++parity) {
      c.rows[parity] = dgrad_phase(parity, p.H, p.pad_h);
      c.cols[parity] = dgrad_phase(parity, p.W, p.pad_w);
    }
  }
  return c;
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
