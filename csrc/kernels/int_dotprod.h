// int4 and int8 tiles of few rows with sdot by lane, unpacking on the way: a vector of weights is 4 columns x 4 k, a
// lane of activations 4 k. Nibbles stay unsigned; the sums of the activations times -8 or -zero start the sums.

template <Family kFamily, int kRows>
EDGEC_INLINE void dot_half(const uint8_t* data, const int8x16_t (&x)[kRows][2], int32x4_t (&acc)[kRows][2]) {
  // Eight columns: 4 x 16 bytes hold 2 quarters x 16 k of nibbles, or x 8 k of bytes.
#define EDGEC_STEP(j, w0, w1)                                           \
  for (int r = 0; r < kRows; ++r) {                                     \
    acc[r][0] = vdotq_laneq_s32(acc[r][0], w0, x[r][(j) / 4], (j) % 4); \
    acc[r][1] = vdotq_laneq_s32(acc[r][1], w1, x[r][(j) / 4], (j) % 4); \
  }
#define EDGEC_LOW(i) neon_nibbles<kFamily>(vandq_u8(raw.val[i], mask))
#define EDGEC_HIGH(i) neon_nibbles<kFamily>(vshrq_n_u8(raw.val[i], 4))
#define EDGEC_STEPS4(j)                                    \
  {                                                        \
    const uint8x16x4_t raw = vld1q_u8_x4(data + 16 * (j)); \
    EDGEC_STEP(j, EDGEC_LOW(0), EDGEC_LOW(1))              \
    EDGEC_STEP(j + 1, EDGEC_HIGH(0), EDGEC_HIGH(1))        \
    EDGEC_STEP(j + 2, EDGEC_LOW(2), EDGEC_LOW(3))          \
    EDGEC_STEP(j + 3, EDGEC_HIGH(2), EDGEC_HIGH(3))        \
  }
#define EDGEC_SIX(q, i) vreinterpretq_s8_u8(sixes[q].step[i])
#define EDGEC_SIXES4(j)                                                           \
  {                                                                               \
    const uint8x16x4_t raw = vld1q_u8_x4(data + 24 * (j));                        \
    const uint8x16x2_t more = vld1q_u8_x2(data + 24 * (j) + 64);                  \
    const NeonSixes sixes[2] = {neon_sixes(raw.val[0], raw.val[2], more.val[0]),  \
                                neon_sixes(raw.val[1], raw.val[3], more.val[1])}; \
    EDGEC_STEP(j, EDGEC_SIX(0, 0), EDGEC_SIX(1, 0))                               \
    EDGEC_STEP(j + 1, EDGEC_SIX(0, 1), EDGEC_SIX(1, 1))                           \
    EDGEC_STEP(j + 2, EDGEC_SIX(0, 2), EDGEC_SIX(1, 2))                           \
    EDGEC_STEP(j + 3, EDGEC_SIX(0, 3), EDGEC_SIX(1, 3))                           \
  }
#define EDGEC_STEPS2(j)                                                                    \
  {                                                                                        \
    const int8x16x4_t raw = vld1q_s8_x4(reinterpret_cast<const int8_t*>(data) + 32 * (j)); \
    EDGEC_STEP(j, raw.val[0], raw.val[1])                                                  \
    EDGEC_STEP(j + 1, raw.val[2], raw.val[3])                                              \
  }
  if constexpr (kFamily == Family::kS8N16K4) {
    EDGEC_STEPS2(0) EDGEC_STEPS2(2) EDGEC_STEPS2(4) EDGEC_STEPS2(6)
  } else if constexpr (kFamily == Family::kS6N16K4) {
    EDGEC_SIXES4(0) EDGEC_SIXES4(4)
  } else {
    const uint8x16_t mask = vdupq_n_u8(15);
    EDGEC_STEPS4(0) EDGEC_STEPS4(4)
  }
#undef EDGEC_STEP
#undef EDGEC_SIX
#undef EDGEC_SIXES4
#undef EDGEC_LOW
#undef EDGEC_HIGH
#undef EDGEC_STEPS4
#undef EDGEC_STEPS2
}

