// The kernels for Python: thin, zero copy, shapes checked here (sizes in bytes as well), so that no call can go out of
// bounds.
#include "kernels/kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/accelerate.h"
#include "kernels/cpu_features.h"
#include "python/arrays.h"

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

const ek::Format& format_of(const std::string& name) {
  const ek::Format* format = ek::find_format(name);
  require(format != nullptr, "unknown packed format '" + name + "'");
  return *format;
}

int64_t groups_of(const ek::Format& format, int64_t k) {
  const int64_t group = format.group ? format.group : std::max<int64_t>(k, 1);
  return (k + group - 1) / group;
}

py::tuple quantize(const py::array_t<float, py::array::c_style | py::array::forcecast>& w, int bits, int group,
                   bool symmetric, bool search, const py::object& importance, int threads, const std::string& kernel,
                   bool table) {
  const ek::IsaOps* ops = ops_of(kernel);
  require(w.ndim() == 2, "w must be [N, K]");
  require(bits == 4 || bits == 6 || bits == 8, "bits must be 4, 6 or 8");
  require(group >= 0, "group must not be negative");
  require(symmetric || bits == 4, "asymmetric quantization is for 4 bits");
  require(!table || (symmetric && bits == 4 && group == 32), "the table is for 4 bits, symmetric, group 32");
  const int64_t n = w.shape(0), k = w.shape(1), size = group ? group : std::max<int64_t>(k, 1);
  const int64_t groups = (k + size - 1) / size;
  py::array_t<float, py::array::c_style | py::array::forcecast> h;
  if (!importance.is_none()) {
    h = importance;
    require(h.ndim() == 1 && h.shape(0) == k, "importance must be [K]");
  }
  const py::dtype half("float16");
  py::array q(symmetric ? py::dtype::of<int8_t>() : py::dtype::of<uint8_t>(), std::vector<py::ssize_t>{n, k});
  py::array scale(half, std::vector<py::ssize_t>{n, groups});
  py::object zero = py::none();
  ek::QuantizeArgs args{w.data(),
                        n,
                        k,
                        bits,
                        group,
                        symmetric,
                        search,
                        h.size() ? h.data() : nullptr,
                        static_cast<int8_t*>(q.mutable_data()),
                        static_cast<uint16_t*>(scale.mutable_data()),
                        nullptr,
                        table};
  if (!symmetric) {
    py::array_t<uint8_t> z(std::vector<py::ssize_t>{n, groups});
    args.zero = z.mutable_data();
    zero = std::move(z);
  }
  const Lent pool(threads);
  {
    py::gil_scoped_release release;
    ek::parallel(pool.lend, n, 1 + 4096 / (1 + k),
                 [&](int64_t begin, int64_t end, int) { ek::quantize_rows(args, begin, end, ops); });
  }
  return py::make_tuple(q, scale, zero);
}

Bytes pack(const std::string& name, const py::array& q, const py::object& scale, const py::object& zero, int threads) {
  const ek::Format& format = format_of(name);
  const bool f32 = ek::is_f32(format.family);
  const char kind = f32 ? 'f' : format.symmetric ? 'i' : 'u';
  require(q.ndim() == 2 && q.dtype().kind() == kind && q.dtype().itemsize() == (f32 ? 4 : 1),
          "q must be [N, K] of " + std::string(f32                ? "float32"
                                               : format.symmetric ? "int8"
                                                                  : "uint8"));
  require((q.flags() & py::array::c_style) != 0, "q must be contiguous");
  const int64_t n = q.shape(0), k = q.shape(1), groups = groups_of(format, k);
  py::array_t<uint16_t, py::array::c_style> s;
  py::array_t<uint8_t, py::array::c_style | py::array::forcecast> z;
  if (!f32) {
    py::array given = py::array::ensure(scale);
    require(given && given.dtype().kind() == 'f' && given.dtype().itemsize() == 2 && given.ndim() == 2 &&
                given.shape(0) == n && given.shape(1) == groups,
            "scale must be float16 [N, groups]");
    s = given.view("uint16");
    if (!format.symmetric) {
      require(!zero.is_none(), "this format needs zero points");
      z = zero;
      require(z.ndim() == 2 && z.shape(0) == n && z.shape(1) == groups, "zero must be [N, groups]");
    }
  }
  Bytes out(static_cast<py::ssize_t>(ek::packed_nbytes(format, n, k)));
  const Lent pool(threads);
  const void* from = q.data();
  void* to = out.mutable_data();
  const uint16_t* scales = f32 ? nullptr : s.data();
  const uint8_t* zeros = z.size() ? z.data() : nullptr;
  {
    py::gil_scoped_release release;
    ek::parallel(pool.lend, ek::panels(n), 1 + 65536 / (1 + k * ek::kPanel), [&](int64_t begin, int64_t end, int) {
      ek::pack_panels(format, from, scales, zeros, n, k, begin, end, to);
    });
  }
  return out;
}

