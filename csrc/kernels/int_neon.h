// int4 and int8 tiles of few rows for Armv8.0: widening multiplies, summed in int16 as far as that holds.

// One row times four columns and one block.
template <Family kFamily>
EDGEC_INLINE int32x4_t neon_dot4(const uint8_t* x, const uint8_t* data, int quarter) {
  if constexpr (kFamily == Family::kS8N16K4) {
    const uint8_t* at = data + quarter / 2 * 256 + quarter % 2 * 16;
    int32x4_t low = vdupq_n_s32(0), high = low;
    for (int i = 0; i < 4; ++i) {
      // Two products of s8 fit int16, as activations never are -128.
      const int8x16_t w0 = vreinterpretq_s8_u8(vld1q_u8(at + 64 * i));
      const int8x16_t w1 = vreinterpretq_s8_u8(vld1q_u8(at + 64 * i + 32));
      int32_t two[2];
      __builtin_memcpy(two, x + 8 * i, 8);
      const int8x8_t x0 = vreinterpret_s8_s32(vdup_n_s32(two[0])), x1 = vreinterpret_s8_s32(vdup_n_s32(two[1]));
      low = vpadalq_s16(low, vmlal_s8(vmull_s8(vget_low_s8(w0), x0), vget_low_s8(w1), x1));
      high = vpadalq_s16(high, vmlal_s8(vmull_s8(vget_high_s8(w0), x0), vget_high_s8(w1), x1));
    }
    return vpaddq_s32(low, high);
  } else if constexpr (kFamily == Family::kS6N16K4) {
    const uint8_t* at = data + quarter / 2 * 192 + quarter % 2 * 16;
    int32x4_t low = vdupq_n_s32(0), high = low;
    NeonSixes sixes;
    for (int i = 0; i < 4; ++i) {
      // Two products of u6 and s8 fit int16.
      const uint8_t* three = at + 48 * i;
      if (i % 2 == 0) sixes = neon_sixes(vld1q_u8(three), vld1q_u8(three + 32), vld1q_u8(three + 64));
      const int8x16_t w0 = vreinterpretq_s8_u8(sixes.step[i % 2 * 2]);
      const int8x16_t w1 = vreinterpretq_s8_u8(sixes.step[i % 2 * 2 + 1]);
      int32_t two[2];
      __builtin_memcpy(two, x + 8 * i, 8);
      const int8x8_t x0 = vreinterpret_s8_s32(vdup_n_s32(two[0])), x1 = vreinterpret_s8_s32(vdup_n_s32(two[1]));
      low = vpadalq_s16(low, vmlal_s8(vmull_s8(vget_low_s8(w0), x0), vget_low_s8(w1), x1));
      high = vpadalq_s16(high, vmlal_s8(vmull_s8(vget_high_s8(w0), x0), vget_high_s8(w1), x1));
    }
    return vpaddq_s32(low, high);
  } else {
    const uint8_t* at = data + quarter / 2 * 128 + quarter % 2 * 16;
    int16x8_t low = vdupq_n_s16(0), high = low;
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t raw = vld1q_u8(at + 32 * i);
      const int8x16_t w0 = neon_nibbles<kFamily>(vandq_u8(raw, vdupq_n_u8(15)));
      const int8x16_t w1 = neon_nibbles<kFamily>(vshrq_n_u8(raw, 4));
      int32_t two[2];
      __builtin_memcpy(two, x + 8 * i, 8);
      const int8x8_t x0 = vreinterpret_s8_s32(vdup_n_s32(two[0])), x1 = vreinterpret_s8_s32(vdup_n_s32(two[1]));
      low = vmlal_s8(vmlal_s8(low, vget_low_s8(w0), x0), vget_low_s8(w1), x1);
      high = vmlal_s8(vmlal_s8(high, vget_high_s8(w0), x0), vget_high_s8(w1), x1);
    }
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
  }
}

template <Family kFamily>
static void linear_int_neon(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                            int64_t panel_end) {
  float sums[4 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* from = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
      const uint8_t *b = from + panel_header_bytes(kFamily), *a = job.prepared + row * job.blocks * 40;
      for (float& s : sums) s = 0.0f;
      for (int64_t block = 0; block < job.blocks;) {
        const uint8_t* header = b;
        b += header_bytes(kFamily);
        for (int64_t i = 0; i < job.group_blocks && block < job.blocks; ++i, ++block) {
          for (int quarter = 0; quarter < 4; ++quarter) {
            constexpr bool kTable = kFamily == Family::kT4N16K4;
            const float32x4_t scale = kTable ? vdupq_n_f32(1.0f) : neon_scales(header, quarter);
            for (int64_t r = 0; r < rows; ++r) {
              int32x4_t dot = neon_dot4<kFamily>(a + 32 * r, b, quarter);
              if constexpr (kTable) {
                dot = vmulq_s32(dot, neon_integer_scales(header, quarter));
              } else if constexpr (kFamily != Family::kS8N16K4) {
                const int32_t correction = neon_correction<kFamily>(a + rows * 36 + 4 * r);
                if constexpr (kFamily == Family::kU4N16K4) {
                  dot = vmlaq_n_s32(dot, neon_zeros(header, quarter), correction);
                } else {
                  dot = vaddq_s32(dot, vdupq_n_s32(correction));
                }
              }
              float row_scale;
              __builtin_memcpy(&row_scale, a + rows * 32 + 4 * r, 4);
              float* to = sums + r * kPanel + 4 * quarter;
              vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(dot), vmulq_n_f32(scale, row_scale)));
            }
          }
          b += data_bytes(kFamily);
          a += rows * 40;
        }
      }
      if (kFamily == Family::kT4N16K4) apply_exponents(from, rows, sums);
      store_tile(job, row, rows, panel, sums);
    }
  }
}