// kRows x 16 sums.
template <Family kFamily, int kRows>
static void dot_direct(const uint8_t* a, const uint8_t* data, int64_t blocks, int64_t group_blocks, float* sums) {
  constexpr bool kTable = kFamily == Family::kT4N16K4, kOffset = kFamily != Family::kS8N16K4 && !kTable;
  constexpr int64_t kData = data_bytes(kFamily);
  float32x4_t total[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int q = 0; q < 4; ++q) total[r][q] = vdupq_n_f32(0.0f);
  }
  const uint8_t* const panel = data;
  data += panel_header_bytes(kFamily);
  while (blocks > 0) {
    const uint8_t* header = data;
    data += header_bytes(kFamily);
    int64_t n = group_blocks < blocks ? group_blocks : blocks;
    blocks -= n;
    do {
      int8x16_t x[kRows][2];
      float row_scale[kRows];
      int32_t correction[kRows];
      for (int r = 0; r < kRows; ++r) {
        x[r][0] = vld1q_s8(reinterpret_cast<const int8_t*>(a) + 32 * r);
        x[r][1] = vld1q_s8(reinterpret_cast<const int8_t*>(a) + 32 * r + 16);
        __builtin_memcpy(&row_scale[r], a + kRows * 32 + 4 * r, 4);
        correction[r] = kOffset ? neon_correction<kFamily>(a + kRows * 36 + 4 * r) : 0;
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        int32x4_t acc[kRows][2];
        for (int r = 0; r < kRows; ++r) {
          acc[r][0] = acc[r][1] = vdupq_n_s32(correction[r]);
          if constexpr (kFamily == Family::kU4N16K4) {
            acc[r][0] = vmulq_s32(acc[r][0], neon_zeros(header, 2 * h));
            acc[r][1] = vmulq_s32(acc[r][1], neon_zeros(header, 2 * h + 1));
          }
        }
        dot_half<kFamily, kRows>(data, x, acc);
        data += kData / 2;
        for (int q = 0; q < 2; ++q) {
          if constexpr (kTable) {
            const int32x4_t scale = neon_integer_scales(header, 2 * h + q);
            for (int r = 0; r < kRows; ++r) {
              const float32x4_t scaled = vcvtq_f32_s32(vmulq_s32(acc[r][q], scale));
              total[r][2 * h + q] = vfmaq_n_f32(total[r][2 * h + q], scaled, row_scale[r]);
            }
            continue;
          }
          const float32x4_t scale = neon_scales(header, 2 * h + q);
          for (int r = 0; r < kRows; ++r) {
            total[r][2 * h + q] =
                vfmaq_f32(total[r][2 * h + q], vcvtq_f32_s32(acc[r][q]), vmulq_n_f32(scale, row_scale[r]));
          }
        }
      }
      a += kRows * 40;
    } while (--n > 0);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int q = 0; q < 4; ++q) {
      if (kTable) total[r][q] = vmulq_f32(total[r][q], neon_units(panel, q));
      vst1q_f32(sums + r * kPanel + 4 * q, total[r][q]);
    }
  }
}

// The same for one row and four panels, in asm: a compiler hoists the unpacking of all panels and spills.
// Registers: v0-v14 and v31 sums, v15 the row's scale and the correction (halfwords of v0-v15 alone can be operands by
// lane), v16-v19 dots, v20-v23 weights, v24-v25 scales (t4: scales, table), v26-v27 temporary, v28-v29 activations,
// v30 mask.
// clang-format off
#define EDGEC_PLAIN(w0, w1)
#define EDGEC_LOOK_UP(w0, w1) \
  "tbl v" #w0 ".16b, {v25.16b}, v" #w0 ".16b\n\ttbl v" #w1 ".16b, {v25.16b}, v" #w1 ".16b\n\t"
#define EDGEC_UNPACK_DOT(look_up, w0, w1, d0, d1, x, l0, l1)                                            \
  "and v26.16b, v" #w0 ".16b, v30.16b\n\tand v27.16b, v" #w1 ".16b, v30.16b\n\t"                        \
  "ushr v" #w0 ".16b, v" #w0 ".16b, #4\n\tushr v" #w1 ".16b, v" #w1 ".16b, #4\n\t"                      \
  look_up(26, 27) look_up(w0, w1)                                                                       \
  "sdot v" #d0 ".4s, v26.16b, v" #x ".4b[" #l0 "]\n\tsdot v" #d1 ".4s, v27.16b, v" #x ".4b[" #l0 "]\n\t" \
  "sdot v" #d0 ".4s, v" #w0 ".16b, v" #x ".4b[" #l1 "]\n\tsdot v" #d1 ".4s, v" #w1 ".16b, v" #x ".4b[" #l1 "]\n\t"
