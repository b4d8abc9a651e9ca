// int4 weights by f16 activations on Apple's AMX, summed in f32: outer products of 32 rows by 32 columns.
//
// A panel's weights become f16 in a buffer, [k][32 columns], a stretch of K at a time: the table look-up of `vecfp`
// makes numbers of nibbles and multiplies by the group's scales. All row tiles then run over that buffer. One `fma16`
// is one k: row 2j + i % 2 of Z holds in lane i / 2 the product of row j and column i, which `stzi` puts in order.

constexpr int64_t kAmxRows = 32, kAmxDepth = 1024;  // rows of a tile, k of a stretch
constexpr int64_t kAmxTiles = 4;                    // whose sums are kept between stretches
constexpr int64_t kAmxHeader = 256;  // bytes before a prepared tile: 32 factors as f32, then whether all are 1
constexpr int kAmxPlain = 32;
constexpr uint64_t kMany = uint64_t{1} << 62, kFour = kMany | uint64_t{1} << 60;
// Operands of loads are made once: two of them then cost one instruction of the loop. A stretch's tile has a list of
// them for its rows (made with the rows) for two and for four registers at a time, and the weights' buffer has one.
constexpr int64_t amx_operands(bool four) { return four ? 8 : 16; }  // of a block of 32 k
EDGEC_INLINE void amx_list(uint64_t from, int64_t blocks, bool four, uint64_t* operands) {
  const uint64_t step = four ? 4 : 2, flags = four ? kFour : kMany;
  for (uint64_t i = 0; i < static_cast<uint64_t>(blocks * amx_operands(four)); ++i) {
    operands[i] = from + i * step * 64 + ((i * step % 8) << 56 | flags);
  }
}
// A prepared tile: header, lists of operands, [k][32 rows] of f16.
constexpr int64_t amx_lists(int64_t blocks) { return (blocks * 8 * (8 + 16) + 255) / 256 * 256; }
constexpr int64_t amx_tile_bytes(int64_t blocks) { return kAmxHeader + amx_lists(blocks) + blocks * 2048; }
constexpr int kTableQ = 7, kTableZ = 6, kZeros = 5;  // registers of X; nibbles come into 0 to 3

// Of f16 by nibble: the value, and what a zero point adds to it.
struct AmxTables {
  alignas(64) uint16_t q[32], z[32];
};
static constexpr AmxTables kAmxTables = [] {
  constexpr uint16_t kSmall[9] = {0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800};  // 0 to 8
  AmxTables t{};
  for (int i = 0; i < 16; ++i) {
    const int v = i - 8;
    t.q[i] = static_cast<uint16_t>(kSmall[v < 0 ? -v : v] | (v < 0 ? 0x8000 : 0));
    t.z[i] = static_cast<uint16_t>(kSmall[v < 0 ? -v : v] | (v > 0 ? 0x8000 : 0));
  }
  return t;
}();

EDGEC_INLINE uint64_t amx_address(const void* p) { return reinterpret_cast<uint64_t>(p); }
// In a register, and not computed again.
EDGEC_INLINE uint64_t amx_kept(uint64_t v) {
#if !defined(EDGEC_AMX_MODEL)
  __asm__("" : "+r"(v));
#endif
  return v;
}

// z[row] += table[nibbles of x from byte `from` on] * y[register y]; four: also of the next 3 x 16 bytes to rows + 16.
constexpr uint64_t amx_look_up(int table, int from, int y, int row, bool four) {
  constexpr uint64_t kF16 = uint64_t{2} << 42, kNibbles = uint64_t{1} << 53 | uint64_t{1} << 48;
  constexpr uint64_t kFourByOne = uint64_t{1} << 31 | uint64_t{1} << 25 | uint64_t{3} << 32;
  return kNibbles | kF16 | static_cast<uint64_t>(table) << 49 | static_cast<uint64_t>(from) << 10 |
         static_cast<uint64_t>(y) * 64 | static_cast<uint64_t>(row) << 20 | (four ? kFourByOne : 0);
}
constexpr uint64_t kClearZ = uint64_t{7} << 27 | kMany;

// The operands that store a stretch's weights, 16 for a block. Blocks use one half of Z's rows or the other in turn.
EDGEC_INLINE void amx_store_list(const uint8_t* to, uint64_t* operands) {
  for (uint64_t block = 0; block < kAmxDepth / 32; ++block) {
    for (uint64_t k = 0; k < 32; k += 2, to += 128) {
      *operands++ = amx_address(to) + ((k / 8 * 16 + k % 8 + block % 2 * 8) << 56 | kMany);
    }
  }
}

// The operands that look up a block's nibbles: 8 of four vectors or 32 of one, then those of an odd block.
template <bool kFourVectors>
EDGEC_INLINE void amx_look_up_list(uint64_t* operands) {
  for (int row = 0; row < 16; ++row) {
    for (int v = 0; v < 4; v += kFourVectors ? 4 : 1) {
      *operands++ = amx_look_up(kTableQ, row % 4 * 64 + 16 * v, 0, row + 16 * v, kFourVectors);
    }
  }
}

