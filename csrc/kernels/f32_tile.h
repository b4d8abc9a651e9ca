constexpr int64_t kFewRows = 12;  // up to here operands are read where they lie: packing would not pay

// kRows x 16 tile of an f32 product. a: element (r, k) at a[r * a_m + k * a_k]; b: 16 columns at b[k * b_k].
// out: [kRows][out_ld]; kAdd adds to what is there; kFrom goes on from it, as if its depth had come before.
#if defined(__AVX512F__)
template <int kRows, bool kAdd, bool kFrom>
static void f32_tile(const float* a, int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t depth, float* out,
                     int64_t out_ld) {
  __m512 acc[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) acc[r] = kFrom ? _mm512_loadu_ps(out + r * out_ld) : _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, b += b_k, a += a_k) {
    const __m512 row = _mm512_loadu_ps(b);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_m]), row, acc[r]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float* to = out + r * out_ld;
    _mm512_storeu_ps(to, kAdd ? _mm512_add_ps(_mm512_loadu_ps(to), acc[r]) : acc[r]);
  }
}
#else
template <int kRows, bool kAdd, bool kFrom>
static void f32_tile(const float* a, int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t depth, float* out,
                     int64_t out_ld) {
  f32x8 acc[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < 2; ++c) acc[r][c] = kFrom ? load(out + r * out_ld + 8 * c) : splat(0.0f);
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, b += b_k, a += a_k) {
    const f32x8 b0 = load(b), b1 = load(b + 8);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const f32x8 v = splat(a[r * a_m]);
      acc[r][0] += v * b0;
      acc[r][1] += v * b1;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < 2; ++c) {
      float* to = out + r * out_ld + 8 * c;
      store(to, kAdd ? load(to) + acc[r][c] : acc[r][c]);
    }
  }
}
#endif

template <bool kAdd, bool kFrom = false>
static void f32_rows(int64_t rows, const float* a, int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t depth,
                     float* out, int64_t out_ld) {
  switch (rows) {
#define EDGEC_ROWS(n)                                                                               \
  case n:                                                                                           \
    if constexpr (n <= kF32Rows) f32_tile<n, kAdd, kFrom>(a, a_m, a_k, b, b_k, depth, out, out_ld); \
    break;
    EDGEC_EACH_OF_12(EDGEC_ROWS)
#undef EDGEC_ROWS
  }
}

static void linear_f32(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                       int64_t panel_end) {
  const LinearArgs& a = job.args;
  float sums[kF32Rows * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const float* b = static_cast<const float*>(a.packed) + panel * a.k * kPanel;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      f32_rows<false>(rows, a.x + row * a.ldx, a.ldx, 1, b, kPanel, a.k, sums, kPanel);
      store_tile(job, row, rows, panel, sums);
    }
  }
}
