// lstm, gru and rnn over a sequence, as ONNX defines them (layout 0). The inputs of all steps are projected by one
// product; then each step is a product by the recurrent weights and the cell's arithmetic.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "kernels/kernels.h"
#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"
#include "runtime/rnn.h"

namespace edgec {
namespace {

enum class Kind { kLstm, kGru, kPlain };

// Below this many multiply-adds a step's product is not worth sharing among workers.
constexpr int64_t kShareMacs = 256 << 10;
constexpr int64_t kGateRows = 8;

constexpr struct {
  const char* name;
  rnn::Function function;
} kFunctions[] = {
    {"sigmoid", rnn::Function::kSigmoid},
    {"tanh", rnn::Function::kTanh},
    {"relu", rnn::Function::kRelu},
    {"affine", rnn::Function::kAffine},
    {"leakyrelu", rnn::Function::kLeakyRelu},
    {"thresholdedrelu", rnn::Function::kThresholdedRelu},
    {"scaledtanh", rnn::Function::kScaledTanh},
    {"hardsigmoid", rnn::Function::kHardSigmoid},
    {"elu", rnn::Function::kElu},
    {"softsign", rnn::Function::kSoftsign},
    {"softplus", rnn::Function::kSoftplus},
};

// A call's operands and sizes, all checked.
struct Recurrent {
  const KernelCall* call = nullptr;
  Kind kind = Kind::kLstm;
  int64_t steps = 0, batch = 0, input = 0, hidden = 0, gates = 0, dirs = 0;
  bool reverse = false, option = false, quantize_state = false;
  float clip = 0;
  std::array<rnn::Activation, 6> activations;
  int64_t activations_per_dir = 0;
  const Tensor *x = nullptr, *w = nullptr, *r = nullptr, *bias = nullptr, *lengths = nullptr, *h0 = nullptr,
               *c0 = nullptr, *peephole = nullptr, *y = nullptr, *y_h = nullptr, *y_c = nullptr;

