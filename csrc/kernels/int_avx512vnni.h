// int4 and int8 tiles for AVX-512 with VNNI: u8 x s8 products of four k summed in int32, 16 columns a register. Weights
// are the unsigned side; the activations' sums times -8, -16, -128 or -zero start the sums and take the offset back.

constexpr int kStreamedRows = 4, kUnpackedRows = 12;

constexpr int64_t row_bytes(Family) { return 40; }

EDGEC_INLINE __m512i broadcast4(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
EDGEC_INLINE __m512 broadcast_scale(const uint8_t* p) { return _mm512_castsi512_ps(broadcast4(p)); }
// Columns 0..7 from p, 8..15 from p + apart.
EDGEC_INLINE __m512i load_halves(const uint8_t* p, int64_t apart) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p + apart));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// A column's scale: f16, or the table's integer (times which a sum is still exact in f32).
template <Family kFamily>
EDGEC_INLINE __m512 load_scales(const uint8_t* p) {
  if constexpr (kFamily == Family::kT4N16K4) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p))));
  } else {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
  }
}
// Sixteen 4-bit zero points, one a column.
EDGEC_INLINE __m512i load_zeros(const uint8_t* p) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p)), mask = _mm_set1_epi8(15);
  const __m128i pairs = _mm_unpacklo_epi8(_mm_and_si128(v, mask), _mm_and_si128(_mm_srli_epi16(v, 4), mask));
  return _mm512_cvtepu8_epi32(pairs);
}

// The table's values + 16, four times, for vpshufb.
struct alignas(64) TableBytes {
  uint8_t u[64];
};
static constexpr TableBytes kTableBytes = [] {
  TableBytes t{};
  for (int i = 0; i < 64; ++i) t.u[i] = static_cast<uint8_t>(kTable[i % 16] + 16);
  return t;
}();

// Steps of 4 k that are unpacked together.
template <Family kFamily>
constexpr int kStepsAtOnce = kFamily == Family::kS8N16K4   ? 1
                             : kFamily == Family::kS6N16K4 ? 4
                                                           : 2;

// 6 bits: the fourth step, whose bits are above those of three. 0xca: of the second where the mask has ones, else the
// third.
EDGEC_INLINE __m512i last_six(__m512i a, __m512i b, __m512i c) {
  const __m512i top = _mm512_ternarylogic_epi32(_mm512_set1_epi8(-64), a, _mm512_srli_epi16(b, 2), 0xca);
  const __m512i all = _mm512_ternarylogic_epi32(_mm512_set1_epi8(-16), top, _mm512_srli_epi16(c, 4), 0xca);
  return _mm512_and_si512(_mm512_srli_epi16(all, 2), _mm512_set1_epi8(63));
}
EDGEC_INLINE __m256i last_six(__m256i a, __m256i b, __m256i c) {
  const __m256i top = _mm256_ternarylogic_epi32(_mm256_set1_epi8(-64), a, _mm256_srli_epi16(b, 2), 0xca);
  const __m256i all = _mm256_ternarylogic_epi32(_mm256_set1_epi8(-16), top, _mm256_srli_epi16(c, 4), 0xca);
  return _mm256_and_si256(_mm256_srli_epi16(all, 2), _mm256_set1_epi8(63));
}

