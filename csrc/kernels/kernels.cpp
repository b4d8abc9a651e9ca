// The table, the choice of a kernel, and how a whole product is cut into slices.
#include "kernels/kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/accelerate.h"
#include "kernels/amx.h"
#include "kernels/cpu_features.h"
#include "kernels/job.h"

namespace edgec::kernels {
namespace {

#define EDGEC_LINEAR(name, isa, features, family, lhs, mr, nr, max_m, priority) \
  {{#name, "linear", nullptr, features, mr, nr, max_m, priority, false}, Family::family, Lhs::lhs, &kOps_##isa, name},
#define EDGEC_OP(...)
const LinearKernel kLinear[] = {
#include "kernels/kernel_table.inc"
};
#undef EDGEC_LINEAR
#undef EDGEC_OP

struct Op {
  KernelInfo info;
  const IsaOps* ops;
};
#define EDGEC_LINEAR(...)
#define EDGEC_OP(name, op, isa, features, priority) {{#name, #op, "", features, 0, 0, 0, priority, false}, &kOps_##isa},
const Op kOps[] = {
#include "kernels/kernel_table.inc"
};
#undef EDGEC_LINEAR
#undef EDGEC_OP

bool runs_here(uint32_t features) {
  const uint32_t missing = features & ~cpu_feature_bits();
  if (missing == 0 || (missing & ~(kAmx | kAmx2 | kAccelerate))) return missing == 0;
  return (missing & ~(missing & kAccelerate ? accelerate_features() : amx_features())) == 0;
}

const IsaOps& ops_or_best(const IsaOps* ops) {
  static const IsaOps* best = select_ops();
  return ops ? *ops : *best;
}

uint8_t* align(void* p, uintptr_t to = 64) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(p) + to - 1) & ~(to - 1));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many of `count` equal pieces a worker takes at a time: up to four turns for each, so that one may help another
// that was interrupted, in the number of turns that leaves the shares most nearly equal.
int64_t fair_grain(int64_t count, int workers, int64_t macs_each) {
  constexpr int64_t kTurn = int64_t{1} << 16;  // multiply-adds: some 2 us of one row
  const int64_t turns = std::min<int64_t>(4, count * macs_each / kTurn / workers);
  if (turns < 1) return count;
  int64_t best = count, least = count + 1;
  for (int64_t t = turns; t >= 1; --t) {
    const int64_t grain = ceil_div(count, workers * t), share = ceil_div(ceil_div(count, grain), workers) * grain;
    if (share < least) best = grain, least = share;
  }
  return best;
}

constexpr int kAheadStreams = 4;                     // as kStreams of int_streamed.h
constexpr int64_t kAheadBytes = int64_t{24} << 10;   // of each stream: together a fifth of a small L2
constexpr int64_t kAheadRows = 12, kAheadLines = 8;  // many rows wait for arithmetic, not for memory

Ahead ahead_of(const LinearArgs& args, int workers) {
  if (!args.next || args.m > kAheadRows || args.next_n <= 0) return {};
  const int64_t count = panels(args.next_n);
  const int64_t panel_bytes = static_cast<int64_t>(packed_nbytes(*args.next_format, args.next_n, args.next_k)) / count;
  const int64_t grain = fair_grain(count, workers, args.m * args.next_k * kPanel);
  const int64_t chunks = ceil_div(count, grain), apart = ceil_div(grain, kAheadStreams) * panel_bytes;
  const int64_t share = chunks / std::min<int64_t>(workers, chunks) * grain;
  return {static_cast<const uint8_t*>(args.next), share * panel_bytes, apart, std::min(apart, kAheadBytes),
          static_cast<int>(std::min<int64_t>(kAheadStreams, grain))};
}

}  // namespace

const IsaOps* select_ops(std::string_view name) {
  const Op* best = nullptr;
  for (const Op& op : kOps) {
    if (!runs_here(op.info.features)) continue;
    if (name.empty() ? !best || op.info.priority > best->info.priority : name == op.info.name) best = &op;
  }
  return best ? best->ops : nullptr;
}

const LinearKernel* select_linear(const Format& format, int64_t m, std::string_view name) {
  const LinearKernel* best = nullptr;
  for (const LinearKernel& k : kLinear) {
    if (k.family != format.family || !runs_here(k.info.features)) continue;
    if (!name.empty()) {
      if (name == k.info.name) return &k;
    } else if ((k.info.max_m == 0 || m <= k.info.max_m) && (!best || k.info.priority > best->info.priority)) {
      best = &k;
    }
  }
  return best;
}

const char* kernel_name(const LinearKernel& kernel) { return kernel.info.name; }

size_t linear_scratch_bytes(const Format& format, int64_t m, int64_t k, Norm norm) {
  if (is_f32(format.family)) return norm == Norm::kNone ? 0 : static_cast<size_t>(m * k) * sizeof(float) + 64;
  if (is_k1(format.family)) return amx_scratch_bytes(m, ceil_div(k, kBlock));
  const Lhs lhs = format.family == Family::kS8N16K4 ? Lhs::S16B32 : Lhs::S8B32;
  // Some kernels pad the last rows to four, those of wide panels to sixteen.
  const int64_t unit = panel_columns(format.family) == kPanel ? 4 : 16;
  return static_cast<size_t>(ceil_div(m, unit) * unit * ceil_div(k, kBlock) * block_bytes(lhs)) + 64;
}

void linear(const LinearArgs& args, const ParallelFor& pool, void* scratch, const LinearKernel* kernel) {
  if (args.m <= 0 || args.n <= 0) return;
  if (!kernel) kernel = select_linear(*args.format, args.m);
  LinearJob job{};
  job.args = args;
  job.lhs = kernel->lhs;
  job.tiles = ceil_div(args.m, kernel->info.mr);
  job.blocks = ceil_div(args.k, kBlock);
  job.group_blocks = args.format->group ? args.format->group / kBlock : std::max<int64_t>(job.blocks, 1);
  job.panel_bytes = panel_header_bytes(args.format->family) +
                    ceil_div(job.blocks, job.group_blocks) * header_bytes(args.format->family) +
                    job.blocks * data_bytes(args.format->family);
  job.prepared = scratch ? align(scratch, job.lhs == Lhs::F16K32 ? 256 : 64) : nullptr;

  if (job.lhs != Lhs::F32 || args.norm != Norm::kNone) {
    const auto prepare = job.lhs == Lhs::F32         ? kernel->ops->prepare_f32
                         : job.lhs == Lhs::S16B32    ? kernel->ops->prepare_s16b32
                         : job.lhs == Lhs::S8B32T    ? kernel->ops->prepare_s8b32t
                         : job.lhs == Lhs::S8P2B32X4 ? kernel->ops->prepare_s8p2b32
                         : job.lhs == Lhs::S8Q16B32  ? kernel->ops->prepare_s8q16b32
                         : job.lhs == Lhs::F16K32    ? prepare_f16k32
                                                     : kernel->ops->prepare_s8b32;
    const int64_t tile_values = ceil_div(args.m, job.tiles) * args.k;
    parallel(pool, job.tiles, 1 + (1 << 15) / (1 + tile_values),
             [&](int64_t begin, int64_t end, int) { prepare(job, begin, end); });
    if (job.lhs == Lhs::F32) job.args.x = reinterpret_cast<const float*>(job.prepared), job.args.ldx = args.k;
  }

  // Rows whose activations stay in L2 while every panel passes by; a panel is then read once per such stretch.
  const int64_t row_bytes = 1 + (job.lhs == Lhs::F32 ? args.k * 4 : job.blocks * block_bytes(job.lhs));
  const int64_t stretch = std::max<int64_t>(4, (int64_t{256} << 10) / row_bytes / kernel->info.mr);
  const auto slice = [&](int64_t tile_begin, int64_t tile_end, int64_t panel_begin, int64_t panel_end) {
    for (int64_t t = tile_begin; t < tile_end; t += stretch) {
      kernel->run(job, t, std::min(t + stretch, tile_end), panel_begin, panel_end);
    }
  };
  const Ahead ahead = ahead_of(args, pool.workers);
  // By columns, unless there are too few panels to go round: then by row tiles.
  const int64_t count = panels(args.n);
  if (count >= 2 * pool.workers || count >= job.tiles) {
    // The GEMV of Arm takes four panels at once: slices are whole fours; or as many as a kernel needs.
#if defined(__aarch64__)
    const int64_t unit = std::max(args.m == 1 ? 4 : 1, kernel->info.nr / kPanel);
#else
    const int64_t unit = job.lhs == Lhs::F16K32 ? 2 : 1;
#endif
    const int64_t units = ceil_div(count, unit);
    parallel(
        pool, count, unit * fair_grain(units, pool.workers, unit * args.m * args.k * kPanel),
        [&](int64_t begin, int64_t end, int) { slice(0, job.tiles, begin, end); }, ahead.data ? &ahead : nullptr);
  } else {
    parallel(pool, job.tiles, fair_grain(job.tiles, pool.workers, ceil_div(args.m, job.tiles) * args.k * args.n),
             [&](int64_t begin, int64_t end, int) { slice(begin, end, 0, count); });
  }
  // The first lines at once: what follows until then may keep this thread busy.
  for (int64_t i = 0; i < kAheadLines && ahead.fetch(0, 64 * i); ++i) {
  }
}

size_t matmul_scratch_bytes(const MatmulArgs& args, int workers) {
  const int64_t floats = matmul_in_blocks(args) ? kMatmulFloats : args.k * kPanel;
  return static_cast<size_t>(floats) * sizeof(float) * workers + 64;
}

void matmul_f32(const MatmulArgs& args, const ParallelFor& pool, void* scratch, const IsaOps* ops) {
  ops_or_best(ops).matmul(args, pool, align(scratch));
}

size_t attention_scratch_bytes(const AttentionArgs& args, int workers) {
  const int64_t floats =
      std::max(ops_or_best(nullptr).attention_floats(args, workers), kOps_generic.attention_floats(args, workers));
  return static_cast<size_t>(floats) * sizeof(float) + 64;
}

void attention_f32(const AttentionArgs& args, const ParallelFor& pool, void* scratch, const IsaOps* ops) {
  ops_or_best(ops).attention(args, pool, align(scratch));
}

void cache_write(const CacheWrite& write, const IsaOps* ops) { ops_or_best(ops).cache_write(write); }

float cache_read(const CacheWrite& w, int64_t token, int64_t d) {
  const int64_t lane = token % kPanel, dim = cache_bytes(w.dim, w.panels, true);
  if (!w.i8)
    return static_cast<const float*>(w.to)[w.panels ? (token - lane) * w.dim + d * kPanel + lane : token * w.dim + d];
  const int64_t at = w.panels ? (token - lane) * dim + d / 4 * 64 + lane * 4 + d % 4 : token * dim + d;
  return static_cast<float>(static_cast<const int8_t*>(w.to)[at]) * w.scales[token];
}

bool gather_rows(const Format& format, const void* packed, int64_t rows, int64_t dim, const int64_t* indices,
                 int64_t count, float* out, const ParallelFor& pool, const IsaOps* ops) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < -rows || indices[i] >= rows) return false;
  }
  parallel(pool, count, 1 + (1 << 15) / (1 + dim), [&](int64_t begin, int64_t end, int) {
    ops_or_best(ops).gather(format, packed, rows, dim, indices, begin, end, out);
  });
  return true;
}

