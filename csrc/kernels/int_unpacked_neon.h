// int4 and int8 products of many rows for Arm: each stretch of a panel is unpacked once, into L1, and every row tile
// runs over it, 12 rows x 4 columns at a time. With sdot a sum is 1 row x 4 columns, with smmla 2 x 2, kept so to the
// end.
//
// Integer sums start from the bits of 1.5 x 2^23 and so end as the bits of a float F = 1.5 x 2^23 + dot. One FMA,
// F * scale - 1.5 x 2^23 * scale (exact, a f16 scale has 11 bits), both converts and scales. Starts and addends come
// four registers to a load, where movi and mov would be one each.

// Four columns x 32 of k: weights, scales, and -1.5 x 2^23 times the scales for each of four sums.
struct alignas(16) UnpackedQuarter {
  uint8_t w[8][16];
#if defined(EDGEC_KERNELS_I8MM)
  float scale[2][4];  // c0 c1 c0 c1, c2 c3 c2 c3
#else
  float scale[1][4];
#endif
  float addend[4][4];
};

constexpr int64_t kUnpackDepth = 32;  // blocks: 27 kB

// s4 for sdot stays unsigned: -8 times the row's sum is in the start of the row's integer sums, where it costs nothing.
// For smmla a start is of two rows and two columns, so the nibbles become q times 16 (no subtraction for either).
#if defined(EDGEC_KERNELS_I8MM)
constexpr float kNibbleUnit = 0.0625f;
constexpr uint8_t kSixOffset = 32;
EDGEC_INLINE uint8x16_t signed_nibbles(uint8x16_t raw) { return veorq_u8(raw, vdupq_n_u8(0x88)); }
EDGEC_INLINE uint8x16_t low_s4(uint8x16_t raw) { return vshlq_n_u8(raw, 4); }
EDGEC_INLINE uint8x16_t high_s4(uint8x16_t raw) { return vandq_u8(raw, vdupq_n_u8(0xf0)); }
#else
constexpr float kNibbleUnit = 1.0f;
constexpr uint8_t kSixOffset = 0;  // as s4: it is in the start
EDGEC_INLINE uint8x16_t signed_nibbles(uint8x16_t raw) { return raw; }
EDGEC_INLINE uint8x16_t low_s4(uint8x16_t raw) { return vandq_u8(raw, vdupq_n_u8(15)); }
EDGEC_INLINE uint8x16_t high_s4(uint8x16_t raw) { return vshrq_n_u8(raw, 4); }
#endif

// Writes the quarter's block, and moves on to the next one. In asm, since a compiler adds to a pointer for each store.
EDGEC_INLINE void store_quarter(const uint8x16_t (&w)[8], float32x4_t scale, UnpackedQuarter*& to) {
  const float32x4_t addend = vmulq_n_f32(scale, -12582912.0f);
#if defined(EDGEC_KERNELS_I8MM)
  uint8x16_t v[8];
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t low = vreinterpretq_u32_u8(w[2 * i]), high = vreinterpretq_u32_u8(w[2 * i + 1]);
    v[i] = vreinterpretq_u8_u32(vzip1q_u32(low, high));
    v[4 + i] = vreinterpretq_u8_u32(vzip2q_u32(low, high));
  }
  const auto low_pair = [](float32x4_t x) {
    return vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(x), 0));
  };
  const auto high_pair = [](float32x4_t x) {
    return vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(x), 1));
  };
  const float32x4_t scales[2] = {low_pair(scale), high_pair(scale)}, ends[2] = {low_pair(addend), high_pair(addend)};
#define EDGEC_STORE_SCALES               \
  "stp %q[s0], %q[s1], [%[to]], #32\n\t" \
  "stp %q[e0], %q[e1], [%[to]], #32\n\t" \
  "stp %q[e0], %q[e1], [%[to]], #32\n\t"
#else
  const uint8x16_t(&v)[8] = w;
  const float32x4_t scales[2] = {scale, scale}, ends[2] = {addend, addend};
#define EDGEC_STORE_SCALES               \
  "stp %q[s0], %q[e0], [%[to]], #32\n\t" \
  "stp %q[e0], %q[e1], [%[to]], #32\n\t" \
  "str %q[e0], [%[to]], #16\n\t"
