// Few rows against a long cache: keys and values are read once, in the order of memory, and asked for ahead of time.

// Beyond what the CPU fetches by itself, which starts anew at each page: a stretch of keys or values is few of them.
constexpr int64_t kFetchAhead = 2048;
#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int kSums = 24;  // accumulators, of 32 registers
#else
constexpr int kSums = 12;  // of 16
#endif

EDGEC_INLINE void fetch(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + kFetchAhead); }
EDGEC_INLINE f32x8 floats_of(const float* p) { return load(p); }

// Calls f.template operator()<n>(done) for groups of n <= 4 of the rows.
template <class F>
EDGEC_INLINE void in_fours(int64_t rows, const F& f) {
  int64_t done = 0;
  for (; rows - done >= 4; done += 4) f.template operator()<4>(done);
  if (rows - done == 3) f.template operator()<3>(done);
  if (rows - done == 2) f.template operator()<2>(done);
  if (rows - done == 1) f.template operator()<1>(done);
}

// Scores of rows of 16-bit queries with a panel of 8-bit keys; the rows share the keys' conversion.
template <int kRows>
static void score_i8(const int16_t* q, const float* q_scale, const int8_t* keys, const float* k_scale, int64_t depth,
                     float* out) {
  constexpr int kHalves = kRows * 4 <= kSums ? 2 : 1;  // of the panel in one go
  for (int part = 0; part < 2; part += kHalves, keys += 32) {
    i32x8 acc[kRows][2 * kHalves];
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < 2 * kHalves; ++c) acc[r][c] = splat_i(0);
    const int8_t* k = keys;
    for (int64_t d = 0; d < depth; ++d, k += 64) {
      if (part == 0) fetch(k);
#pragma GCC unroll 4
      for (int c = 0; c < 2 * kHalves; ++c) {
        const i16x16 wide = widen_i8(k + 16 * c);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[r][c] = add_pairs(acc[r][c], wide, splat_quad(q + (r * depth + d) * 4));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int half = 0; half < kHalves; ++half) {
        const f32x8 dots = to_float(add_neighbours(acc[r][2 * half], acc[r][2 * half + 1]));
        const int at = 8 * (part + half);
        store(out + r * kKvBlock + at, dots * q_scale[r] * load(k_scale + at));
      }
    }
  }
}
template <int kRows>
static void score_f32(const float* q, int64_t dim, const float* keys, float* out) {
  f32x8 acc[kRows][2];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = splat(0.0f);
  for (int64_t d = 0; d < dim; ++d, keys += kPanel) {
    fetch(keys);
    const f32x8 k0 = load(keys), k1 = load(keys + 8);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const f32x8 v = splat(q[r * dim + d]);
      acc[r][0] += v * k0;
      acc[r][1] += v * k1;
    }
  }
  for (int r = 0; r < kRows; ++r) store(out + r * kKvBlock, acc[r][0]), store(out + r * kKvBlock + 8, acc[r][1]);
}

// out[r][8 * kVectors columns] += sum over tokens of p[r][t] * v[t]; the tokens' scales are in p.
template <int kRows, int kVectors, class T>
static void gather_tile(const float* p, const T* v, int64_t v_stride, int64_t count, float* out, int64_t out_ld) {
  f32x8 acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) acc[r][c] = load(out + r * out_ld + 8 * c);
  for (int64_t t = 0; t < count; ++t, v += v_stride) {
    f32x8 w[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) w[r] = splat(p[r * kKvBlock + t]);
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      if (c * 8 * sizeof(T) % 64 == 0) fetch(v + 8 * c);
      const f32x8 x = floats_of(v + 8 * c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][c] += w[r] * x;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) store(out + r * out_ld + 8 * c, acc[r][c]);
}
// `columns`: a multiple of 16.
template <class T>
static void gather_few(int64_t rows, const float* p, const T* v, int64_t v_stride, int64_t count, int64_t columns,
                       float* out, int64_t out_ld) {
  constexpr int64_t kTokens = 128 / sizeof(T);  // their columns are read in turns: they stay in L1
  for (int64_t t = 0; t < count; t += kTokens, p += kTokens, v += kTokens * v_stride) {
    const int64_t n = count - t < kTokens ? count - t : kTokens;
    in_fours(rows, [&]<int kRows>(int64_t r) {
      constexpr int kVectors = kRows * 8 <= kSums ? 8 : kRows * 4 <= kSums ? 4 : 2;
      int64_t d = 0;
      for (; columns - d >= 8 * kVectors; d += 8 * kVectors)
        gather_tile<kRows, kVectors>(p + r * kKvBlock, v + d, v_stride, n, out + r * out_ld + d, out_ld);
      for (; d < columns; d += 16)
        gather_tile<kRows, 2>(p + r * kKvBlock, v + d, v_stride, n, out + r * out_ld + d, out_ld);
    });
  }
}