  int64_t rows() const { return gates * hidden; }
  // Floats of shared scratch, in this order.
  int64_t x_floats() const { return dirs * steps * batch * rows(); }
  int64_t bias_floats() const { return dirs * (rows() + hidden); }
  int64_t r_floats() const { return dirs * batch * rows(); }
  int64_t state_floats() const { return dirs * batch * hidden; }  // each of h, c, reset * h
};

void parse_activations(const KernelCall& c, std::string_view text, Recurrent& r) {
  size_t count = 0;
  const auto need = [&](bool ok) { c.require(ok, "its activations are malformed"); };
  while (!text.empty()) {
    std::string_view item = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    need(count < r.activations.size());
    rnn::Activation& a = r.activations[count++];
    const std::string_view name = item.substr(0, item.find(','));
    const auto found = std::ranges::find_if(kFunctions, [&](const auto& f) { return name == f.name; });
    if (found == std::end(kFunctions)) c.fail("there is no activation '" + std::string(name) + "'");
    a.function = found->function;
    item.remove_prefix(std::min(item.size(), name.size() + 1));
    for (float* value : {&a.alpha, &a.beta}) {
      if (item.empty()) break;
      const std::string_view number = item.substr(0, item.find(','));
      need(std::from_chars(number.begin(), number.end(), *value).ec == std::errc());
      item.remove_prefix(std::min(item.size(), number.size() + 1));
    }
  }
  r.activations_per_dir = r.kind == Kind::kLstm ? 3 : r.kind == Kind::kGru ? 2 : 1;
  need(static_cast<int64_t>(count) == r.activations_per_dir * r.dirs);
}

Recurrent recurrent_of(const KernelCall& c, Kind kind) {
  Recurrent r;
  r.call = &c;
  r.kind = kind;
  r.gates = kind == Kind::kLstm ? 4 : kind == Kind::kGru ? 3 : 1;
  r.x = &c.tensor(0);
  r.w = &c.tensor(1);
  r.r = &c.tensor(2);
  r.bias = c.optional(3);
  r.lengths = c.optional(4);
  r.h0 = c.optional(5);
  size_t at = 6;
  if (kind == Kind::kLstm) {
    r.c0 = c.optional(at++);
    r.peephole = c.optional(at++);
  }
  r.y = &c.tensor(at++);
  r.y_h = &c.tensor(at++);
  if (kind == Kind::kLstm) r.y_c = &c.tensor(at++);
  r.hidden = c.integer(at++);
  const std::string_view direction = c.string(at++);
  r.dirs = direction == "bidirectional" ? 2 : 1;
  r.reverse = direction == "reverse";
  c.require(r.dirs == 2 || r.reverse || direction == "forward", "it has no such direction");
  parse_activations(c, c.string(at), r);
  ++at;
  r.clip = static_cast<float>(c.real(at++));
  if (kind != Kind::kPlain) r.option = c.integer(at++) != 0;
  if (kind == Kind::kLstm) r.quantize_state = c.integer(at) != 0;
  c.require(r.x->rank() == 3, "x is not of rank 3");
  r.steps = r.x->dims[0];
  r.batch = r.x->dims[1];
  r.input = r.x->dims[2];
  c.require(r.hidden > 0 && r.hidden < int64_t{1} << 24, "hidden is out of range");
  const auto fits = [&](const Tensor* t, int64_t size, const char* what) {
    if (t != nullptr && (t->dtype != DType::kF32 || t->size() != size))
      c.fail(std::string(what) + " does not fit (f32 only)");
  };
  fits(r.x, r.steps * r.batch * r.input, "x");
  fits(r.w, r.dirs * r.rows() * r.input, "w");
  fits(r.r, r.dirs * r.rows() * r.hidden, "r");
  fits(r.bias, r.dirs * 2 * r.rows(), "the bias");
  fits(r.h0, r.state_floats(), "h0");
  fits(r.c0, r.state_floats(), "c0");
  fits(r.peephole, r.dirs * 3 * r.hidden, "the peephole");
  fits(r.y, r.steps * r.state_floats(), "y");
  fits(r.y_h, r.state_floats(), "y_h");
  fits(r.y_c, r.state_floats(), "y_c");
  c.require(r.lengths == nullptr || (r.lengths->dtype == DType::kI32 && r.lengths->size() == r.batch),
            "the lengths do not fit");
  return r;
}

kernels::MatmulArgs projection(const Recurrent& r, int64_t dir, float* out) {
  kernels::MatmulArgs args;
  args.a = r.x->as<const float>();
  args.b = r.w->as<const float>() + dir * r.rows() * r.input;
  args.y = out;
  args.m = r.steps * r.batch;
  args.n = args.y_m = r.rows();
  args.k = args.a_m = args.b_n = r.input;
  args.a_k = args.b_k = 1;
  return args;
}

ScratchSize recurrent_scratch(const KernelCall& c, Kind kind) {
  const Recurrent r = recurrent_of(c, kind);
  const int64_t floats = r.x_floats() + r.bias_floats() + r.r_floats() + 3 * r.state_floats();
  const size_t product = kernels::matmul_scratch_bytes(projection(r, 0, nullptr), c.pool->threads());
  return {static_cast<size_t>(floats) * sizeof(float) + product + 128, 0};
}

struct Buffers {
  float *x, *bias, *r, *h, *c, *reset_h;
  void* product;
};

Buffers buffers_of(const Recurrent& r) {
  Buffers b{};
  b.x = reinterpret_cast<float*>(r.call->shared_scratch());
  b.bias = b.x + r.x_floats();
  b.r = b.bias + r.bias_floats();
  b.h = b.r + r.r_floats();
  b.c = b.h + r.state_floats();
  b.reset_h = b.c + r.state_floats();
  b.product = b.reset_h + r.state_floats();
  return b;
}

// bias: of the inputs and the recurrent one added up, but where GRU's linear_before_reset needs the latter on its own.
void join_biases(const Recurrent& r, const Buffers& b) {
  const int64_t rows = r.rows();
  for (int64_t dir = 0; dir < r.dirs; ++dir) {
    float *sum = b.bias + dir * (rows + r.hidden), *extra = sum + rows;
    std::fill_n(sum, rows + r.hidden, 0.0f);
    if (r.bias == nullptr) continue;
    const float* from = r.bias->as<const float>() + dir * 2 * rows;
    const int64_t apart = r.kind == Kind::kGru && r.option ? 2 * r.hidden : rows;
    for (int64_t i = 0; i < rows; ++i) (i < apart ? sum[i] : extra[i - apart]) = from[rows + i];
    for (int64_t i = 0; i < rows; ++i) sum[i] += from[i];
  }
}

void project_inputs(const Recurrent& r, const Buffers& b) {
  const rnn::Ops& ops = rnn::best_ops();
  for (int64_t dir = 0; dir < r.dirs; ++dir) {
    float* out = b.x + dir * r.steps * r.batch * r.rows();
    const kernels::MatmulArgs args = projection(r, dir, out);
    if (args.m > 4 && args.k > 0) {
      kernels::ParallelFor pool{
          r.call->pool, r.call->pool->threads(),
          [](void* pool, int64_t n, int64_t grain, void* context, kernels::ParallelFor::Body body,
             const kernels::Ahead*) {
            static_cast<ThreadPool*>(pool)->parallel_for(
                n, grain, [=](int64_t first, int64_t last, int worker) { body(context, first, last, worker); });
          }};
      kernels::matmul_f32(args, pool, b.product);
      continue;
    }
    // A streaming step or two: W is read once, so packing it would cost more than the product.
    const int64_t blocks = (args.n + kGateRows - 1) / kGateRows;
    const int64_t grain = std::max<int64_t>(1, kShareMacs / 4 / (kGateRows * args.m * args.k + 1));
    r.call->pool->parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int) {
      ops.dots(args.b, begin * kGateRows, std::min(args.n, end * kGateRows), args.k, args.a, args.k, args.m, out,
               args.n);
    });
  }
}