#endif
  register uint8x16_t w0 __asm__("v16") = v[0], w1 __asm__("v17") = v[1], w2 __asm__("v18") = v[2];
  register uint8x16_t w3 __asm__("v19") = v[3], w4 __asm__("v20") = v[4], w5 __asm__("v21") = v[5];
  register uint8x16_t w6 __asm__("v22") = v[6], w7 __asm__("v23") = v[7];
  __asm__ volatile(
      "st1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[to]], #64\n\t"
      "st1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[to]], #64\n\t" EDGEC_STORE_SCALES
      : [to] "+r"(to)
      : "w"(w0), "w"(w1), "w"(w2), "w"(w3), "w"(w4), "w"(w5), "w"(w6),
        "w"(w7), [s0] "w"(scales[0]), [s1] "w"(scales[1]), [e0] "w"(ends[0]), [e1] "w"(ends[1])
      : "memory");
#undef EDGEC_STORE_SCALES
}

// The scales of a group's 16 columns. units: powers of two of these columns, for t4.
template <Family kFamily>
EDGEC_INLINE void group_scales(const uint8_t* header, const float32x4_t (&units)[4], float32x4_t (&scale)[4]) {
  if constexpr (kFamily == Family::kT4N16K4) {
    const int8x16_t bytes = vld1q_s8(reinterpret_cast<const int8_t*>(header));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    scale[0] = vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), units[0]);
    scale[1] = vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(low)), units[1]);
    scale[2] = vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), units[2]);
    scale[3] = vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(high)), units[3]);
  } else {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(header);
    const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(from)), high = vreinterpretq_f16_u16(vld1q_u16(from + 8));
    scale[0] = vcvt_f32_f16(vget_low_f16(low)), scale[1] = vcvt_high_f32_f16(low);
    scale[2] = vcvt_f32_f16(vget_low_f16(high)), scale[3] = vcvt_high_f32_f16(high);
    for (int q = 0; q < 4 && kFamily == Family::kS4N16K4 && kNibbleUnit != 1.0f; ++q)
      scale[q] = vmulq_n_f32(scale[q], kNibbleUnit);
  }
}

// Eight columns of a block: quarters 2 half and 2 half + 1. Moves `data` on.
template <Family kFamily>
EDGEC_INLINE void unpack_half(const uint8_t* header, const uint8_t*& data, int half, const float32x4_t (&scale)[4],
                              UnpackedQuarter*& to0, UnpackedQuarter*& to1) {
  constexpr bool kBytes = kFamily == Family::kS8N16K4, kSix = kFamily == Family::kS6N16K4;
  uint8x16x4_t raw[kBytes ? 4 : kSix ? 3 : 2];
  for (uint8x16x4_t& four : raw) {
    four = vld1q_u8_x4(data), data += 64;
    __asm__("" : "+r"(data));  // or each load's address is an addition of its own
  }
  for (int q = 0; q < 2; ++q) {
    // One quarter after the other: both at once would need moves to the registers that store_quarter wants.
    for (uint8x16x4_t& four : raw) {
      for (int i = 0; i < 4; ++i) __asm__ volatile("" : "+w"(four.val[i]));
    }
    uint8x16_t w[8];
    if constexpr (kBytes) {
      for (int i = 0; i < 8; ++i) w[i] = raw[i / 2].val[i % 2 * 2 + q];
    } else if constexpr (kSix) {
      const auto row = [&](int i) EDGEC_MEMBER { return raw[i / 2].val[i % 2 * 2 + q]; };
      for (int i = 0; i < 2; ++i) {
        const NeonSixes sixes = neon_sixes(row(3 * i), row(3 * i + 1), row(3 * i + 2));
        for (int j = 0; j < 4; ++j) w[4 * i + j] = vsubq_u8(sixes.step[j], vdupq_n_u8(kSixOffset));
      }
    } else {
      uint8x16_t zero = vdupq_n_u8(0);
      if (has_zeros(kFamily)) zero = vreinterpretq_u8_s32(vmulq_n_s32(neon_zeros(header, 2 * half + q), 0x01010101));
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t both = raw[i / 2].val[i % 2 * 2 + q];
        uint8x16_t &low = w[2 * i], &high = w[2 * i + 1];
        if constexpr (kFamily == Family::kS4N16K4) {
          low = low_s4(signed_nibbles(both)), high = high_s4(signed_nibbles(both));
        } else {
          low = vandq_u8(both, vdupq_n_u8(15)), high = vshrq_n_u8(both, 4);
          if constexpr (kFamily == Family::kT4N16K4) {
            low = vreinterpretq_u8_s8(neon_nibbles<kFamily>(low)),
            high = vreinterpretq_u8_s8(neon_nibbles<kFamily>(high));
          } else {
            low = vsubq_u8(low, zero), high = vsubq_u8(high, zero);
          }
        }
      }
    }
    store_quarter(w, scale[2 * half + q], q ? to1 : to0);
  }
}

