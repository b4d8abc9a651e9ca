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

// u6 x s8 is within 8001: two of them added in int16 stay below 32005, then go to int32.
#define EDGEC_DOT_U6(acc, u0, s0, u1, s1)                                                               \
  do {                                                                                                  \
    __m256i t_, v_;                                                                                     \
    __asm__(                                                                                            \
        "vpmaddubsw %[x0], %[w0], %[t]\n\tvpmaddubsw %[x1], %[w1], %[v]\n\tvpaddw %[v], %[t], %[t]\n\t" \
        "vpmaddwd %[one], %[t], %[t]\n\tvpaddd %[t], %[a], %[a]"                                        \
        : [a] "+x"(acc), [t] "=&x"(t_), [v] "=&x"(v_)                                                   \
        : [w0] "x"(u0), [x0] "xm"(s0), [w1] "x"(u1), [x1] "xm"(s1), [one] "xm"(_mm256_set1_epi16(1)));  \
  } while (0)

constexpr int kStreamedRows = 6, kUnpackedRows = 6;

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

// The table's values + 16, twice, for pshufb.
struct alignas(32) TableBytes {
  uint8_t u[32];
};
static constexpr TableBytes kTableBytes = [] {
  TableBytes t{};
  for (int i = 0; i < 32; ++i) t.u[i] = static_cast<uint8_t>(kTable[i % 16] + 16);
  return t;
}();
EDGEC_INLINE __m256i table_bytes() { return _mm256_load_si256(reinterpret_cast<const __m256i*>(kTableBytes.u)); }
// Eight s8 scales to (scale, scale) pairs of int16, one pair a column.
EDGEC_INLINE __m256i load_integer_scales(const uint8_t* p) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p));
  return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(v, v));
}
// Nibbles to what maddubs takes.
template <Family kFamily>
EDGEC_INLINE __m256i nibbles(__m256i v) {
  v = _mm256_and_si256(v, _mm256_set1_epi8(15));
  return kFamily == Family::kT4N16K4 ? _mm256_shuffle_epi8(table_bytes(), v) : v;
}

// total + dots * column scales * row scale.
EDGEC_INLINE __m256 scaled(__m256i dots, __m256 scale, const uint8_t* row_scale, __m256 total) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(scale, _mm256_castsi256_ps(broadcast4(row_scale))),
                         total);
}

// Adds one block of one panel to totals[kRows][16].
template <Family kFamily, int kRows>
EDGEC_INLINE void int4_block(const uint8_t* a, const uint8_t* header, const uint8_t* b, float* totals) {
  __m256i acc[kRows][2];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = broadcast4(a + kRows * 36 + 4 * r);
  if constexpr (kFamily == Family::kU4N16K4) {
    for (int h = 0; h < 2; ++h) {
      const __m256i zero = load_zeros(header + 32 + h * 4);
      for (int r = 0; r < kRows; ++r) acc[r][h] = _mm256_mullo_epi16(zero, acc[r][h]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i raw0 = load_bytes(b + 32 * i), raw1 = load_bytes(b + 128 + 32 * i);
    const __m256i low0 = nibbles<kFamily>(raw0), low1 = nibbles<kFamily>(raw1);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + 32 * r + 8 * i);
      EDGEC_DOT_U4(acc[r][0], low0, x);
      EDGEC_DOT_U4(acc[r][1], low1, x);
    }
    const __m256i high0 = nibbles<kFamily>(_mm256_srli_epi16(raw0, 4));
    const __m256i high1 = nibbles<kFamily>(_mm256_srli_epi16(raw1, 4));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + 32 * r + 8 * i + 4);
      EDGEC_DOT_U4(acc[r][0], high0, x);
      EDGEC_DOT_U4(acc[r][1], high1, x);
    }
  }
  for (int h = 0; h < 2; ++h) {
    if constexpr (kFamily == Family::kT4N16K4) {
      const __m256i scale = load_integer_scales(header + h * 8);
      for (int r = 0; r < kRows; ++r) {
        float* total = totals + r * kPanel + 8 * h;
        const __m256 dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[r][h], scale));
        const __m256 row_scale = _mm256_castsi256_ps(broadcast4(a + kRows * 32 + 4 * r));
        _mm256_store_ps(total, _mm256_fmadd_ps(dots, row_scale, _mm256_load_ps(total)));
      }
      continue;
    }
    const __m256 scale = load_scales(header + h * 16);
    for (int r = 0; r < kRows; ++r) {
      float* total = totals + r * kPanel + 8 * h;
      const __m256i dots = _mm256_madd_epi16(acc[r][h], _mm256_set1_epi16(1));
      _mm256_store_ps(total, scaled(dots, scale, a + kRows * 32 + 4 * r, _mm256_load_ps(total)));
    }
  }
}

