// The direct CPU kernels of every instruction set against the plain loops, on odd shapes.
//
// Every tensor lies between pages that cannot be touched, once against the page before it and once
// against the page behind it. Outputs start as NaN. Each case runs on one thread and again in odd
// pieces in reverse order: the bits must be the same.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace {

using namespace grouped_conv;
using namespace grouped_conv::cpu;

enum class Against { kFront, kBack };

// `bytes` bytes with an inaccessible page directly before (kFront) or behind (kBack) them.
class Guarded {
 public:
  Guarded(size_t bytes, Against against) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t body = (bytes + page - 1) / page * page;
    total_ = body + 2 * page;
    base_ =
        static_cast<char*>(mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, body, PROT_READ | PROT_WRITE) != 0) {
      std::perror("guard pages");
      std::exit(2);
    }
    data_ = base_ + page + (against == Against::kBack ? body - bytes : 0);
    std::memset(base_ + page, 0xff, body);  // NaN in every floating-point type
  }
  ~Guarded() { munmap(base_, total_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  void* data() const { return data_; }

 private:
  char *base_, *data_;
  size_t total_;
};

uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float from_16(uint16_t h, DType dtype) {
  if (dtype == DType::kBFloat16) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return f;
  }
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : (h >> 15 ? -INFINITY : INFINITY);
  const float m = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return h >> 15 ? -m : m;
}

// Eighths between -2 and 2 are exact in every type.
void fill(void* data, int64_t count, DType dtype, std::mt19937& random) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = static_cast<float>(static_cast<int>(random() % 33) - 16) / 8.0f;
    if (dtype == DType::kFloat32) {
      static_cast<float*>(data)[i] = v;
    } else if (dtype == DType::kBFloat16) {
      static_cast<uint16_t*>(data)[i] = to_bf16(v);
    } else {
      const int eighths = static_cast<int>(std::fabs(v) * 8);
      uint16_t h = 0;
      if (eighths != 0) {
        int shift = 0;
        while ((eighths << shift & 1024) == 0) ++shift;
        h = static_cast<uint16_t>((22 - shift) << 10 | ((eighths << shift) & 1023));
      }
      static_cast<uint16_t*>(data)[i] = h | (v < 0 ? 0x8000u : 0u);
    }
  }
}

double value(const void* data, int64_t i, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[i];
  return from_16(static_cast<const uint16_t*>(data)[i], dtype);
}

void serial(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  if (count > 0) body(0, count, context);
}

void pieces(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  for (int64_t end = count; end > 0; end -= 3) body(end > 3 ? end - 3 : 0, end, context);
}

struct Case {
  ConvProblem p;
  Pass pass;
  DType dtype;
  Layout layout;
  bool bias;
  int epilogue;  // bits: scale, shift, residual, relu

  std::string name() const {
    static const char* const passes[] = {"fprop", "dgrad", "wgrad"};
    static const char* const dtypes[] = {"float32", "bfloat16", "float16"};
    char text[200];
    std::snprintf(text, sizeof(text), "%s %s %s N%d C%d %dx%d K%d G%d s%d p%d,%d%s e%d",
                  passes[static_cast<int>(pass)], dtypes[static_cast<int>(dtype)],
                  layout == Layout::kNHWC ? "nhwc" : "nchw", static_cast<int>(p.N),
                  static_cast<int>(p.C), static_cast<int>(p.H), static_cast<int>(p.W),
                  static_cast<int>(p.K), static_cast<int>(p.G), static_cast<int>(p.stride_h),
                  static_cast<int>(p.pad_h), static_cast<int>(p.pad_w), bias ? " bias" : "",
                  epilogue);
    return text;
  }
};

