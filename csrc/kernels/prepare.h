// Activations to s8 per block of 32: scale = max|x| / 127, ties to even. A block with NaN or infinity gets scale NaN,
// which makes its row's outputs NaN; one whose max is below 2^-119 counts as zero (1 / scale would overflow).

template <bool kWide>
EDGEC_INLINE void quantize_block(const float* x, int64_t valid, uint8_t* values, float* scale, int32_t sums[2]) {
  f32x8 v[4];
  for (int i = 0; i < 4; ++i)
    v[i] = valid >= 8 * i + 8 ? load(x + 8 * i) : load_n(x + 8 * i, valid > 8 * i ? valid - 8 * i : 0);
  // As integers, so that NaN counts as larger than infinity.
  i32x8 m = bits(v[0]) & 0x7fffffff;
  for (int i = 1; i < 4; ++i) {
    const i32x8 a = bits(v[i]) & 0x7fffffff;
    m = a > m ? a : m;
  }
#if defined(__AVX2__)
  __m128i high = _mm_max_epi32(_mm256_castsi256_si128(__m256i(m)), _mm256_extracti128_si256(__m256i(m), 1));
  high = _mm_max_epi32(high, _mm_shuffle_epi32(high, 0x4e));
  const int32_t top = _mm_cvtsi128_si32(_mm_max_epi32(high, _mm_shuffle_epi32(high, 0xb1)));
#else
  int32_t top = m[0];
  for (int i = 1; i < 8; ++i) top = m[i] > top ? m[i] : top;
#endif
  float amax;
  __builtin_memcpy(&amax, &top, 4);
  float inverse = 0.0f;
  if (top >= 0x7f800000) {
    *scale = __builtin_nanf("");
  } else if (top < 0x04000000) {
    *scale = 0.0f;
  } else {
    *scale = amax / 127.0f;
    inverse = 127.0f / amax;
  }
#if defined(__AVX2__)
  if constexpr (!kWide) {
    // Packs work within 128-bit halves: the permutation puts the eight groups of four back in order.
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm256_cvtps_epi32(top >= 0x7f800000 ? _mm256_setzero_ps() : __m256(v[i] * inverse));
    }
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i s8 = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(values), s8);
    // (k % 4 in {0, 1}, {2, 3}) pairs of int16, each summed over the eight steps of 4.
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), s8);
    __m128i four = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    four = _mm_add_epi16(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi16(four, _mm_shuffle_epi32(four, 0xb1));
    const uint32_t both = static_cast<uint32_t>(_mm_cvtsi128_si32(four));
    sums[0] = static_cast<int16_t>(both), sums[1] = static_cast<int16_t>(both >> 16);
    return;
  }
#endif
  i32x8 total = splat_i(0);
  for (int i = 0; i < 4; ++i) {
    i32x8 q = top >= 0x7f800000 ? splat_i(0) : round_even(v[i] * inverse);
    total += q;
    if constexpr (kWide) {
      typedef int16_t i16x8 __attribute__((vector_size(16)));
      // Of four, k = 0, 2, 1, 3: as the int8 kernels pair weights.
      const i16x8 in_order = __builtin_convertvector(q, i16x8);
      const i16x8 s = __builtin_shufflevector(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7);
      __builtin_memcpy(values + 16 * i, &s, 16);
    } else {
      const i8x8 s = __builtin_convertvector(q, i8x8);
      __builtin_memcpy(values + 8 * i, &s, 8);
    }
  }
  sums[0] = total[0] + total[1] + total[4] + total[5];
  sums[1] = total[2] + total[3] + total[6] + total[7];
}

// Kernels of unsigned weights see u = q + 8 (s4), q + 16 (t4), q + 32 (s6), q + 128 (s8) or q + zero (u4): the sums,
// times -8 ..., take the offset back. Times -32 they would not fit s16.
static int32_t sum_factor(const Format& format, bool total) {
  if (format.bits == 6) return total ? -32 : -1;
  return format.table ? -16 : !format.symmetric ? -1 : format.bits == 8 ? -128 : -8;
}