// A block's 32 k x 32 columns to [k][32] f16. Its 16 bytes of a k stand in the order 0, 8, 16, 24, 1, 9 ...: the four
// that one instruction takes then go to the rows of Z, 16 apart, of four stretches of 8 k.
template <Family kFamily, bool kFourVectors, bool kOdd>
EDGEC_INLINE void amx_unpack(const uint8_t* header, const uint8_t* data, const uint64_t* look_ups, const uint64_t* to) {
  amx::ldy(amx_address(header));
  if (!kOdd || has_zeros(kFamily)) amx::fma16(kClearZ);
  if constexpr (has_zeros(kFamily)) {
    amx::ldx(amx_address(header + 64));
    amx::vecfp(amx_look_up(kTableZ, 0, 0, 0, false));
    amx::extrx(uint64_t{2} << 28 | uint64_t{kZeros * 64} << 10);
    for (uint64_t parity = 0; parity < 2; ++parity) {
      amx::fma16(uint64_t{3} << 27 | parity << 20 | uint64_t{kZeros * 64} << 10);  // every second row becomes x
    }
  }
  uint64_t from = amx_address(data);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      amx::ldx(from);
      if (half == 0 || i < 3) from = amx_kept(from + 64 + (i < 3 ? uint64_t{1} << 56 : -(uint64_t{3} << 56)));
    }
    constexpr int kHalf = kFourVectors ? 4 : 16;
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; i += 2) {
      const uint64_t* at = look_ups + (half + 2 * kOdd) * kHalf + i;
      const uint64_t first = at[0], second = at[1];
      amx::vecfp(first), amx::vecfp(second);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    const uint64_t first = to[i], second = to[i + 1];
    amx::stz(first), amx::stz(second);
  }
}

// A stretch of blocks. of_group: blocks of the group that are to come, whose header is `header`.
template <Family kFamily, bool kM2>
struct AmxWeights {
  const uint8_t *header, *data;
  const uint64_t* look_ups;
  int64_t of_group;

  template <bool kOdd>
  EDGEC_MEMBER void block(int64_t group_blocks, const uint64_t* to) {
    if (of_group == 0) header = data, data += header_bytes(kFamily), of_group = group_blocks;
    amx_unpack<kFamily, kM2, kOdd>(header, data, look_ups, to);
    data += data_bytes(kFamily), --of_group;
  }
  EDGEC_MEMBER void unpack(int64_t blocks, int64_t group_blocks, const uint64_t* to) {
    constexpr int64_t kHeader = header_bytes(kFamily), kNext = kHeader + data_bytes(kFamily);
    for (; blocks > 1 && group_blocks == 1; blocks -= 2, to += 32) {
      amx_unpack<kFamily, kM2, false>(data, data + kHeader, look_ups, to);
      amx_unpack<kFamily, kM2, true>(data + kNext, data + kNext + kHeader, look_ups, to + 16);
      data += 2 * kNext;
    }
    for (; blocks > 1; blocks -= 2, to += 32) block<false>(group_blocks, to), block<true>(group_blocks, to + 16);
    if (blocks > 0) block<false>(group_blocks, to);
  }
};

// Register i of X by register i of Y.
EDGEC_INLINE void amx_step_list(uint64_t* operands) {
  for (uint64_t i = 0; i < 8; ++i) operands[i] = kMany | i << 16 | i << 6;
}

// Sums of `blocks` blocks of a tile. x, y, steps: lists of operands.
template <bool kFourRegisters>
EDGEC_INLINE void amx_products(const uint64_t* x, const uint64_t* y, const uint64_t* steps, int64_t blocks) {
  uint64_t step[8];
  for (int i = 0; i < 8; ++i) step[i] = amx_kept(steps[i]);
  constexpr int kLoads = amx_operands(kFourRegisters) / 4;  // for 8 k
  const auto eights = [&](int count) EDGEC_MEMBER {
#pragma GCC unroll 16
    for (int e = 0; e < count; ++e) {
#pragma GCC unroll 2
      for (int i = e * kLoads; i < (e + 1) * kLoads; i += 2) {
        const uint64_t x0 = x[i], x1 = x[i + 1], y0 = y[i], y1 = y[i + 1];
        amx::ldx(x0), amx::ldx(x1), amx::ldy(y0), amx::ldy(y1);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) amx::fma16(step[i]);
    }
    x += count * kLoads, y += count * kLoads;
  };
  for (; blocks > 3; blocks -= 4) eights(16);
  for (; blocks > 0; --blocks) eights(4);
}

// Rows of Z in order: 32 rows of 32 columns, `stride` bytes apart.
EDGEC_INLINE void amx_store(uint8_t* to, int64_t stride, uint64_t half_bytes) {
  const uint64_t next = static_cast<uint64_t>(stride) + (uint64_t{1} << 57);
  uint64_t left = amx_address(to), right = left + half_bytes + (uint64_t{1} << 56);
#pragma GCC unroll 1
  for (int j = 0; j < 32; j += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, left = amx_kept(left + next), right = amx_kept(right + next)) {
      amx::stzi(left), amx::stzi(right);
    }
  }
}

