#include "kernels/accelerate.h"

#include <dlfcn.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/cpu_features.h"
#include "kernels/job.h"

namespace edgec::kernels {
namespace accelerate {
#include "kernels/simd.h"
//
#include "kernels/vecmath.h"
//
#include "kernels/epilogue.h"

// C's interface of BLAS with 32-bit sizes: y = alpha * a * op(b) + beta * y.
using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                       const float* b, int ldb, float beta, float* y, int ldy);
constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;

static Sgemm sgemm_of(const char* library) {
  void* handle = library && !feature_disabled("accelerate") ? dlopen(library, RTLD_LAZY | RTLD_LOCAL) : nullptr;
  return handle ? reinterpret_cast<Sgemm>(dlsym(handle, "cblas_sgemm")) : nullptr;
}

static Sgemm& sgemm() {
#if defined(__APPLE__)
  static Sgemm found = sgemm_of("/System/Library/Frameworks/Accelerate.framework/Accelerate");
#else
  static Sgemm found = nullptr;
#endif
  return found;
}

// Rows and columns whose sums are in a buffer before the epilogue.
constexpr int64_t kRows = 64, kColumns = 128;

static void linear_sgemm(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                         int64_t panel_end) {
  const LinearArgs& a = job.args;
  const float* w = static_cast<const float*>(a.packed);
  const int64_t first = job.row(tile_begin), last = job.row(tile_end),
                end = panel_end * kPanel < a.n ? panel_end * kPanel : a.n;
  const auto product = [&](int64_t row, int64_t rows, int64_t column, int64_t columns, float* y, int64_t ldy) {
    sgemm()(kRowMajor, kNoTrans, kTrans, static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(a.k), 1.0f,
            a.x + row * a.ldx, static_cast<int>(a.ldx), w + column * a.k, static_cast<int>(a.k), 0.0f, y,
            static_cast<int>(ldy));
  };
  if (first >= last) return;
  if (a.k > 0 && a.act == Activation::kNone && !a.bias && !a.residual) {
    return product(first, last - first, panel_begin * kPanel, end - panel_begin * kPanel,
                   a.y + first * a.ldy + panel_begin * kPanel, a.ldy);
  }
  alignas(64) float sums[kRows * kColumns];
  alignas(64) float part[kRows * kPanel];
  for (int64_t row = first; row < last; row += kRows) {
    const int64_t rows = last - row < kRows ? last - row : kRows;
    for (int64_t column = panel_begin * kPanel; column < end; column += kColumns) {
      const int64_t columns = end - column < kColumns ? end - column : kColumns;
      if (a.k > 0) {
        product(row, rows, column, columns, sums, kColumns);
      } else {
        __builtin_memset(sums, 0, sizeof(sums));
      }
      for (int64_t c = 0; c < columns; c += kPanel) {
        for (int64_t r = 0; r < rows; ++r) {
          store(part + r * kPanel, load(sums + r * kColumns + c));
          store(part + r * kPanel + 8, load(sums + r * kColumns + c + 8));
        }
        store_tile(job, row, rows, (column + c) / kPanel, part);
      }
    }
  }
}
}  // namespace accelerate

uint32_t accelerate_features() { return accelerate::sgemm() ? uint32_t{kAccelerate} : 0; }
void set_accelerate_library(const char* path) { accelerate::sgemm() = accelerate::sgemm_of(path); }

EDGEC_DEFINE_LINEAR(linear_f32_f32_f32nk_64x128_accelerate, accelerate::linear_sgemm)
}  // namespace edgec::kernels
