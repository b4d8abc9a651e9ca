// int4 and int8 products of many rows for Arm: each stretch of a panel is unpacked once, into L1, and every row tile
// runs over it, 12 rows x 4 columns at a time. With sdot a sum is 1 row x 4 columns, with smmla 2 x 2, kept so to the
// end.
//
// Integer sums start from the bits of 1.5 x 2^23 and so end as the bits of a float F = 1.5 x 2^23 + dot. One FMA,
// F * scale - 1.5 x 2^23 * scale (exact, a f16 scale has 11 bits), both converts and scales. Starts and addends come
// four registers to a load, where movi and mov would be one each.

// Four columns x 32 of k: weights, scales, and -1.5 x 2^23 times the scales for each of four sums.
struct alignas(16) UnpackedQuarter {
  int8_t w[8][16];
#if defined(EDGEC_KERNELS_I8MM)
  float scale[2][4];  // c0 c1 c0 c1, c2 c3 c2 c3
#else
  float scale[1][4];
#endif
  float addend[4][4];
};

constexpr int64_t kUnpackDepth = 32;  // blocks: 27 kB

template <Family kFamily>
static void unpack_blocks(const uint8_t* b, int64_t from, int64_t to, int64_t group_blocks,
                          UnpackedQuarter (*out)[kUnpackDepth]) {
  constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
  constexpr bool kInt8 = kFamily == Family::kS8N16K4, kSigned = kFamily == Family::kS4N16K4;
  for (int64_t block = from; block < to; ++block) {
    const uint8_t* header = b + block / group_blocks * (kHeader + group_blocks * kData);
    const uint8_t* data = header + kHeader + block % group_blocks * kData;
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      UnpackedQuarter& to_quarter = out[quarter][block - from];
      int8x16_t w[8];
      if constexpr (kInt8) {
        const uint8_t* at = data + quarter / 2 * 256 + quarter % 2 * 16;
        for (int j = 0; j < 8; ++j) w[j] = vreinterpretq_s8_u8(vld1q_u8(at + 32 * j));
      } else {
        const uint8_t* at = data + quarter / 2 * 128 + quarter % 2 * 16;
        int8x16_t zero = vdupq_n_s8(0);
        if constexpr (!kSigned) zero = vreinterpretq_s8_s32(vmulq_n_s32(neon_zeros(header, quarter), 0x01010101));
        for (int i = 0; i < 4; ++i) {
          uint8x16_t raw = vld1q_u8(at + 32 * i);
          if constexpr (kSigned) {
            // q + 8 to q in two's complement, times 16: no subtraction for either nibble.
            raw = veorq_u8(raw, vdupq_n_u8(0x88));
            w[2 * i] = vreinterpretq_s8_u8(vshlq_n_u8(raw, 4));
            w[2 * i + 1] = vreinterpretq_s8_u8(vandq_u8(raw, vdupq_n_u8(0xf0)));
          } else {
            w[2 * i] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(raw, vdupq_n_u8(15))), zero);
            w[2 * i + 1] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(raw, 4)), zero);
          }
        }
      }
      const float32x4_t scale = vmulq_n_f32(neon_scales(header, quarter), kSigned ? 0.0625f : 1.0f);
      const float32x4_t addend = vmulq_n_f32(scale, -12582912.0f);
#if defined(EDGEC_KERNELS_I8MM)
      int8x16x4_t first, second;
      for (int i = 0; i < 4; ++i) {
        const int32x4_t low = vreinterpretq_s32_s8(w[2 * i]), high = vreinterpretq_s32_s8(w[2 * i + 1]);
        first.val[i] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
        second.val[i] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
      }
      vst1q_s8_x4(to_quarter.w[0], first), vst1q_s8_x4(to_quarter.w[4], second);
      const auto low_pair = [](float32x4_t v) {
        return vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(v), 0));
      };
      const auto high_pair = [](float32x4_t v) {
        return vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(v), 1));
      };
      vst1q_f32(to_quarter.scale[0], low_pair(scale)), vst1q_f32(to_quarter.scale[1], high_pair(scale));
      for (int i = 0; i < 4; ++i) vst1q_f32(to_quarter.addend[i], i % 2 ? high_pair(addend) : low_pair(addend));
