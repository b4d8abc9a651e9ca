// What a linear kernel gets: the caller's arguments and the layout of the prepared activations.
#pragma once

#include "kernels/kernels.h"

namespace edgec::kernels {

constexpr int64_t kBlock = 32;  // activations that share a scale
constexpr int64_t kMaxTileRows = 32;

// S16: of four k in the order 0, 2, 1, 3. T: one s32 sum instead of two of s16. X4: tiles are padded to four rows, and
// have a s32 start instead of the sums; P2: pairs of rows interleaved by 8 of k, their scales twice (r0 r0 r1 r1), no
// sums; Q16: sixteen rows interleaved by 4 of k, tiles padded to sixteen, s32 sums. F16K32: f16, k by k of 32 rows
// (prepare_amx.h).
enum class Lhs : int32_t { F32, S8B32, S16B32, S8B32T, S8B32X4, S8P2B32X4, S8Q16B32, F16K32 };

// Bytes of one row's block in the prepared activations: values, f32 scale, and for S8B32 two s16 sums.
constexpr int64_t block_bytes(Lhs lhs) {
  return lhs == Lhs::F32 ? 0 : lhs == Lhs::F16K32 ? 64 : lhs == Lhs::S16B32 ? 64 + 4 : 32 + 4 + 4;
}
// Rows that a tile is a multiple of, but for a last one that is padded.
constexpr int64_t row_unit(Lhs lhs) {
  return lhs == Lhs::F16K32 ? 32 : lhs == Lhs::S8Q16B32 ? 16 : lhs == Lhs::S8B32X4 || lhs == Lhs::S8P2B32X4 ? 4 : 1;
}

// Rows are cut into tiles of nearly equal height, none above mr. A tile is stored block by block:
// mr x values, mr x scale, mr x sums, so that a kernel walks one pointer.
struct LinearJob {
  LinearArgs args;
  Lhs lhs;
  int64_t tiles;         // row tiles
  int64_t blocks;        // blocks of 32 along K
  int64_t group_blocks;  // blocks that share a weight scale
  int64_t panel_bytes;   // of panel_columns()
  uint8_t* prepared;

  int64_t row(int64_t tile) const {
    const int64_t unit = row_unit(lhs);
    if (unit == 1) return tile * args.m / tiles;
    const int64_t row = tile * ((args.m + unit - 1) / unit) / tiles * unit;
    return row < args.m ? row : args.m;
  }
  // Rows of the tile as prepared.
  int64_t stored_rows(int64_t tile) const {
    const int64_t unit = row_unit(lhs);
    return (row(tile + 1) - row(tile) + unit - 1) / unit * unit;
  }
};

using PrepareFn = void (*)(const LinearJob&, int64_t tile_begin, int64_t tile_end);
using LinearFn = void (*)(const LinearJob&, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                          int64_t panel_end);

struct IsaOps;
struct LinearKernel {
  KernelInfo info;
  Family family;
  Lhs lhs;
  const IsaOps* ops;
  LinearFn run;
};

// Bytes of a group's scales and zero points in a panel.
constexpr bool has_zeros(Family family) {
  return family == Family::kU4N16K4 || family == Family::kU4N32K4 || family == Family::kU4N32K1;
}
constexpr int64_t header_bytes(Family family) {
  return family == Family::kT4N16K4 ? 16 : panel_columns(family) / 2 * (has_zeros(family) ? 5 : 4);
}
// Bytes before a panel's first group: the exponents of the columns' scales.
constexpr int64_t panel_header_bytes(Family family) { return family == Family::kT4N16K4 ? kPanel : 0; }
// Bytes of a block of 32 along K in a panel.
constexpr int64_t data_bytes(Family family) {
  return family == Family::kS8N16K4 ? 512 : family == Family::kS6N16K4 ? 384 : panel_columns(family) * 16;
}

// Where a column's scale is in a header. In panels by 4 of k, columns c and c + 16 are neighbours: Arm converts even
// and odd halves of a vector of f16.
constexpr int64_t scale_at(Family family, int64_t c) {
  return 2 * (panel_columns(family) == 16 || is_k1(family) ? c : c % 16 * 2 + c / 16);
}
// Where the 16 bytes of a k are in a block of a panel of 32 columns, k by k.
constexpr int64_t k1_at(int64_t k) { return 16 * (k % 8 * 4 + k / 8); }

// The functions that the table names: defined in avx2.cpp, generic.cpp ...
#define EDGEC_LINEAR(name, isa, features, family, lhs, mr, nr, max_m, priority) \
  void name(const LinearJob&, int64_t tile_begin, int64_t tile_end, int64_t panel_begin, int64_t panel_end);
#define EDGEC_OP(...)
#include "kernels/kernel_table.inc"
#undef EDGEC_LINEAR
#undef EDGEC_OP

// Large products go in blocks: rows and depth of A that fill half of an L2, columns that B is packed for.
constexpr int64_t kMatmulRows = 336, kMatmulDepth = 256, kMatmulColumns = 512;
constexpr int64_t kMatmulFloats = (kMatmulRows + kPanel) * kMatmulDepth;  // scratch of a worker
inline bool matmul_in_blocks(const MatmulArgs& a) {
  return a.m > 64 && a.n > 64 && a.k > 64 && a.m * a.k > int64_t{1} << 16;
}

// One instruction set's version of everything else.
struct IsaOps {
  // s8b32t: for x86 only; s8p2b32, s8q16b32: for Arm only. f32: the normalised rows, for formats that take floats.
  PrepareFn prepare_s8b32, prepare_s16b32, prepare_s8b32t, prepare_s8p2b32, prepare_s8q16b32, prepare_f32;
  void (*matmul)(const MatmulArgs&, const ParallelFor&, void* scratch);
  void (*attention)(const AttentionArgs&, const ParallelFor&, void* scratch);
  void (*gather)(const Format&, const void* packed, int64_t rows, int64_t dim, const int64_t* indices, int64_t begin,
                 int64_t end, float* out);
  void (*quantize)(const QuantizeArgs&, int64_t row_begin, int64_t row_end);
  void (*widen)(const WidenArgs&, int64_t row_begin, int64_t row_end);
  void (*math)(Activation act, const float* x, int64_t n, float* y);  // for tests of the stated bounds
  int64_t (*attention_floats)(const AttentionArgs&, int workers);
  void (*cache_write)(const CacheWrite&);
  void (*gptq)(const GptqArgs&, int64_t begin, int64_t end, float* scratch);
  void (*sweep)(const SweepArgs&, int64_t begin, int64_t end, float* scratch);
  void (*hadamard)(float* x, int64_t n, int64_t block);
};
extern const IsaOps kOps_avx512vnni, kOps_avx2, kOps_neon, kOps_generic;

#define EDGEC_DEFINE_LINEAR(name, rows)                                                                           \
  void name(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin, int64_t panel_end) { \
    rows(job, tile_begin, tile_end, panel_begin, panel_end);                                                      \
  }

}  // namespace edgec::kernels
