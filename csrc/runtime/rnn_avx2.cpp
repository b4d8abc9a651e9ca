// Compiled for AVX2, FMA and F16C: nothing here may run before the features are checked.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/kernels.h"
#include "runtime/rnn.h"

namespace edgec::rnn {

namespace avx2 {
#include "runtime/rnn.inc"
}

extern const Ops kOps_avx2;
const Ops kOps_avx2 = avx2::kOps;

}  // namespace edgec::rnn
#endif