#else
      const int8x16x4_t first = {{w[0], w[1], w[2], w[3]}}, second = {{w[4], w[5], w[6], w[7]}};
      vst1q_s8_x4(to_quarter.w[0], first), vst1q_s8_x4(to_quarter.w[4], second);
      vst1q_f32(to_quarter.scale[0], scale);
      for (int i = 0; i < 4; ++i) vst1q_f32(to_quarter.addend[i], addend);
#endif
    }
  }
}

// Registers: v0-v11 sums, v12-v19 weights, v20-v23 dots, v24-v27 activations, then addends; v28 up: scales. In asm, for
// all 32 are used and four to a load must be neighbours.
// clang-format off
#if defined(EDGEC_KERNELS_I8MM)
#define EDGEC_DOT(d0, d1, x, w0, w1)      \
  "smmla v" #d0 ".4s, v" #x ".16b, v" #w0 \
  ".16b\n\t"                              \
  "smmla v" #d1 ".4s, v" #x ".16b, v" #w1 ".16b\n\t"
#define EDGEC_ROWS2(d0, d1)     \
  EDGEC_DOT(d0, d1, 24, 12, 16) \
  EDGEC_DOT(d0, d1, 25, 13, 17) EDGEC_DOT(d0, d1, 26, 14, 18) EDGEC_DOT(d0, d1, 27, 15, 19)
#define EDGEC_LOAD_SCALES "ldp q28, q29, [%[b]], #32\n\t"
#define EDGEC_LOAD_ROW_SCALES(quads)
#define EDGEC_QUAD_SCALES(last) "ldp q30, q31, [%[s]], #" last "\n\t"
#define EDGEC_SCALE4(t0, t1, t2, t3, q)                            \
  "fmla v24.4s, v20.4s, v28.4s\n\tfmla v25.4s, v21.4s, v29.4s\n\t" \
  "fmla v26.4s, v22.4s, v28.4s\n\tfmla v27.4s, v23.4s, v29.4s\n\t" \
  "fmla v" #t0 ".4s, v24.4s, v30.4s\n\tfmla v" #t1                 \
  ".4s, v25.4s, v30.4s\n\t"                                        \
  "fmla v" #t2 ".4s, v26.4s, v31.4s\n\tfmla v" #t3 ".4s, v27.4s, v31.4s\n\t"
#else
#define EDGEC_DOT(d0, d1, w, x0, x1, lane)            \
  "sdot v" #d0 ".4s, v" #w ".16b, v" #x0 ".4b[" #lane \
  "]\n\t"                                             \
  "sdot v" #d1 ".4s, v" #w ".16b, v" #x1 ".4b[" #lane "]\n\t"
#define EDGEC_ROWS2(d0, d1)        \
  EDGEC_DOT(d0, d1, 12, 24, 26, 0) \
  EDGEC_DOT(d0, d1, 13, 24, 26, 1) \
  EDGEC_DOT(d0, d1, 14, 24, 26, 2) \
  EDGEC_DOT(d0, d1, 15, 24, 26, 3) \
  EDGEC_DOT(d0, d1, 16, 25, 27, 0) \
  EDGEC_DOT(d0, d1, 17, 25, 27, 1) EDGEC_DOT(d0, d1, 18, 25, 27, 2) EDGEC_DOT(d0, d1, 19, 25, 27, 3)
#define EDGEC_LOAD_SCALES "ldr q28, [%[b]], #16\n\t"
#define EDGEC_LOAD_ROW_SCALES(quads) EDGEC_LOAD_ROW_SCALES_##quads
#define EDGEC_LOAD_ROW_SCALES_1 "ld1 {v29.4s}, [%[s]], %[s_step]\n\t"
#define EDGEC_LOAD_ROW_SCALES_2 "ld1 {v29.4s, v30.4s}, [%[s]], %[s_step]\n\t"
#define EDGEC_LOAD_ROW_SCALES_3 "ld1 {v29.4s, v30.4s, v31.4s}, [%[s]], %[s_step]\n\t"
#define EDGEC_QUAD_SCALES(last)
#define EDGEC_SCALE4(t0, t1, t2, t3, q)                                      \
  "fmla v24.4s, v20.4s, v28.4s\n\tfmla v25.4s, v21.4s, v28.4s\n\t"           \
  "fmla v26.4s, v22.4s, v28.4s\n\tfmla v27.4s, v23.4s, v28.4s\n\t"           \
  "fmla v" #t0 ".4s, v24.4s, v" #q ".s[0]\n\tfmla v" #t1 ".4s, v25.4s, v" #q \
  ".s[1]\n\t"                                                                \
  "fmla v" #t2 ".4s, v26.4s, v" #q ".s[2]\n\tfmla v" #t3 ".4s, v27.4s, v" #q ".s[3]\n\t"
