// int4 and int8 tiles for AVX2. int4: u4 x s8 maddubs, eight deep in int16. The sums of the activations times -8 or
// -zero start the int16 lanes, so that a lane ends as a sum of 16 true products, within int16; wrapping on the way is
// harmless.

// acc += maddubs(u, broadcast of the 4 bytes at a). One statement, so that no product is ever spilled.
#define EDGEC_DOT_U4(acc, u, a)                                                                 \
  do {                                                                                          \
    __m256i t_;                                                                                 \
    __asm__("vpbroadcastd %[m], %[t]\n\tvpmaddubsw %[t], %[w], %[t]\n\tvpaddw %[t], %[s], %[s]" \
            : [s] "+x"(acc), [t] "=&x"(t_)                                                      \
            : [w] "x"(u), [m] "m"(*reinterpret_cast<const char (*)[4]>(a)));                    \
  } while (0)

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

// kRows x (8 * kHalves) sums from one panel, starting at column `half * 8`.
template <Family kFamily, int kRows, int kHalves>
static void int4_tile(const uint8_t* a, const uint8_t* b, int64_t half, int64_t blocks, int64_t group_blocks,
                      float* sums) {
  constexpr bool kZero = kFamily == Family::kU4N16K4;
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256 total[kRows][kHalves];
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < kHalves; ++h) total[r][h] = _mm256_setzero_ps();
  }
  while (blocks > 0) {
    const uint8_t* header = b;
    b += header_bytes(kFamily) + half * 128;
    int64_t n = group_blocks < blocks ? group_blocks : blocks;
    blocks -= n;
    for (; n > 0; --n) {
      __m256i acc[kRows][kHalves];
      for (int h = 0; h < kHalves; ++h) {
        if constexpr (kZero) {
          const __m256i zero = load_zeros(header + 32 + (half + h) * 4);
          for (int r = 0; r < kRows; ++r) acc[r][h] = _mm256_mullo_epi16(zero, broadcast4(a + kRows * 36 + 4 * r));
        } else {
          for (int r = 0; r < kRows; ++r) acc[r][h] = broadcast4(a + kRows * 36 + 4 * r);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
          const __m256i raw = load_bytes(b + 128 * h + 32 * i);
          const __m256i low = _mm256_and_si256(raw, mask);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) EDGEC_DOT_U4(acc[r][h], low, a + 32 * r + 8 * i);
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) EDGEC_DOT_U4(acc[r][h], high, a + 32 * r + 8 * i + 4);
        }
      }
      for (int h = 0; h < kHalves; ++h) {
        const __m256 scale = load_scales(header + (half + h) * 16);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[r][h], ones));
          const __m256 both = _mm256_mul_ps(scale, _mm256_castsi256_ps(broadcast4(a + kRows * 32 + 4 * r)));
          total[r][h] = _mm256_fmadd_ps(dot, both, total[r][h]);
        }
      }
      b += 256;
      a += kRows * 40;
    }
    b -= half * 128;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < kHalves; ++h) _mm256_storeu_ps(sums + r * kPanel + (half + h) * 8, total[r][h]);
  }
}

template <Family kFamily>
static void linear_int4_rows(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                             int64_t panel_end) {
  alignas(32) float sums[6 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* a = job.prepared + row * job.blocks * 40;
      const int64_t nb = job.blocks, gb = job.group_blocks;
      if (rows <= 2) {
        rows == 1 ? int4_tile<kFamily, 1, 2>(a, b, 0, nb, gb, sums) : int4_tile<kFamily, 2, 2>(a, b, 0, nb, gb, sums);
      } else {
        for (int half = 0; half < 2; ++half) {
          switch (rows) {
            case 3:
              int4_tile<kFamily, 3, 1>(a, b, half, nb, gb, sums);
              break;
            case 4:
              int4_tile<kFamily, 4, 1>(a, b, half, nb, gb, sums);
              break;
            case 5:
              int4_tile<kFamily, 5, 1>(a, b, half, nb, gb, sums);
              break;
            default:
              int4_tile<kFamily, 6, 1>(a, b, half, nb, gb, sums);
              break;
          }
        }
      }
      store_tile(job, row, rows, panel, sums, 0, kPanel);
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
          acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(w0, x));
          acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(w1, x));
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

static void linear_int8_rows(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
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
      store_tile(job, row, rows, panel, sums, 0, kPanel);
    }
  }
}
