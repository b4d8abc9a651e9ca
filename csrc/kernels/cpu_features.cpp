#include "kernels/cpu_features.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edgec::kernels {
namespace {

constexpr struct {
  uint32_t bit;
  const char* name;
} kNames[] = {{kAvx2, "avx2"},
              {kFma, "fma"},
              {kF16c, "f16c"},
              {kAvx512f, "avx512f"},
              {kAvx512bw, "avx512bw"},
              {kAvx512dq, "avx512dq"},
              {kAvx512vl, "avx512vl"},
              {kAvx512vnni, "avx512vnni"},
              {kNeon, "neon"},
              {kDotprod, "dotprod"},
              {kI8mm, "i8mm"},
              {kSme2, "sme2"},
              {kAmx, "amx"},
              {kAmx2, "amx2"},
              {kAccelerate, "accelerate"}};

#if defined(__aarch64__) && defined(EDGEC_SME2)
// Without a compiler that knows SME2 there are no kernels for it. They exist for streaming vectors of 128, 256 and 512
// bits. The word is rdsvl x0, #1: the length in bytes.
bool sme_length_known() {
  register uint64_t bytes __asm__("x0");
  __asm__ volatile(".inst 0x04bf5820" : "=r"(bytes));
  return bytes == 16 || bytes == 32 || bytes == 64;
}
#endif

uint32_t detect() {
  uint32_t bits = 0;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1) || !(c >> 28 & 1)) return 0;
  uint32_t xcr0, high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  if ((xcr0 & 6) != 6) return 0;  // the OS must save the upper halves of ymm
  if (c >> 12 & 1) bits |= kFma;
  if (c >> 29 & 1) bits |= kF16c;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) b = c = 0;
  if (b >> 5 & 1) bits |= kAvx2;
  if ((xcr0 & 0xe6) == 0xe6) {  // and the mask registers, zmm0..15 and zmm16..31
    if (b >> 16 & 1) bits |= kAvx512f;
    if (b >> 30 & 1) bits |= kAvx512bw;
    if (b >> 17 & 1) bits |= kAvx512dq;
    if (b >> 31 & 1) bits |= kAvx512vl;
    if (c >> 11 & 1) bits |= kAvx512vnni;
  }
#elif defined(__aarch64__)
  bits |= kNeon;
#if defined(__linux__)
  if (getauxval(AT_HWCAP) >> 20 & 1) bits |= kDotprod;
  if (getauxval(AT_HWCAP2) >> 13 & 1) bits |= kI8mm;
#if defined(EDGEC_SME2)
  if ((getauxval(AT_HWCAP2) >> 37 & 1) && sme_length_known()) bits |= kSme2;
#endif
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  if (has("hw.optional.arm.FEAT_DotProd")) bits |= kDotprod;
  if (has("hw.optional.arm.FEAT_I8MM")) bits |= kI8mm;
#if defined(EDGEC_SME2)
  if (has("hw.optional.arm.FEAT_SME2") && sme_length_known()) bits |= kSme2;
#endif
#endif
#endif
  for (const auto& n : kNames) {
    if (feature_disabled(n.name)) bits &= ~n.bit;
  }
  return bits;
}

}  // namespace

uint32_t cpu_feature_bits() {
  static const uint32_t bits = detect();
  return bits;
}

bool feature_disabled(const char* name) {
  const char* off = std::getenv("EDGEC_DISABLE");
  const size_t length = std::strlen(name);
  for (const char* at = off; at && (at = std::strstr(at, name)); at += length) {
    if ((at == off || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return true;
  }
  return false;
}

const char* feature_name(uint32_t bit) {
  for (const auto& n : kNames) {
    if (n.bit == bit) return n.name;
  }
  return "unknown";
}

}  // namespace edgec::kernels
