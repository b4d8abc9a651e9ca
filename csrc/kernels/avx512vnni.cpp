// Kernels for AVX-512 with VNNI. Compiled with those flags: nothing here may run before the features are checked.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/job.h"

namespace edgec::kernels {
namespace avx512vnni {
constexpr int kF32Rows = 6;
#include "kernels/isa.inc"
//
#include "kernels/int_avx512vnni.h"
//
#include "kernels/int_streamed.h"
//
#include "kernels/int_unpacked.h"
}  // namespace avx512vnni

extern const IsaOps kOps_avx512vnni = avx512vnni::kOps;
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s4n16k4_4x64_avx512vnni, avx512vnni::linear_streamed<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s4n16k4_12x16_avx512vnni, avx512vnni::linear_unpacked<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_u4n16k4_4x64_avx512vnni, avx512vnni::linear_streamed<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_u4n16k4_12x16_avx512vnni, avx512vnni::linear_unpacked<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_t4n16k4_4x64_avx512vnni, avx512vnni::linear_streamed<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_t4n16k4_12x16_avx512vnni, avx512vnni::linear_unpacked<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s6n16k4_4x64_avx512vnni, avx512vnni::linear_streamed<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s6n16k4_12x16_avx512vnni, avx512vnni::linear_unpacked<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s8n16k4_4x64_avx512vnni, avx512vnni::linear_streamed<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32t_s8n16k4_12x16_avx512vnni, avx512vnni::linear_unpacked<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32n16_6x16_avx512vnni, avx512vnni::linear_f32)
}  // namespace edgec::kernels
#endif
