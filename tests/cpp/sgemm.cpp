// What kernels ask of macOS's Accelerate, for tests: cblas_sgemm in plain loops, and how often it was called.
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int sgemm_calls;
int sgemm_calls = 0;

EXPORT void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                        const float* b, int ldb, float beta, float* y, int ldy) {
  __atomic_fetch_add(&sgemm_calls, 1, __ATOMIC_RELAXED);
  // As BLAS refuses: nothing is written. Row-major, a as it is, b transposed.
  if (order != 101 || trans_a != 111 || trans_b != 112 || m < 0 || n < 0 || k < 0) return;
  if (lda < (k > 1 ? k : 1) || ldb < (k > 1 ? k : 1) || ldy < (n > 1 ? n : 1)) return;
  for (long i = 0; i < m; ++i) {
    for (long j = 0; j < n; ++j) {
      float sum = 0;
      for (long l = 0; l < k; ++l) sum += a[i * lda + l] * b[j * ldb + l];
      float* to = y + i * ldy + j;
      *to = alpha * sum + (beta == 0 ? 0 : beta * *to);
    }
  }
}
