// The kernels' interface. Kernels never allocate, start threads or know Python: the caller brings memory and a
// ParallelFor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/ahead.h"

namespace edgec::kernels {

enum class Activation : int32_t {
  kNone,
  kRelu,
  kGelu,
  kGeluTanh,
  kSilu,
  kTanh,
  kSigmoid,
  kSwiglu,  // from here on: act(gate) * up of two columns
  kGeglu,
  kGegluTanh
};
constexpr bool is_gated(Activation act) { return act >= Activation::kSwiglu; }
enum class Norm : int32_t { kNone, kRms, kLayer };

// How a caller lends its threads. `run` splits [0, n) into ranges of at least `grain` and calls body(begin, end,
// worker) for each, 0 <= worker < workers, no two at once with one worker; null runs everything in the calling thread.
// ahead: null, or what waiting threads may fetch from then on.
struct ParallelFor {
  using Body = void (*)(void* body_context, int64_t begin, int64_t end, int worker);
  void* context = nullptr;
  int workers = 1;
  void (*run)(void* context, int64_t n, int64_t grain, void* body_context, Body body, const Ahead* ahead) = nullptr;
};

template <class F>
void parallel(const ParallelFor& pool, int64_t n, int64_t grain, F&& f, const Ahead* ahead = nullptr) {
  if (n <= 0) return;
  if (!pool.run || pool.workers <= 1 || n <= grain) return f(int64_t{0}, n, 0);
  pool.run(
      pool.context, n, grain, &f,
      [](void* body, int64_t begin, int64_t end, int worker) { (*static_cast<F*>(body))(begin, end, worker); }, ahead);
}

// ---- Packed formats: the name is the contract between compiler and kernels (docs/kernels.md has the layouts) ----

enum class Family : int32_t {
  kS4N16K4,
  kU4N16K4,
  kT4N16K4,
  kS6N16K4,
  kS8N16K4,
  kF32N16,
  kF32NK,
  kS4N32K4,
  kU4N32K4,
  kS4N32K1,
  kU4N32K1,
  kS8Row
};

struct Format {
  const char* name;
  Family family;
  int bits;
  int group;  // weights along K that share a scale; 0: the whole row
  bool symmetric;
  bool table;              // the integers are values of kTable, a row's scales -127..127 times one power of two
  double bits_per_weight;  // scales and zero points included, padding and what a row has one of not
};

// The integers of formats with `table`, by least squared error over normal weights and those of two transformers.
// Within 16: a lane of 16 products by s8 then fits int16.
constexpr int8_t kTable[16] = {-16, -12, -10, -8, -6, -4, -2, -1, 0, 1, 3, 5, 7, 9, 12, 16};

const Format* formats(int* count);
const Format* find_format(std::string_view name);  // null: no such format

constexpr int kPanel = 16;  // columns (rows of the [N, K] weight) that one panel holds
// What lies together in the packing: a whole number of panels.
constexpr bool is_f32(Family family) { return family == Family::kF32N16 || family == Family::kF32NK; }
constexpr bool is_k1(Family family) { return family == Family::kS4N32K1 || family == Family::kU4N32K1; }
constexpr int panel_columns(Family family) {
  return family == Family::kS4N32K4 || family == Family::kU4N32K4 || is_k1(family) ? 32 : 16;
}
inline int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// SIZE_MAX when that does not fit 62 bits.
size_t packed_nbytes(const Format& format, int64_t n, int64_t k);
// Packs rows [panel_begin * kPanel, panel_end * kPanel) of a [n, k] weight; for kS8Row panels are of 16 table rows too.
// q: s8 in [-8, 7] (s4), [-32, 31] (s6), of kTable (t4; what is not becomes the nearest), u8 in [0, 15] (u4), s8 (s8),
// f32 (f32). scale: f16 bits [n, ceil(k / group)], or [n, 1] when group is 0. zero: u8 in [0, 15], shaped as scale, for
// u4 only. Values out of range are masked, never out of bounds.
void pack_panels(const Format& format, const void* q, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k,
                 int64_t panel_begin, int64_t panel_end, void* packed);
void unpack_panels(const Format& format, const void* packed, int64_t n, int64_t k, int64_t panel_begin,
                   int64_t panel_end, void* q, uint16_t* scale, uint8_t* zero);
// Of a quantized weight in panels (not kS8Row, not f32): the 32 integers of one row from k = 32 * block on
// (unspecified beyond K), their scale's bits and their zero point (symmetric: 0).
void unpack_block(const Format& format, const void* packed, int64_t k, int64_t row, int64_t block, uint8_t q[32],
                  uint16_t* scale, int* zero);

// Everything but linear for one instruction set; `name` is any of its entries in the table ("" chooses the best of this
// CPU). Null: unknown, or this CPU cannot run it. Where a call takes one, null stands for the best.
struct IsaOps;
const IsaOps* select_ops(std::string_view name = {});

// ---- Weight quantization: round to nearest with a search for the scale ----

struct QuantizeArgs {
  const float* w;  // [n, k]
  int64_t n, k;
  int bits, group;          // bits 4, 6 or 8; group 0: the whole row
  bool symmetric, search;   // search: minimise the weighted squared error over scale (and zero point)
  const float* importance;  // [k] weight of each column's squared error, or null
  int8_t* q;                // [n, k] s8 when symmetric, u8 otherwise
  uint16_t* scale;          // f16 bits [n, groups]
  uint8_t* zero;            // [n, groups], asymmetric only
  bool table = false;       // 4 bits, symmetric, group 32: to kTable's values
  double* error = nullptr;  // [n, 2] each row's sum of squared errors and of squares, or null
};
void quantize_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end, const IsaOps* ops = nullptr);