// kTotal: one s32 sum, not two of s16.
template <bool kWide, bool kTotal = false>
static void prepare_blocks(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  const int64_t value_bytes = kWide ? 64 : 32, row_bytes = kWide ? 68 : 40;
  const Format& format = *job.args.format;
  const int32_t factor = sum_factor(format, kTotal);
  // X4: what a row's integer sums start from (int_unpacked_neon.h); only s4 and s6 have their offset in there.
  const bool starts = job.lhs == Lhs::S8B32X4;
  const int32_t start_factor = format.bits == 6 ? -32 : format.bits == 4 && format.symmetric && !format.table ? -8 : 0;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = job.row(tile), mr = job.stored_rows(tile);
    NormedRows rows(job, first, mr);
    uint8_t* out = job.prepared + first * job.blocks * row_bytes;
    for (int64_t b = 0; b < job.blocks; ++b, out += mr * row_bytes) {
      uint8_t* scales = out + mr * value_bytes;
      for (int64_t r = 0; r < mr; ++r) {
        const int64_t left = first + r < job.args.m ? job.args.k - b * kBlock : 0;
        float scale;
        int32_t sums[2];
        quantize_block<kWide>(rows.block(r, b * kBlock, left), left < kBlock ? left : kBlock, out + r * value_bytes,
                              &scale, sums);
        __builtin_memcpy(scales + 4 * r, &scale, 4);
        if (kTotal || starts) {
          const int32_t sum = sums[0] + sums[1], total = starts ? 0x4b400000 + start_factor * sum : factor * sum;
          __builtin_memcpy(scales + 4 * mr + 4 * r, &total, 4);
        } else if constexpr (!kWide) {
          const int16_t pair[2] = {static_cast<int16_t>(factor * sums[0]), static_cast<int16_t>(factor * sums[1])};
          __builtin_memcpy(scales + 4 * mr + 4 * r, pair, 4);
        }
      }
    }
  }
}

static void prepare_s8b32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  prepare_blocks<false>(job, tile_begin, tile_end);
}
static void prepare_s16b32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  prepare_blocks<true>(job, tile_begin, tile_end);
}
#if defined(__x86_64__)
static void prepare_s8b32t(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  prepare_blocks<false, true>(job, tile_begin, tile_end);
}
#define EDGEC_PREPARE_X86 prepare_s8b32t
#else
#define EDGEC_PREPARE_X86 nullptr
#endif

#if defined(__aarch64__)
static void prepare_s8p2b32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = job.row(tile), mr = job.stored_rows(tile);
    NormedRows rows(job, first, mr);
    uint8_t* out = job.prepared + first * job.blocks * 40;
    for (int64_t b = 0; b < job.blocks; ++b, out += mr * 40) {
      for (int64_t r = 0; r < mr; ++r) {
        const int64_t left = first + r < job.args.m ? job.args.k - b * kBlock : 0;
        uint8_t values[32];
        float scale[2];
        int32_t sums[2];
        quantize_block<false>(rows.block(r, b * kBlock, left), left < kBlock ? left : kBlock, values, scale, sums);
        scale[1] = scale[0];
        uint8_t* to = out + r / 2 * 64 + r % 2 * 8;
        for (int i = 0; i < 4; ++i) __builtin_memcpy(to + 16 * i, values + 8 * i, 8);
        __builtin_memcpy(out + mr * 32 + 8 * r, scale, 8);
      }
    }
  }
}

// A tile of 16 rows, block by block: 8 steps of 4 k, each 16 rows x 4; 16 scales; 16 sums as s32.
static void prepare_s8q16b32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = job.row(tile);
    NormedRows rows(job, first, 16);
    uint8_t* out = job.prepared + first * job.blocks * 40;
    for (int64_t b = 0; b < job.blocks; ++b, out += 16 * 40) {
      for (int64_t r = 0; r < 16; ++r) {
        const int64_t left = first + r < job.args.m ? job.args.k - b * kBlock : 0;
        uint8_t values[32];
        float scale;
        int32_t sums[2];
        quantize_block<false>(rows.block(r, b * kBlock, left), left < kBlock ? left : kBlock, values, &scale, sums);
        const int32_t sum = sums[0] + sums[1];
        for (int i = 0; i < 8; ++i) __builtin_memcpy(out + 64 * i + 4 * r, values + 4 * i, 4);
        __builtin_memcpy(out + 512 + 4 * r, &scale, 4);
        __builtin_memcpy(out + 576 + 4 * r, &sum, 4);
      }
    }
  }
}
#define EDGEC_PREPARE_ARM prepare_s8p2b32, prepare_s8q16b32
#else
#define EDGEC_PREPARE_ARM nullptr, nullptr
#endif
