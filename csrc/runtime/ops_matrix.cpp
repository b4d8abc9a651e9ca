// Matrix products and quantized tables: the runtime's side of csrc/kernels.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "runtime/dispatch.h"
#include "runtime/int_product.h"
#include "runtime/kernel_registry.h"
#include "runtime/lend.h"

namespace edgec {
namespace {

const kernels::Format& format_of(const KernelCall& c, size_t arg, const Tensor& packed, int64_t n, int64_t k) {
  const kernels::Format* format = kernels::find_format(c.string(arg));
  if (format == nullptr) c.fail("there is no packed format '" + std::string(c.string(arg)) + "'");
  c.require(n >= 0 && k >= 0 && n < int64_t{1} << 40 && k < int64_t{1} << 40 &&
                packed.nbytes() >= kernels::packed_nbytes(*format, n, k),
            "its packed weight is too short");
  return *format;
}

// Activations of the epilogue; those that csrc/kernels does not fuse are applied afterwards.
struct NamedActivation {
  const char* name;
  kernels::Activation fused;
  float (*after)(float);
};

constexpr NamedActivation kActivations[] = {
    {"none", kernels::Activation::kNone, nullptr},
    {"relu", kernels::Activation::kRelu, nullptr},
    {"gelu", kernels::Activation::kGelu, nullptr},
    {"gelu_tanh", kernels::Activation::kGeluTanh, nullptr},
    {"silu", kernels::Activation::kSilu, nullptr},
    {"tanh", kernels::Activation::kTanh, nullptr},
    {"sigmoid", kernels::Activation::kSigmoid, nullptr},
    {"swiglu", kernels::Activation::kSwiglu, nullptr},
    {"geglu", kernels::Activation::kGeglu, nullptr},
    {"geglu_tanh", kernels::Activation::kGegluTanh, nullptr},
    {"relu6", kernels::Activation::kNone, [](float x) { return x < 0   ? 0
                                                               : x > 6 ? 6
                                                                       : x; }},
    {"hard_swish", kernels::Activation::kNone, [](float x) { return x * std::clamp(x / 6 + 0.5f, 0.0f, 1.0f); }},
    {"hard_sigmoid", kernels::Activation::kNone, [](float x) { return std::clamp(x / 6 + 0.5f, 0.0f, 1.0f); }},
};

const NamedActivation& activation_of(const KernelCall& c, size_t arg) {
  for (const NamedActivation& a : kActivations)
    if (c.string(arg) == a.name) return a;
  c.fail("there is no activation '" + std::string(c.string(arg)) + "'");
}

int64_t rows_of(const Tensor& x) { return x.rank() == 0 ? 1 : product(x.dims, 0, x.dims.size() - 1); }

kernels::Norm norm_of(const KernelCall& c, size_t arg) {
  const std::string_view name = c.string(arg);
  if (name == "none") return kernels::Norm::kNone;
  if (name == "rms") return kernels::Norm::kRms;
  c.require(name == "layer", "its norm is none of none, rms, layer");
  return kernels::Norm::kLayer;
}

ScratchSize linear_scratch(const KernelCall& c) {
  const int64_t n = c.integer(11), k = c.integer(12);
  const kernels::Format& format = format_of(c, 10, c.tensor(1), n, k);
  return {kernels::linear_scratch_bytes(format, rows_of(c.tensor(0)), k, norm_of(c, 8)) + 64, 0};
}

void linear(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &w = c.tensor(1), &y = c.tensor(6);
  const Tensor *bias = c.optional(2), *residual = c.optional(3), *gain = c.optional(4), *shift = c.optional(5);
  const NamedActivation& act = activation_of(c, 7);
  const int64_t n = c.integer(11), k = c.integer(12), m = rows_of(x);
  const bool gated = kernels::is_gated(act.fused);
  const int64_t y_n = gated ? n / 2 : n;
  c.require(x.dtype == DType::kF32 && y.dtype == DType::kF32, "it takes f32 only");
  c.require(x.rank() >= 1 && x.dims.back() == k && y.size() == m * y_n, "its shapes do not fit");
  c.require(bias == nullptr || (bias->dtype == DType::kF32 && bias->size() == n), "its bias does not fit");
  for (const Tensor* v : {gain, shift})
    c.require(v == nullptr || (v->dtype == DType::kF32 && v->size() == k), "its norm's gain or bias does not fit");
  c.require(!gated || n % kernels::kPanel == 0, "its gated rows are not panels of 16");
  c.require(residual == nullptr || (residual->dtype == DType::kF32 && residual->size() == y.size()),
            "its residual does not fit");
  kernels::LinearArgs args;
  args.format = &format_of(c, 10, w, n, k);
  c.require(args.format->family != kernels::Family::kS8Row, "its format is one of tables");
  args.packed = w.data;
  args.m = m;
  args.n = n;
  args.k = k;
  args.x = x.as<const float>();
  args.ldx = k;
  args.bias = bias != nullptr ? bias->as<const float>() : nullptr;
  args.residual = residual != nullptr && act.after == nullptr ? residual->as<const float>() : nullptr;
  args.ldr = y_n;
  args.act = act.fused;
  args.y = y.as<float>();
  args.ldy = y_n;
  args.norm = norm_of(c, 8);
  args.eps = static_cast<float>(c.real(9));
  args.norm_gain = gain != nullptr ? gain->as<const float>() : nullptr;
  args.norm_bias = shift != nullptr ? shift->as<const float>() : nullptr;
  args.rotate = c.integer(13) != 0;
  c.require(!args.rotate || !kernels::is_f32(args.format->family), "weights of floats have no rotation");
  if (y.size() == 0) return;
  if (c.following.size() == c.args.size()) {
    args.next_format = kernels::find_format(c.following[10].string);
    args.next = args.next_format != nullptr ? c.following[1].tensor.data : nullptr;
    args.next_n = c.following[11].i, args.next_k = c.following[12].i;
  }
  kernels::linear(args, parallel_for(c), c.shared_scratch());
  if (act.after == nullptr) return;
  c.pool->parallel_for(y.size(), kGrainElements, [&](int64_t begin, int64_t end, int) {
    float* out = y.as<float>();
    for (int64_t i = begin; i < end; ++i)
      out[i] = act.after(out[i]) + (residual != nullptr ? residual->as<const float>()[i] : 0);
  });
}

void hadamard(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  const int64_t block = c.integer(2);
  c.require(x.dtype == DType::kF32 && y.dtype == DType::kF32, "it takes f32 only");
  c.require(x.rank() >= 1 && y.size() == x.size(), "its shapes do not fit");
  c.require(block >= 1 && (block & (block - 1)) == 0, "its block is no power of two");
  if (x.size() == 0) return;
  const int64_t n = x.dims.back();
  c.pool->parallel_for(x.size() / n, 1 + kGrainElements / n, [&](int64_t begin, int64_t end, int) {
    std::memcpy(y.as<float>() + begin * n, x.as<float>() + begin * n, static_cast<size_t>((end - begin) * n) * 4);
    kernels::hadamard_rows(y.as<float>(), n, block, begin, end);
  });
}

// Both operands of a batched product with their strides in elements; an axis of 1 has stride 0.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_m = 0, a_k = 0, b_k = 0, b_n = 0;
  int batch_rank = 0;
  std::array<int64_t, kMaxRank> batch{}, a_batch{}, b_batch{}, y_batch{};
};

Product product_of(const KernelCall& c, const Tensor& a, const Tensor& b, const Tensor& y, bool trans_a, bool trans_b) {
  c.require(a.rank() >= 2 && b.rank() >= 2 && y.rank() >= 2, "its operands have a rank below 2");
  Product p;
  const size_t ra = a.dims.size(), rb = b.dims.size(), ry = y.dims.size();
  p.m = a.dims[ra - (trans_a ? 1 : 2)];
  p.k = a.dims[ra - (trans_a ? 2 : 1)];
  p.n = b.dims[rb - (trans_b ? 2 : 1)];
  c.require(b.dims[rb - (trans_b ? 1 : 2)] == p.k, "its inner sizes differ");
  c.require(y.dims[ry - 2] == p.m && y.dims[ry - 1] == p.n && ry >= ra && ry >= rb, "y does not fit");
  p.a_m = trans_a ? 1 : p.k;
  p.a_k = trans_a ? p.m : 1;
  p.b_k = trans_b ? 1 : p.n;
  p.b_n = trans_b ? p.k : 1;
  int64_t a_size = p.m * p.k, b_size = p.k * p.n, y_size = p.m * p.n;
  const auto dim_at = [](const Tensor& t, size_t back) {
    return back <= t.dims.size() ? t.dims[t.dims.size() - back] : 1;
  };
  for (size_t back = 3; back <= ry; ++back) {
    const int64_t dim = y.dims[ry - back], da = dim_at(a, back), db = dim_at(b, back);
    c.require((da == dim || da == 1) && (db == dim || db == 1), "its batch dims do not broadcast");
    const int64_t sa = da == 1 ? 0 : a_size, sb = db == 1 ? 0 : b_size;
    a_size *= da;
    b_size *= db;
    const int64_t sy = y_size;
    y_size *= dim;
    if (dim == 1) continue;
    if (p.batch_rank > 0) {
      const auto i = static_cast<size_t>(p.batch_rank - 1);
      if (sa == p.a_batch[i] * p.batch[i] && sb == p.b_batch[i] * p.batch[i]) {
        p.batch[i] *= dim;
        continue;
      }
    }
    const auto i = static_cast<size_t>(p.batch_rank++);
    p.batch[i] = dim;
    p.a_batch[i] = sa;
    p.b_batch[i] = sb;
    p.y_batch[i] = sy;
  }
  // One weight for the whole batch: its rows are rows of one product.
  if (p.batch_rank >= 1 && !trans_a && p.b_batch[0] == 0 && p.a_batch[0] == p.m * p.k) {
    p.m *= p.batch[0];
    --p.batch_rank;
    for (auto* list : {&p.batch, &p.a_batch, &p.b_batch, &p.y_batch})
      std::copy(list->begin() + 1, list->end(), list->begin());
  }
  return p;
}

kernels::MatmulArgs matmul_args(const KernelCall& c, const Product& p) {
  c.require(p.batch_rank <= kernels::kMaxBatchRank, "it has too many batch dims");
  kernels::MatmulArgs args;
  args.a = c.tensor(0).as<const float>();
  args.b = c.tensor(1).as<const float>();
  args.y = c.tensor(2).as<float>();
  args.m = p.m;
  args.n = p.n;
  args.k = p.k;
  args.a_m = p.a_m;
  args.a_k = p.a_k;
  args.b_k = p.b_k;
  args.b_n = p.b_n;
  args.y_m = p.n;
  args.batch_rank = p.batch_rank;
  // The kernels count batch dims from the outermost.
  for (int i = 0; i < p.batch_rank; ++i) {
    const auto from = static_cast<size_t>(p.batch_rank - 1 - i);
    args.batch[i] = p.batch[from];
    args.a_batch[i] = p.a_batch[from];
    args.b_batch[i] = p.b_batch[from];
    args.y_batch[i] = p.y_batch[from];
  }
  return args;
}

// Any dtype, row by row: total(row) is a worker's sums, of W.
template <class W, class A, class B, class Load, class Store>
void plain_product(const KernelCall& c, const Product& p, const A* a, const B* b, Load load, Store store) {
  int64_t batches = 1;
  for (int i = 0; i < p.batch_rank; ++i) batches *= p.batch[static_cast<size_t>(i)];
  const int64_t grain = std::max<int64_t>(1, 4 * kGrainElements / std::max<int64_t>(1, p.n * p.k));
  c.pool->parallel_for(batches * p.m, grain, [&](int64_t begin, int64_t end, int worker) {
    auto* sums = reinterpret_cast<W*>(c.scratch(worker));
    for (int64_t row = begin; row < end; ++row) {
      int64_t rest = row / p.m, at_a = row % p.m * p.a_m, at_b = 0, at_y = row % p.m * p.n;
      for (size_t i = 0; i < static_cast<size_t>(p.batch_rank); ++i) {
        const int64_t index = rest % p.batch[i];
        rest /= p.batch[i];
        at_a += index * p.a_batch[i];
        at_b += index * p.b_batch[i];
        at_y += index * p.y_batch[i];
      }
      std::fill_n(sums, p.n, W(0));
      for (int64_t k = 0; k < p.k; ++k) {
        const W left = load(a[at_a + k * p.a_k], true);
        const B* right = b + at_b + k * p.b_k;
        if (p.b_n == 1)
          for (int64_t j = 0; j < p.n; ++j) sums[j] += left * load(right[j], false);
        else
          for (int64_t j = 0; j < p.n; ++j) sums[j] += left * load(right[j * p.b_n], false);
      }
      for (int64_t j = 0; j < p.n; ++j) store(at_y + j, sums[j]);
    }
  });
}

ScratchSize matmul_scratch(const KernelCall& c) {
  const Tensor& a = c.tensor(0);
  const Product p = product_of(c, a, c.tensor(1), c.tensor(2), c.integer(3) != 0, c.integer(4) != 0);
  if (a.dtype == DType::kF32) return {kernels::matmul_scratch_bytes(matmul_args(c, p), c.pool->threads()) + 64, 0};
  return {0, static_cast<size_t>(p.n) * 8};
}

void matmul(const KernelCall& c) {
  const Tensor &a = c.tensor(0), &b = c.tensor(1), &y = c.tensor(2);
  c.require(a.dtype == b.dtype && a.dtype == y.dtype, "its dtypes differ");
  const Product p = product_of(c, a, b, y, c.integer(3) != 0, c.integer(4) != 0);
  if (y.size() == 0 || p.k == 0) {
    std::memset(y.data, 0, y.nbytes());
    return;
  }
  if (a.dtype == DType::kF32) return kernels::matmul_f32(matmul_args(c, p), parallel_for(c), c.shared_scratch());
  by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    using W = typename Wide<T>::type;
    T* out = y.as<T>();
    plain_product<W>(
        c, p, a.as<const T>(), b.as<const T>(), [](T v, bool) { return static_cast<W>(v); },
        [=](int64_t i, W v) { out[i] = T(v); });
  });
}