// Integers chosen one after the other, each for the error of those before it; W as [k, n], integers less zero points as
// floats. What lies on the grid: multiples of the scale by -8..7 (4 bits), -127..127 and the like, kTable's values, or
// -zero..15 - zero.
struct RoundGrid {
  int bits = 4;
  bool table = false, zero = false;
};
// GPTQ (arXiv 2210.17323) within `rows` of k: each is rounded, and its error over the diagonal of `upper` (a factor of
// the inverse Hessian) times the rest of its row is taken from those behind it.
struct GptqArgs {
  RoundGrid grid;
  int64_t rows, n;
  const float* rest;  // [rows, n], row stride ld
  int64_t ld;
  const float* upper;  // [rows, rows], row stride upper_ld
  int64_t upper_ld;
  const int64_t* groups;      // [rows] into scale and zero
  const float *scale, *zero;  // [groups, n]; zero may be null
  float *q, *errors;          // [rows, n]
};
// Coordinate descent over the integers of one group, after (refit) its scales by least squares. slope: of half the loss
// at the values as they are, H (W - Q). change: of the values; gain: added, what the loss has lost.
struct SweepArgs {
  RoundGrid grid;
  bool refit;
  int64_t rows, n;
  const float* h;  // [rows, rows], symmetric, row stride h_ld
  int64_t h_ld;
  const float* slope;  // [rows, n], row stride slope_ld
  int64_t slope_ld;
  float *q, *scale;          // [rows, n], [n]: read and written
  const float *zero, *unit;  // [n] or null; unit: scales are -127..127 times it, else f16
  float* change;             // [rows, n]
  double* gain;              // [n]
};
void gptq_rows(const GptqArgs& args, const ParallelFor& pool, const IsaOps* ops = nullptr);
void sweep_rows(const SweepArgs& args, const ParallelFor& pool, const IsaOps* ops = nullptr);

// y[r, c] = x[r * row_stride + c * column_stride] (strides in elements), y f32 with contiguous rows of `columns`.
struct WidenArgs {
  const void* x;
  enum Type : int32_t { kF16, kBF16, kF32 } type;
  int64_t columns, row_stride, column_stride;
  float* y;
};
void widen_rows(const WidenArgs& args, int64_t row_begin, int64_t row_end, const IsaOps* ops = nullptr);

// ---- linear: y = act(norm(x) @ W.T + bias) + residual ----

struct LinearArgs {
  const Format* format = nullptr;
  const void* packed = nullptr;
  int64_t m = 0, n = 0, k = 0;
  const float* x = nullptr;  // [m, k], row stride ldx
  int64_t ldx = 0;
  const float* bias = nullptr;      // [n] or null
  const float* residual = nullptr;  // [m, n], row stride ldr, or null; may be y itself
  int64_t ldr = 0;
  Activation act = Activation::kNone;
  float* y = nullptr;  // [m, n], row stride ldy. Gated: [m, n / 2], n a multiple of 16, see docs/kernels.md
  int64_t ldy = 0;
  Norm norm = Norm::kNone;  // of each row of x: (x - mean) / sqrt(mean square + eps) * norm_gain + norm_bias
  float eps = 0.0f;
  const float *norm_gain = nullptr, *norm_bias = nullptr;  // [k] or null
  bool rotate = false;  // norm(x) times a Hadamard matrix, as hadamard_rows in blocks of 32; not of f32 formats
  // The packed weight [next_n, next_k] of the product that follows, or null: a hint, read by prefetches only.
  const Format* next_format = nullptr;
  const void* next = nullptr;
  int64_t next_n = 0, next_k = 0;
};

// Rows [row_begin, row_end) of x [rows, n] in place: each block of `block` (a power of two) numbers times the
// orthonormal Hadamard matrix of that size, the row's tail in the largest powers of two that fit.
void hadamard_rows(float* x, int64_t n, int64_t block, int64_t row_begin, int64_t row_end, const IsaOps* ops = nullptr);

struct LinearKernel;
// The kernel for a format and M on this CPU; `name` forces one ("" chooses). Null: none that this CPU can run.
const LinearKernel* select_linear(const Format& format, int64_t m, std::string_view name = {});
const char* kernel_name(const LinearKernel& kernel);

