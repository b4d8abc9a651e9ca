// CPU features that kernels can require, as bits.
#pragma once

#include <cstdint>

namespace edgec::kernels {

enum Feature : uint32_t {
  kBaseline = 0,
  kAvx2 = 1 << 0,
  kFma = 1 << 1,
  kF16c = 1 << 2,
  kNeon = 1 << 8,
  kDotprod = 1 << 9,
  kI8mm = 1 << 10,
  kSme2 = 1 << 11,
};

// Features of this CPU that the OS has enabled, less those named in EDGEC_DISABLE (comma-separated, as feature_name).
uint32_t cpu_feature_bits();

// Name of one bit ("avx2"), LLVM's spelling.
const char* feature_name(uint32_t bit);

}  // namespace edgec::kernels
