// What the kernels ask of the processor.
#pragma once

#include <cstdint>

namespace grouped_conv::cpu {

// Bytes of the last-level cache; 32 MiB where the system does not say.
int64_t last_level_cache_bytes();

bool cpu_has_avx2();        // with FMA and F16C
bool cpu_has_avx512();      // F, BW, DQ and VL, and everything of avx2
bool cpu_has_avx512bf16();  // and everything of avx512

}  // namespace grouped_conv::cpu