// 6 bits: steps 4i to 4i + 3 of half a block.
struct Sixes {
  __m256i step[4];
};
EDGEC_INLINE Sixes unpack_six(const uint8_t* b, int i) {
  const __m256i u0 = load_bytes(b + 96 * i), u1 = load_bytes(b + 96 * i + 32), u2 = load_bytes(b + 96 * i + 64);
  const __m256i mask = _mm256_set1_epi8(63), top = _mm256_set1_epi8(-64);
  __m256i last = _mm256_or_si256(_mm256_srli_epi16(_mm256_and_si256(u2, top), 2), _mm256_and_si256(u1, top));
  last = _mm256_srli_epi16(_mm256_or_si256(_mm256_srli_epi16(last, 2), _mm256_and_si256(u0, top)), 2);
  return {{_mm256_and_si256(u0, mask), _mm256_and_si256(u1, mask), _mm256_and_si256(u2, mask), last}};
}
// -32 times a row's sum over the block, from what is prepared.
EDGEC_INLINE __m256i start_six(const uint8_t* sums) {
  return _mm256_madd_epi16(broadcast4(sums), _mm256_set1_epi16(32));
}

template <int kRows>
EDGEC_INLINE void int6_block(const uint8_t* a, const uint8_t* header, const uint8_t* b, float* totals) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    __m256i acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = start_six(a + kRows * 36 + 4 * r);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Sixes w = unpack_six(b + 192 * h, i);
#pragma GCC unroll 2
      for (int j = 0; j < 4; j += 2) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const uint8_t* x = a + 32 * r + 16 * i + 4 * j;
          EDGEC_DOT_U6(acc[r], w.step[j], broadcast4(x), w.step[j + 1], broadcast4(x + 4));
        }
      }
    }
    const __m256 scale = load_scales(header + h * 16);
    for (int r = 0; r < kRows; ++r) {
      float* total = totals + r * kPanel + 8 * h;
      _mm256_store_ps(total, scaled(acc[r], scale, a + kRows * 32 + 4 * r, _mm256_load_ps(total)));
    }
  }
}

// int8: both sides as int16 (products of two s8 pairs would saturate maddubs). Of a column's four k, two shifts make
// the pairs (0, 2) and (1, 3): the order that activations are prepared in.
struct Pairs {
  __m256i even, odd;
};
EDGEC_INLINE Pairs widen_pairs(__m256i raw) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(raw, 8), 8), _mm256_srai_epi16(raw, 8)};
}

template <int kRows>
EDGEC_INLINE void int8_block(const uint8_t* a, const uint8_t* header, const uint8_t* b, float* totals) {
  __m256i acc[kRows][2];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i raw0 = load_bytes(b + 32 * i), raw1 = load_bytes(b + 256 + 32 * i);
    const __m256i even0 = widen_pairs(raw0).even, even1 = widen_pairs(raw1).even;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + 64 * r + 8 * i);
      EDGEC_DOT_S16(acc[r][0], even0, x);
      EDGEC_DOT_S16(acc[r][1], even1, x);
    }
    const __m256i odd0 = widen_pairs(raw0).odd, odd1 = widen_pairs(raw1).odd;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + 64 * r + 8 * i + 4);
      EDGEC_DOT_S16(acc[r][0], odd0, x);
      EDGEC_DOT_S16(acc[r][1], odd1, x);
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256 scale = load_scales(header + h * 16);
    for (int r = 0; r < kRows; ++r) {
      float* total = totals + r * kPanel + 8 * h;
      _mm256_store_ps(total, scaled(acc[r][h], scale, a + kRows * 64 + 4 * r, _mm256_load_ps(total)));
    }
  }
}

// Of one row's block as prepared.
constexpr int64_t row_bytes(Family family) { return family == Family::kS8N16K4 ? 68 : 40; }

// Blocks [from, to) of up to kStreams panels by a row tile. totals: [panel][total_rows][16].
template <Family kFamily, int kRows>
static void stream_blocks(const uint8_t* a, const uint8_t* const* panels, int count, int64_t from, int64_t to,
                          int64_t group_blocks, float* totals, int64_t total_rows) {
  constexpr int64_t kRowBytes = row_bytes(kFamily);
  constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
  a += from * kRows * kRowBytes;
  int64_t group = panel_header_bytes(kFamily) + from / group_blocks * (kHeader + group_blocks * kData);
  int64_t in_group = from % group_blocks;
  for (int64_t block = from; block < to; ++block, a += kRows * kRowBytes) {
    for (int p = 0; p < count; ++p) {
      const uint8_t *header = panels[p] + group, *b = header + kHeader + in_group * kData;
      float* to_add = totals + p * total_rows * kPanel;
      if constexpr (kFamily == Family::kS8N16K4) {
        int8_block<kRows>(a, header, b, to_add);
      } else if constexpr (kFamily == Family::kS6N16K4) {
        int6_block<kRows>(a, header, b, to_add);
      } else {
        int4_block<kFamily, kRows>(a, header, b, to_add);
      }
    }
    if (++in_group == group_blocks) in_group = 0, group += kHeader + group_blocks * kData;
  }
}