void quantize_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end, const IsaOps* ops) {
  ops_or_best(ops).quantize(args, row_begin, row_end);
}

// Both take whole vectors of columns, each worker with rows of its own in L1.
void gptq_rows(const GptqArgs& args, const ParallelFor& pool, const IsaOps* ops) {
  parallel(pool, ceil_div(args.n, kBlock), 1 + 4096 / (1 + args.rows * args.rows),
           [&](int64_t begin, int64_t end, int) {
             std::vector<float> errors(static_cast<size_t>(args.rows * kBlock));
             ops_or_best(ops).gptq(args, begin * kBlock, std::min(args.n, end * kBlock), errors.data());
           });
}

void sweep_rows(const SweepArgs& args, const ParallelFor& pool, const IsaOps* ops) {
  parallel(pool, ceil_div(args.n, kBlock), 1 + 4096 / (1 + args.rows * args.rows),
           [&](int64_t begin, int64_t end, int) {
             std::vector<float> scratch(static_cast<size_t>(3 * args.rows * kBlock));
             ops_or_best(ops).sweep(args, begin * kBlock, std::min(args.n, end * kBlock), scratch.data());
           });
}

void hadamard_rows(float* x, int64_t n, int64_t block, int64_t row_begin, int64_t row_end, const IsaOps* ops) {
  const auto rotate = ops_or_best(ops).hadamard;
  for (int64_t r = row_begin; r < row_end; ++r) rotate(x + r * n, n, block);
}