// com.microsoft DynamicQuantizeLSTM: h rounded to u8 over its whole range and back.
void round_state(const float* h, int64_t n, float* out) {
  const auto [least, greatest] = std::minmax_element(h, h + n);
  const float low = std::min(*least, 0.0f), range = std::max(*greatest, 0.0f) - low;
  const float scale = range > 0 ? range / 255.0f : 1.0f;
  const float zero = std::nearbyint(std::clamp(-low / scale, 0.0f, 255.0f));
  for (int64_t i = 0; i < n; ++i)
    out[i] = (std::clamp(std::nearbyint(h[i] / scale) + zero, 0.0f, 255.0f) - zero) * scale;
}

// Batch elements [first, last) of one direction through all steps; `pool`: shares each step's product, or null.
void run_sequences(const Recurrent& r, const Buffers& b, int64_t dir, int64_t first, int64_t last, ThreadPool* pool) {
  const rnn::Ops& ops = rnn::best_ops();
  const int64_t hidden = r.hidden, rows = r.rows(), count = last - first, at = (dir * r.batch + first) * hidden;
  const float* weights = r.r->as<const float>() + dir * rows * hidden;
  float *h = b.h + at, *cell = b.c + at, *reset_h = b.reset_h + at, *product = b.r + (dir * r.batch + first) * rows;
  const auto load_state = [&](float* to, const Tensor* from) {
    from != nullptr ? (void)std::memcpy(to, from->as<const float>() + at, static_cast<size_t>(count * hidden) * 4)
                    : (void)std::fill_n(to, count * hidden, 0.0f);
  };
  load_state(h, r.h0);
  load_state(cell, r.c0);
  const auto length_of = [&](int64_t i) {
    return r.lengths != nullptr ? int64_t{r.lengths->as<const int32_t>()[first + i]} : r.steps;
  };
  for (int64_t i = 0; i < count; ++i) {
    if (length_of(i) > 0) continue;  // an empty sequence ends in zeros, as in onnxruntime
    std::fill_n(h + i * hidden, hidden, 0.0f);
    std::fill_n(cell + i * hidden, hidden, 0.0f);
  }
  const auto multiply = [&](int64_t row_begin, int64_t row_end, const float* v) {
    const auto range = [&](int64_t begin, int64_t end, int) {
      ops.dots(weights, row_begin + begin * kGateRows, std::min(row_end, row_begin + end * kGateRows), hidden, v,
               hidden, count, product, rows);
    };
    const int64_t blocks = (row_end - row_begin + kGateRows - 1) / kGateRows;
    if (pool == nullptr) return range(0, blocks, 0);
    pool->parallel_for(blocks, std::max<int64_t>(1, kShareMacs / 4 / (kGateRows * hidden * count)), range);
  };
  rnn::Cell s;
  s.hidden = hidden;
  s.bias = b.bias + dir * (rows + hidden);
  s.extra_bias = s.bias + rows;
  s.peephole = r.peephole != nullptr ? r.peephole->as<const float>() + dir * 3 * hidden : nullptr;
  s.activations = r.activations.data() + dir * r.activations_per_dir;
  s.clip = r.clip;
  s.option = r.option;
  const bool backwards = r.reverse || dir == 1;
  // Each step in two passes where GRU needs the reset gate before the last product.
  const bool two_products = r.kind == Kind::kGru && !r.option;
  for (int64_t step = 0; step < r.steps; ++step) {
    const auto each = [&](auto&& f) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t length = length_of(i);
        const int64_t t = step >= length ? step : backwards ? length - 1 - step : step;
        s.h = h + i * hidden;
        s.c = cell + i * hidden;
        s.reset_h = reset_h + i * hidden;
        s.x = b.x + ((dir * r.steps + t) * r.batch + first + i) * rows;
        s.r = product + i * rows;
        f(r.y->as<float>() + ((t * r.dirs + dir) * r.batch + first + i) * hidden, step < length);
      }
    };
    if (r.quantize_state) round_state(h, count * hidden, reset_h);
    multiply(0, two_products ? 2 * hidden : rows, r.quantize_state ? reset_h : h);
    if (two_products) {
      each([&](float*, bool alive) { alive ? ops.gru_reset(s) : (void)std::fill_n(s.reset_h, hidden, 0.0f); });
      multiply(2 * hidden, rows, reset_h);
    }
    each([&](float* y, bool alive) {
      if (!alive) {
        std::fill_n(y, hidden, 0.0f);
        return;
      }
      r.kind == Kind::kLstm ? ops.lstm(s) : r.kind == Kind::kGru ? ops.gru(s) : ops.plain(s);
      std::memcpy(y, s.h, static_cast<size_t>(hidden) * sizeof(float));
    });
  }
  std::memcpy(r.y_h->as<float>() + at, h, static_cast<size_t>(count * hidden) * sizeof(float));
  if (r.y_c != nullptr) std::memcpy(r.y_c->as<float>() + at, cell, static_cast<size_t>(count * hidden) * sizeof(float));
}

