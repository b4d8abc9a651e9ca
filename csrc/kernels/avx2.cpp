// Kernels for AVX2, FMA and F16C. Compiled with those flags: nothing here may run before the features are checked.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/job.h"

namespace edgec::kernels {
namespace avx2 {
constexpr int kF32Rows = 6;
#include "kernels/isa.inc"
//
#include "kernels/int_avx2.h"
//
#include "kernels/int_streamed.h"
//
#include "kernels/int_unpacked_avx2.h"
//
#include "kernels/int_unpacked.h"
}  // namespace avx2

extern const IsaOps kOps_avx2 = avx2::kOps;
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n16k4_6x64_avx2, avx2::linear_streamed<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n16k4_6x16_avx2, avx2::linear_unpacked<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n16k4_6x64_avx2, avx2::linear_streamed<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n16k4_6x16_avx2, avx2::linear_unpacked<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_t4n16k4_6x64_avx2, avx2::linear_streamed<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_t4n16k4_6x16_avx2, avx2::linear_unpacked<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s6n16k4_6x64_avx2, avx2::linear_streamed<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s6n16k4_6x16_avx2, avx2::linear_unpacked<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s16b32_s8n16k4_6x64_avx2, avx2::linear_streamed<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s16b32_s8n16k4_6x16_avx2, avx2::linear_unpacked<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32n16_6x16_avx2, avx2::linear_f32)
}  // namespace edgec::kernels
#endif
