// Kernels for Arm's SME2 in streaming mode. Compiled with those flags: nothing here may run before the features are
// checked.
#if defined(__aarch64__) && defined(EDGEC_SME2)
#include <arm_neon.h>
#include <arm_sme.h>

#include "kernels/job.h"

namespace edgec::kernels {
namespace sme2 {
#include "kernels/simd.h"
//
#include "kernels/vecmath.h"
//
#include "kernels/epilogue.h"
//
#include "kernels/int_sme2.h"
}  // namespace sme2

EDGEC_DEFINE_LINEAR(linear_f32_s8b32_s4n32k4_1x128_sme2, sme2::linear_rows<Family::kS4N32K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8q16b32_s4n32k4_16x32_sme2, sme2::linear_tiles<Family::kS4N32K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8b32_u4n32k4_1x128_sme2, sme2::linear_rows<Family::kU4N32K4>)
EDGEC_DEFINE_LINEAR(linear_f32_s8q16b32_u4n32k4_16x32_sme2, sme2::linear_tiles<Family::kU4N32K4>)
}  // namespace edgec::kernels

// What the procedure call standard has the runtime provide, in case the toolchain's lacks it: saving another function's
// dormant ZA (there is none: no function here that holds ZA calls another one), and the vector length, for unwinders.
extern "C" {
__attribute__((weak, visibility("hidden"))) void __arm_tpidr2_save() {}
__attribute__((weak, visibility("hidden"))) uint64_t __arm_get_current_vg() { return 0; }
}
#endif
