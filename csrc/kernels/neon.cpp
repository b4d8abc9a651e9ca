// Kernels for any 64-bit Arm CPU: NEON and nothing newer.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels/job.h"

namespace edgec::kernels {
namespace neon {
constexpr int kF32Rows = 6;
#include "kernels/isa.inc"
//
#include "kernels/f32_nk.h"
//
#include "kernels/int_neon_parts.h"
//
#include "kernels/int_neon.h"
}  // namespace neon

extern const IsaOps kOps_neon = neon::kOps;
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n16k4_4x16_neon, neon::linear_int_neon<Family::kS4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n16k4_4x16_neon, neon::linear_int_neon<Family::kU4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_t4n16k4_4x16_neon, neon::linear_int_neon<Family::kT4N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s6n16k4_4x16_neon, neon::linear_int_neon<Family::kS6N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s8n16k4_4x16_neon, neon::linear_int_neon<Family::kS8N16K4>)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32n16_6x16_neon, neon::linear_f32)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32nk_4x16_neon, neon::linear_f32_nk)
EDGEC_DEFINE_LINEAR(linear_f32_f32_f32nk_48x16_neon, neon::linear_f32_nk)
}  // namespace edgec::kernels
#endif