// quantize and pack of a block of rows in one pass: (bytes, sum of squared errors, sum of squares).
py::tuple encode(const py::array_t<float, py::array::c_style>& w, const std::string& name, bool search,
                 const py::object& importance, int threads) {
  const ek::Format& format = format_of(name);
  require(w.ndim() == 2, "w must be [N, K]");
  require(!ek::is_f32(format.family), "'" + name + "' is not quantized");
  const int64_t n = w.shape(0), k = w.shape(1), groups = groups_of(format, k);
  py::array_t<float, py::array::c_style | py::array::forcecast> h;
  if (!importance.is_none()) {
    h = importance;
    require(h.ndim() == 1 && h.shape(0) == k, "importance must be [K]");
  }
  Bytes out(static_cast<py::ssize_t>(ek::packed_nbytes(format, n, k)));
  const int64_t unit = ek::panel_columns(format.family);  // rows that lie together
  const auto unit_bytes = static_cast<int64_t>(ek::packed_nbytes(format, unit, k));
  std::vector<double> errors(static_cast<size_t>(2 * n));
  const Lent pool(threads);
  uint8_t* to = out.mutable_data();
  const float *from = w.data(), *weights = h.size() ? h.data() : nullptr;
  double noise = 0.0, signal = 0.0;
  {
    py::gil_scoped_release release;
    ek::parallel(pool.lend, (n + unit - 1) / unit, 1 + 4096 / (1 + k), [&](int64_t begin, int64_t end, int) {
      std::vector<int8_t> q(static_cast<size_t>(unit * k));
      std::vector<uint16_t> scale(static_cast<size_t>(unit * groups));
      std::vector<uint8_t> zero(format.symmetric ? 0 : scale.size());
      for (int64_t p = begin; p < end; ++p) {
        const int64_t row = p * unit, rows = std::min(unit, n - row);
        ek::QuantizeArgs args{from + row * k,
                              rows,
                              k,
                              format.bits,
                              format.group,
                              format.symmetric,
                              search,
                              weights,
                              q.data(),
                              scale.data(),
                              format.symmetric ? nullptr : zero.data(),
                              format.table,
                              &errors[2 * row]};
        ek::quantize_rows(args, 0, rows);
        ek::pack_panels(format, q.data(), scale.data(), zero.data(), rows, k, 0, ek::panels(rows), to + p * unit_bytes);
      }
    });
    for (int64_t r = 0; r < n; ++r) noise += errors[2 * r], signal += errors[2 * r + 1];
  }
  return py::make_tuple(out, noise, signal);
}