bool has_fast_int_product() { return (kernels::cpu_feature_bits() & kernels::kAvx2) != 0; }

constexpr int64_t kIntRows = 96;  // rows of a that share one packing of a panel of b

ScratchSize matmul_int_scratch(const KernelCall& c) {
  const Tensor &a = c.tensor(0), &b = c.tensor(1), &y = c.tensor(4);
  const Product p = product_of(c, a, b, y, false, false);
  if (!has_fast_int_product()) return {0, static_cast<size_t>(p.n) * 4};
  const int64_t pairs = (p.k + 1) / 2, rows = p.k > 0 ? a.size() / p.k : 0;
  return {static_cast<size_t>(rows * pairs) * 4, static_cast<size_t>(pairs * int_product::kColumns) * 4};
}

int32_t zero_of(const KernelCall& c, size_t arg) {
  const Tensor* zero = c.optional(arg);
  if (zero == nullptr) return 0;
  c.require(zero->size() == 1 && (zero->dtype == DType::kI8 || zero->dtype == DType::kU8),
            "its zero points are no scalars");
  return zero->dtype == DType::kI8 ? *zero->as<const int8_t>() : *zero->as<const uint8_t>();
}

// a - a_zero in 16 bits, each row an even number of columns.
void widen(const KernelCall& c, const Tensor& a, int64_t k, int32_t zero, int16_t* to) {
  const int64_t rows = a.size() / k, width = (k + 1) / 2 * 2;
  const bool is_signed = a.dtype == DType::kI8;
  c.pool->parallel_for(rows, std::max<int64_t>(1, kGrainElements / k), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      int16_t* out = to + row * width;
      const uint8_t* in = a.as<const uint8_t>() + row * k;
      if (is_signed)
        for (int64_t i = 0; i < k; ++i) out[i] = static_cast<int16_t>(static_cast<int8_t>(in[i]) - zero);
      else
        for (int64_t i = 0; i < k; ++i) out[i] = static_cast<int16_t>(in[i] - zero);
      if (width > k) out[k] = 0;
    }
  });
}

