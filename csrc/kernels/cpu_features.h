// CPU features that kernels can require, as bits.
#pragma once

#include <cstdint>

namespace edgec::kernels {

enum Feature : uint32_t {
  kBaseline = 0,
  kAvx2 = 1 << 0,
  kFma = 1 << 1,
  kF16c = 1 << 2,
  kAvx512f = 1 << 3,
  kAvx512bw = 1 << 4,
  kAvx512dq = 1 << 5,
  kAvx512vl = 1 << 6,
  kAvx512vnni = 1 << 7,
  kNeon = 1 << 8,
  kDotprod = 1 << 9,
  kI8mm = 1 << 10,
  kSme2 = 1 << 11,
  kAmx = 1 << 12,         // Apple's; asked of amx_features(), not part of cpu_feature_bits()
  kAmx2 = 1 << 13,        // with what the M2 added
  kAccelerate = 1 << 14,  // macOS's library; asked of accelerate_features()
};
// What avx512vnni.cpp is compiled for.
constexpr uint32_t kAvx512 = kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni;

// Features of this CPU that the OS has enabled, less those named in EDGEC_DISABLE (comma-separated, as feature_name).
uint32_t cpu_feature_bits();

// Whether EDGEC_DISABLE names it.
bool feature_disabled(const char* name);

// Name of one bit ("avx2"), LLVM's spelling.
const char* feature_name(uint32_t bit);

}  // namespace edgec::kernels