// The i-th kStepsAtOnce steps of a block, each 16 columns x 4 k, unsigned.
template <Family kFamily>
EDGEC_INLINE void unpack_steps(const uint8_t* b, int i, __m512i* out) {
  if constexpr (kFamily == Family::kS8N16K4) {
    out[0] = _mm512_xor_si512(load_halves(b + 32 * i, 256), _mm512_set1_epi8(-128));
    return;
  }
  if constexpr (kFamily == Family::kS6N16K4) {
    for (int j = 0; j < 3; ++j) out[j] = load_halves(b + 96 * i + 32 * j, 192);
    out[3] = last_six(out[0], out[1], out[2]);
    for (int j = 0; j < 3; ++j) out[j] = _mm512_and_si512(out[j], _mm512_set1_epi8(63));
    return;
  }
  constexpr int kPairs = kStepsAtOnce<kFamily> / 2;
  constexpr int64_t kHalf = data_bytes(kFamily) / 2;
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 2
  for (int j = 0; j < kPairs; ++j) {
    const __m512i raw = load_halves(b + 32 * (kPairs * i + j), kHalf);
    out[2 * j] = _mm512_and_si512(raw, mask);
    out[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
  }
  if constexpr (kFamily == Family::kT4N16K4) {
    const __m512i table = _mm512_load_si512(kTableBytes.u);
    out[0] = _mm512_shuffle_epi8(table, out[0]), out[1] = _mm512_shuffle_epi8(table, out[1]);
  }
}

// What a row's sums over a block start with. The product takes the sum's low 16 bits, and it fits them.
template <Family kFamily>
EDGEC_INLINE __m512i start(const uint8_t* sum, __m512i zeros) {
  return kFamily == Family::kU4N16K4 ? _mm512_madd_epi16(broadcast4(sum), zeros) : broadcast4(sum);
}

// total + dots * column scales * row scale.
template <Family kFamily>
EDGEC_INLINE __m512 scaled(__m512i dots, __m512 scale, const uint8_t* row_scale, __m512 total) {
  const __m512 values = _mm512_cvtepi32_ps(dots);
  if constexpr (kFamily == Family::kT4N16K4) {
    return _mm512_fmadd_ps(_mm512_mul_ps(values, scale), broadcast_scale(row_scale), total);
  }
  return _mm512_fmadd_ps(values, _mm512_mul_ps(scale, broadcast_scale(row_scale)), total);
}

// Adds one block of one panel to total[kRows].
template <Family kFamily, int kRows>
EDGEC_INLINE void dot_block(const uint8_t* a, const uint8_t* header, const uint8_t* b, __m512* total) {
  const uint8_t *scales = a + kRows * 32, *sums = scales + kRows * 4;
  __m512i acc[kRows];
  const __m512i zeros = kFamily == Family::kU4N16K4 ? load_zeros(header + 32) : _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) acc[r] = start<kFamily>(sums + 4 * r, zeros);
#pragma GCC unroll 8
  for (int i = 0; i < 8 / kStepsAtOnce<kFamily>; ++i) {
    __m512i w[4];
    unpack_steps<kFamily>(b, i, w);
#pragma GCC unroll 4
    for (int j = 0; j < kStepsAtOnce<kFamily>; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[r] = _mm512_dpbusd_epi32(acc[r], w[j], broadcast4(a + 32 * r + 4 * (kStepsAtOnce<kFamily> * i + j)));
      }
    }
  }
  const __m512 scale = load_scales<kFamily>(header);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) total[r] = scaled<kFamily>(acc[r], scale, scales + 4 * r, total[r]);
}

// One row: 256 bits, which spare putting the halves of a step together. High nibbles stay where they are: their sum is
// 16 times theirs.
struct OneRow {
  __m256i x[8], sum;
  __m256 scale;
};
EDGEC_INLINE OneRow one_row(const uint8_t* a) {
  OneRow row;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row.x[i] = _mm512_castsi512_si256(broadcast4(a + 4 * i));
  row.scale = _mm512_castps512_ps256(broadcast_scale(a + 32));
  row.sum = _mm512_castsi512_si256(broadcast4(a + 36));
  return row;
}
EDGEC_INLINE __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)); }

