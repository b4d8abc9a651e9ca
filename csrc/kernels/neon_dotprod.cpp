// Kernels for Armv8.2 with the dot product instructions. Compiled with those flags: nothing here may run before the
// features are checked.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels/job.h"

namespace edgec::kernels {
namespace dotprod {
#include "kernels/simd.h"
//
#include "kernels/vecmath.h"
//
#include "kernels/epilogue.h"
//
#include "kernels/int_neon_parts.h"
//
#include "kernels/int_dotprod.h"
//
#include "kernels/int_dotprod_k1.h"
//
#include "kernels/int_unpacked_neon.h"
}  // namespace dotprod

EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n16k4_2x16_dotprod, dotprod::linear_dot_direct<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32x4_s4n16k4_12x16_dotprod, dotprod::linear_quads<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n16k4_2x16_dotprod, dotprod::linear_dot_direct<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32x4_u4n16k4_12x16_dotprod, dotprod::linear_quads<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_t4n16k4_2x16_dotprod, dotprod::linear_dot_direct<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32x4_t4n16k4_12x16_dotprod, dotprod::linear_quads<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s6n16k4_2x16_dotprod, dotprod::linear_dot_direct<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32x4_s6n16k4_12x16_dotprod, dotprod::linear_quads<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s8n16k4_2x16_dotprod, dotprod::linear_dot_direct<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32x4_s8n16k4_12x16_dotprod, dotprod::linear_quads<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n32k1_2x32_dotprod, dotprod::linear_dot_k1<Family::kS4N32K1>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n32k1_4x32_dotprod, dotprod::linear_dot_k1<Family::kS4N32K1>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n32k1_2x32_dotprod, dotprod::linear_dot_k1<Family::kU4N32K1>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n32k1_4x32_dotprod, dotprod::linear_dot_k1<Family::kU4N32K1>)
}  // namespace edgec::kernels
#endif
