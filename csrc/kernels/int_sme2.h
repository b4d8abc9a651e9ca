// int4 products in SME2's streaming mode, for vectors of kLanes 32-bit lanes (4, 8 or 16).
//
// A vector of packed weights is 2 kLanes columns x 4 k of nibbles: `luti4` makes two vectors of s8 of it, through a
// table in ZT0. ZA is seen in two ways: as tiles of kLanes x kLanes, where row i of tile t is the array's vector 4i +
// t, and as groups of four vectors kLanes apart, which one instruction reads, converts or adds to: group 4i + t is the
// rows i, i + kLanes / 4, ... of tile t.

constexpr int kTableEntries = 16;
static constexpr int32_t kSigned[kTableEntries] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static constexpr int32_t kUnsigned[kTableEntries] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// As s8 the same, as s16 twice.
static constexpr struct Twice {
  int32_t v[kTableEntries];
} kTwice = [] {
  Twice t{};
  for (int32_t i = 0; i < kTableEntries; ++i) t.v[i] = i << 16 | i;
  return t;
}();
constexpr uint64_t kTile0 = 0x11, kTile1 = 0x22;  // masks of svzero: a 32-bit tile is every fourth 64-bit one

// v in a register, new to the compiler each time: LLVM 22 reads ZA at constant places through a register that it never
// set, and keeps sums with v that are only known once in registers of their own, or on the stack.
EDGEC_INLINE uint32_t place(uint32_t v) __arm_streaming_compatible {
  __asm__ volatile("" : "+r"(v));
  return v;
}

// Four vectors a step of 64 bytes apart.
template <int kLanes>
EDGEC_INLINE svuint8x4_t load_steps(const uint8_t* p) __arm_streaming {
  if constexpr (kLanes == 16) return svld1_u8_x4(svptrue_c8(), p);
  const svbool_t all = svptrue_b8();
  return svcreate4_u8(svld1_u8(all, p), svld1_u8(all, p + 64), svld1_u8(all, p + 128), svld1_u8(all, p + 192));
}

// f16 scales of 2 kLanes columns, as floats: those of columns below 16 are the even halves of a header, the others odd.
template <int kLanes>
EDGEC_INLINE svfloat32x2_t load_scales(const uint8_t* header, int64_t column) __arm_streaming {
  const svbool_t all = svptrue_b32();
  const float16_t* half = reinterpret_cast<const float16_t*>(header) + column % 16 * 2;
  const svfloat16_t h0 = svld1_f16(svptrue_b16(), half);
  if constexpr (kLanes == 16) return svcreate2_f32(svcvt_f32_f16_x(all, h0), svcvtlt_f32_f16_x(all, h0));
  const svfloat16_t h1 = svld1_f16(svptrue_b16(), half + 2 * kLanes);
  return column < 16 ? svcreate2_f32(svcvt_f32_f16_x(all, h0), svcvt_f32_f16_x(all, h1))
                     : svcreate2_f32(svcvtlt_f32_f16_x(all, h0), svcvtlt_f32_f16_x(all, h1));
}

// The zero points of 2 kLanes columns, by the table: s32, which is s16 pairs (zero, 0) as well, or pairs (zero, zero).
template <int kLanes>
EDGEC_INLINE svint32x2_t load_zeros(const uint8_t* header, int64_t column) __arm_streaming __arm_in("za", "zt0") {
  const svuint8_t nibbles = svld1_u8(svwhilelt_b8_s64(0, kLanes), header + 64 + column / 2);
  return svluti4_lane_zt_s32_x2(0, nibbles, 0);
}

// ---- One row: sdot by lane, four vectors of weights at once; integers in groups 0 and kSecond of ZA, floats next ----

// 4 kLanes columns of a row: two pairs of vectors, maybe in two panels.
struct RowUnit {
  const uint8_t *header[2], *data[2];
  int64_t column[2];  // within the panel
};

template <int kLanes>
EDGEC_INLINE RowUnit row_unit_at(const LinearJob& job, int64_t column) __arm_streaming_compatible {
  RowUnit u;
  const int64_t last = (job.args.n + 31) / 32 - 1;
  for (int i = 0; i < 2; ++i, column += 2 * kLanes) {
    // Beyond the last panel it is read again, and the result not stored.
    const int64_t panel = column / 32 < last ? column / 32 : last;
    u.header[i] = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
    u.column[i] = kLanes == 16 ? 0 : column % 32;
  }
  return u;
}