// x [R, C] of f16, f32, or (as uint16) bf16, any strides, as contiguous f32.
py::array_t<float> to_float(const py::array& x, bool bf16, int threads) {
  const py::dtype type = x.dtype();
  const int64_t size = type.itemsize();
  require(x.ndim() == 2, "x must have two axes");
  require(bf16 ? type.kind() == 'u' && size == 2 : type.kind() == 'f' && (size == 2 || size == 4),
          "x must be of float16, bfloat16 or float32");
  require(x.strides(0) % size == 0 && x.strides(1) % size == 0, "x is misaligned");
  const int64_t rows = x.shape(0), columns = x.shape(1);
  py::array_t<float> y(std::vector<py::ssize_t>{rows, columns});
  const auto kind = bf16 ? ek::WidenArgs::kBF16 : size == 2 ? ek::WidenArgs::kF16 : ek::WidenArgs::kF32;
  const ek::WidenArgs args{x.data(), kind, columns, x.strides(0) / size, x.strides(1) / size, y.mutable_data()};
  const Lent pool(threads);
  py::gil_scoped_release release;
  // Blocks of 32 rows: whole cache lines where a matrix is turned round.
  ek::parallel(pool.lend, (rows + 31) / 32, 1 + 2048 / (1 + columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) ek::widen_rows(args, b * 32, std::min(rows, b * 32 + 32));
  });
  return y;
}

void check_packed(const ek::Format& format, const Bytes& packed, int64_t n, int64_t k) {
  require(n >= 0 && k >= 0 && n < (int64_t{1} << 40) && k < (int64_t{1} << 40), "n and k must not be negative");
  const size_t want = ek::packed_nbytes(format, n, k);
  require(static_cast<size_t>(packed.size()) == want,
          "packed holds " + std::to_string(packed.size()) + " bytes, the format needs " + std::to_string(want));
}

py::tuple unpack(const std::string& name, const Bytes& packed, int64_t n, int64_t k, int threads) {
  const ek::Format& format = format_of(name);
  check_packed(format, packed, n, k);
  const bool f32 = ek::is_f32(format.family);
  const std::vector<py::ssize_t> shape{n, groups_of(format, k)};
  py::array q(f32                ? py::dtype::of<float>()
              : format.symmetric ? py::dtype::of<int8_t>()
                                 : py::dtype::of<uint8_t>(),
              std::vector<py::ssize_t>{n, k});
  py::object scale = py::none(), zero = py::none();
  uint16_t* scales = nullptr;
  uint8_t* zeros = nullptr;
  if (!f32) {
    py::array s(py::dtype("float16"), shape);
    scales = static_cast<uint16_t*>(s.mutable_data());
    scale = std::move(s);
  }
  if (!format.symmetric) {
    py::array_t<uint8_t> z(shape);
    zeros = z.mutable_data();
    zero = std::move(z);
  }
  const Lent pool(threads);
  const void* from = packed.data();
  void* to = q.mutable_data();
  {
    py::gil_scoped_release release;
    ek::parallel(pool.lend, ek::panels(n), 1 + 65536 / (1 + k * ek::kPanel), [&](int64_t begin, int64_t end, int) {
      ek::unpack_panels(format, from, n, k, begin, end, to, scales, zeros);
    });
  }
  return py::make_tuple(q, scale, zero);
}

py::array_t<float> hadamard(const py::array_t<float, py::array::c_style | py::array::forcecast>& x, int64_t block,
                            int threads, const std::string& kernel) {
  require(block >= 1 && (block & (block - 1)) == 0, "block must be a power of two");
  const int64_t n = x.ndim() ? x.shape(x.ndim() - 1) : 1, rows = n ? x.size() / n : 0;
  py::array_t<float> y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  const float* from = x.data();
  float* to = y.mutable_data();
  const ek::IsaOps* ops = ops_of(kernel);
  const Lent pool(threads);
  py::gil_scoped_release release;
  ek::parallel(pool.lend, rows, 1 + 65536 / (1 + n), [&](int64_t begin, int64_t end, int) {
    std::copy(from + begin * n, from + end * n, to + begin * n);
    ek::hadamard_rows(to, n, block, begin, end, ops);
  });
  return y;
}

