// The store of a tile: bias, activation, residual; columns beyond n are not touched.

// kWhole: all 16 columns exist, otherwise `n` of them do. Not inlined: no activation pays for another one's registers.
template <Activation kAct, bool kWhole>
static __attribute__((noinline)) void store_rows(const LinearJob& job, int64_t row, int64_t mr, int64_t column,
                                                 int64_t n, const float* sums) {
  const LinearArgs& a = job.args;
  const auto get = [n](const float* p, int64_t c) { return kWhole ? load(p + c) : load_n(p + c, n - c); };
  f32x8 bias[2] = {splat(0.0f), splat(0.0f)};
  if (a.bias) bias[0] = get(a.bias + column, 0), bias[1] = get(a.bias + column, 8);
  float* y = a.y + row * a.ldy + column;
  const float* residual = a.residual ? a.residual + row * a.ldr + column : nullptr;
  const int64_t ldy = a.ldy;
  if (kAct == Activation::kNone && kWhole && !residual) {
    for (; mr > 0; --mr, sums += kPanel, y += ldy)
      store(y, load(sums) + bias[0]), store(y + 8, load(sums + 8) + bias[1]);
    return;
  }
  for (; mr > 0; --mr, sums += kPanel, y += ldy) {
    f32x8 v[2];
    for (int h = 0; h < 2; ++h) {
      v[h] = activate(kAct, load(sums + 8 * h) + bias[h]);
      if (residual) v[h] += get(residual, 8 * h);
    }
    if (residual) residual += a.ldr;
    if constexpr (kWhole) {
      store(y, v[0]), store(y + 8, v[1]);
    } else {
      store_n(y, v[0], n), store_n(y + 8, v[1], n - 8);
    }
  }
}

// Columns 0..7 of a panel are gates, 8..15 what they multiply; y has half the columns.
template <Activation kGate>
static __attribute__((noinline)) void store_gated(const LinearJob& job, int64_t row, int64_t mr, int64_t panel,
                                                  const float* sums) {
  const LinearArgs& a = job.args;
  const int64_t out = panel * 8, n = a.n / 2 - out, left = a.n - panel * kPanel;
  f32x8 bias[2] = {splat(0.0f), splat(0.0f)};
  if (a.bias) {
    const float* from = a.bias + panel * kPanel;
    bias[0] = load_n(from, left), bias[1] = load_n(from + 8, left - 8);
  }
  for (int64_t r = row; r < row + mr; ++r, sums += kPanel) {
    f32x8 v = activate(kGate, load(sums) + bias[0]) * (load(sums + 8) + bias[1]);
    if (a.residual) v += load_n(a.residual + r * a.ldr + out, n);
    store_n(a.y + r * a.ldy + out, v, n);
  }
}

// sums: [mr][kPanel] of a panel whose header has its columns' exponents.
EDGEC_INLINE void apply_exponents(const uint8_t* panel, int64_t mr, float* sums) {
  float unit[kPanel];
  for (int c = 0; c < kPanel; ++c) unit[c] = power_of_two(static_cast<int8_t>(panel[c]));
  for (int64_t r = 0; r < mr; ++r, sums += kPanel) {
    store(sums, load(sums) * load(unit)), store(sums + 8, load(sums + 8) * load(unit + 8));
  }
}

// sums: [mr][kPanel] raw products.
static void store_tile(const LinearJob& job, int64_t row, int64_t mr, int64_t panel, const float* sums) {
  const int64_t column = panel * kPanel, n = job.args.n - column;
  switch (job.args.act) {
    case Activation::kSwiglu:
      return store_gated<Activation::kSilu>(job, row, mr, panel, sums);
    case Activation::kGeglu:
      return store_gated<Activation::kGelu>(job, row, mr, panel, sums);
    case Activation::kGegluTanh:
      return store_gated<Activation::kGeluTanh>(job, row, mr, panel, sums);
#define EDGEC_STORE(act)                                                                      \
  case Activation::act:                                                                       \
    if (n >= kPanel) return store_rows<Activation::act, true>(job, row, mr, column, n, sums); \
    return store_rows<Activation::act, false>(job, row, mr, column, n, sums);
      EDGEC_STORE(kNone)
      EDGEC_STORE(kRelu)
      EDGEC_STORE(kGelu)
      EDGEC_STORE(kGeluTanh)
      EDGEC_STORE(kSilu)
      EDGEC_STORE(kTanh)
      EDGEC_STORE(kSigmoid)
#undef EDGEC_STORE
  }
}