// The activations' sum, which is prepared as two halves of s16 times -1, times the zero points, to group kGroup.
template <int kLanes, int kGroup>
EDGEC_INLINE void subtract_zeros(const RowUnit& u, const uint8_t* a,
                                 uint32_t zero) __arm_streaming __arm_inout("za") __arm_in("zt0") {
  int32_t halves;
  __builtin_memcpy(&halves, a + 36, 4);
  const svint32x2_t z0 = load_zeros<kLanes>(u.header[0], u.column[0]);
  const svint32x2_t z1 = load_zeros<kLanes>(u.header[1], u.column[1]);
  svdot_lane_za32_s16_vg1x4(
      zero + kGroup,
      svcreate4_s16(svreinterpret_s16_s32(svget2_s32(z0, 0)), svreinterpret_s16_s32(svget2_s32(z0, 1)),
                    svreinterpret_s16_s32(svget2_s32(z1, 0)), svreinterpret_s16_s32(svget2_s32(z1, 1))),
      svreinterpret_s16_s32(svdup_s32(halves)), 0);
}

// 32 k of four columns' worth of vectors: dots in group kGroup.
template <int kLanes, int kGroup>
EDGEC_INLINE void row_dots(const RowUnit& u, svint8_t x0, svint8_t x1,
                           uint32_t zero) __arm_streaming __arm_inout("za") __arm_in("zt0") {
  const uint8_t *d0 = u.data[0] + u.column[0] * 2, *d1 = u.data[1] + u.column[1] * 2;
#define EDGEC_STEP(i, x)                                                                                            \
  {                                                                                                                 \
    const svint8x2_t v0 = svluti4_lane_zt_s8_x2(0, svget4_u8(w0, i), 0);                                            \
    const svint8x2_t v1 = svluti4_lane_zt_s8_x2(0, svget4_u8(w1, i), 0);                                            \
    svdot_lane_za32_s8_vg1x4(                                                                                       \
        zero + kGroup, svcreate4_s8(svget2_s8(v0, 0), svget2_s8(v0, 1), svget2_s8(v1, 0), svget2_s8(v1, 1)), x, i); \
  }
#define EDGEC_STEPS(x, offset)                                                                    \
  {                                                                                               \
    const svuint8x4_t w0 = load_steps<kLanes>(d0 + offset), w1 = load_steps<kLanes>(d1 + offset); \
    EDGEC_STEP(0, x) EDGEC_STEP(1, x) EDGEC_STEP(2, x) EDGEC_STEP(3, x)                           \
  }
  EDGEC_STEPS(x0, 0)
  EDGEC_STEPS(x1, 256)
#undef EDGEC_STEPS
#undef EDGEC_STEP
}

// The dots of group kGroup, times the scales, to group kGroup + 1.
template <int kLanes, int kGroup>
EDGEC_INLINE void add_row(const RowUnit& u, svint32x4_t dots, svfloat32_t row_scale,
                          uint32_t zero) __arm_streaming __arm_inout("za") {
  const svbool_t all = svptrue_b32();
  const svfloat32x2_t s0 = load_scales<kLanes>(u.header[0], u.column[0]);
  const svfloat32x2_t s1 = load_scales<kLanes>(u.header[1], u.column[1]);
  const svfloat32x4_t scales =
      svcreate4_f32(svmul_f32_x(all, svget2_f32(s0, 0), row_scale), svmul_f32_x(all, svget2_f32(s0, 1), row_scale),
                    svmul_f32_x(all, svget2_f32(s1, 0), row_scale), svmul_f32_x(all, svget2_f32(s1, 1), row_scale));
  svmla_za32_f32_vg1x4(zero + kGroup + 1, svcvt_f32_s32_x4(dots), scales);
}