#define EDGEC_LOAD(p) "ld1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[d" #p "]], #64\n\t"
#define EDGEC_HALF_DOT(look_up, p, d0, d1)                                                                \
  EDGEC_LOAD(p)                                                                                   \
  EDGEC_UNPACK_DOT(look_up, 20, 21, d0, d1, 28, 0, 1) EDGEC_UNPACK_DOT(look_up, 22, 23, d0, d1, 28, 2, 3) \
  EDGEC_LOAD(p)                                                                                   \
  EDGEC_UNPACK_DOT(look_up, 20, 21, d0, d1, 29, 0, 1) EDGEC_UNPACK_DOT(look_up, 22, 23, d0, d1, 29, 2, 3)
#define EDGEC_HALF_S4(p, d0, d1) EDGEC_HALF_DOT(EDGEC_PLAIN, p, d0, d1)
#define EDGEC_HALF_U4 EDGEC_HALF_S4
#define EDGEC_HALF_T4(p, d0, d1) EDGEC_HALF_DOT(EDGEC_LOOK_UP, p, d0, d1)
#define EDGEC_START_S4                               \
  "dup v16.4s, v15.s[1]\n\tdup v17.4s, v15.s[1]\n\t" \
  "dup v18.4s, v15.s[1]\n\tdup v19.4s, v15.s[1]\n\t"
// v26 holds 16 zero points in 8 bytes.
#define EDGEC_START_U4                                                                          \
  "ushr v27.8b, v26.8b, #4\n\tand v26.8b, v26.8b, v30.8b\n\tzip1 v26.16b, v26.16b, v27.16b\n\t" \
  "ushll v27.8h, v26.8b, #0\n\tushll2 v26.8h, v26.16b, #0\n\t"                                   \
  "smull v16.4s, v27.4h, v15.h[2]\n\tsmull2 v17.4s, v27.8h, v15.h[2]\n\t"                       \
  "smull v18.4s, v26.4h, v15.h[2]\n\tsmull2 v19.4s, v26.8h, v15.h[2]\n\t"
#define EDGEC_DOT_BYTES(p, d0, d1, x, l0, l1)                                                                          \
  EDGEC_LOAD(p)                                                                                                \
  "sdot v" #d0 ".4s, v20.16b, v" #x ".4b[" #l0 "]\n\tsdot v" #d1 ".4s, v21.16b, v" #x ".4b[" #l0 "]\n\t"               \
  "sdot v" #d0 ".4s, v22.16b, v" #x ".4b[" #l1 "]\n\tsdot v" #d1 ".4s, v23.16b, v" #x ".4b[" #l1 "]\n\t"
#define EDGEC_HALF_S8(p, d0, d1)                                               \
  EDGEC_DOT_BYTES(p, d0, d1, 28, 0, 1) EDGEC_DOT_BYTES(p, d0, d1, 28, 2, 3)    \
  EDGEC_DOT_BYTES(p, d0, d1, 29, 0, 1) EDGEC_DOT_BYTES(p, d0, d1, 29, 2, 3)
#define EDGEC_AND(w0, w1) "and v26.16b, v" #w0 ".16b, v30.16b\n\tand v27.16b, v" #w1 ".16b, v30.16b\n\t"
#define EDGEC_LANE_DOT(w0, w1, x, l) \
  "sdot v16.4s, v" #w0 ".16b, v" #x ".4b[" #l "]\n\tsdot v17.4s, v" #w1 ".16b, v" #x ".4b[" #l "]\n\t"
#define EDGEC_SIXES(p, x)                                                                            \
  "ld1 {v18.16b, v19.16b, v20.16b, v21.16b}, [%[d" #p "]], #64\n\tld1 {v22.16b, v23.16b}, [%[d" #p "]], #32\n\t" \
  EDGEC_AND(18, 19) EDGEC_LANE_DOT(26, 27, x, 0) EDGEC_AND(20, 21) EDGEC_LANE_DOT(26, 27, x, 1)                \
  EDGEC_AND(22, 23) EDGEC_LANE_DOT(26, 27, x, 2)                                                          \
  "sri v18.16b, v20.16b, #2\n\tsri v19.16b, v21.16b, #2\n\tsri v18.16b, v22.16b, #4\n\t"            \
  "sri v19.16b, v23.16b, #4\n\tushr v18.16b, v18.16b, #2\n\tushr v19.16b, v19.16b, #2\n\t"          \
  EDGEC_LANE_DOT(18, 19, x, 3)