// Returns the bytes of the output, or exits with a message where the two kernels differ.
bool check(const Case& c, const IsaKernels& isa, Against against) {
  const ConvProblem& p = c.p;
  const int64_t nx = p.N * p.C * p.H * p.W, nw = p.K * (p.C / p.G) * 9, ny = p.N * p.K * p.P * p.Q;
  const auto size = static_cast<size_t>(item_size(c.dtype));
  Guarded x(nx * size, against), w(nw * size, against), y(ny * size, against);
  Guarded bias(p.K * size, against);
  std::mt19937 random(static_cast<uint32_t>(nx * 31 + nw * 7 + ny));
  if (c.pass != Pass::kDgrad) fill(x.data(), nx, c.dtype, random);
  if (c.pass != Pass::kWgrad) fill(w.data(), nw, c.dtype, random);
  if (c.pass != Pass::kFprop) fill(y.data(), ny, c.dtype, random);
  fill(bias.data(), p.K, c.dtype, random);
  Guarded scale(p.K * sizeof(float), against), shift(p.K * sizeof(float), against);
  Guarded residual(ny * size, against);
  fill(scale.data(), p.K, DType::kFloat32, random);
  fill(shift.data(), p.K, DType::kFloat32, random);
  if ((c.epilogue & 4) != 0) fill(residual.data(), ny, c.dtype, random);
  const Epilogue epilogue{(c.epilogue & 1) != 0 ? scale.data() : nullptr,
                          (c.epilogue & 2) != 0 ? shift.data() : nullptr,
                          (c.epilogue & 4) != 0 ? residual.data() : nullptr, (c.epilogue & 8) != 0};

  Guarded& out = c.pass == Pass::kFprop ? y : c.pass == Pass::kDgrad ? x : w;
  const int64_t count = c.pass == Pass::kFprop ? ny : c.pass == Pass::kDgrad ? nx : nw;
  const auto run = [&](PassFunction f, const Parallel& parallel) {
    std::memset(out.data(), 0xff, count * size);
    f({c.pass, p, c.dtype, c.layout, x.data(), w.data(), y.data(), c.bias ? bias.data() : nullptr,
       parallel, epilogue});
    const auto* bytes = static_cast<const char*>(out.data());
    return std::vector<char>(bytes, bytes + count * size);
  };
  const std::vector<char> expected = run(simple, {serial, 1});
  const std::vector<char> actual = run(isa.direct, {serial, 1});
  const std::vector<char> in_pieces = run(isa.direct, {pieces, 5});

  // The terms are exact multiples of 1/64: sums differ by the roundings of float32 alone.
  for (int64_t i = 0; i < count; ++i) {
    const double e = value(expected.data(), i, c.dtype), a = value(actual.data(), i, c.dtype);
    if (!(std::fabs(a - e) <= 1e-2 * std::fabs(e) + (c.dtype == DType::kFloat32 ? 1e-3 : 0.06))) {
      std::printf("FAILED %s %s: element %ld is %g, not %g\n", isa.name, c.name().c_str(),
                  static_cast<long>(i), a, e);
      return false;
    }
  }
  if (actual != in_pieces) {
    std::printf("FAILED %s %s: the result depends on the split\n", isa.name, c.name().c_str());
    return false;
  }
  return true;
}

std::vector<ConvProblem> problems() {
  std::vector<ConvProblem> all;
  const auto add = [&](int64_t n, int64_t groups, int64_t c, int64_t k, int64_t h, int64_t w,
                       int64_t pad_h, int64_t pad_w, int64_t stride) {
    all.push_back(ConvProblem::make(n, groups * c, h, w, groups * k, 3, 3, groups, pad_h, pad_w,
                                    stride, stride, 1, 1));
  };
  for (const int64_t stride : {1, 2}) {
    for (const int64_t c : {1, 2, 4, 8, 16, 24, 32}) {
      add(2, 8, c, c, 7, 7, 1, 1, stride);
      add(1, 3, c, c, 9, 13, 1, 1, stride);
      add(1, 5, c, c, 6, 30, 0, 2, stride);
    }
    add(1, 3, 5, 7, 8, 11, 1, 1, stride);
    add(2, 2, 40, 3, 5, 6, 2, 0, stride);
    add(1, 2, 6, 35, 10, 9, 1, 3, stride);
    add(1, 4, 4, 8, 3, 3, 0, 0, stride);
    add(3, 4, 4, 4, 1, 1, 1, 1, stride);
    add(1, 1, 4, 4, 2, 41, 3, 3, stride);
    add(1, 32, 4, 4, 21, 17, 1, 1, stride);
  }
  // Enough images for wgrad by Winograd's algorithm.
  add(8, 2, 16, 16, 7, 7, 1, 1, 1);
  add(9, 2, 24, 40, 5, 6, 1, 0, 1);
  add(8, 1, 33, 17, 3, 9, 2, 2, 1);
  add(8, 2, 20, 16, 1, 1, 1, 1, 1);
  add(3, 1, 16, 16, 6, 90, 1, 1, 1);
  return all;
}

}  // namespace

int main() {
  int isas = 0;
  const IsaKernels* const* kernels = compiled_isa_kernels(&isas);
  int64_t run = 0, failed = 0;
  int subset = 0;
  for (int i = 0; i < isas; ++i) {
    if (!kernels[i]->available()) {
      std::printf("%s: not on this processor\n", kernels[i]->name);
      continue;
    }
    for (const ConvProblem& p : problems()) {
      for (const Pass pass : {Pass::kFprop, Pass::kDgrad, Pass::kWgrad}) {
        for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
          for (const Layout layout : {Layout::kNCHW, Layout::kNHWC}) {
            for (const Against against : {Against::kFront, Against::kBack}) {
              const bool fprop = pass == Pass::kFprop;
              ++run;
              failed +=
                  !check({p, pass, dtype, layout, fprop && p.N == 1, 0}, *kernels[i], against);
              if (!fprop) continue;
              // Every subset, spread over the problems; and everything at once for each of them.
              for (const int epilogue : {subset++ % 15, 15}) {
                ++run;
                failed +=
                    !check({p, pass, dtype, layout, p.N == 1, epilogue}, *kernels[i], against);
              }
            }
          }
        }
      }
    }
    std::printf("%s: %ld cases so far, %ld failed\n", kernels[i]->name, static_cast<long>(run),
                static_cast<long>(failed));
  }
  return failed != 0;
}