#endif

#define EDGEC_LOAD4(type, from) "ld1 {v24." type ", v25." type ", v26." type ", v27." type "}, [%[" from "]]"
// Four rows; the last four of a tile move the pointers on to the next block.
#define EDGEC_QUAD(t0, t1, t2, t3, q, a_step, b_step, s_step)                                                         \
  "ld1 {v20.4s, v21.4s, v22.4s, v23.4s}, [%[start]]\n\t" EDGEC_LOAD4("16b", "a") ", #64\n\t" EDGEC_ROWS2(20, 21)      \
      EDGEC_LOAD4("16b", "a") ", " a_step "\n\t" EDGEC_ROWS2(22, 23) EDGEC_QUAD_SCALES(s_step) EDGEC_LOAD4("4s", "b") \
          b_step "\n\t" EDGEC_SCALE4(t0, t1, t2, t3, q)
#define EDGEC_NEXT(t0, t1, t2, t3, q) EDGEC_QUAD(t0, t1, t2, t3, q, "#64", "", "32")
#define EDGEC_LAST(t0, t1, t2, t3, q, s_step) EDGEC_QUAD(t0, t1, t2, t3, q, "%[a_step]", ", #64", s_step)
#define EDGEC_BLOCK(quads, body)                                                \
  "ld1 {v12.16b, v13.16b, v14.16b, v15.16b}, [%[b]], #64\n\t"                   \
  "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[b]], #64\n\t" EDGEC_LOAD_SCALES \
  EDGEC_LOAD_ROW_SCALES(quads) body
#define EDGEC_QUADS_1 EDGEC_LAST(0, 1, 2, 3, 29, "160")
#define EDGEC_QUADS_2 EDGEC_NEXT(0, 1, 2, 3, 29) EDGEC_LAST(4, 5, 6, 7, 30, "288")
#define EDGEC_QUADS_3 EDGEC_NEXT(0, 1, 2, 3, 29) EDGEC_NEXT(4, 5, 6, 7, 30) EDGEC_LAST(8, 9, 10, 11, 31, "416")
// clang-format on