void fast_int_product(const KernelCall& c, const Product& p, int32_t a_zero, int32_t b_zero) {
  const Tensor &a = c.tensor(0), &b = c.tensor(1);
  auto* wide = reinterpret_cast<int16_t*>(c.shared_scratch());
  widen(c, a, p.k, a_zero, wide);
  const int64_t panels = (p.n + int_product::kColumns - 1) / int_product::kColumns;
  const int64_t chunks = (p.m + kIntRows - 1) / kIntRows, pairs = (p.k + 1) / 2;
  int64_t batches = 1;
  for (int i = 0; i < p.batch_rank; ++i) batches *= p.batch[static_cast<size_t>(i)];
  const int64_t grain = std::max<int64_t>(1, kGrainElements * 8 / (std::min(p.m, kIntRows) * p.k));
  c.pool->parallel_for(batches * chunks * panels, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * int_product::kColumns, row = unit / panels % chunks * kIntRows;
      int64_t rest = unit / panels / chunks, at_a = row * p.k, at_b = first, at_y = row * p.n + first;
      for (size_t i = 0; i < static_cast<size_t>(p.batch_rank); ++i) {
        const int64_t index = rest % p.batch[i];
        rest /= p.batch[i];
        at_a += index * p.a_batch[i];
        at_b += index * p.b_batch[i];
        at_y += index * p.y_batch[i];
      }
      int_product::Panel panel;
      panel.a = wide + at_a / p.k * pairs * 2;
      panel.rows = std::min(kIntRows, p.m - row);
      panel.pairs = pairs;
      panel.k = p.k;
      panel.b = b.as<const uint8_t>() + at_b;
      panel.b_stride = p.n;
      panel.columns = std::min(int_product::kColumns, p.n - first);
      panel.b_signed = b.dtype == DType::kI8;
      panel.b_zero = static_cast<int16_t>(b_zero);
      panel.y = c.tensor(4).as<int32_t>() + at_y;
      panel.y_stride = p.n;
      panel.scratch = reinterpret_cast<int16_t*>(c.scratch(worker));
      int_product::multiply(panel);
    }
  });
}