// Blocks [from, to) of a panel, to [quarter][block].
template <Family kFamily>
static void unpack_blocks(const uint8_t* panel, int64_t from, int64_t to, int64_t group_blocks, UnpackedQuarter* out) {
  constexpr int64_t kHeader = header_bytes(kFamily), kData = data_bytes(kFamily);
  float32x4_t units[4] = {};
  for (int q = 0; q < 4 && kFamily == Family::kT4N16K4; ++q) units[q] = neon_units(panel, q);
  UnpackedQuarter *q0 = out, *q1 = q0 + (to - from), *q2 = q1 + (to - from), *q3 = q2 + (to - from);
  const auto unpack = [&](const uint8_t* header, const uint8_t* data) EDGEC_MEMBER -> const uint8_t* {
    float32x4_t scale[4];
    group_scales<kFamily>(header, units, scale);
    unpack_half<kFamily>(header, data, 0, scale, q0, q1);
    unpack_half<kFamily>(header, data, 1, scale, q2, q3);
    return data;
  };
  const uint8_t* groups = panel + panel_header_bytes(kFamily);
  if (group_blocks == 1) {
    groups += from * (kHeader + kData);
    for (int64_t left = to - from; left > 0; --left) groups = unpack(groups, groups + kHeader);
    return;
  }
  for (int64_t block = from; block < to; ++block) {
    const uint8_t* header = groups + block / group_blocks * (kHeader + group_blocks * kData);
    unpack(header, header + kHeader + block % group_blocks * kData);
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
#define EDGEC_LOAD_START(step) "ld1 {v20.4s, v21.4s, v22.4s, v23.4s}, [%[start]]\n\t"
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
// Each of four rows has a start of its own.
#define EDGEC_LOAD_START(step) "ld4r {v20.4s, v21.4s, v22.4s, v23.4s}, [%[s]], " step "\n\t"
#define EDGEC_LOAD_SCALES "ldr q28, [%[b]], #16\n\t"
#define EDGEC_LOAD_ROW_SCALES(quads) EDGEC_LOAD_ROW_SCALES_##quads
#define EDGEC_LOAD_ROW_SCALES_1 "ld1 {v29.4s}, [%[s]], #16\n\t"
#define EDGEC_LOAD_ROW_SCALES_2 "ld1 {v29.4s, v30.4s}, [%[s]], #32\n\t"
#define EDGEC_LOAD_ROW_SCALES_3 "ld1 {v29.4s, v30.4s, v31.4s}, [%[s]], #48\n\t"
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
#define EDGEC_QUAD(t0, t1, t2, t3, q, a_step, b_step, s_step, start_step)                                       \
  EDGEC_LOAD_START(start_step)                                                                                  \
  EDGEC_LOAD4("16b", "a") ", #64\n\t" EDGEC_ROWS2(20, 21) EDGEC_LOAD4("16b", "a") ", " a_step                  \
      "\n\t" EDGEC_ROWS2(22, 23) EDGEC_QUAD_SCALES(s_step) EDGEC_LOAD4("4s", "b") b_step                        \
          "\n\t" EDGEC_SCALE4(t0, t1, t2, t3, q)
#define EDGEC_NEXT(t0, t1, t2, t3, q) EDGEC_QUAD(t0, t1, t2, t3, q, "#64", "", "32", "#16")
#define EDGEC_LAST(t0, t1, t2, t3, q, s_step) \
  EDGEC_QUAD(t0, t1, t2, t3, q, "%[a_step]", ", #64", s_step, "%[s_step]")
#define EDGEC_BLOCK(quads, body)                                                \
  "ld1 {v12.16b, v13.16b, v14.16b, v15.16b}, [%[b]], #64\n\t"                   \
  "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[b]], #64\n\t" EDGEC_LOAD_SCALES \
  EDGEC_LOAD_ROW_SCALES(quads) body
#define EDGEC_QUADS_1 EDGEC_LAST(0, 1, 2, 3, 29, "160")
#define EDGEC_QUADS_2 EDGEC_NEXT(0, 1, 2, 3, 29) EDGEC_LAST(4, 5, 6, 7, 30, "288")
#define EDGEC_QUADS_3 EDGEC_NEXT(0, 1, 2, 3, 29) EDGEC_NEXT(4, 5, 6, 7, 30) EDGEC_LAST(8, 9, 10, 11, 31, "416")
// clang-format on

#define EDGEC_LOAD_SUMS(t0, t1, t2, t3) \
  "ld1 {v" #t0 ".4s, v" #t1 ".4s, v" #t2 ".4s, v" #t3 ".4s}, [%[from]], %[from_step]\n\t"
#define EDGEC_STORE_SUM(t) "st1 {v" #t ".4s}, [%[to]], %[to_step]\n\t"
#define EDGEC_STORE_SUMS(t0, t1, t2, t3) EDGEC_STORE_SUM(t0) EDGEC_STORE_SUM(t1) EDGEC_STORE_SUM(t2) EDGEC_STORE_SUM(t3)
#define EDGEC_SUMS_1(what) what(0, 1, 2, 3)
#define EDGEC_SUMS_2(what) EDGEC_SUMS_1(what) what(4, 5, 6, 7)
#define EDGEC_SUMS_3(what) EDGEC_SUMS_2(what) what(8, 9, 10, 11)
#if defined(EDGEC_KERNELS_I8MM)
// Two columns of two rows each, to rows.
#define EDGEC_EXCHANGE2(t0, t1)                                                                      \
  "zip1 v20.2d, v" #t0 ".2d, v" #t1 ".2d\n\tzip2 v" #t1 ".2d, v" #t0 ".2d, v" #t1 ".2d\n\tmov v" #t0 \
  ".16b, "                                                                                           \
  "v20.16b\n\t"
#define EDGEC_EXCHANGE4(t0, t1, t2, t3) EDGEC_EXCHANGE2(t0, t1) EDGEC_EXCHANGE2(t2, t3)
#define EDGEC_EXCHANGE(quads) "cbz %w[rows], 4f\n\t" EDGEC_SUMS_##quads(EDGEC_EXCHANGE4) "4:\n\t"
#else
#define EDGEC_EXCHANGE(quads)
#endif
#define EDGEC_BLOCKS4(quads)              \
  EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) \
  EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) \
  EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) EDGEC_BLOCK(quads, EDGEC_QUADS_##quads)

// Where sums are read and written, four registers and one at a time: steps in bytes, and what is added when a quarter
// is done. rows: as rows, not as smmla has them.
struct SumsWalk {
  const float* from;
  int64_t from_step, from_next;
  float* to;
  int64_t to_step, to_next;
  bool rows;
};

// Adds the products of 4 kQuads rows (a_tile: `blocks` prepared blocks, 1 or more) and 16 columns to sums.
template <int kQuads>
static void quads_tile(const uint8_t* a_tile, const UnpackedQuarter* b, int64_t blocks, const SumsWalk& walk) {
  const float* from = walk.from;
  float* to = walk.to;
  const uint8_t *a, *s;
  int64_t n, quarters = 4;
#if defined(EDGEC_KERNELS_I8MM)
  alignas(16) static const int32_t kStart[16] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000,
                                                 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000,
                                                 0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
#define EDGEC_START_INPUT [start] "r"(kStart)
#else
  // s: four rows' scales after four rows' scales, then their starts.
#define EDGEC_START_INPUT [s_step] "r"(int64_t{128 * kQuads + 16})
#endif
#define EDGEC_TILE(quads) \
  __asm__ volatile(                                                                                                  \
      "0:\n\tmov %[a], %[a_tile]\n\tadd %[s], %[a_tile], %[scales]\n\tmov %[n], %[blocks]\n\t"        \
          EDGEC_SUMS_##quads(EDGEC_LOAD_SUMS)                                                                        \
      "add %[from], %[from], %[from_next]\n\ttst %[n], #7\n\tb.eq 2f\n\t"                                             \
      "1:\n\t" EDGEC_BLOCK(quads, EDGEC_QUADS_##quads) "sub %[n], %[n], #1\n\t"                                     \
      "tst %[n], #7\n\tb.ne 1b\n\tcbz %[n], 3f\n\t"                                                                 \
      "2:\n\t" EDGEC_BLOCKS4(quads) EDGEC_BLOCKS4(quads) "subs %[n], %[n], #8\n\tb.ne 2b\n\t"                       \
      "3:\n\t" EDGEC_EXCHANGE(quads) EDGEC_SUMS_##quads(EDGEC_STORE_SUMS)                                            \
      "add %[to], %[to], %[to_next]\n\tsubs %[quarters], %[quarters], #1\n\tb.ne 0b\n\t"                             \
      : [a] "=&r"(a), [s] "=&r"(s), [n] "=&r"(n), [b] "+r"(b),                   \
        [from] "+r"(from), [to] "+r"(to), [quarters] "+r"(quarters)                                        \
      : [a_tile] "r"(a_tile), [blocks] "r"(blocks), [a_step] "r"(int64_t{64 + 32 * quads}), \
        [scales] "i"(128 * quads), EDGEC_START_INPUT,          \
        [from_step] "r"(walk.from_step), [from_next] "r"(walk.from_next), [to_step] "r"(walk.to_step),               \
        [to_next] "r"(walk.to_next), [rows] "r"(walk.rows)                                                           \
      : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", \
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31",     \
        "cc", "memory")
  if constexpr (kQuads == 1) {
    EDGEC_TILE(1);
  } else if constexpr (kQuads == 2) {
    EDGEC_TILE(2);
  } else {
    EDGEC_TILE(3);
  }
}

alignas(64) static const float kZeros[64] = {};

// What sums of a panel with this bias start from: each quarter four times.
EDGEC_INLINE void start_sums(const float* bias, float (&starts)[64]) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    const float32x4_t v = vld1q_f32(bias + 4 * quarter);
    for (int i = 0; i < 4; ++i) {
#if defined(EDGEC_KERNELS_I8MM)
      const float64x2_t pairs = vreinterpretq_f64_f32(v);
      vst1q_f64(reinterpret_cast<double*>(starts + 16 * quarter + 4 * i),
                i % 2 ? vdupq_laneq_f64(pairs, 1) : vdupq_laneq_f64(pairs, 0));
#else
      vst1q_f32(starts + 16 * quarter + 4 * i, v);
#endif
    }
  }
}