#define EDGEC_START_T4 "movi v16.4s, #0\n\tmovi v17.4s, #0\n\tmovi v18.4s, #0\n\tmovi v19.4s, #0\n\t"
#define EDGEC_START_S8 EDGEC_START_T4
#define EDGEC_FLOATS "scvtf v16.4s, v16.4s\n\tscvtf v17.4s, v17.4s\n\tscvtf v18.4s, v18.4s\n\tscvtf v19.4s, v19.4s\n\t"
#define EDGEC_END_S4(t0, t1, t2, t3)                                                                   \
  "fcvtl v20.4s, v24.4h\n\tfcvtl2 v21.4s, v24.8h\n\tfcvtl v22.4s, v25.4h\n\tfcvtl2 v23.4s, v25.8h\n\t" \
  "fmul v20.4s, v20.4s, v15.s[0]\n\tfmul v21.4s, v21.4s, v15.s[0]\n\t"                                 \
  "fmul v22.4s, v22.4s, v15.s[0]\n\tfmul v23.4s, v23.4s, v15.s[0]\n\t" EDGEC_FLOATS                    \
  "fmla v" #t0 ".4s, v16.4s, v20.4s\n\tfmla v" #t1 ".4s, v17.4s, v21.4s\n\t"                           \
  "fmla v" #t2 ".4s, v18.4s, v22.4s\n\tfmla v" #t3 ".4s, v19.4s, v23.4s\n\t"
#define EDGEC_END_U4 EDGEC_END_S4
#define EDGEC_END_S8 EDGEC_END_S4
// Dots times a scale of 7 bits stay below 2^24: the product is exact as float, too.
#define EDGEC_END_T4(t0, t1, t2, t3)                                                                              \
  "sshll v22.8h, v24.8b, #0\n\tsshll2 v24.8h, v24.16b, #0\n\tsshll v20.4s, v22.4h, #0\n\t"                        \
  "sshll2 v21.4s, v22.8h, #0\n\tsshll v22.4s, v24.4h, #0\n\tsshll2 v23.4s, v24.8h, #0\n\t"                        \
  "mul v16.4s, v16.4s, v20.4s\n\tmul v17.4s, v17.4s, v21.4s\n\t"                                                  \
  "mul v18.4s, v18.4s, v22.4s\n\tmul v19.4s, v19.4s, v23.4s\n\t" EDGEC_FLOATS                                     \
  "fmla v" #t0 ".4s, v16.4s, v15.s[0]\n\tfmla v" #t1 ".4s, v17.4s, v15.s[0]\n\t"                                  \
  "fmla v" #t2 ".4s, v18.4s, v15.s[0]\n\tfmla v" #t3 ".4s, v19.4s, v15.s[0]\n\t"
// 6 bits need six registers of weights: half a panel after the other.
#define EDGEC_HALF_S6(p, scales, t0, t1)                                                                        \
  "dup v16.4s, v15.s[1]\n\tdup v17.4s, v15.s[1]\n\t" EDGEC_SIXES(p, 28) EDGEC_SIXES(p, 29)                      \
  "fcvtl v18.4s, v" #scales ".4h\n\tfcvtl2 v19.4s, v" #scales ".8h\n\t"                                        \
  "fmul v18.4s, v18.4s, v15.s[0]\n\tfmul v19.4s, v19.4s, v15.s[0]\n\tscvtf v16.4s, v16.4s\n\t"                \
  "scvtf v17.4s, v17.4s\n\tfmla v" #t0 ".4s, v16.4s, v18.4s\n\tfmla v" #t1 ".4s, v17.4s, v19.4s\n\t"
#define EDGEC_PANEL_S6(p, header, t0, t1, t2, t3) header EDGEC_HALF_S6(p, 24, t0, t1) EDGEC_HALF_S6(p, 25, t2, t3)
#define EDGEC_PANEL_S4(...) EDGEC_PANEL(S4, __VA_ARGS__)
#define EDGEC_PANEL_U4(...) EDGEC_PANEL(U4, __VA_ARGS__)
#define EDGEC_PANEL_T4(...) EDGEC_PANEL(T4, __VA_ARGS__)
#define EDGEC_PANEL_S8(...) EDGEC_PANEL(S8, __VA_ARGS__)
#define EDGEC_PANEL(family, p, header, t0, t1, t2, t3)                  \
  header EDGEC_START_##family EDGEC_HALF_##family(p, 16, 17) EDGEC_HALF_##family(p, 18, 19) \
      EDGEC_END_##family(t0, t1, t2, t3)