// sums[count][8 kLanes] of the columns from first * 8 kLanes on. kOne: groups of one block, whose headers and data
// follow each other.
template <int kLanes, bool kZeros, bool kOne>
__arm_locally_streaming __arm_new("za", "zt0")
    __attribute__((noinline)) static void row_units(const LinearJob& job, const uint8_t* row, int64_t first,
                                                    int64_t count, float* sums) {
  constexpr int64_t kHeader = kZeros ? 80 : 64, kData = 512;
  constexpr int kSecond = kLanes == 4 ? 2 : 4;  // in tile 0 of ZA as group 0 is, if that has room
  svldr_zt(0, kZeros ? kTwice.v : kSigned);
  uint32_t zero = place(0);
  for (int64_t unit = first; unit < first + count; ++unit, sums += 8 * kLanes) {
    RowUnit u = row_unit_at<kLanes>(job, unit * 8 * kLanes), v = row_unit_at<kLanes>(job, (2 * unit + 1) * 4 * kLanes);
    const uint8_t* a = row;
    svzero_za();
    for (int64_t blocks = job.blocks; blocks > 0; blocks -= kOne ? blocks : job.group_blocks) {
      for (int i = 0; i < 2; ++i) u.data[i] = u.header[i] + kHeader, v.data[i] = v.header[i] + kHeader;
      int64_t n = kOne || blocks < job.group_blocks ? blocks : job.group_blocks;
      do {
        const svint8_t x0 = svld1rq_s8(svptrue_b8(), reinterpret_cast<const int8_t*>(a));
        const svint8_t x1 = svld1rq_s8(svptrue_b8(), reinterpret_cast<const int8_t*>(a) + 16);
        zero = place(zero);
        if constexpr (kZeros) subtract_zeros<kLanes, 0>(u, a, zero), subtract_zeros<kLanes, kSecond>(v, a, zero);
        row_dots<kLanes, 0>(u, x0, x1, zero);
        row_dots<kLanes, kSecond>(v, x0, x1, zero);
        const svint32x4_t u_dots = svread_za32_s32_vg1x4(zero), v_dots = svread_za32_s32_vg1x4(zero + kSecond);
        svzero_mask_za(kLanes == 4 ? kTile0 | kTile0 << 2 : kTile0);
        float scale;
        __builtin_memcpy(&scale, a + 32, 4);
        add_row<kLanes, 0>(u, u_dots, svdup_f32(scale), zero);
        add_row<kLanes, kSecond>(v, v_dots, svdup_f32(scale), zero);
        a += 40;
        for (int i = 0; i < 2; ++i) {
          constexpr int64_t kStep = kOne ? kHeader + kData : kData;
          u.data[i] += kStep, v.data[i] += kStep;
          if constexpr (kOne) u.header[i] += kStep, v.header[i] += kStep;
        }
      } while (--n > 0);
      for (int i = 0; i < 2 && !kOne; ++i) u.header[i] = u.data[i], v.header[i] = v.data[i];
    }
    zero = place(zero);
    svst1_f32_x4(svptrue_c32(), sums, svread_za32_f32_vg1x4(zero + 1));
    svst1_f32_x4(svptrue_c32(), sums + 4 * kLanes, svread_za32_f32_vg1x4(zero + kSecond + 1));
  }
}

template <int kLanes, bool kZeros>
static void row_chunk(const LinearJob& job, const uint8_t* row, int64_t first, int64_t count, float* sums) {
  return job.group_blocks == 1 ? row_units<kLanes, kZeros, true>(job, row, first, count, sums)
                               : row_units<kLanes, kZeros, false>(job, row, first, count, sums);
}

template <Family kFamily>
static void linear_rows(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                        int64_t panel_end) {
  constexpr bool kZeros = has_zeros(kFamily);
  constexpr int64_t kChunk = 32;  // panels: some us of work between changes of mode
  const int64_t lanes = static_cast<int64_t>(svcntsw()), columns = 8 * lanes;
  alignas(64) float sums[kChunk * kPanel];
  for (; panel_begin < panel_end; panel_begin += kChunk) {
    const int64_t stop = panel_begin + kChunk < panel_end ? panel_begin + kChunk : panel_end;
    const int64_t first = panel_begin * kPanel / columns;
    const int64_t count = ((stop - panel_begin) * kPanel + columns - 1) / columns;
    for (int64_t row = tile_begin; row < tile_end; ++row) {
      const uint8_t* a = job.prepared + row * job.blocks * 40;
      (lanes == 16  ? row_chunk<16, kZeros>
       : lanes == 8 ? row_chunk<8, kZeros>
                    : row_chunk<4, kZeros>)(job, a, first, count, sums);
      for (int64_t p = panel_begin; p < stop; ++p) store_tile(job, row, 1, p, sums + (p - panel_begin) * kPanel);
    }
  }
}