// A tile of rows, and where its activations and its row of y are.
struct QuadsTile {
  const uint8_t* a;
  float* y;
  int64_t row, rows, quads;
};

template <Family kFamily>
static void linear_quads(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                         int64_t panel_end) {
  constexpr int64_t kTiles = 24, kTileSums = 12 * kPanel;
  UnpackedQuarter unpacked[4 * kUnpackDepth];
  alignas(64) float sums[kTiles * kTileSums], staged[kTileSums], starts[64];
  const LinearArgs& args = job.args;
  const int64_t stretches = (job.blocks + kUnpackDepth - 1) / kUnpackDepth, ldy = args.ldy;
  __builtin_memset(staged, 0, sizeof staged);  // K = 0: what is stored
  for (; tile_begin < tile_end; tile_begin += kTiles) {
    QuadsTile tiles[kTiles];
    const int64_t count = tile_begin + kTiles < tile_end ? kTiles : tile_end - tile_begin;
    for (int64_t i = 0, row = job.row(tile_begin); i < count; ++i) {
      const int64_t rows = job.row(tile_begin + i + 1) - row;
      tiles[i] = {job.prepared + row * job.blocks * 40, args.y + row * ldy, row, rows, (rows + 3) / 4};
      row += rows;
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const uint8_t* packed = static_cast<const uint8_t*>(args.packed) + panel * job.panel_bytes;
      // Where there is no more of an epilogue than a bias, whole tiles go to y at once.
      const bool plain = args.act == Activation::kNone && !args.residual && (panel + 1) * kPanel <= args.n;
      if (plain && args.bias) start_sums(args.bias + panel * kPanel, starts);
      const float* const bias = plain && args.bias ? starts : kZeros;
      for (int64_t i = 0; i < count && stretches == 0; ++i) store_tile(job, tiles[i].row, tiles[i].rows, panel, staged);
      for (int64_t s = 0; s < stretches; ++s) {
        const int64_t from = s * job.blocks / stretches, blocks = (s + 1) * job.blocks / stretches - from;
        unpack_blocks<kFamily>(packed, from, from + blocks, job.group_blocks, unpacked);
        float* tile_sums = sums;
        for (const QuadsTile* tile = tiles; tile < tiles + count; ++tile, tile_sums += kTileSums) {
          const int64_t quads = tile->quads;
          const bool direct = plain && tile->rows == 4 * quads;
          SumsWalk walk{direct ? bias : kZeros, 0, 64, tile_sums, 16, 0, false};
          if (s > 0) walk.from = tile_sums, walk.from_step = 64, walk.from_next = 0;
          if (s + 1 == stretches) {
            walk.to = direct ? tile->y + panel * kPanel : staged;
            walk.to_step = direct ? 4 * ldy : 4 * kPanel;
            walk.to_next = 16 - 4 * quads * walk.to_step;
            walk.rows = true;
          }
          const uint8_t* a = tile->a + from * quads * 160;
          if (quads == 3) {
            quads_tile<3>(a, unpacked, blocks, walk);
          } else if (quads == 2) {
            quads_tile<2>(a, unpacked, blocks, walk);
          } else {
            quads_tile<1>(a, unpacked, blocks, walk);
          }
          if (walk.rows && !direct) store_tile(job, tile->row, tile->rows, panel, staged);
        }
      }
    }
  }
}
