// The store of a tile: bias, activation, residual; columns beyond n are not touched.
// sums: [mr][kPanel] raw products. kSwiglu: columns 0..7 of a panel are gates, 8..15 what they multiply.
static void store_tile(const LinearJob& job, int64_t row, int64_t mr, int64_t panel, const float* sums,
                       int64_t col_begin, int64_t col_end) {
  const LinearArgs& a = job.args;
  const int64_t column = panel * kPanel;
  if (a.act == Activation::kSwiglu) {
    const int64_t out = panel * 8, n = a.n / 2 - out;
    for (int64_t r = 0; r < mr; ++r, sums += kPanel) {
      f32x8 gate = load(sums), up = load(sums + 8);
      if (a.bias) {
        const int64_t left = a.n - column;
        gate += load_n(a.bias + column, left), up += left > 8 ? load_n(a.bias + column + 8, left - 8) : splat(0.0f);
      }
      f32x8 v = vsilu(gate) * up;
      if (a.residual) v += load_n(a.residual + (row + r) * a.ldr + out, n);
      store_n(a.y + (row + r) * a.ldy + out, v, n);
    }
    return;
  }
  for (int64_t c = col_begin; c < col_end; c += 8) {
    const int64_t n = a.n - column - c;
    if (n <= 0) break;
    const f32x8 bias = a.bias ? load_n(a.bias + column + c, n) : splat(0.0f);
    for (int64_t r = 0; r < mr; ++r) {
      f32x8 v = activate(a.act, load(sums + r * kPanel + c) + bias);
      if (a.residual) v += load_n(a.residual + (row + r) * a.ldr + column + c, n);
      store_n(a.y + (row + r) * a.ldy + column + c, v, n);
    }
  }
}
