// Products with float weights as they are, [N, K]: few rows, and any number where Accelerate is missing. Panels are
// padded.

constexpr int64_t kNkFewRows = 4, kNkRows = 48, kNkDepth = 256;

// Four columns of one row at a time, along K.
static void dot_panel(const float* x, const float* w, int64_t depth, float* sums) {
  for (int64_t c = 0; c < kPanel; c += 4, w += 4 * depth) {
    f32x8 total[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    int64_t k = 0;
    for (; k + 8 <= depth; k += 8) {
      const f32x8 v = load(x + k);
      for (int i = 0; i < 4; ++i) total[i] += v * load(w + i * depth + k);
    }
    if (k < depth) {
      const f32x8 v = load_n(x + k, depth - k);
      for (int i = 0; i < 4; ++i) total[i] += v * load_n(w + i * depth + k, depth - k);
    }
    for (int i = 0; i < 4; ++i) sums[c + i] = sum(total[i]);
  }
}

// Many rows share a part of a panel that is turned round on the stack.
static void linear_f32_nk(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                          int64_t panel_end) {
  const LinearArgs& a = job.args;
  alignas(64) float turned[kNkDepth * kPanel];
  alignas(64) float sums[kNkRows * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const float* w = static_cast<const float*>(a.packed) + panel * kPanel * a.k;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const float* x = a.x + row * a.ldx;
      if (rows <= kNkFewRows) {
        for (int64_t r = 0; r < rows; ++r) dot_panel(x + r * a.ldx, w, a.k, sums + r * kPanel);
      } else {
        __builtin_memset(sums, 0, sizeof(float) * rows * kPanel);
        for (int64_t k = 0; k < a.k; k += kNkDepth) {
          const int64_t depth = a.k - k < kNkDepth ? a.k - k : kNkDepth;
          pack_panel(w + k, 1, a.k, depth, kPanel, turned);
          for (int64_t r = 0; r < rows; r += kF32Rows) {
            f32_rows<true>(rows - r < kF32Rows ? rows - r : kF32Rows, x + r * a.ldx + k, a.ldx, 1, turned, kPanel,
                           depth, sums + r * kPanel, kPanel);
          }
        }
      }
      store_tile(job, row, rows, panel, sums);
    }
  }
}