ek::Activation activation_of(const std::string& name) {
  static const std::map<std::string, ek::Activation> names = {
      {"none", ek::Activation::kNone},           {"relu", ek::Activation::kRelu},     {"gelu", ek::Activation::kGelu},
      {"gelu_tanh", ek::Activation::kGeluTanh},  {"silu", ek::Activation::kSilu},     {"tanh", ek::Activation::kTanh},
      {"sigmoid", ek::Activation::kSigmoid},     {"swiglu", ek::Activation::kSwiglu}, {"geglu", ek::Activation::kGeglu},
      {"geglu_tanh", ek::Activation::kGegluTanh}};
  const auto it = names.find(name);
  require(it != names.end(), "unknown activation '" + name + "'");
  return it->second;
}

void gemm(const Floats& x, const Bytes& packed, const std::string& name, int64_t n, int64_t k, Floats& out,
          const py::object& bias, const std::string& act, const py::object& residual, const std::string& norm,
          float eps, const py::object& norm_gain, const py::object& norm_bias, bool rotate, int threads,
          const std::string& kernel_name) {
  const ek::Format& format = format_of(name);
  require(format.family != ek::Family::kS8Row, "'" + name + "' is a table format: use gather");
  check_packed(format, packed, n, k);
  ek::LinearArgs args;
  args.format = &format;
  args.packed = packed.data();
  args.n = n, args.k = k;
  require(x.ndim() == 2 && x.shape(1) == k, "x must be [M, K]");
  args.m = x.shape(0);
  args.x = x.data(), args.ldx = row_stride(x, k, "x");
  args.act = activation_of(act);
  const int64_t columns = ek::is_gated(args.act) ? n / 2 : n;
  require(!ek::is_gated(args.act) || n % ek::kPanel == 0, act + " needs N divisible by 16");
  require(out.ndim() == 2 && out.shape(0) == args.m && out.shape(1) == columns, "out must be [M, N]");
  args.y = out.mutable_data(), args.ldy = row_stride(out, columns, "out");
  require(norm == "none" || norm == "rms" || norm == "layer", "unknown norm '" + norm + "'");
  args.norm = norm == "rms" ? ek::Norm::kRms : norm == "layer" ? ek::Norm::kLayer : ek::Norm::kNone;
  args.eps = eps;
  require(!rotate || !ek::is_f32(format.family), "weights of floats have no rotation");
  args.rotate = rotate;
  Floats vectors[3], r;
  const auto vector = [](Floats& keep, const py::object& given, int64_t size, const char* what) -> const float* {
    if (given.is_none()) return nullptr;
    keep = py::array_t<float, py::array::c_style | py::array::forcecast>(given);
    require(keep.ndim() == 1 && keep.shape(0) == size, what);
    return keep.data();
  };
  args.bias = vector(vectors[0], bias, n, "bias must be [N]");
  args.norm_gain = vector(vectors[1], norm_gain, k, "norm_gain must be [K]");
  args.norm_bias = vector(vectors[2], norm_bias, k, "norm_bias must be [K]");
  if (!residual.is_none()) {
    r = residual;
    require(r.ndim() == 2 && r.shape(0) == args.m && r.shape(1) == columns, "residual must have out's shape");
    args.residual = r.data(), args.ldr = row_stride(r, columns, "residual");
  }
  const ek::LinearKernel* kernel = ek::select_linear(format, args.m, kernel_name);
  require(kernel != nullptr, "no kernel '" + kernel_name + "' for " + name + " on this CPU");
  const Lent pool(threads);
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[ek::linear_scratch_bytes(format, args.m, k, args.norm)]);
  py::gil_scoped_release release;
  ek::linear(args, pool.lend, scratch.get(), kernel);
}

// Products one after the other with no Python between them, for benchmarks: each reads the first k columns of x and
// writes the first of out.
using ChainStep =
    std::tuple<Bytes, std::string, int64_t, int64_t, std::string, bool>;  // packed, format, n, k, act, rms norm