template <Kind kind>
void recurrent(const KernelCall& c) {
  const Recurrent r = recurrent_of(c, kind);
  if (r.lengths != nullptr)
    for (int64_t i = 0; i < r.batch; ++i) {
      const int32_t length = r.lengths->as<const int32_t>()[i];
      if (length < 0 || length > r.steps)
        c.fail("sequence length " + std::to_string(length) + " is outside of 0 to " + std::to_string(r.steps));
    }
  if (r.batch == 0) return;
  const Buffers b = buffers_of(r);
  join_biases(r, b);
  if (r.x_floats() > 0) project_inputs(r, b);
  // Directions and batch elements do not depend on each other; one long sequence shares its steps' products instead.
  const int64_t units = r.dirs * r.batch, macs = r.rows() * r.hidden;
  if (r.quantize_state || (units < c.pool->threads() && macs * r.batch >= kShareMacs)) {
    for (int64_t dir = 0; dir < r.dirs; ++dir) run_sequences(r, b, dir, 0, r.batch, c.pool);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kShareMacs / 4 / (macs * std::max<int64_t>(1, r.steps)));
  c.pool->parallel_for(units, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end;) {
      const int64_t dir = unit / r.batch, first = unit % r.batch, last = std::min(r.batch, first + end - unit);
      run_sequences(r, b, dir, first, last, nullptr);
      unit += last - first;
    }
  });
}

template <Kind kind>
ScratchSize scratch(const KernelCall& c) {
  return recurrent_scratch(c, kind);
}

constexpr Kernel kKernels[] = {
    {"lstm",
     "x, w, r, bias?, lengths?, h0?, c0?, peephole? -> y, y_h, y_c; hidden, direction:s, activations:s, clip:f, "
     "input_forget, quantize_state",
     recurrent<Kind::kLstm>, scratch<Kind::kLstm>},
    {"gru", "x, w, r, bias?, lengths?, h0? -> y, y_h; hidden, direction:s, activations:s, clip:f, linear_before_reset",
     recurrent<Kind::kGru>, scratch<Kind::kGru>},
    {"rnn", "x, w, r, bias?, lengths?, h0? -> y, y_h; hidden, direction:s, activations:s, clip:f",
     recurrent<Kind::kPlain>, scratch<Kind::kPlain>},
};

}  // namespace

std::span<const Kernel> rnn_kernels() { return kKernels; }

}  // namespace edgec