template <Family kFamily>
EDGEC_INLINE __m256i dot_half(const OneRow& row, const uint8_t* b, __m256i acc) {
  if constexpr (kFamily == Family::kS8N16K4) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      acc = _mm256_dpbusd_epi32(acc, _mm256_xor_si256(load32(b + 32 * i), _mm256_set1_epi8(-128)), row.x[i]);
    }
    return acc;
  }
  if constexpr (kFamily == Family::kS6N16K4) {
    const __m256i mask = _mm256_set1_epi8(63);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i u0 = load32(b + 96 * i), u1 = load32(b + 96 * i + 32), u2 = load32(b + 96 * i + 64);
      acc = _mm256_dpbusd_epi32(acc, _mm256_and_si256(u0, mask), row.x[4 * i]);
      acc = _mm256_dpbusd_epi32(acc, _mm256_and_si256(u1, mask), row.x[4 * i + 1]);
      acc = _mm256_dpbusd_epi32(acc, _mm256_and_si256(u2, mask), row.x[4 * i + 2]);
      acc = _mm256_dpbusd_epi32(acc, last_six(u0, u1, u2), row.x[4 * i + 3]);
    }
    return acc;
  }
  __m256i high = _mm256_setzero_si256();
  const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i raw = load32(b + 32 * i);
    if constexpr (kFamily == Family::kT4N16K4) {
      const __m256i table = _mm512_castsi512_si256(_mm512_load_si512(kTableBytes.u));
      const __m256i w = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
      acc = _mm256_dpbusd_epi32(acc, _mm256_shuffle_epi8(table, _mm256_and_si256(raw, mask)), row.x[2 * i]);
      high = _mm256_dpbusd_epi32(high, _mm256_shuffle_epi8(table, w), row.x[2 * i + 1]);
    } else {
      acc = _mm256_dpbusd_epi32(acc, _mm256_and_si256(raw, mask), row.x[2 * i]);
      high = _mm256_dpbusd_epi32(high, _mm256_andnot_si256(mask, raw), row.x[2 * i + 1]);
    }
  }
  return _mm256_add_epi32(acc, kFamily == Family::kT4N16K4 ? high : _mm256_srai_epi32(high, 4));
}

// Adds one block of one panel to total[2] by one row.
template <Family kFamily>
EDGEC_INLINE void dot_row(const OneRow& row, const uint8_t* header, const uint8_t* b, __m256* total) {
  const __m512 scales = load_scales<kFamily>(header);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    __m256i acc = row.sum;
    if constexpr (kFamily == Family::kU4N16K4) {
      const __m256i zeros = _mm512_castsi512_si256(broadcast4(header + 32 + 4 * h));
      const __m256i each = _mm256_srlv_epi32(zeros, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
      acc = _mm256_madd_epi16(acc, _mm256_and_si256(each, _mm256_set1_epi32(15)));
    }
    acc = dot_half<kFamily>(row, b + h * data_bytes(kFamily) / 2, acc);
    const __m256 values = _mm256_cvtepi32_ps(acc);
    const __m256 scale = h ? _mm512_extractf32x8_ps(scales, 1) : _mm512_castps512_ps256(scales);
    if constexpr (kFamily == Family::kT4N16K4) {
      total[h] = _mm256_fmadd_ps(_mm256_mul_ps(values, scale), row.scale, total[h]);
    } else {
      total[h] = _mm256_fmadd_ps(values, _mm256_mul_ps(scale, row.scale), total[h]);
    }
  }
}

// As stream_panels, by one row.
template <Family kFamily, int kPanels>
EDGEC_INLINE void stream_row(const uint8_t* a, const uint8_t* const* panels, int64_t from, int64_t to,
                             int64_t group_blocks, float* totals) {
  constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
  __m256 total[kPanels][2];
  for (int p = 0; p < kPanels; ++p) {
    for (int h = 0; h < 2; ++h) total[p][h] = _mm256_load_ps(totals + p * kPanel + 8 * h);
  }
  a += from * row_bytes(kFamily);
  int64_t group = panel_header_bytes(kFamily) + from / group_blocks * (kHeader + group_blocks * kData);
  int64_t in_group = from % group_blocks;
  for (int64_t block = from; block < to; ++block, a += row_bytes(kFamily)) {
    const OneRow row = one_row(a);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* header = panels[p] + group;
      dot_row<kFamily>(row, header, header + kHeader + in_group * kData, total[p]);
    }
    if (++in_group == group_blocks) in_group = 0, group += kHeader + group_blocks * kData;
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int h = 0; h < 2; ++h) _mm256_store_ps(totals + p * kPanel + 8 * h, total[p][h]);
  }
}