void widen_rows(const WidenArgs& args, int64_t row_begin, int64_t row_end, const IsaOps* ops) {
  ops_or_best(ops).widen(args, row_begin, row_end);
}

void apply_activation(Activation act, const float* x, int64_t n, float* y, const IsaOps* ops) {
  ops_or_best(ops).math(act, x, n, y);
}

const char* family_name(Family family) {
  switch (family) {
    case Family::kS4N16K4:
      return "s4n16k4";
    case Family::kU4N16K4:
      return "u4n16k4";
    case Family::kT4N16K4:
      return "t4n16k4";
    case Family::kS6N16K4:
      return "s6n16k4";
    case Family::kS8N16K4:
      return "s8n16k4";
    case Family::kF32N16:
      return "f32n16";
    case Family::kF32NK:
      return "f32nk";
    case Family::kS4N32K4:
      return "s4n32k4";
    case Family::kU4N32K4:
      return "u4n32k4";
    case Family::kS4N32K1:
      return "s4n32k1";
    case Family::kU4N32K1:
      return "u4n32k1";
    case Family::kS8Row:
      return "s8row";
  }
  return "";
}

int kernel_count() { return static_cast<int>(std::size(kLinear) + std::size(kOps)); }

KernelInfo kernel_info(int index) {
  const int linears = static_cast<int>(std::size(kLinear));
  KernelInfo info = index < linears ? kLinear[index].info : kOps[index - linears].info;
  if (index < linears) info.family = family_name(kLinear[index].family);
  info.available = runs_here(info.features);
  return info;
}

}  // namespace edgec::kernels