// ---- Tiles of 16 rows: outer products; integers in tiles 0 and 1, floats in 2 and 3 ----

// Scales the integers of tile kTile and adds them to tile kTile + 2. The scales of all its elements are an outer
// product as well, made in the tile that the integers have left. eight: 8, in a register (a group's number is that plus
// 0 to 7).
template <int kLanes, int kTile>
EDGEC_INLINE void scale_tile(svfloat32_t row_scales, svfloat32_t column_scales, uint32_t zero,
                             uint32_t eight) __arm_streaming __arm_inout("za") {
  const svbool_t all = svptrue_b32();
  svfloat32x4_t dots0, dots1, dots2, dots3;
  dots0 = svcvt_f32_s32_x4(svread_za32_s32_vg1x4(zero + kTile));
  if constexpr (kLanes > 4) dots1 = svcvt_f32_s32_x4(svread_za32_s32_vg1x4(zero + kTile + 4));
  if constexpr (kLanes > 8) dots2 = svcvt_f32_s32_x4(svread_za32_s32_vg1x4(eight + kTile));
  if constexpr (kLanes > 8) dots3 = svcvt_f32_s32_x4(svread_za32_s32_vg1x4(eight + kTile + 4));
  svzero_mask_za(kTile ? kTile1 : kTile0);
  svmopa_za32_f32_m(kTile, all, all, row_scales, column_scales);
  svmla_za32_f32_vg1x4(zero + kTile + 2, dots0, svread_za32_f32_vg1x4(zero + kTile));
  if constexpr (kLanes > 4) svmla_za32_f32_vg1x4(zero + kTile + 6, dots1, svread_za32_f32_vg1x4(zero + kTile + 4));
  if constexpr (kLanes > 8) svmla_za32_f32_vg1x4(eight + kTile + 2, dots2, svread_za32_f32_vg1x4(eight + kTile));
  if constexpr (kLanes > 8) svmla_za32_f32_vg1x4(eight + kTile + 6, dots3, svread_za32_f32_vg1x4(eight + kTile + 4));
}

// 32 k of kLanes rows and 2 kLanes columns.
template <int kLanes, bool kZeros>
EDGEC_INLINE void tile_block(const uint8_t* a, const uint8_t* b, svfloat32x2_t column_scales,
                             svint32x2_t zeros) __arm_streaming __arm_inout("za") __arm_in("zt0") {
  const svbool_t all = svptrue_b32(), bytes = svptrue_b8();
  svzero_mask_za(kTile0 | kTile1);
#define EDGEC_STEP(i)                                                  \
  {                                                                    \
    const svint8x2_t v = svluti4_lane_zt_s8_x2(0, svget4_u8(w, i), 0); \
    const svint8_t v_x = svreinterpret_s8_u8(svget4_u8(x, i));         \
    svmopa_za32_s8_m(0, bytes, bytes, v_x, svget2_s8(v, 0));           \
    svmopa_za32_s8_m(1, bytes, bytes, v_x, svget2_s8(v, 1));           \
  }
#define EDGEC_STEPS(offset)                                                                   \
  {                                                                                           \
    const svuint8x4_t x = load_steps<kLanes>(a + offset), w = load_steps<kLanes>(b + offset); \
    EDGEC_STEP(0) EDGEC_STEP(1) EDGEC_STEP(2) EDGEC_STEP(3)                                   \
  }
  EDGEC_STEPS(0)
  EDGEC_STEPS(256)
#undef EDGEC_STEPS
#undef EDGEC_STEP
  if constexpr (kZeros) {
    // The sum of the activations times the zero point, as s16 pairs: (sum, its sign) x (zero, 0).
    const svint16_t sum = svreinterpret_s16_s32(svld1_s32(all, reinterpret_cast<const int32_t*>(a + 576)));
    svmops_za32_s16_m(0, bytes, bytes, sum, svreinterpret_s16_s32(svget2_s32(zeros, 0)));
    svmops_za32_s16_m(1, bytes, bytes, sum, svreinterpret_s16_s32(svget2_s32(zeros, 1)));
  }
  const uint32_t zero = place(0), eight = place(8);
  const svfloat32_t row_scales = svld1_f32(all, reinterpret_cast<const float*>(a + 512));
  scale_tile<kLanes, 0>(row_scales, svget2_f32(column_scales, 0), zero, eight);
  scale_tile<kLanes, 1>(row_scales, svget2_f32(column_scales, 1), zero, eight);
}