void gemm_chain(const Floats& x, const std::vector<ChainStep>& steps, Floats& out, int threads) {
  std::vector<ek::LinearArgs> products;
  size_t scratch_bytes = 0;
  require(x.ndim() == 2 && out.ndim() == 2 && x.shape(0) == out.shape(0), "x must be [M, K], out [M, N]");
  for (const auto& [packed, name, n, k, act, normed] : steps) {
    const ek::Format& format = format_of(name);
    require(format.family != ek::Family::kS8Row, "'" + name + "' is a table format");
    check_packed(format, packed, n, k);
    ek::LinearArgs args;
    args.format = &format;
    args.packed = packed.data();
    args.m = x.shape(0), args.n = n, args.k = k;
    args.act = activation_of(act);
    require(k <= x.shape(1) && (ek::is_gated(args.act) ? n / 2 : n) <= out.shape(1) &&
                (!ek::is_gated(args.act) || n % ek::kPanel == 0),
            "x or out is too narrow");
    args.x = x.data(), args.ldx = row_stride(x, x.shape(1), "x");
    args.y = out.mutable_data(), args.ldy = row_stride(out, out.shape(1), "out");
    args.norm = normed ? ek::Norm::kRms : ek::Norm::kNone;
    args.eps = 1e-5f;
    products.push_back(args);
    scratch_bytes = std::max(scratch_bytes, ek::linear_scratch_bytes(format, args.m, k, args.norm));
  }
  for (size_t i = 0; i < products.size(); ++i) {
    const ek::LinearArgs& next = products[(i + 1) % products.size()];
    products[i].next_format = next.format, products[i].next = next.packed;
    products[i].next_n = next.n, products[i].next_k = next.k;
  }
  const Lent pool(threads);
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[scratch_bytes]);
  py::gil_scoped_release release;
  for (const ek::LinearArgs& args : products) ek::linear(args, pool.lend, scratch.get());
}

int64_t stride_of(const Floats& a, int axis) { return a.strides(axis) / static_cast<int64_t>(sizeof(float)); }

void matmul(const Floats& a, const Floats& b, Floats& out, float alpha, bool add, int threads,
            const std::string& kernel) {
  const ek::IsaOps* ops = ops_of(kernel);
  const int rank = static_cast<int>(out.ndim());
  require(rank >= 2 && a.ndim() == rank && b.ndim() == rank && rank - 2 <= ek::kMaxBatchRank,
          "a, b and out must have the same rank, 2 to 8");
  ek::MatmulArgs args;
  args.m = a.shape(rank - 2), args.k = a.shape(rank - 1), args.n = b.shape(rank - 1);
  require(b.shape(rank - 2) == args.k && out.shape(rank - 2) == args.m && out.shape(rank - 1) == args.n,
          "a is [.., M, K], b [.., K, N], out [.., M, N]");
  require(out.size() == 0 || args.n <= 1 || stride_of(out, rank - 1) == 1, "out's columns must be contiguous");
  args.batch_rank = rank - 2;
  for (int i = 0; i < rank - 2; ++i) {
    args.batch[i] = out.shape(i);
    require((a.shape(i) == out.shape(i) || a.shape(i) == 1) && (b.shape(i) == out.shape(i) || b.shape(i) == 1),
            "batch axes do not broadcast");
    args.a_batch[i] = a.shape(i) == 1 ? 0 : stride_of(a, i);
    args.b_batch[i] = b.shape(i) == 1 ? 0 : stride_of(b, i);
    args.y_batch[i] = stride_of(out, i);
  }
  args.a = a.data(), args.b = b.data(), args.y = out.mutable_data();
  args.a_m = stride_of(a, rank - 2), args.a_k = stride_of(a, rank - 1);
  args.b_k = stride_of(b, rank - 2), args.b_n = stride_of(b, rank - 1), args.y_m = stride_of(out, rank - 2);
  args.alpha = alpha;
  args.add = add;
  const Lent pool(threads);
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[ek::matmul_scratch_bytes(args, pool.lend.workers)]);
  py::gil_scoped_release release;
  ek::matmul_f32(args, pool.lend, scratch.get(), ops);
}