// Blocks [from, to) of kPanels panels in turn by a row tile. totals: [panel][total_rows][16].
template <Family kFamily, int kRows, int kPanels>
EDGEC_INLINE void stream_panels(const uint8_t* a, const uint8_t* const* panels, int64_t from, int64_t to,
                                int64_t group_blocks, float* totals, int64_t total_rows) {
  constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
  __m512 total[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) total[p][r] = _mm512_load_ps(totals + (p * total_rows + r) * kPanel);
  }
  a += from * kRows * row_bytes(kFamily);
  int64_t group = panel_header_bytes(kFamily) + from / group_blocks * (kHeader + group_blocks * kData);
  int64_t in_group = from % group_blocks;
  for (int64_t block = from; block < to; ++block, a += kRows * row_bytes(kFamily)) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* header = panels[p] + group;
      dot_block<kFamily, kRows>(a, header, header + kHeader + in_group * kData, total[p]);
      // Else gcc loads each panel's activations once for all four, and spills them.
      __asm__ volatile("" ::: "memory");
    }
    if (++in_group == group_blocks) in_group = 0, group += kHeader + group_blocks * kData;
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) _mm512_store_ps(totals + (p * total_rows + r) * kPanel, total[p][r]);
  }
}

template <Family kFamily, int kRows>
static void stream_blocks(const uint8_t* a, const uint8_t* const* panels, int count, int64_t from, int64_t to,
                          int64_t group_blocks, float* totals, int64_t total_rows) {
  if constexpr (kRows == 1) {
    if (count == 4 && total_rows == 1) return stream_row<kFamily, 4>(a, panels, from, to, group_blocks, totals);
  }
  if (count == 4) return stream_panels<kFamily, kRows, 4>(a, panels, from, to, group_blocks, totals, total_rows);
  for (int p = 0; p < count; ++p) {
    float* to_add = totals + p * total_rows * kPanel;
    stream_panels<kFamily, kRows, 1>(a, panels + p, from, to, group_blocks, to_add, total_rows);
  }
}

// 16 columns x 32 of k as the multiply takes them.
struct alignas(64) UnpackedBlock {
  uint8_t w[8][64];
  float scale[kPanel];
  int32_t zero[kPanel];  // u4
};

template <Family kFamily>
struct Unpack {
  using Block = UnpackedBlock;
  static constexpr int64_t kRow = row_bytes(kFamily);
  static constexpr int64_t kDepth = 28;  // blocks that fit L1 beside a row tile

  // Blocks [from, to) of a panel.
  static void blocks(const uint8_t* b, int64_t from, int64_t to, int64_t group_blocks, Block* out) {
    constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
    for (int64_t block = from; block < to; ++block, ++out) {
      const uint8_t* header = b + panel_header_bytes(kFamily) + block / group_blocks * (kHeader + group_blocks * kData);
      const uint8_t* data = header + kHeader + block % group_blocks * kData;
      _mm512_store_ps(out->scale, load_scales<kFamily>(header));
      if constexpr (kFamily == Family::kU4N16K4) _mm512_store_si512(out->zero, load_zeros(header + 32));
      for (int i = 0; i < 8 / kStepsAtOnce<kFamily>; ++i) {
        __m512i w[4];
        unpack_steps<kFamily>(data, i, w);
        for (int j = 0; j < kStepsAtOnce<kFamily>; ++j) {
          _mm512_store_si512(out->w[kStepsAtOnce<kFamily> * i + j], w[j]);
        }
      }
    }
  }

  // Adds kRows x 16 sums.
  template <int kRows>
  static void tile(const uint8_t* a, const Block* b, int64_t blocks, float* sums) {
    __m512 total[kRows];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) total[r] = _mm512_load_ps(sums + r * kPanel);
    for (; blocks > 0; --blocks, ++b, a += kRows * kRow) {
      const uint8_t *scales = a + kRows * 32, *offsets = scales + kRows * 4;
      __m512i acc[kRows];
      const __m512i zeros = kFamily == Family::kU4N16K4 ? _mm512_load_si512(b->zero) : _mm512_setzero_si512();
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) acc[r] = start<kFamily>(offsets + 4 * r, zeros);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const __m512i w = _mm512_load_si512(b->w[i]);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) acc[r] = _mm512_dpbusd_epi32(acc[r], w, broadcast4(a + 32 * r + 4 * i));
      }
      const __m512 scale = _mm512_load_ps(b->scale);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) total[r] = scaled<kFamily>(acc[r], scale, scales + 4 * r, total[r]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) _mm512_store_ps(sums + r * kPanel, total[r]);
  }
};