// sums[tiles][2 panels][16 rows][16] of a panel of 32 columns. kOne: groups of one block.
template <int kLanes, bool kZeros, bool kOne>
__arm_locally_streaming __arm_new("za", "zt0")
    __attribute__((noinline)) static void tile_panel(const LinearJob& job, const uint8_t* packed, int64_t tile_begin,
                                                     int64_t tile_end, float* sums) {
  constexpr int64_t kHeader = kZeros ? 80 : 64, kData = 512;
  const svbool_t all = svptrue_b32();
  svldr_zt(0, kZeros ? kUnsigned : kSigned);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile, sums += 2 * 16 * kPanel) {
    for (int64_t row = 0; row < 16; row += kLanes) {
      for (int64_t column = 0; column < 32; column += 2 * kLanes) {
        const uint8_t* a = job.prepared + tile * 16 * job.blocks * 40 + row * 4;
        const uint8_t* b = packed;
        svzero_za();
        for (int64_t blocks = job.blocks; blocks > 0; blocks -= kOne ? 1 : job.group_blocks) {
          const svfloat32x2_t scales = load_scales<kLanes>(b, column);
          svint32x2_t zeros;
          if constexpr (kZeros) zeros = load_zeros<kLanes>(b, column);
          int64_t n = kOne ? 1 : job.group_blocks < blocks ? job.group_blocks : blocks;
          b += kHeader;
          do {
            tile_block<kLanes, kZeros>(a, b + column * 2, scales, zeros);
            a += 16 * 40, b += kData;
          } while (!kOne && --n > 0);
        }
        for (uint32_t i = 0; i < kLanes; ++i) {
          float* to = sums + (column / 16 * 16 + row + i) * kPanel + column % 16;
          svst1_hor_za32(2, i, all, to);
          svst1_hor_za32(3, i, all, kLanes == 16 ? to + 16 * kPanel : to + kLanes);
        }
      }
    }
  }
}

template <int kLanes, bool kZeros>
static void tile_chunk(const LinearJob& job, const uint8_t* packed, int64_t from, int64_t to, float* sums) {
  return job.group_blocks == 1 ? tile_panel<kLanes, kZeros, true>(job, packed, from, to, sums)
                               : tile_panel<kLanes, kZeros, false>(job, packed, from, to, sums);
}

template <Family kFamily>
static void linear_tiles(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                         int64_t panel_end) {
  constexpr bool kZeros = has_zeros(kFamily);
  constexpr int64_t kTiles = 8, kTileSums = 2 * 16 * kPanel;
  const uint64_t lanes = svcntsw();
  alignas(64) float sums[kTiles * kTileSums];
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const uint8_t* packed = static_cast<const uint8_t*>(job.args.packed) + panel / 2 * job.panel_bytes;
    for (int64_t from = tile_begin; from < tile_end; from += kTiles) {
      const int64_t to = from + kTiles < tile_end ? from + kTiles : tile_end;
      (lanes == 16  ? tile_chunk<16, kZeros>
       : lanes == 8 ? tile_chunk<8, kZeros>
                    : tile_chunk<4, kZeros>)(job, packed, from, to, sums);
      for (int64_t tile = from; tile < to; ++tile) {
        const float* out = sums + (tile - from) * kTileSums;
        const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
        store_tile(job, row, rows, panel, out);
        if ((panel + 1) * kPanel < job.args.n) store_tile(job, row, rows, panel + 1, out + 16 * kPanel);
      }
    }
  }
}