// Bytes of scratch that linear() needs for m rows, 64-byte aligned by linear() itself.
size_t linear_scratch_bytes(const Format& format, int64_t m, int64_t k, Norm norm);
// Whole product: quantizes activations where the format wants it, then multiplies. kernel null: select_linear's.
void linear(const LinearArgs& args, const ParallelFor& pool, void* scratch, const LinearKernel* kernel = nullptr);

// ---- Products of two activations ----

constexpr int kMaxBatchRank = 6;

// y[b, m, n] = alpha * sum_k a[b, m, k] * b[b, k, n], or that added to y; strides in elements, any sign or 0.
struct MatmulArgs {
  const float *a = nullptr, *b = nullptr;
  float* y = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_m = 0, a_k = 0, b_k = 0, b_n = 0, y_m = 0;  // y's columns are contiguous
  int batch_rank = 0;
  int64_t batch[kMaxBatchRank] = {};
  int64_t a_batch[kMaxBatchRank] = {}, b_batch[kMaxBatchRank] = {}, y_batch[kMaxBatchRank] = {};
  float alpha = 1.0f;
  bool add = false;
};
size_t matmul_scratch_bytes(const MatmulArgs& args, int workers);
void matmul_f32(const MatmulArgs& args, const ParallelFor& pool, void* scratch, const IsaOps* ops = nullptr);

// Keys and values in states: each row of the batch has its own memory and length. From bases[row] + k_offset on
// its heads follow one another, each laid out as cache.h says, with room for `capacity` tokens, which are whole panels;
// the scales of i8 items from bases[row] + k_scales on, [head][capacity].
struct CacheRows {
  const std::byte* const* bases = nullptr;
  const int64_t* lengths = nullptr;
  int64_t growth = 0;  // a row has lengths[row] + growth keys; its last query stands at the last of them
  int64_t capacity = 0;
  size_t k_offset = 0, v_offset = 0, k_scales = 0, v_scales = 0;
  bool i8 = false;
};

// `count` tokens of one head go into a cache behind `first` others.
struct CacheWrite {
  const float* from = nullptr;
  int64_t stride = 0;  // floats from token to token
  int64_t count = 0, first = 0, dim = 0;
  bool panels = false, i8 = false;  // panels: keys
  void* to = nullptr;               // the head's items
  float* scales = nullptr;          // the head's, [capacity]
};
constexpr int64_t kCacheDim = 1024;  // the largest dim of an i8 cache
void cache_write(const CacheWrite& write, const IsaOps* ops = nullptr);
// What a cache has at `token` of a head, for tests.
float cache_read(const CacheWrite& write, int64_t token, int64_t d);
// Bytes of one token of one head.
inline int64_t cache_bytes(int64_t dim, bool panels, bool i8) {
  return i8 ? (panels ? (dim + 3) / 4 * 4 : dim) : 4 * dim;
}

// out[b, h, i] = softmax_j(scale * q[b, h, i] . k[b, h / (heads / kv_heads), j] + mask[b, h, i, j]) @ v. Strides in
// elements; the last axis of q, k, v, mask and out is contiguous (mask's may be 0: one value for all j).
struct AttentionArgs {
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  const float* mask = nullptr;  // additive, or null
  float* out = nullptr;
  int64_t batch = 0, heads = 0, kv_heads = 0, q_len = 0, kv_len = 0, dim = 0, v_dim = 0;
  int64_t q_stride[3] = {}, k_stride[3] = {}, v_stride[3] = {}, out_stride[3] = {};  // batch, head, position
  int64_t mask_stride[4] = {};                                                       // batch, head, q, kv
  float scale = 1.0f;
  float softcap = 0.0f;  // > 0: scores become softcap * tanh(score / softcap) before the mask
  bool causal = false;   // row i sees j <= i + causal_offset
  int64_t causal_offset = 0;
  const CacheRows* cache = nullptr;  // instead of k and v, their strides and causal_offset; kv_len: the longest row's
  int64_t window = 0;                // > 0: row i sees only j > i + causal_offset - window
};
size_t attention_scratch_bytes(const AttentionArgs& args, int workers);
void attention_f32(const AttentionArgs& args, const ParallelFor& pool, void* scratch, const IsaOps* ops = nullptr);

// out[i] = dequantized row indices[i] of a packed [rows, dim] weight of any format; false: an index is out of
// [-rows, rows).
bool gather_rows(const Format& format, const void* packed, int64_t rows, int64_t dim, const int64_t* indices,
                 int64_t count, float* out, const ParallelFor& pool, const IsaOps* ops = nullptr);

// y = act(x), elementwise; not a gated one.
void apply_activation(Activation act, const float* x, int64_t n, float* y, const IsaOps* ops = nullptr);

// ---- The table, for listings, tests and benchmarks ----

struct KernelInfo {
  const char *name, *op;
  const char* family;  // packed family, "" where the op takes none
  uint32_t features;
  int mr, nr;
  int64_t max_m;  // 0: any
  int priority;
  bool available;  // this CPU can run it
};
int kernel_count();
KernelInfo kernel_info(int index);
const char* family_name(Family family);

}  // namespace edgec::kernels
