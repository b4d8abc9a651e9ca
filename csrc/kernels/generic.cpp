// Kernels for any CPU of the architecture, in plain C++ and GCC's vector extensions.
#include "kernels/job.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgec::kernels {
namespace generic {
constexpr int kF32Rows = 4;
#include "kernels/isa.inc"
//
#include "kernels/f32_nk.h"
//
#include "kernels/int_generic.h"
}  // namespace generic

extern const IsaOps kOps_generic = generic::kOps;
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n16k4_4x16_generic, generic::linear_int_generic<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n16k4_4x16_generic, generic::linear_int_generic<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_t4n16k4_4x16_generic, generic::linear_int_generic<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s6n16k4_4x16_generic, generic::linear_int_generic<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n32k4_4x16_generic, generic::linear_int_generic<Family::kS4N32K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n32k4_4x16_generic, generic::linear_int_generic<Family::kU4N32K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n32k1_4x16_generic, generic::linear_int_generic<Family::kS4N32K1>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n32k1_4x16_generic, generic::linear_int_generic<Family::kU4N32K1>)
EDGEC_DEFINE_LINEAR(linear_f32_s16b32_s8n16k4_4x16_generic, generic::linear_int_generic<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32nk_48x16_generic, generic::linear_f32_nk)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32n16_4x16_generic, generic::linear_f32)
}  // namespace edgec::kernels
