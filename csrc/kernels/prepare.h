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
  int32_t top = m[0];
  for (int i = 1; i < 8; ++i) top = m[i] > top ? m[i] : top;
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
  i32x8 total = splat_i(0);
  for (int i = 0; i < 4; ++i) {
    i32x8 q = top >= 0x7f800000 ? splat_i(0) : round_even(v[i] * inverse);
    total += q;
    if constexpr (kWide) {
      typedef int16_t i16x8 __attribute__((vector_size(16)));
      const i16x8 s = __builtin_convertvector(q, i16x8);
      __builtin_memcpy(values + 16 * i, &s, 16);
    } else {
      const i8x8 s = __builtin_convertvector(q, i8x8);
      __builtin_memcpy(values + 8 * i, &s, 8);
    }
  }
  sums[0] = total[0] + total[1] + total[4] + total[5];
  sums[1] = total[2] + total[3] + total[6] + total[7];
}

template <bool kWide>
static void prepare_blocks(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  const int64_t value_bytes = kWide ? 64 : 32, row_bytes = kWide ? 68 : 40;
  // u4 kernels see u = q + 8 (s4) or u = q + zero (u4): the sums, times -8 or -zero, take the offset back.
  const int32_t factor = job.args.format->symmetric ? -8 : -1;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = job.row(tile), mr = job.row(tile + 1) - first;
    uint8_t* out = job.prepared + first * job.blocks * row_bytes;
    for (int64_t b = 0; b < job.blocks; ++b, out += mr * row_bytes) {
      uint8_t* scales = out + mr * value_bytes;
      for (int64_t r = 0; r < mr; ++r) {
        const int64_t left = job.args.k - b * kBlock;
        float scale;
        int32_t sums[2];
        quantize_block<kWide>(job.args.x + (first + r) * job.args.ldx + b * kBlock, left < kBlock ? left : kBlock,
                              out + r * value_bytes, &scale, sums);
        __builtin_memcpy(scales + 4 * r, &scale, 4);
        if constexpr (!kWide) {
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
