// kRows x 16 tile of an f32 product. a: element (r, k) at a[r * a_m + k * a_k]; b: 16 columns at b[k * b_k].
// out: [kRows][out_ld]; kAdd adds to what is there.
template <int kRows, bool kAdd>
static void f32_tile(const float* a, int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t depth, float* out,
                     int64_t out_ld) {
  f32x8 acc[kRows][2];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = splat(0.0f);
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

template <bool kAdd>
static void f32_rows(int64_t rows, const float* a, int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t depth,
                     float* out, int64_t out_ld) {
  static_assert(kF32Rows == 4 || kF32Rows == 6);
  switch (rows) {
    case 1:
      return f32_tile<1, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
    case 2:
      return f32_tile<2, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
    case 3:
      return f32_tile<3, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
    case 4:
      return f32_tile<4, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
    case 5:
      return f32_tile<kF32Rows == 6 ? 5 : 4, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
    default:
      return f32_tile<kF32Rows, kAdd>(a, a_m, a_k, b, b_k, depth, out, out_ld);
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
