// Activations to f16 for AMX. A tile of 32 rows (amx_tile_bytes) ends with [k][32 rows] of f16; x = factor * f16. The
// factor is 1 where the row's largest magnitude is within [2^-3, 2^15), else the power of two that brings it to [1, 4).
// A row with NaN or infinity is NaN throughout; one whose largest is below 2^-119 counts as zero.

EDGEC_INLINE float amx_factor(int32_t top) {
  if (top < 0x04000000) return 1.0f;
  if (top >= 0x3e000000 && top < 0x47000000) return 1.0f;
  const int e = (top >> 23) - 127;
  return power_of_two(e > 126 ? 126 : e);
}

// Eight rows by eight k, each row times its factor's inverse, to [k][32].
EDGEC_INLINE void amx_transpose(const float (*x)[kBlock], const float* inverse, int64_t k, uint16_t* to) {
#if defined(__aarch64__)
  uint16x8_t v[8];
  for (int r = 0; r < 8; ++r) {
    const float32x4_t low = vmulq_n_f32(vld1q_f32(x[r] + k), inverse[r]);
    const float32x4_t high = vmulq_n_f32(vld1q_f32(x[r] + k + 4), inverse[r]);
    v[r] = vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high));
  }
  uint32x4_t w[8];
  for (int r = 0; r < 8; r += 2) {
    w[r] = vreinterpretq_u32_u16(vtrn1q_u16(v[r], v[r + 1]));
    w[r + 1] = vreinterpretq_u32_u16(vtrn2q_u16(v[r], v[r + 1]));
  }
  uint64x2_t d[8];
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      d[i + j] = vreinterpretq_u64_u32(vtrn1q_u32(w[i + j], w[i + j + 2]));
      d[i + j + 2] = vreinterpretq_u64_u32(vtrn2q_u32(w[i + j], w[i + j + 2]));
    }
  }
  for (int j = 0; j < 4; ++j) {
    vst1q_u16(to + 32 * j, vreinterpretq_u16_u64(vtrn1q_u64(d[j], d[j + 4])));
    vst1q_u16(to + 32 * (j + 4), vreinterpretq_u16_u64(vtrn2q_u64(d[j], d[j + 4])));
  }
#else
  for (int r = 0; r < 8; ++r) {
    for (int j = 0; j < 8; ++j) to[32 * j + r] = float_to_half(x[r][k + j] * inverse[r]);
  }
#endif
}

static void prepare_tiles(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = job.row(tile);
    NormedRows rows(job, first, kAmxRows);
    uint8_t* out = job.prepared + tile * amx_tile_bytes(job.blocks);
    float factor[kAmxRows], inverse[kAmxRows];
    bool finite[kAmxRows];
    for (int64_t r = 0; r < kAmxRows; ++r) {
      i32x8 most = splat_i(0);
      for (int64_t at = 0; at < job.args.k && first + r < job.args.m; at += kBlock) {
        const int64_t left = job.args.k - at;
        const float* x = rows.block(r, at, left);
        for (int64_t i = 0; i < kBlock && i < left; i += 8) {
          const i32x8 a = bits(load_n(x + i, left - i)) & 0x7fffffff;
          most = a > most ? a : most;
        }
      }
      int32_t top = most[0];
      for (int i = 1; i < 8; ++i) top = most[i] > top ? most[i] : top;
      finite[r] = top < 0x7f800000;
      factor[r] = finite[r] ? amx_factor(top) : 1.0f;
      inverse[r] = top < 0x04000000 ? 0.0f : 1.0f / factor[r];
    }
    float plain = 1.0f;
    for (const float f : factor) plain = f == 1.0f ? plain : 0.0f;
    __builtin_memcpy(out, factor, sizeof(factor));
    __builtin_memcpy(out + 4 * kAmxPlain, &plain, 4);
    out += kAmxHeader;
    uint64_t* lists = reinterpret_cast<uint64_t*>(out);
    out += amx_lists(job.blocks);
    amx_list(amx_address(out), job.blocks, true, lists);
    amx_list(amx_address(out), job.blocks, false, lists + job.blocks * 8);
    for (int64_t block = 0; block < job.blocks; ++block, out += 2048) {
      alignas(32) float x[8][kBlock];
      for (int64_t r = 0; r < kAmxRows; r += 8) {
        for (int64_t i = 0; i < 8; ++i) {
          const int64_t left = first + r + i < job.args.m ? job.args.k - block * kBlock : 0;
          const float* from = rows.block(r + i, block * kBlock, left);
          for (int64_t j = 0; j < kBlock; j += 8) {
            const f32x8 v = load_n(from + j, left - j > 0 ? left - j : 0);
            store(x[i] + j, finite[r + i] ? v : splat(__builtin_nanf("")));
          }
        }
        for (int64_t k = 0; k < kBlock; k += 8) {
          amx_transpose(x, inverse + r, k, reinterpret_cast<uint16_t*>(out) + 32 * k + r);
        }
      }
    }
  }
}
