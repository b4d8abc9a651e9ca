// Rows times an orthonormal Hadamard matrix (Sylvester's order) in blocks of a power of two, by the fast Walsh-Hadamard
// transform. A tail that is no block goes in the largest powers of two that fit, from the largest on. Every instruction
// set gives the same floats: one product, then additions.

EDGEC_INLINE float inverse_root(int64_t size) { return 1.0f / __builtin_sqrtf(static_cast<float>(size)); }

// Partners 4, 2 and 1 lanes apart.
EDGEC_INLINE f32x8 hadamard_lanes(f32x8 v) {
  v = __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3) + v * f32x8{1, 1, 1, 1, -1, -1, -1, -1};
  v = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5) + v * f32x8{1, 1, -1, -1, 1, 1, -1, -1};
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6) + v * f32x8{1, -1, 1, -1, 1, -1, 1, -1};
}

// A block of 8 * kVectors, times `scale`; `to` may be `x`.
template <int kVectors>
EDGEC_INLINE void hadamard_vectors(const float* x, float scale, float* to) {
  f32x8 v[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) v[i] = hadamard_lanes(load(x + 8 * i) * scale);
#pragma GCC unroll 2
  for (int step = 1; step < kVectors; step *= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      if (i & step) continue;
      const f32x8 a = v[i], b = v[i + step];
      v[i] = a + b, v[i + step] = a - b;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) store(to + 8 * i, v[i]);
}

// A block of any power of two, in place.
static void hadamard_block(float* x, int64_t size) {
  const float scale = inverse_root(size);
  if (size == 8) return hadamard_vectors<1>(x, scale, x);
  if (size == 16) return hadamard_vectors<2>(x, scale, x);
  if (size >= 32) {
    for (int64_t i = 0; i < size; i += 32) hadamard_vectors<4>(x + i, scale, x + i);
    for (int64_t step = 32; step < size; step *= 2) {
      for (int64_t i = 0; i < size; i += 2 * step) {
        for (int64_t j = i; j < i + step; j += 8) {
          const f32x8 a = load(x + j), b = load(x + j + step);
          store(x + j, a + b), store(x + j + step, a - b);
        }
      }
    }
    return;
  }
  for (int64_t i = 0; i < size; ++i) x[i] *= scale;
  for (int64_t step = 1; step < size; step *= 2) {
    for (int64_t i = 0; i < size; ++i) {
      if (i & step) continue;
      const float a = x[i], b = x[i + step];
      x[i] = a + b, x[i + step] = a - b;
    }
  }
}

// n numbers in place; `block`: a power of two.
static void hadamard_row(float* x, int64_t n, int64_t block) {
  for (; n > 0; x += block, n -= block) {
    while (block > n) block /= 2;
    hadamard_block(x, block);
  }
}
