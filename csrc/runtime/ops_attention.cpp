// Attention and what it reads: operands in memory, or states.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/kernels.h"
#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"
#include "runtime/lend.h"

namespace edgec {
namespace {

// A [b, h, s, d] or [b, s, h, d] operand: sizes in the former order, strides of b, h, s.
struct Heads {
  Heads(const KernelCall& c, const Tensor& t, size_t layout_arg) {
    c.require(t.rank() == 4 && t.dtype == DType::kF32, "it takes f32 of rank 4 only");
    const bool bhsd = c.string(layout_arg) == "bhsd";
    c.require(bhsd || c.string(layout_arg) == "bshd", "there is no such layout");
    b = t.dims[0];
    h = t.dims[bhsd ? 1 : 2];
    s = t.dims[bhsd ? 2 : 1];
    d = t.dims[3];
    strides = {h * s * d, bhsd ? s * d : d, bhsd ? d : h * d};
  }
  // A state: always [b, h, s, d], with room for more tokens than s.
  explicit Heads(const Tensor& t)
      : b(t.dims[0]), h(t.dims[1]), s(t.dims[2]), d(t.dims[3]), strides{0, t.state->capacity * d, d} {}
  int64_t b, h, s, d;
  std::array<int64_t, 3> strides;
};

kernels::AttentionArgs attention_args(const KernelCall& c) {
  const bool cached = c.tensor(1).state != nullptr;
  const Heads q(c, c.tensor(0), 9), y(c, c.tensor(4), 12);
  const Heads k = cached ? Heads(c.tensor(1)) : Heads(c, c.tensor(1), 10);
  const Heads v = cached ? Heads(c.tensor(2)) : Heads(c, c.tensor(2), 11);
  c.require(k.b == q.b && v.b == q.b && y.b == q.b && k.h == v.h && k.s == v.s && k.d == q.d, "k and v do not fit");
  c.require(k.h > 0 && q.h % k.h == 0, "its heads do not divide");
  c.require(y.h == q.h && y.s == q.s && y.d == v.d, "y does not fit");
  kernels::AttentionArgs args;
  args.q = c.tensor(0).as<const float>();
  args.k = c.tensor(1).as<const float>();
  args.v = c.tensor(2).as<const float>();
  args.out = c.tensor(4).as<float>();
  args.batch = q.b;
  args.heads = q.h;
  args.kv_heads = k.h;
  args.q_len = q.s;
  args.kv_len = k.s;
  args.dim = q.d;
  args.v_dim = v.d;
  std::ranges::copy(q.strides, args.q_stride);
  std::ranges::copy(k.strides, args.k_stride);
  std::ranges::copy(v.strides, args.v_stride);
  std::ranges::copy(y.strides, args.out_stride);
  args.scale = static_cast<float>(c.real(5));
  args.causal = c.integer(6) != 0;
  args.causal_offset = k.s - q.s;
  c.require(c.integer(7) >= 0 && c.real(8) >= 0.0, "its window or softcap is negative");
  args.window = c.integer(7);
  args.softcap = static_cast<float>(c.real(8));
  if (const Tensor* mask = c.optional(3)) {
    c.require(mask->dtype == DType::kF32 && mask->rank() <= 4, "its mask does not fit");
    args.mask = mask->as<const float>();
    const std::array<int64_t, 4> full = {q.b, q.h, q.s, k.s};
    int64_t stride = 1;
    for (size_t back = 1; back <= mask->dims.size(); ++back) {
      const int64_t dim = mask->dims[mask->dims.size() - back];
      c.require(dim == 1 || dim == full[4 - back], "its mask does not broadcast");
      args.mask_stride[4 - back] = dim == 1 ? 0 : stride;
      stride *= dim;
    }
  }
  return args;
}

ScratchSize attention_scratch(const KernelCall& c) {
  return {kernels::attention_scratch_bytes(attention_args(c), c.pool->threads()) + 64, 0};
}

void attention(const KernelCall& c) {
  const kernels::AttentionArgs args = attention_args(c);
  if (c.tensor(4).size() == 0) return;
  kernels::attention_f32(args, parallel_for(c), c.shared_scratch());
}

void attention_cached(const KernelCall& c) {
  kernels::AttentionArgs args = attention_args(c);
  const StateView &k = *c.tensor(1).state, &v = *c.tensor(2).state;
  c.require(k.rows == args.batch && k.dtype == v.dtype && k.keys && !v.keys, "its states do not fit");
  kernels::CacheRows cache;
  cache.bases = k.bases;
  cache.lengths = k.lengths;
  cache.growth = args.kv_len - k.longest;
  c.require(cache.growth >= 0 && args.kv_len <= k.capacity, "it reads more tokens than there are");
  cache.k_offset = k.offset;
  cache.v_offset = v.offset;
  cache.k_scales = k.scales;
  cache.v_scales = v.scales;
  cache.capacity = k.capacity;
  cache.i8 = k.dtype == DType::kI8;
  args.cache = &cache;
  if (c.tensor(4).size() == 0) return;
  kernels::attention_f32(args, parallel_for(c), c.shared_scratch());
}

void cache_append(const KernelCall& c) {
  const Heads x(c, c.tensor(1), 3);
  const StateView& state = *c.tensor(0).state;
  c.require(c.tensor(2).state == &state, "it appends to another state");
  c.require(x.b == state.rows && x.h == state.heads && x.d == state.dim, "what is appended does not fit the state");
  c.require(x.s <= state.capacity - state.longest, "the state has no room");
  const auto* from = c.tensor(1).as<const float>();
  const int64_t grain = 1 + kGrainBytes / (1 + x.s * x.d * 4);
  c.pool->parallel_for(x.b * x.h, grain, [&](int64_t begin, int64_t end, int) {
    kernels::CacheWrite w;
    w.stride = x.strides[2];
    w.count = x.s;
    w.dim = x.d;
    w.panels = state.keys;
    w.i8 = state.dtype == DType::kI8;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / x.h, head = unit % x.h;
      w.from = from + row * x.strides[0] + head * x.strides[1];
      w.first = state.lengths[row];
      w.to = state.at(row, head);
      w.scales = state.scales_at(row, head);
      kernels::cache_write(w);
    }
  });
}

constexpr Kernel kKernels[] = {
    {"attention",
     "q, k, v, mask? -> y; scale:f, causal, window, softcap:f, q_layout:s, k_layout:s, v_layout:s, out_layout:s",
     attention, attention_scratch},
    {"attention_cached",
     "q, k@, v@, mask? -> y; scale:f, causal, window, softcap:f, q_layout:s, k_layout:s, v_layout:s, out_layout:s",
     attention_cached, attention_scratch},
    {"cache_append", "past@, new -> present@; layout:s", cache_append},
};

}  // namespace

std::span<const Kernel> attention_kernels() { return kKernels; }

}  // namespace edgec