void attention(const Floats& q, const Floats& k, const Floats& v, const py::object& mask, Floats& out, float scale,
               float softcap, bool causal, int64_t causal_offset, int threads, const std::string& kernel) {
  const ek::IsaOps* ops = ops_of(kernel);
  require(q.ndim() == 4 && k.ndim() == 4 && v.ndim() == 4 && out.ndim() == 4, "q, k, v and out are [B, H, S, D]");
  ek::AttentionArgs args;
  args.batch = q.shape(0), args.heads = q.shape(1), args.q_len = q.shape(2), args.dim = q.shape(3);
  args.kv_heads = k.shape(1), args.kv_len = k.shape(2), args.v_dim = v.shape(3);
  require(k.shape(0) == args.batch && v.shape(0) == args.batch && v.shape(1) == args.kv_heads &&
              v.shape(2) == args.kv_len && k.shape(3) == args.dim,
          "k and v do not fit q");
  require(args.kv_heads > 0 && args.heads % args.kv_heads == 0, "heads must be a multiple of the kv heads");
  require(out.shape(0) == args.batch && out.shape(1) == args.heads && out.shape(2) == args.q_len &&
              out.shape(3) == args.v_dim,
          "out must be [B, H, Sq, Dv]");
  const auto strides = [](const Floats& a, int64_t to[3], const char* name) {
    require(a.size() == 0 || a.shape(3) <= 1 || stride_of(a, 3) == 1,
            std::string(name) + "'s last axis must be contiguous");
    for (int i = 0; i < 3; ++i) to[i] = stride_of(a, i);
  };
  strides(q, args.q_stride, "q"), strides(k, args.k_stride, "k"), strides(v, args.v_stride, "v");
  strides(out, args.out_stride, "out");
  args.q = q.data(), args.k = k.data(), args.v = v.data(), args.out = out.mutable_data();
  Floats m;
  if (!mask.is_none()) {
    m = mask;
    const int64_t want[4] = {args.batch, args.heads, args.q_len, args.kv_len};
    require(m.ndim() == 4, "mask must have four axes");
    for (int i = 0; i < 4; ++i) {
      require(m.shape(i) == want[i] || m.shape(i) == 1, "mask does not broadcast to [B, H, Sq, Skv]");
      args.mask_stride[i] = m.shape(i) == 1 ? 0 : stride_of(m, i);
    }
    args.mask = m.data();
  }
  args.scale = scale, args.softcap = softcap, args.causal = causal, args.causal_offset = causal_offset;
  const Lent pool(threads);
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[ek::attention_scratch_bytes(args, pool.lend.workers)]);
  py::gil_scoped_release release;
  ek::attention_f32(args, pool.lend, scratch.get(), ops);
}

void gather(const std::string& name, const Bytes& packed, int64_t rows, int64_t dim,
            const py::array_t<int64_t, py::array::c_style>& indices, py::array_t<float, py::array::c_style>& out,
            int threads, const std::string& kernel) {
  const ek::IsaOps* ops = ops_of(kernel);
  const ek::Format& format = format_of(name);
  check_packed(format, packed, rows, dim);
  require(out.size() == indices.size() * dim, "out must be [*indices.shape, dim]");
  const Lent pool(threads);
  bool ok;
  {
    py::gil_scoped_release release;
    ok = ek::gather_rows(format, packed.data(), rows, dim, indices.data(), indices.size(), out.mutable_data(),
                         pool.lend, ops);
  }
  if (!ok) throw py::index_error("an index is out of range for " + std::to_string(rows) + " rows");
}

py::list list_kernels() {
  py::list all;
  for (int i = 0; i < ek::kernel_count(); ++i) {
    const ek::KernelInfo info = ek::kernel_info(i);
    py::list features;
    for (uint32_t bit = 1; bit; bit <<= 1) {
      if (info.features & bit) features.append(ek::feature_name(bit));
    }
    all.append(py::dict(py::arg("name") = info.name, py::arg("op") = info.op, py::arg("family") = info.family,
                        py::arg("features") = features, py::arg("mr") = info.mr, py::arg("nr") = info.nr,
                        py::arg("max_m") = info.max_m, py::arg("priority") = info.priority,
                        py::arg("available") = info.available));
  }
  return all;
}

