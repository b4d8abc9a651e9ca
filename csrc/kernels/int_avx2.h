// int4 and int8 tiles of few rows for AVX2, unpacking on the way. int4: u4 x s8 maddubs, eight deep in int16. The sums
// of the activations times -8 or -zero start the int16 lanes, so that a lane ends as a sum of 16 true products, within
// int16; wrapping on the way is harmless.

// acc += maddubs(u, s) in one statement: gcc would compute several products first and spill them.
#define EDGEC_DOT_U4(acc, u, s)                                      \
  do {                                                               \
    __m256i t_;                                                      \
    __asm__("vpmaddubsw %[x], %[w], %[t]\n\tvpaddw %[t], %[a], %[a]" \
            : [a] "+x"(acc), [t] "=&x"(t_)                           \
            : [w] "x"(u), [x] "x"(s));                               \
  } while (0)

#define EDGEC_DOT_S16(acc, w, s)                                   \
  do {                                                             \
    __m256i t_;                                                    \
    __asm__("vpmaddwd %[x], %[b], %[t]\n\tvpaddd %[t], %[a], %[a]" \
            : [a] "+x"(acc), [t] "=&x"(t_)                         \
            : [b] "x"(w), [x] "x"(s));                             \
  } while (0)

constexpr int64_t kPrefetch = 2048;  // bytes ahead in a stream of weights

EDGEC_INLINE __m256i broadcast4(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
EDGEC_INLINE __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)); }
EDGEC_INLINE __m256 load_scales(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
}
// Eight 4-bit zero points to (zero, zero) pairs of int16, one pair a column.
EDGEC_INLINE __m256i load_zeros(const uint8_t* p) {
  const __m256i v = _mm256_srlv_epi32(broadcast4(p), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(15));
  return _mm256_or_si256(low, _mm256_slli_epi32(low, 16));
}

// total + dots * column scales * row scale.
EDGEC_INLINE __m256 scaled(__m256i dots, __m256 scale, const uint8_t* row_scale, __m256 total) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(scale, _mm256_castsi256_ps(broadcast4(row_scale))),
                         total);
}

// kRows x 16 sums from one panel, unpacking on the way: for so few rows that each weight is used once.
template <Family kFamily, int kRows>
static void int4_direct(const uint8_t* a, const uint8_t* b, int64_t blocks, int64_t group_blocks, float* sums) {
  constexpr bool kZero = kFamily == Family::kU4N16K4;
  const __m256i mask = _mm256_set1_epi8(15);
  __m256 total[kRows][2];
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_ps();
  while (blocks > 0) {
    const uint8_t* header = b;
    b += header_bytes(kFamily);
    int64_t n = group_blocks < blocks ? group_blocks : blocks;
    blocks -= n;
    for (; n > 0; --n) {
      for (int i = 0; i < 5; ++i) _mm_prefetch(reinterpret_cast<const char*>(b + kPrefetch + 64 * i), _MM_HINT_T0);
      __m256i acc[kRows][2];
      for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = broadcast4(a + kRows * 36 + 4 * r);
      if constexpr (kZero) {
        for (int h = 0; h < 2; ++h) {
          const __m256i zero = load_zeros(header + 32 + h * 4);
          for (int r = 0; r < kRows; ++r) acc[r][h] = _mm256_mullo_epi16(zero, acc[r][h]);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i raw0 = load_bytes(b + 32 * i), raw1 = load_bytes(b + 128 + 32 * i);
        const __m256i low0 = _mm256_and_si256(raw0, mask), low1 = _mm256_and_si256(raw1, mask);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = broadcast4(a + 32 * r + 8 * i);
          EDGEC_DOT_U4(acc[r][0], low0, x);
          EDGEC_DOT_U4(acc[r][1], low1, x);
        }
        const __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(raw0, 4), mask);
        const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(raw1, 4), mask);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = broadcast4(a + 32 * r + 8 * i + 4);
          EDGEC_DOT_U4(acc[r][0], high0, x);
          EDGEC_DOT_U4(acc[r][1], high1, x);
        }
      }
      for (int h = 0; h < 2; ++h) {
        const __m256 scale = load_scales(header + h * 16);
        for (int r = 0; r < kRows; ++r) {
          const __m256i dots = _mm256_madd_epi16(acc[r][h], _mm256_set1_epi16(1));
          total[r][h] = scaled(dots, scale, a + kRows * 32 + 4 * r, total[r][h]);
        }
      }
      b += 256;
      a += kRows * 40;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(sums + r * kPanel + h * 8, total[r][h]);
  }
}

template <Family kFamily>
static void linear_int4_direct(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                               int64_t panel_end) {
  alignas(32) float sums[4 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* a = job.prepared + row * job.blocks * 40;
      switch (rows) {
        case 1:
          int4_direct<kFamily, 1>(a, b, job.blocks, job.group_blocks, sums);
          break;
        case 2:
          int4_direct<kFamily, 2>(a, b, job.blocks, job.group_blocks, sums);
          break;
        case 3:
          int4_direct<kFamily, 3>(a, b, job.blocks, job.group_blocks, sums);
          break;
        default:
          int4_direct<kFamily, 4>(a, b, job.blocks, job.group_blocks, sums);
          break;
      }
      store_tile(job, row, rows, panel, sums);
    }
  }
}

// int8: both sides as int16 (products of two s8 pairs would saturate maddubs). Lanes hold (column, pair of k) of 4
// columns.
template <int kRows>
static void int8_tile(const uint8_t* a, const uint8_t* b, int64_t half, int64_t blocks, int64_t group_blocks,
                      float* sums) {
  __m256 total[kRows];
  for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_ps();
  while (blocks > 0) {
    const uint8_t* header = b;
    b += 32;
    int64_t n = group_blocks < blocks ? group_blocks : blocks;
    blocks -= n;
    const __m256 scale = load_scales(header + half * 16);
    for (; n > 0; --n, b += 512, a += kRows * 68) {
      __m256i acc[kRows][2];
      for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const uint8_t* at = b + 256 * half + 32 * i;
        const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(at)));
        const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(at + 16)));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          int64_t four;
          __builtin_memcpy(&four, a + 64 * r + 8 * i, 8);
          const __m256i x = _mm256_set1_epi64x(four);
          EDGEC_DOT_S16(acc[r][0], w0, x);
          EDGEC_DOT_S16(acc[r][1], w1, x);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        // hadd interleaves the 128-bit halves: columns 0 1 4 5 2 3 6 7.
        const __m256i dot = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][0], acc[r][1]), 0xd8);
        const __m256 both = _mm256_mul_ps(scale, _mm256_castsi256_ps(broadcast4(a + kRows * 64 + 4 * r)));
        total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, total[r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) _mm256_storeu_ps(sums + r * kPanel + half * 8, total[r]);
}

static void linear_int8_direct(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                               int64_t panel_end) {
  alignas(32) float sums[3 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* a = job.prepared + row * job.blocks * 68;
      for (int half = 0; half < 2; ++half) {
        switch (rows) {
          case 1:
            int8_tile<1>(a, b, half, job.blocks, job.group_blocks, sums);
            break;
          case 2:
            int8_tile<2>(a, b, half, job.blocks, job.group_blocks, sums);
            break;
          default:
            int8_tile<3>(a, b, half, job.blocks, job.group_blocks, sums);
            break;
        }
      }
      store_tile(job, row, rows, panel, sums);
    }
  }
}
