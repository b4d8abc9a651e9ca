// int4 and int8 tiles of many rows for AVX2, over unpacked blocks.

// 16 columns x 32 of k as the multiply takes them: int4 in steps of 4 u8 a column, int8 in steps of 2 s16.
template <int kSteps>
struct alignas(32) UnpackedBlock {
  uint8_t w[kSteps][2][32];  // [step][half]
  float scale[2][8];
  int16_t pair[2][16];  // u4: (zero, zero) a column; t4: its integer scale so
};

EDGEC_INLINE __m256i load_aligned(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
EDGEC_INLINE void store_aligned(void* p, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }

template <Family kFamily>
struct Unpack {
  static constexpr bool kInt8 = kFamily == Family::kS8N16K4, kInt6 = kFamily == Family::kS6N16K4;
  static constexpr int kSteps = kInt8 ? 16 : 8;
  static constexpr int64_t kValues = kInt8 ? 64 : 32, kRow = row_bytes(kFamily);
  static constexpr int64_t kDepth = kInt8 ? 14 : 28;  // blocks that fit L1 beside a row tile
  using Block = UnpackedBlock<kSteps>;

  // Half a block.
  static void half(const uint8_t* data, int h, Block* out) {
    if constexpr (kInt8) {
      for (int i = 0; i < 8; ++i) {
        const Pairs pairs = widen_pairs(load_bytes(data + 256 * h + 32 * i));
        store_aligned(out->w[2 * i][h], pairs.even);
        store_aligned(out->w[2 * i + 1][h], pairs.odd);
      }
    } else if constexpr (kInt6) {
      for (int i = 0; i < 2; ++i) {
        const Sixes sixes = unpack_six(data + 192 * h, i);
        for (int j = 0; j < 4; ++j) store_aligned(out->w[4 * i + j][h], sixes.step[j]);
      }
    } else {
      for (int i = 0; i < 4; ++i) {
        const __m256i raw = load_bytes(data + 128 * h + 32 * i);
        store_aligned(out->w[2 * i][h], nibbles<kFamily>(raw));
        store_aligned(out->w[2 * i + 1][h], nibbles<kFamily>(_mm256_srli_epi16(raw, 4)));
      }
    }
  }

  // Blocks [from, to) of a panel.
  static void blocks(const uint8_t* b, int64_t from, int64_t to, int64_t group_blocks, Block* out) {
    constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
    for (int64_t block = from; block < to; ++block, ++out) {
      const uint8_t* header = b + panel_header_bytes(kFamily) + block / group_blocks * (kHeader + group_blocks * kData);
      for (int h = 0; h < 2; ++h) {
        if constexpr (kFamily == Family::kT4N16K4) {
          store_aligned(out->pair[h], load_integer_scales(header + 8 * h));
        } else {
          _mm256_store_ps(out->scale[h], load_scales(header + 16 * h));
        }
        if constexpr (kFamily == Family::kU4N16K4) store_aligned(out->pair[h], load_zeros(header + 32 + 4 * h));
        half(header + kHeader + block % group_blocks * kData, h, out);
      }
    }
  }

  EDGEC_INLINE void dot(__m256i& acc, __m256i w, __m256i x) {
    if constexpr (kInt8) {
      EDGEC_DOT_S16(acc, w, x);
    } else {
      EDGEC_DOT_U4(acc, w, x);
    }
  }

  // Adds kRows x 16 sums. Twelve integer accumulators fill the registers: gcc keeps the float ones on the stack.
  template <int kRows>
  static void tile(const uint8_t* a, const Block* b, int64_t blocks, float* sums) {
    __m256 total[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) total[r][h] = _mm256_load_ps(sums + r * kPanel + 8 * h);
    }
    for (; blocks > 0; --blocks, ++b, a += kRows * kRow) {
      const uint8_t* scales = a + kRows * kValues;
      __m256i acc[kRows][2];
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = acc[r][1] = kInt8   ? _mm256_setzero_si256()
                                : kInt6 ? start_six(scales + kRows * 4 + 4 * r)
                                        : broadcast4(scales + kRows * 4 + 4 * r);
        if constexpr (kFamily == Family::kU4N16K4) {
          for (int h = 0; h < 2; ++h) acc[r][h] = _mm256_mullo_epi16(acc[r][h], load_aligned(b->pair[h]));
        }
      }
#pragma GCC unroll 4
      for (int i = 0; kInt6 && i < kSteps; i += 2) {
        const __m256i even[2] = {load_aligned(b->w[i][0]), load_aligned(b->w[i][1])};
        const __m256i odd[2] = {load_aligned(b->w[i + 1][0]), load_aligned(b->w[i + 1][1])};
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i x0 = broadcast4(a + kValues * r + 4 * i), x1 = broadcast4(a + kValues * r + 4 * i + 4);
          EDGEC_DOT_U6(acc[r][0], even[0], x0, odd[0], x1);
          EDGEC_DOT_U6(acc[r][1], even[1], x0, odd[1], x1);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; !kInt6 && i < kSteps; ++i) {
        const __m256i w0 = load_aligned(b->w[i][0]), w1 = load_aligned(b->w[i][1]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = broadcast4(a + kValues * r + 4 * i);
          dot(acc[r][0], w0, x);
          dot(acc[r][1], w1, x);
        }
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        if constexpr (kFamily == Family::kT4N16K4) {
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const __m256 dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[r][h], load_aligned(b->pair[h])));
            total[r][h] = _mm256_fmadd_ps(dots, _mm256_castsi256_ps(broadcast4(scales + 4 * r)), total[r][h]);
          }
          continue;
        }
        const __m256 scale = _mm256_load_ps(b->scale[h]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          if constexpr (!kInt8 && !kInt6) acc[r][h] = _mm256_madd_epi16(acc[r][h], _mm256_set1_epi16(1));
          total[r][h] = scaled(acc[r][h], scale, scales + 4 * r, total[r][h]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) _mm256_store_ps(sums + r * kPanel + 8 * h, total[r][h]);
    }
  }
};