// Groups of one block: the header lies before the data. Larger ones read it again from where it was.
#define EDGEC_HEADER_S4_NEXT(p) "ld1 {v24.8h, v25.8h}, [%[d" #p "]], #32\n\t"
#define EDGEC_HEADER_S4_KEPT(p) "ld1 {v24.8h, v25.8h}, [%[h" #p "]]\n\t"
// The header of 40 bytes, and the first 8 of the data behind it.
#define EDGEC_HEADER_U4_NEXT(p) "ld1 {v24.8h, v25.8h, v26.8h}, [%[d" #p "]], %[header]\n\t"
#define EDGEC_HEADER_U4_KEPT(p) "ld1 {v24.8h, v25.8h, v26.8h}, [%[h" #p "]]\n\t"
#define EDGEC_HEADER_S8_NEXT EDGEC_HEADER_S4_NEXT
#define EDGEC_HEADER_S8_KEPT EDGEC_HEADER_S4_KEPT
#define EDGEC_HEADER_S6_NEXT EDGEC_HEADER_S4_NEXT
#define EDGEC_HEADER_S6_KEPT EDGEC_HEADER_S4_KEPT
#define EDGEC_HEADER_T4_NEXT(p) "ldr q24, [%[d" #p "]], #16\n\t"
// What is prepared of the correction is its 32nd part for 6 bits.
#define EDGEC_TIMES_S4
#define EDGEC_TIMES_U4
#define EDGEC_TIMES_T4
#define EDGEC_TIMES_S6 "shl v26.2s, v26.2s, #5\n\t"
#define EDGEC_TIMES_S8
#define EDGEC_BLOCKS(family, where)                                                                                    \
  __asm__ volatile(                                                                                                    \
      "1:\n\tldp q28, q29, [%[a]], #32\n\tldr d15, [%[a]], #8\n\tsaddlp v26.2s, v15.4h\n\t" EDGEC_TIMES_##family "mov v15.s[1], v26.s[1]\n\t"  \
      EDGEC_PANEL_##family(0, EDGEC_HEADER_##family##_##where(0), 0, 1, 2, 3)                                           \
      EDGEC_PANEL_##family(1, EDGEC_HEADER_##family##_##where(1), 4, 5, 6, 7)                                           \
      EDGEC_PANEL_##family(2, EDGEC_HEADER_##family##_##where(2), 8, 9, 10, 11)                                         \
      EDGEC_PANEL_##family(3, EDGEC_HEADER_##family##_##where(3), 12, 13, 14, 31)                                       \
      "subs %[n], %[n], #1\n\tb.ne 1b\n\t"                                                                            \
      : [a] "+r"(a), [n] "+r"(n), [d0] "+r"(d0), [d1] "+r"(d1), [d2] "+r"(d2), [d3] "+r"(d3), "+w"(t0), "+w"(t1),      \
        "+w"(t2), "+w"(t3), "+w"(t4), "+w"(t5), "+w"(t6), "+w"(t7), "+w"(t8), "+w"(t9), "+w"(t10), "+w"(t11),          \
        "+w"(t12), "+w"(t13), "+w"(t14), "+w"(t15), "+w"(table)                                                        \
      : [h0] "r"(h0), [h1] "r"(h1), [h2] "r"(h2), [h3] "r"(h3), [header] "r"(kHeader), "w"(mask)                                              \
      : "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v26", "v27", "v28", "v29", "cc",        \
        "memory")
// clang-format on

