#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "runtime/rnn.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgec::rnn {

namespace generic {
#include "runtime/rnn.inc"
}

extern const Ops kOps_avx2;

const Ops& best_ops() {
#if defined(__x86_64__)
  constexpr uint32_t kNeeded = kernels::kAvx2 | kernels::kFma | kernels::kF16c;
  if ((kernels::cpu_feature_bits() & kNeeded) == kNeeded) return kOps_avx2;
#endif
  return generic::kOps;
}

}  // namespace edgec::rnn
