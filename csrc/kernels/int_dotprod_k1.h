// int4 in panels of 32 columns, k by k (for AMX), on few rows with sdot: zips bring four k of a column together.
// A byte is an even column (low nibble) and the odd one after it: sums are kept as even and odd halves of 8 columns.

template <Family kFamily, int kRows>
static void dot_k1(const LinearJob& job, const uint8_t* a, const uint8_t* data, float* sums) {
  const uint8x16_t mask = vdupq_n_u8(15);
  float32x4_t total[kRows][8];
  for (int r = 0; r < kRows; ++r) {
    for (float32x4_t& t : total[r]) t = vdupq_n_f32(0.0f);
  }
  for (int64_t blocks = job.blocks; blocks > 0;) {
    const uint8_t* header = data;
    data += header_bytes(kFamily);
    int64_t n = job.group_blocks < blocks ? job.group_blocks : blocks;
    blocks -= n;
    do {
      int8x16_t x[kRows][2];
      int32x4_t dots[kRows][8];
      for (int r = 0; r < kRows; ++r) {
        x[r][0] = vld1q_s8(reinterpret_cast<const int8_t*>(a) + 32 * r);
        x[r][1] = vld1q_s8(reinterpret_cast<const int8_t*>(a) + 32 * r + 16);
        const int32x4_t start = vdupq_n_s32(neon_correction<kFamily>(a + kRows * 36 + 4 * r));
        for (int32x4_t& d : dots[r]) d = start;
      }
      if constexpr (has_zeros(kFamily)) {
        const uint8x16_t z = vld1q_u8(header + 64), part[2] = {vandq_u8(z, mask), vshrq_n_u8(z, 4)};
        for (int g = 0; g < 4; ++g) {
          for (int odd = 0; odd < 2; ++odd) {
            const uint16x8_t wide = vmovl_u8(g < 2 ? vget_low_u8(part[odd]) : vget_high_u8(part[odd]));
            const int32x4_t zero = vreinterpretq_s32_u32(vmovl_u16(g % 2 ? vget_high_u16(wide) : vget_low_u16(wide)));
            for (int r = 0; r < kRows; ++r) dots[r][2 * g + odd] = vmulq_s32(dots[r][2 * g + odd], zero);
          }
        }
      }
#define EDGEC_DOTS(g, w, v, h)                                                                                         \
  for (int r = 0; r < kRows; ++r) {                                                                                    \
    dots[r][2 * (g)] =                                                                                                 \
        vdotq_laneq_s32(dots[r][2 * (g)], vreinterpretq_s8_u8(vandq_u8(w, mask)), x[r][(v) / 2], 2 * ((v) % 2) + (h)); \
    dots[r][2 * (g) + 1] = vdotq_laneq_s32(dots[r][2 * (g) + 1], vreinterpretq_s8_u8(vshrq_n_u8(w, 4)), x[r][(v) / 2], \
                                           2 * ((v) % 2) + (h));                                                       \
  }
      // Four k from 8v + 4h on: 16 bytes each, 64 apart; those of v + 1 lie beside them.
#define EDGEC_ZIPS(v, h, i)                                                  \
  {                                                                          \
    const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(k0[i], k1[i]));  \
    const uint16x8_t low23 = vreinterpretq_u16_u8(vzip1q_u8(k2[i], k3[i]));  \
    const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(k0[i], k1[i])); \
    const uint16x8_t high23 = vreinterpretq_u16_u8(vzip2q_u8(k2[i], k3[i])); \
    EDGEC_DOTS(0, vreinterpretq_u8_u16(vzip1q_u16(low01, low23)), v, h)      \
    EDGEC_DOTS(1, vreinterpretq_u8_u16(vzip2q_u16(low01, low23)), v, h)      \
    EDGEC_DOTS(2, vreinterpretq_u8_u16(vzip1q_u16(high01, high23)), v, h)    \
    EDGEC_DOTS(3, vreinterpretq_u8_u16(vzip2q_u16(high01, high23)), v, h)    \
  }
#define EDGEC_PAIR(at) {vld1q_u8(at), vld1q_u8((at) + 16)}
#define EDGEC_STEP(v, h)                                                                       \
  {                                                                                            \
    __asm__ volatile("" : "+r"(data)); /* no loads before their time: they would be spilled */ \
    const uint8_t* at = data + 256 * (h) + 16 * (v);                                           \
    const uint8x16_t k0[2] = EDGEC_PAIR(at), k1[2] = EDGEC_PAIR(at + 64);                      \
    const uint8x16_t k2[2] = EDGEC_PAIR(at + 128), k3[2] = EDGEC_PAIR(at + 192);               \
    EDGEC_ZIPS(v, h, 0) EDGEC_ZIPS(v + 1, h, 1)                                                \
  }
      EDGEC_STEP(0, 0)
      EDGEC_STEP(0, 1)
      EDGEC_STEP(2, 0)
      EDGEC_STEP(2, 1)
#undef EDGEC_ZIPS
#undef EDGEC_PAIR
#undef EDGEC_STEP
#undef EDGEC_DOTS
      // Made again for each block: there are no registers to keep them in.
      float32x4_t scale[8];
      for (int h = 0; h < 2; ++h) {
        const uint16x8x2_t s = vld2q_u16(reinterpret_cast<const uint16_t*>(header) + 16 * h);
        for (int odd = 0; odd < 2; ++odd) {
          const float16x8_t f = vreinterpretq_f16_u16(s.val[odd]);
          scale[4 * h + odd] = vcvt_f32_f16(vget_low_f16(f)), scale[4 * h + 2 + odd] = vcvt_high_f32_f16(f);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        float row_scale;
        __builtin_memcpy(&row_scale, a + kRows * 32 + 4 * r, 4);
        for (int i = 0; i < 8; ++i) {
          total[r][i] = vfmaq_f32(total[r][i], vcvtq_f32_s32(dots[r][i]), vmulq_n_f32(scale[i], row_scale));
        }
      }
      data += data_bytes(kFamily);
      a += kRows * 40;
    } while (--n > 0);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < 4; ++g) {
      const float32x4x2_t both = {{total[r][2 * g], total[r][2 * g + 1]}};
      vst2q_f32(sums + (g / 2 * kRows + r) * kPanel + g % 2 * 8, both);
    }
  }
}

template <Family kFamily>
static void linear_dot_k1(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                          int64_t panel_end) {
  float sums[2 * 4 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel / 2 * job.panel_bytes;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* a = job.prepared + row * job.blocks * 40;
      (rows == 1   ? dot_k1<kFamily, 1>
       : rows == 2 ? dot_k1<kFamily, 2>
       : rows == 3 ? dot_k1<kFamily, 3>
                   : dot_k1<kFamily, 4>)(job, a, b, sums);
      store_tile(job, row, rows, panel, sums);
      if ((panel + 1) * kPanel < job.args.n) store_tile(job, row, rows, panel + 1, sums + rows * kPanel);
    }
  }
}