template <Family kFamily>
static void dot_row4(const uint8_t* a, const uint8_t* packed, int64_t panel_bytes, int64_t blocks, int64_t group_blocks,
                     float* sums) {
  constexpr int64_t kHeader = header_bytes(kFamily);
  const float32x4_t zero = vdupq_n_f32(0.0f);
  register float32x4_t t0 __asm__("v0") = zero, t1 __asm__("v1") = zero;
  register float32x4_t t2 __asm__("v2") = zero, t3 __asm__("v3") = zero;
  register float32x4_t t4 __asm__("v4") = zero, t5 __asm__("v5") = zero;
  register float32x4_t t6 __asm__("v6") = zero, t7 __asm__("v7") = zero;
  register float32x4_t t8 __asm__("v8") = zero, t9 __asm__("v9") = zero;
  register float32x4_t t10 __asm__("v10") = zero, t11 __asm__("v11") = zero;
  register float32x4_t t12 __asm__("v12") = zero, t13 __asm__("v13") = zero;
  register float32x4_t t14 __asm__("v14") = zero, t15 __asm__("v31") = zero;
  register uint8x16_t mask __asm__("v30") = vdupq_n_u8(kFamily == Family::kS6N16K4 ? 63 : 15);
  register int8x16_t table __asm__("v25") = vld1q_s8(kTable);  // the others' scales
  const uint8_t *d0 = packed + panel_header_bytes(kFamily), *d1 = d0 + panel_bytes, *d2 = d1 + panel_bytes,
                *d3 = d2 + panel_bytes;
  const uint8_t *h0 = d0, *h1 = d1, *h2 = d2, *h3 = d3;
  if (group_blocks == 1) {
    int64_t n = blocks;
    if (n > 0) {
      if constexpr (kFamily == Family::kS4N16K4) {
        EDGEC_BLOCKS(S4, NEXT);
      } else if constexpr (kFamily == Family::kT4N16K4) {
        EDGEC_BLOCKS(T4, NEXT);
      } else if constexpr (kFamily == Family::kS6N16K4) {
        EDGEC_BLOCKS(S6, NEXT);
      } else if constexpr (kFamily == Family::kS8N16K4) {
        EDGEC_BLOCKS(S8, NEXT);
      } else {
        EDGEC_BLOCKS(U4, NEXT);
      }
    }
  } else {
    for (; blocks > 0; blocks -= group_blocks) {
      int64_t n = group_blocks < blocks ? group_blocks : blocks;
      h0 = d0, h1 = d1, h2 = d2, h3 = d3;
      d0 += kHeader, d1 += kHeader, d2 += kHeader, d3 += kHeader;
      if constexpr (kFamily == Family::kS4N16K4) {
        EDGEC_BLOCKS(S4, KEPT);
      } else if constexpr (kFamily == Family::kS6N16K4) {
        EDGEC_BLOCKS(S6, KEPT);
      } else if constexpr (kFamily == Family::kS8N16K4) {
        EDGEC_BLOCKS(S8, KEPT);
      } else {
        EDGEC_BLOCKS(U4, KEPT);
      }
    }
  }
  vst1q_f32(sums + 0, t0);
  vst1q_f32(sums + 4, t1);
  vst1q_f32(sums + 8, t2);
  vst1q_f32(sums + 12, t3);
  vst1q_f32(sums + 16, t4);
  vst1q_f32(sums + 20, t5);
  vst1q_f32(sums + 24, t6);
  vst1q_f32(sums + 28, t7);
  vst1q_f32(sums + 32, t8);
  vst1q_f32(sums + 36, t9);
  vst1q_f32(sums + 40, t10);
  vst1q_f32(sums + 44, t11);
  vst1q_f32(sums + 48, t12);
  vst1q_f32(sums + 52, t13);
  vst1q_f32(sums + 56, t14);
  vst1q_f32(sums + 60, t15);
}

template <Family kFamily>
static void linear_dot_direct(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                              int64_t panel_end) {
  float sums[4 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
    const bool wide = job.args.m == 1 && panel_end - panel >= 4;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* a = job.prepared + row * job.blocks * 40;
      if (wide) {
        dot_row4<kFamily>(a, b, job.panel_bytes, job.blocks, job.group_blocks, sums);
        for (int p = 0; p < 4; ++p) {
          if (kFamily == Family::kT4N16K4) apply_exponents(b + p * job.panel_bytes, 1, sums + p * kPanel);
          store_tile(job, row, 1, panel + p, sums + p * kPanel);
        }
        continue;
      }
      if (rows == 1) {
        dot_direct<kFamily, 1>(a, b, job.blocks, job.group_blocks, sums);
      } else {
        dot_direct<kFamily, 2>(a, b, job.blocks, job.group_blocks, sums);
      }
      store_tile(job, row, rows, panel, sums);
    }
    panel += wide ? 4 : 1;
  }
}