// Adds the products of 4 kQuads rows (a: `blocks` prepared blocks) and four columns to sums[4 kQuads][kPanel].
template <int kQuads>
static void quads_tile(const uint8_t* a, const UnpackedQuarter* b, int64_t blocks, float* sums) {
  alignas(16) static const int32_t kStart[16] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000,
                                                 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000,
                                                 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
  const uint8_t* row_scales = a + 128 * kQuads;
  const int64_t a_step = 64 + 32 * kQuads, s_step = 160 * kQuads;
  float32x4_t t[12];
  for (int r = 0; r < 12; ++r) t[r] = r >= 4 * kQuads ? vdupq_n_f32(0.0f) : vld1q_f32(sums + r * kPanel);
#if defined(EDGEC_KERNELS_I8MM)
  // Rows (r0, r1) to 2 x 2 and back: the same exchange.
  const auto exchange = [&t] {
    for (int r = 0; r < 4 * kQuads; r += 2) {
      const float64x2_t x = vreinterpretq_f64_f32(t[r]), y = vreinterpretq_f64_f32(t[r + 1]);
      t[r] = vreinterpretq_f32_f64(vzip1q_f64(x, y)), t[r + 1] = vreinterpretq_f32_f64(vzip2q_f64(x, y));
    }
  };
#else
  const auto exchange = [] {};
#endif
  exchange();
  register float32x4_t t0 __asm__("v0") = t[0], t1 __asm__("v1") = t[1], t2 __asm__("v2") = t[2];
  register float32x4_t t3 __asm__("v3") = t[3], t4 __asm__("v4") = t[4], t5 __asm__("v5") = t[5];
  register float32x4_t t6 __asm__("v6") = t[6], t7 __asm__("v7") = t[7], t8 __asm__("v8") = t[8];
  register float32x4_t t9 __asm__("v9") = t[9], t10 __asm__("v10") = t[10], t11 __asm__("v11") = t[11];
#define EDGEC_LOOP(quads) \
  __asm__ volatile(                                                                                                \
      "tst %[blocks], #3\n\tb.eq 2f\n\t"                                                                         \
      "1:\n\t" EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) "sub %[blocks], %[blocks], #1\n\t"                         \
      "tst %[blocks], #3\n\tb.ne 1b\n\tcbz %[blocks], 3f\n\t"                                                     \
      "2:\n\t" EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) EDGEC_BLOCK(quads, EDGEC_QUADS_##quads)                    \
      EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) EDGEC_BLOCK(quads, EDGEC_QUADS_##quads)                             \
      "subs %[blocks], %[blocks], #4\n\tb.ne 2b\n\t3:\n\t"                                                        \
      : [a] "+r"(a), [b] "+r"(b), [s] "+r"(row_scales), [blocks] "+r"(blocks), "+w"(t0), "+w"(t1), "+w"(t2),       \
        "+w"(t3), "+w"(t4), "+w"(t5), "+w"(t6), "+w"(t7), "+w"(t8), "+w"(t9), "+w"(t10), "+w"(t11)                 \
      : [start] "r"(kStart), [a_step] "r"(a_step), [s_step] "r"(s_step)                                            \
      : "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",   \
        "v27", "v28", "v29", "v30", "v31", "cc", "memory")
  if constexpr (kQuads == 1) {
    EDGEC_LOOP(1);
  } else if constexpr (kQuads == 2) {
    EDGEC_LOOP(2);
  } else {
    EDGEC_LOOP(3);
  }
  t[0] = t0, t[1] = t1, t[2] = t2, t[3] = t3, t[4] = t4, t[5] = t5;
  t[6] = t6, t[7] = t7, t[8] = t8, t[9] = t9, t[10] = t10, t[11] = t11;
  exchange();
  for (int r = 0; r < 4 * kQuads; ++r) vst1q_f32(sums + r * kPanel, t[r]);
}

template <Family kFamily>
static void linear_quads(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                         int64_t panel_end) {
  constexpr int64_t kTiles = 24, kTileSums = 12 * kPanel;
  UnpackedQuarter unpacked[4][kUnpackDepth];
  alignas(64) float sums[kTiles * kTileSums];
  const int64_t stretches = (job.blocks + kUnpackDepth - 1) / kUnpackDepth;
  for (; tile_begin < tile_end; tile_begin += kTiles) {
    const int64_t stop = tile_begin + kTiles < tile_end ? tile_begin + kTiles : tile_end;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const uint8_t* packed = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
      __builtin_memset(sums, 0, (stop - tile_begin) * kTileSums * sizeof(float));
      for (int64_t s = 0; s < stretches; ++s) {
        const int64_t from = s * job.blocks / stretches, to = (s + 1) * job.blocks / stretches;
        unpack_blocks<kFamily>(packed, from, to, job.group_blocks, unpacked);
        for (int64_t tile = tile_begin; tile < stop; ++tile) {
          const int64_t row = job.row(tile), quads = (job.row(tile + 1) - row + 3) / 4;
          const uint8_t* a = job.prepared + (row * job.blocks + from * quads * 4) * 40;
          float* out = sums + (tile - tile_begin) * kTileSums;
          for (int quarter = 0; quarter < 4; ++quarter, out += 4) {
            const UnpackedQuarter* b = unpacked[quarter];
            if (quads == 3) {
              quads_tile<3>(a, b, to - from, out);
            } else if (quads == 2) {
              quads_tile<2>(a, b, to - from, out);
            } else {
              quads_tile<1>(a, b, to - from, out);
            }
          }
        }
      }
      for (int64_t tile = tile_begin; tile < stop; ++tile) {
        const int64_t row = job.row(tile);
        store_tile(job, row, job.row(tile + 1) - row, panel, sums + (tile - tile_begin) * kTileSums);
      }
    }
  }
}