template <bool kStore>
EDGEC_INLINE void amx_keep(uint8_t* kept) {
#pragma GCC unroll 1
  for (uint64_t i = 0; i < 64; i += 2) {
    const uint64_t operand = amx_address(kept + 64 * i) + (i << 56 | kMany);
    kStore ? amx::stz(operand) : amx::ldz(operand);
  }
}

// Whether the sums of a tile are its result as they are. plain: all factors are 1.
EDGEC_INLINE bool amx_direct(const LinearArgs& args, bool plain, int64_t rows, int64_t column) {
  return plain && args.act == Activation::kNone && !args.bias && !args.residual && rows >= kAmxRows &&
         column + 32 <= args.n;
}

// What a tile's sums need yet. sums: [2 panels][32 rows][16].
static void amx_finish(const LinearJob& job, const float* factors, int64_t tile, int64_t panel, float* sums) {
  const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
  for (int64_t p = 0; p < 2 && (panel + p) * kPanel < job.args.n; ++p) {
    float* part = sums + p * kAmxRows * kPanel;
    for (int64_t r = 0; r < rows; ++r) {
      float* at = part + r * kPanel;
      store(at, load(at) * factors[r]), store(at + 8, load(at + 8) * factors[r]);
    }
    store_tile(job, row, rows, panel + p, part);
  }
}

// Memory of a slice, on its stack.
struct AmxBuffers {
  alignas(256) uint8_t weights[kAmxDepth * 64];
  alignas(256) uint8_t kept[kAmxTiles][4096];
  alignas(64) float sums[2 * kAmxRows * kPanel];
  uint64_t loads[kAmxDepth / 32 * 16], stores[kAmxDepth / 32 * 16], look_ups[64], steps[8];  // operands
};

// Some row tiles by a panel of 32 columns.
template <Family kFamily, bool kM2>
static void amx_panel(const LinearJob& job, AmxBuffers& buffers, int64_t panel, int64_t tile_begin, int64_t tile_end) {
  const int64_t tile_bytes = amx_tile_bytes(job.blocks);
  const uint8_t* data = static_cast<const uint8_t*>(job.args.packed) + panel / 2 * job.panel_bytes;
  AmxWeights<kFamily, kM2> weights{data, data, buffers.look_ups, 0};
  for (int64_t first = 0; first < job.blocks; first += kAmxDepth / 32) {
    const int64_t last = first + kAmxDepth / 32 < job.blocks ? first + kAmxDepth / 32 : job.blocks;
    amx::ldx(amx_address(kAmxTables.q) + (uint64_t{kTableQ} << 56));
    if constexpr (has_zeros(kFamily)) amx::ldx(amx_address(kAmxTables.z) + (uint64_t{kTableZ} << 56));
    weights.unpack(last - first, job.group_blocks, buffers.stores);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const uint8_t* prepared = job.prepared + tile * tile_bytes;
      const float* factors = reinterpret_cast<const float*>(prepared);
      const uint64_t* rows = reinterpret_cast<const uint64_t*>(prepared + kAmxHeader) + (kM2 ? 0 : job.blocks * 8);
      first ? amx_keep<false>(buffers.kept[tile - tile_begin]) : amx::fma16(kClearZ);
      amx_products<kM2>(buffers.loads, rows + first * amx_operands(kM2), buffers.steps, last - first);
      if (last < job.blocks) {
        amx_keep<true>(buffers.kept[tile - tile_begin]);
      } else if (amx_direct(job.args, factors[kAmxPlain] != 0.0f, job.args.m - tile * kAmxRows, panel * kPanel)) {
        amx_store(reinterpret_cast<uint8_t*>(job.args.y + tile * kAmxRows * job.args.ldy + panel * kPanel),
                  job.args.ldy * 4, 64);
      } else {
        amx_store(reinterpret_cast<uint8_t*>(buffers.sums), kPanel * 4, kAmxRows * kPanel * 4);
        amx_finish(job, factors, tile, panel, buffers.sums);
      }
    }
  }
}

template <Family kFamily, bool kM2>
static void linear_amx(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                       int64_t panel_end) {
  AmxBuffers buffers;
  if (job.blocks == 0) {
    __builtin_memset(buffers.sums, 0, sizeof(buffers.sums));
    for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        amx_finish(job, reinterpret_cast<const float*>(job.prepared + tile * kAmxHeader), tile, panel, buffers.sums);
      }
    }
    return;
  }
  amx_list(amx_address(buffers.weights), kAmxDepth / 32, kM2, buffers.loads);
  amx_store_list(buffers.weights, buffers.stores);
  amx_look_up_list<kM2>(buffers.look_ups);
  amx_step_list(buffers.steps);
  amx::set();
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    for (int64_t tile = tile_begin; tile < tile_end; tile += kAmxTiles) {
      amx_panel<kFamily, kM2>(job, buffers, panel, tile, tile + kAmxTiles < tile_end ? tile + kAmxTiles : tile_end);
    }
  }
  amx::clr();
}