void matmul_int(const KernelCall& c) {
  const Tensor &a = c.tensor(0), &b = c.tensor(1), &y = c.tensor(4);
  const auto fits = [](const Tensor& t) { return t.dtype == DType::kI8 || t.dtype == DType::kU8; };
  c.require(fits(a) && fits(b) && y.dtype == DType::kI32, "its dtypes do not fit");
  const Product p = product_of(c, a, b, y, false, false);
  const int32_t a_zero = zero_of(c, 2), b_zero = zero_of(c, 3);
  if (y.size() == 0 || p.k == 0) {
    std::memset(y.data, 0, y.nbytes());
    return;
  }
  if (has_fast_int_product()) return fast_int_product(c, p, a_zero, b_zero);
  int32_t* out = y.as<int32_t>();
  const auto run = [&](auto* left, auto* right) {
    plain_product<int32_t>(
        c, p, left, right, [=](auto v, bool is_a) { return int32_t{v} - (is_a ? a_zero : b_zero); },
        [=](int64_t i, int32_t v) { out[i] = v; });
  };
  const auto with_b = [&](auto* left) {
    b.dtype == DType::kI8 ? run(left, b.as<const int8_t>()) : run(left, b.as<const uint8_t>());
  };
  a.dtype == DType::kI8 ? with_b(a.as<const int8_t>()) : with_b(a.as<const uint8_t>());
}

