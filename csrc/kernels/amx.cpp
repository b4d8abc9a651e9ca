// Kernels on Apple's AMX. EDGEC_AMX: the table has them. Their instructions are refused where the unit is missing:
// nothing here may run before amx_features() has said yes.
#include "kernels/amx.h"

#include "kernels/cpu_features.h"

#if defined(EDGEC_AMX)
#include <csetjmp>
#include <csignal>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__APPLE__)
#include <pthread.h>
#endif

#include "kernels/amx_isa.h"
#include "kernels/job.h"

namespace edgec::kernels {
namespace amx {
#include "kernels/simd.h"
//
#include "kernels/vecmath.h"
//
#include "kernels/epilogue.h"
//
#include "kernels/hadamard.h"
//
#include "kernels/norm.h"
//
#include "kernels/int_amx.h"
//
#include "kernels/prepare_amx.h"

// Two blocks by every element against plain arithmetic, bit by bit: negative, zero, subnormal scales, all nibbles.
template <bool kM2>
static bool known_answers() {
  alignas(256) static uint8_t weights[kAmxDepth * 64], rows[4096];
  static uint8_t packed[2 * 592];
  static float got[32 * 32];
  uint32_t seed = 1;
  const auto next = [&seed] { return (seed = seed * 1664525u + 1013904223u) >> 16; };
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(next());
  for (int b = 0; b < 2; ++b) {
    for (int c = 0; c < 32; ++c) {
      const float scale = c == 3   ? 0.0f
                          : c == 5 ? 6e-8f * static_cast<float>(next() % 9)
                                   : static_cast<float>(next() % 999) * 1e-3f - 0.4f;
      const uint16_t half = float_to_half(scale);
      std::memcpy(packed + 592 * b + 2 * c, &half, 2);
    }
  }
  for (int i = 0; i < 2048; ++i) {
    const uint16_t half = float_to_half(static_cast<float>(next() % 4001) * 1e-3f - 2.0f);
    std::memcpy(rows + 2 * i, &half, 2);
  }
  static uint64_t stores[kAmxDepth / 32 * 16], look_ups[64], steps[8];
  amx_store_list(weights, stores), amx_look_up_list<kM2>(look_ups), amx_step_list(steps);
  set();
  ldx(amx_address(kAmxTables.q) + (uint64_t{kTableQ} << 56));
  ldx(amx_address(kAmxTables.z) + (uint64_t{kTableZ} << 56));
  amx_unpack<Family::kS4N32K1, kM2, false>(packed, packed + 80, look_ups, stores);
  amx_unpack<Family::kU4N32K1, kM2, true>(packed + 592, packed + 592 + 80, look_ups, stores + 16);
  fma16(kClearZ);
  uint64_t x[2 * amx_operands(kM2)], y[2 * amx_operands(kM2)];
  amx_list(amx_address(weights), 2, kM2, x), amx_list(amx_address(rows), 2, kM2, y);
  amx_products<kM2>(x, y, steps, 2);
  amx_store(reinterpret_cast<uint8_t*>(got), 32 * 4, 64);
  clr();
  for (int r = 0; r < 32; ++r) {
    for (int c = 0; c < 32; ++c) {
      float sum = 0.0f;
      for (int k = 0; k < 64; ++k) {
        const uint8_t* header = packed + k / 32 * 592;
        const int at = 16 * (k % 8 * 4 + k % 32 / 8) + c / 2;
        const float scale = half_to_float(load_u16(header + 2 * c));
        const int q = header[80 + at] >> (c % 2 * 4) & 15, z = k < 32 ? 8 : header[64 + c / 2] >> (c % 2 * 4) & 15;
        const float shift = half_to_float(float_to_half(static_cast<float>(8 - z) * scale));
        const float w = half_to_float(float_to_half(static_cast<float>(q - 8) * scale + shift));
        sum += w * half_to_float(load_u16(rows + 2 * (32 * k + r)));
      }
      if (sum != got[32 * r + c]) return false;
    }
  }
  return true;
}

static uint32_t answers(bool m2) {
  if (!known_answers<false>()) return 0;
  return m2 && known_answers<true>() ? kAmx | kAmx2 : kAmx;
}

#if !defined(EDGEC_AMX_MODEL)
static uint32_t trapped = 0;

#if defined(__APPLE__)
static sigjmp_buf refused;
static pthread_t asking;
static struct sigaction before;

// Of another thread: what was there before decides.
static void on_refusal(int signal, siginfo_t* info, void* context) {
  if (pthread_equal(pthread_self(), asking)) siglongjmp(refused, 1);
  if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  ::signal(signal, SIG_DFL);
}

static uint32_t ask(bool m2) {
  struct sigaction mine = {};
  mine.sa_sigaction = on_refusal;
  mine.sa_flags = SA_SIGINFO;
  sigemptyset(&mine.sa_mask);
  asking = pthread_self();
  if (sigaction(SIGILL, &mine, &before) != 0) return 0;
  volatile uint32_t found = 0;
  if (sigsetjmp(refused, 1) == 0) {
    found = answers(m2);
  } else if (sigsetjmp(refused, 1) == 0) {
    clr();  // refused after `set`: other code of this thread expects the unit off
  }
  sigaction(SIGILL, &before, nullptr);
  return found;
}
#endif
#endif

static uint32_t detect() {
#if defined(EDGEC_AMX_MODEL)
  return answers(true);
#else
  if (trapped) return answers(trapped & kAmx2) & trapped;
#if defined(__APPLE__)
  const uint32_t cpu = cpu_feature_bits();
  // An M4's streaming mode and AMX exclude each other: SME2 is used there.
  return cpu & kSme2 ? 0 : ask(cpu & kI8mm);
#else
  return 0;
#endif
#endif
}
}  // namespace amx

size_t amx_scratch_bytes(int64_t m, int64_t blocks) {
  return static_cast<size_t>((m + 31) / 32 * amx::amx_tile_bytes(blocks)) + 256;
}

uint32_t amx_features() {
  static const uint32_t found =
      feature_disabled("amx") ? 0 : amx::detect() & (feature_disabled("amx2") ? kAmx : kAmx | kAmx2);
  return found;
}

void amx_is_trapped([[maybe_unused]] uint32_t features) {
#if !defined(EDGEC_AMX_MODEL)
  amx::trapped = features;
#endif
}

void prepare_f16k32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  amx::prepare_tiles(job, tile_begin, tile_end);
}

#define EDGEC_AMX_KERNEL(family, type)                                                                     \
  EDGEC_DEFINE_LINEAR(linear_f32_f16k32_##type##n32k1_32x32_amx, (amx::linear_amx<Family::family, false>)) \
  EDGEC_DEFINE_LINEAR(linear_f32_f16k32_##type##n32k1_32x32_amx2, (amx::linear_amx<Family::family, true>))
EDGEC_AMX_KERNEL(kS4N32K1, s4)
EDGEC_AMX_KERNEL(kU4N32K1, u4)
}  // namespace edgec::kernels

#else
namespace edgec::kernels {
// s8 with scales and sums, which take 40 bytes of a row's block.
size_t amx_scratch_bytes(int64_t m, int64_t blocks) { return static_cast<size_t>((m + 3) / 4 * 4 * blocks) * 40 + 64; }
uint32_t amx_features() { return 0; }
void amx_is_trapped(uint32_t) {}
void prepare_f16k32(const LinearJob&, int64_t, int64_t) {}
}  // namespace edgec::kernels
#endif
