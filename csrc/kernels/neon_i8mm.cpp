// Kernels for Arm's int8 matrix multiply. Compiled with those flags: nothing here may run before the features are
// checked.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels/job.h"

#define EDGEC_KERNELS_I8MM

namespace edgec::kernels {
namespace i8mm {
#include "kernels/simd.h"
//
#include "kernels/vecmath.h"
//
#include "kernels/epilogue.h"
//
#include "kernels/int_neon_parts.h"
//
#include "kernels/int_unpacked_neon.h"
}  // namespace i8mm

EDGEC_DEFINE_LINEAR(linear_f32_s8p2b32x4_s4n16k4_12x16_i8mm, i8mm::linear_quads<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8p2b32x4_u4n16k4_12x16_i8mm, i8mm::linear_quads<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8p2b32x4_t4n16k4_12x16_i8mm, i8mm::linear_quads<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8p2b32x4_s6n16k4_12x16_i8mm, i8mm::linear_quads<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8p2b32x4_s8n16k4_12x16_i8mm, i8mm::linear_quads<Family::kS8N16K4>)
}  // namespace edgec::kernels
#endif