ScratchSize gather_quantized_scratch(const KernelCall& c) { return {static_cast<size_t>(c.tensor(1).size()) * 8, 0}; }

void gather_quantized(const KernelCall& c) {
  const Tensor &table = c.tensor(0), &index = c.tensor(1), &y = c.tensor(2);
  const int64_t rows = c.integer(4), dim = c.integer(5), count = index.size();
  const kernels::Format& format = format_of(c, 3, table, rows, dim);
  c.require(y.dtype == DType::kF32 && y.size() == count * dim, "y does not fit");
  Indices indices(c, index);
  auto* wide = reinterpret_cast<int64_t*>(c.shared_scratch());
  for (int64_t i = 0; i < count; ++i) wide[i] = indices.at(i, rows);
  indices.check();
  if (y.size() == 0) return;
  c.require(kernels::gather_rows(format, table.data, rows, dim, wide, count, y.as<float>(), parallel_for(c)),
            "an index is outside of the table");
}

constexpr Kernel kKernels[] = {
    {"linear", "x, w, bias?, residual?, norm_gain?, norm_bias? -> y; act:s, norm:s, eps:f, format:s, n, k, rotate",
     linear, linear_scratch},
    {"hadamard", "x -> y; block", hadamard},
    {"matmul", "a, b -> y; trans_a, trans_b", matmul, matmul_scratch},
    {"matmul_int", "a, b, a_zero?, b_zero? -> y", matmul_int, matmul_int_scratch},
    {"gather_quantized", "table, indices -> y; format:s, rows, dim", gather_quantized, gather_quantized_scratch},
};

}  // namespace

std::span<const Kernel> matrix_kernels() { return kKernels; }

}  // namespace edgec
