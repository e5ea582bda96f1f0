// Means and sums of squared deviations of rows of y, of which the statistics of a batch
// normalization are made (kernels.h, RowMoments), taken from what was stored, that is rounded, and
// while it is in cache. The lanes are channels in both layouts. Deviations are from the row's first
// pixel, so that a mean much larger than the deviation costs no accuracy.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "slabs.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Of kLanes channels, over the pixels of one row in their order. Two chains hide the latency.
struct MomentSums {
  Vec::Reg pivot;
  Vec::Reg sum[2] = {Vec::zero(), Vec::zero()};
  Vec::Reg squares[2] = {Vec::zero(), Vec::zero()};

  explicit MomentSums(Vec::Reg first) : pivot(first) {}

  void add(int64_t pixel, Vec::Reg v) {
    const Vec::Reg d = Vec::sub(v, pivot);
    const int chain = static_cast<int>(pixel % 2);
    sum[chain] = Vec::add(sum[chain], d);
    squares[chain] = Vec::affine(d, d, squares[chain]);
  }

  void store(int64_t pixels, float* mean, float* deviations, int lanes) const {
    const float part = 1.0f / static_cast<float>(pixels);
    const Vec::Reg total = Vec::add(sum[0], sum[1]);
    const Vec::Reg shift = Vec::affine(total, Vec::broadcast(&part), Vec::zero());
    const Vec::Reg excess = Vec::affine(total, shift, Vec::zero());
    Vec::store_partial(mean, Vec::add(pivot, shift), lanes);
    Vec::store_partial(deviations, Vec::sub(Vec::add(squares[0], squares[1]), excess), lanes);
  }
};

// Of channels [c0, c0 + channels) of rows [begin, end) of image n.
template <class E>
inline void row_moments(const Activation<E>& y, int64_t n, int64_t c0, int64_t channels,
                        int64_t begin, int64_t end, const RowMoments& moments) {
  constexpr int64_t L = Vec::kLanes;
  const int64_t plane = y.h * y.w;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = c0; c < c0 + channels; c += L) {
      const int lanes = static_cast<int>(min64(L, c0 + channels - c));
      const int64_t to = (n * y.h + row) * y.channels + c;
      const typename E::T* src = y.at(n, c, row, 0);
      if (y.nhwc) {
        MomentSums sums(load_first<E>(src, lanes));
        for (int64_t j = 1; j < y.w; ++j) {
          sums.add(j, load_first<E>(src + j * y.channels, lanes));
        }
        sums.store(y.w, moments.mean + to, moments.squares + to, lanes);
        continue;
      }
      MomentSums sums(Vec::zero());
      for (int64_t j0 = 0; j0 < y.w; j0 += L) {
        const int count = static_cast<int>(min64(L, y.w - j0));
        Vec::Reg block[L];
        for (int i = 0; i < L; ++i) {
          block[i] = i < lanes ? load_first<E>(src + i * plane + j0, count) : Vec::zero();
        }
        Vec::transpose(block);
        if (j0 == 0) sums = MomentSums(block[0]);
        for (int j = j0 == 0 ? 1 : 0; j < count; ++j) sums.add(j0 + j, block[j]);
      }
      sums.store(y.w, moments.mean + to, moments.squares + to, lanes);
    }
  }
}

// Of a y that is complete.
template <class E>
void all_row_moments(const PassArgs& args) {
  args.parallel.run(
      args.problem.N * args.problem.P,
      [](int64_t begin, int64_t end, void* opaque) {
        const PassArgs& a = *static_cast<const PassArgs*>(opaque);
        const ConvProblem& p = a.problem;
        const Activation<E> y{static_cast<typename E::T*>(a.y), a.layout == Layout::kNHWC, p.K, p.P,
                              p.Q};
        for (int64_t i = begin; i < end; ++i) {
          row_moments(y, i / p.P, 0, p.K, i % p.P, i % p.P + 1, a.moments);
        }
      },
      const_cast<PassArgs*>(&args));
}

// The same for any dtype that has float32 sums.
inline void moments(const PassArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32:
      return all_row_moments<ElementF32>(args);
    case DType::kBFloat16:
      return all_row_moments<ElementBF16>(args);
    case DType::kFloat16:
      return all_row_moments<ElementF16>(args);
    case DType::kFloat64:
      return;  // statistics() takes it
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