py::list list_formats() {
  py::list all;
  int count = 0;
  const ek::Format* f = ek::formats(&count);
  for (int i = 0; i < count; ++i, ++f) {
    all.append(py::dict(py::arg("name") = f->name, py::arg("family") = ek::family_name(f->family),
                        py::arg("bits") = f->bits, py::arg("group") = f->group, py::arg("symmetric") = f->symmetric,
                        py::arg("table") = f->table, py::arg("bits_per_weight") = f->bits_per_weight,
                        py::arg("panel") = ek::panel_columns(f->family)));
  }
  return all;
}

}  // namespace

#if defined(EDGEC_AMX_MODEL)
void bind_amx_model(py::module_& m);
#endif

void bind_rounding(py::module_& m);

void bind_kernels(py::module_& module) {
  py::module_ m = module.def_submodule("kernels", "Kernels and packed formats; edgec.kernels is the front.");
  m.def("quantize", &quantize);
  m.def("pack", &pack);
  m.def("encode", &encode, py::arg("w").noconvert(), py::arg("format"), py::arg("search"), py::arg("importance"),
        py::arg("threads"));
  m.def("to_float", &to_float);
  m.def("hadamard", &hadamard);
  m.def("unpack", &unpack);
  m.def("packed_nbytes", [](const std::string& name, int64_t n, int64_t k) {
    require(n >= 0 && k >= 0, "n and k must not be negative");
    return ek::packed_nbytes(format_of(name), n, k);
  });
  m.def("gemm", &gemm, py::arg("x").noconvert(), py::arg("packed").noconvert(), py::arg("format"), py::arg("n"),
        py::arg("k"), py::arg("out").noconvert(), py::arg("bias"), py::arg("act"), py::arg("residual"), py::arg("norm"),
        py::arg("eps"), py::arg("norm_gain"), py::arg("norm_bias"), py::arg("rotate"), py::arg("threads"),
        py::arg("kernel"));
  m.def("gemm_chain", &gemm_chain, py::arg("x").noconvert(), py::arg("steps"), py::arg("out").noconvert(),
        py::arg("threads"));
  m.def("matmul", &matmul, py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("out").noconvert(),
        py::arg("alpha"), py::arg("add"), py::arg("threads"), py::arg("kernel"));
  m.def("attention", &attention, py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
        py::arg("mask"), py::arg("out").noconvert(), py::arg("scale"), py::arg("softcap"), py::arg("causal"),
        py::arg("causal_offset"), py::arg("threads"), py::arg("kernel"));
  m.def("gather", &gather, py::arg("format"), py::arg("packed").noconvert(), py::arg("rows"), py::arg("dim"),
        py::arg("indices"), py::arg("out").noconvert(), py::arg("threads"), py::arg("kernel"));
  m.def("activate", [](const std::string& act, const py::array_t<float, py::array::c_style | py::array::forcecast>& x,
                       const std::string& kernel) {
    py::array_t<float> y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    require(!ek::is_gated(activation_of(act)), act + " is not elementwise");
    ek::apply_activation(activation_of(act), x.data(), x.size(), y.mutable_data(), ops_of(kernel));
    return y;
  });
  bind_rounding(m);
  m.def("list", &list_kernels);
  m.def("table", [] { return std::vector<int>(std::begin(ek::kTable), std::end(ek::kTable)); });
  m.def("formats", &list_formats);
  m.def("use_accelerate", [](const std::string& library) {
    ek::set_accelerate_library(library.empty() ? nullptr : library.c_str());
    return ek::accelerate_features() != 0;
  });
#if defined(EDGEC_AMX_MODEL)
  bind_amx_model(m);
#endif
}
