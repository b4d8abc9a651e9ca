// Every kernel of the table on buffers of exactly the documented size, for AddressSanitizer and UBSan (`make
// test-asan`). Values are compared with the generic kernel; tests/property compares both with numpy.
#include "kernels/kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace ek = edgec::kernels;

namespace {

std::mt19937 rng(7);
int failures = 0;

int64_t below(int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); }
int64_t size(int64_t limit) { return below(3) ? 1 + below(limit) : 16 * (1 + below(limit / 16)); }

std::vector<float> floats(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = static_cast<float>(static_cast<int32_t>(rng())) * 5e-10f;
  return v;
}

void expect(bool ok, const char* what, const char* name, int64_t m, int64_t n, int64_t k) {
  if (ok) return;
  std::printf("FAILED %s: %s m=%ld n=%ld k=%ld\n", name, what, long(m), long(n), long(k));
  ++failures;
}

bool near(const std::vector<float>& a, const std::vector<float>& b, float scale) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 2e-5f * scale)) return false;
  }
  return true;
}

struct Packed {
  std::vector<uint8_t> bytes;
};

Packed pack(const ek::Format& f, int64_t n, int64_t k) {
  const int64_t group = f.group ? f.group : k, groups = (k + group - 1) / group;
  const std::vector<float> w = floats(n * k);
  Packed p;
  p.bytes.resize(ek::packed_nbytes(f, n, k));
  if (f.bits == 32) {
    ek::pack_panels(f, w.data(), nullptr, nullptr, n, k, 0, ek::panels(n), p.bytes.data());
    std::vector<float> back(w.size());
    ek::unpack_panels(f, p.bytes.data(), n, k, 0, ek::panels(n), back.data(), nullptr, nullptr);
    expect(back == w, "unpack", f.name, 0, n, k);
    return p;
  }
  std::vector<int8_t> q(w.size()), q2(w.size());
  std::vector<uint16_t> scale(static_cast<size_t>(n * groups)), scale2(scale.size());
  std::vector<uint8_t> zero(f.symmetric ? 0 : scale.size()), zero2(zero.size());
  const std::vector<float> importance(static_cast<size_t>(k), 1.0f);
  const ek::QuantizeArgs args{w.data(),
                              n,
                              k,
                              f.bits,
                              f.group,
                              f.symmetric,
                              below(2) == 0,
                              below(2) ? importance.data() : nullptr,
                              q.data(),
                              scale.data(),
                              f.symmetric ? nullptr : zero.data(),
                              f.table};
  ek::quantize_rows(args, 0, n);
  ek::pack_panels(f, q.data(), scale.data(), zero.data(), n, k, 0, ek::panels(n), p.bytes.data());
  ek::unpack_panels(f, p.bytes.data(), n, k, 0, ek::panels(n), q2.data(), scale2.data(), zero2.data());
  expect(q == q2 && scale == scale2 && zero == zero2, "unpack", f.name, 0, n, k);
  return p;
}

void test_linear(const ek::Format& f) {
  // Some kernels have a way of their own for one row by many columns.
  const bool row = below(4) == 0;
  const int64_t m = row ? 1 : size(40), n = row ? 64 + size(140) : size(70), k = size(300);
  const Packed w = pack(f, n, k);
  const bool swiglu = n % 16 == 0 && below(3) == 0;
  const auto norm = static_cast<ek::Norm>(below(3));
  const int64_t columns = swiglu ? n / 2 : n;
  const std::vector<float> x = floats(m * k), bias = floats(n), residual = floats(m * columns), gain = floats(k);
  std::vector<std::vector<float>> results[2];  // of kernels that take activations as s8 or f32, and as f16
  for (int i = 0; i < ek::kernel_count(); ++i) {
    const ek::KernelInfo info = ek::kernel_info(i);
    if (!info.available || std::strcmp(info.op, "linear") != 0 || info.family != std::string(ek::family_name(f.family)))
      continue;
    std::vector<float> y(static_cast<size_t>(m * columns));
    std::vector<uint8_t> scratch(ek::linear_scratch_bytes(f, m, k, norm));
    ek::LinearArgs args;
    args.format = &f, args.packed = w.bytes.data(), args.m = m, args.n = n, args.k = k;
    args.x = x.data(), args.ldx = k, args.y = y.data(), args.ldy = columns;
    args.bias = bias.data(), args.residual = residual.data(), args.ldr = columns;
    args.norm = norm, args.eps = 1e-3f, args.norm_gain = gain.data(), args.norm_bias = gain.data();
    args.act = swiglu ? ek::Activation::kSwiglu : ek::Activation::kGelu;
    ek::linear(args, {}, scratch.data(), ek::select_linear(f, m, info.name));
    auto& alike = results[std::strstr(info.name, "_f16k32_") ? 1 : 0];
    alike.push_back(y);
    // A norm's last bit moves an activation that lies between two steps of int8.
    const float scale = norm == ek::Norm::kNone || f.bits == 32 ? 20.0f : 5000.0f;
    expect(near(y, alike.front(), scale), "differs", info.name, m, n, k);
  }
}

void test_ops(const ek::IsaOps* ops, const ek::IsaOps* generic) {
  const int64_t m = size(30), n = size(40), k = size(60), batch = 1 + below(3);
  const std::vector<float> a = floats(batch * m * k), b = floats(k * n);
  std::vector<float> y[2];
  for (int i = 0; i < 2; ++i) {
    y[i].resize(static_cast<size_t>(batch * m * n));
    ek::MatmulArgs args;
    args.a = a.data(), args.b = b.data(), args.y = y[i].data();
    args.m = m, args.n = n, args.k = k, args.a_m = k, args.a_k = 1, args.y_m = n;
    const bool swapped = k % 2 == 0;
    args.b_k = swapped ? 1 : n, args.b_n = swapped ? k : 1;
    args.batch_rank = 1, args.batch[0] = batch, args.a_batch[0] = m * k, args.y_batch[0] = m * n;
    std::vector<uint8_t> scratch(ek::matmul_scratch_bytes(args, 1));
    ek::matmul_f32(args, {}, scratch.data(), i ? ops : generic);
  }
  expect(near(y[0], y[1], 20.0f), "differs", "matmul", m, n, k);

  const int64_t heads = 2 * (1 + below(3)), dim = size(40), v_dim = size(40), q_len = size(50), kv_len = size(200);
  const std::vector<float> q = floats(heads * q_len * dim), keys = floats(2 * kv_len * dim),
                           v = floats(2 * kv_len * v_dim);
  const std::vector<float> mask = floats(q_len * kv_len);
  const bool causal = below(2) != 0;
  for (int i = 0; i < 2; ++i) {
    y[i].assign(static_cast<size_t>(heads * q_len * v_dim), 0.0f);
    ek::AttentionArgs args;
    args.q = q.data(), args.k = keys.data(), args.v = v.data(), args.mask = mask.data(), args.out = y[i].data();
    args.batch = 1, args.heads = heads, args.kv_heads = 2, args.q_len = q_len, args.kv_len = kv_len;
    args.dim = dim, args.v_dim = v_dim, args.causal = causal;
    args.q_stride[1] = q_len * dim, args.q_stride[2] = dim, args.k_stride[1] = kv_len * dim, args.k_stride[2] = dim;
    args.v_stride[1] = kv_len * v_dim, args.v_stride[2] = v_dim;
    args.out_stride[1] = q_len * v_dim, args.out_stride[2] = v_dim;
    args.mask_stride[2] = kv_len, args.mask_stride[3] = 1;
    std::vector<uint8_t> scratch(ek::attention_scratch_bytes(args, 1));
    ek::attention_f32(args, {}, scratch.data(), i ? ops : generic);
  }
  expect(near(y[0], y[1], 20.0f), "differs", "attention", q_len, kv_len, dim);
}

// Caches of two rows of unequal length, written in two goes: attention over them against plain operands.
void test_cache(const ek::IsaOps* ops, bool i8) {
  const int64_t heads = 2, shared = 1 + below(7), dim = size(70), v_dim = size(50), q_len = size(20),
                capacity = 16 * (2 + below(12));
  const int64_t growth = q_len + below(3), lengths[2] = {below(capacity - growth + 1), below(capacity - growth + 1)};
  std::vector<float> keys = floats(2 * heads * capacity * dim), values = floats(2 * heads * capacity * v_dim);
  const int64_t k_bytes = ek::cache_bytes(dim, true, i8) * capacity,
                v_bytes = ek::cache_bytes(v_dim, false, i8) * capacity;
  const auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  ek::CacheRows cache;
  cache.capacity = capacity, cache.lengths = lengths, cache.growth = growth, cache.i8 = i8;
  cache.v_offset = static_cast<size_t>(up(heads * k_bytes));
  cache.k_scales = cache.v_offset + static_cast<size_t>(up(heads * v_bytes));
  cache.v_scales = cache.k_scales + static_cast<size_t>(up(heads * capacity * 4));
  const size_t bytes = cache.v_scales + static_cast<size_t>(heads * capacity * 4);
  std::vector<std::byte> memory[2] = {std::vector<std::byte>(bytes), std::vector<std::byte>(bytes)};
  const std::byte* bases[2] = {memory[0].data(), memory[1].data()};
  cache.bases = bases;
  int64_t longest = 0;
  for (int64_t row = 0; row < 2; ++row) {
    const int64_t length = lengths[row] + growth;
    longest = std::max(longest, length);
    for (int64_t head = 0; head < heads; ++head) {
      for (const bool panels : {true, false}) {
        ek::CacheWrite w;
        w.dim = panels ? dim : v_dim, w.stride = w.dim, w.panels = panels, w.i8 = i8;
        float* from = (panels ? keys : values).data() + (row * heads + head) * capacity * w.dim;
        w.to = memory[row].data() + (panels ? 0 : cache.v_offset) +
               static_cast<size_t>(head * (panels ? k_bytes : v_bytes));
        w.scales =
            reinterpret_cast<float*>(memory[row].data() + (panels ? cache.k_scales : cache.v_scales)) + head * capacity;
        w.from = from, w.count = lengths[row];
        ek::cache_write(w, ops);
        w.from = from + lengths[row] * w.dim, w.first = lengths[row], w.count = growth;
        ek::cache_write(w, ops);
        for (int64_t t = 0; t < length; ++t) {
          for (int64_t d = 0; d < w.dim; ++d) {
            const float want = from[t * w.dim + d], got = ek::cache_read(w, t, d);
            expect(std::abs(got - want) <= (i8 ? 0.501f * w.scales[t] : 0.0f), "cached wrong", "cache", t, d, w.dim);
            from[t * w.dim + d] = got;
          }
        }
      }
    }
  }
  const std::vector<float> q = floats(2 * heads * shared * q_len * dim);
  std::vector<float> y[2];
  for (int i = 0; i < 2; ++i) y[i].assign(static_cast<size_t>(2 * heads * shared * q_len * v_dim), 0.0f);
  ek::AttentionArgs args;
  args.heads = heads * shared, args.kv_heads = heads, args.q_len = q_len, args.dim = dim, args.v_dim = v_dim;
  args.q_stride[1] = q_len * dim, args.q_stride[2] = dim, args.out_stride[1] = q_len * v_dim,
  args.out_stride[2] = v_dim;
  args.q_stride[0] = args.heads * q_len * dim, args.out_stride[0] = args.heads * q_len * v_dim;
  args.scale = 0.3f, args.causal = below(2) != 0, args.window = below(2) != 0 ? 1 + below(40) : 0;
  args.causal = args.causal || args.window > 0;
  ek::AttentionArgs plain = args;
  args.batch = 2, args.kv_len = longest, args.cache = &cache, args.q = q.data(), args.out = y[0].data();
  std::vector<uint8_t> scratch(ek::attention_scratch_bytes(args, 1));
  ek::attention_f32(args, {}, scratch.data(), ops);
  for (int64_t row = 0; row < 2; ++row) {
    plain.batch = 1, plain.kv_len = lengths[row] + growth, plain.causal_offset = plain.kv_len - q_len;
    plain.q = q.data() + row * args.q_stride[0], plain.out = y[1].data() + row * args.out_stride[0];
    plain.k = keys.data() + row * heads * capacity * dim, plain.v = values.data() + row * heads * capacity * v_dim;
    plain.k_stride[1] = capacity * dim, plain.k_stride[2] = dim, plain.v_stride[1] = capacity * v_dim,
    plain.v_stride[2] = v_dim;
    std::vector<uint8_t> more(ek::attention_scratch_bytes(plain, 1));
    ek::attention_f32(plain, {}, more.data(), ops);
  }
  expect(near(y[0], y[1], i8 ? 500.0f : 20.0f), "differs", i8 ? "attention i8" : "attention f32", q_len, longest, dim);
}

void test_gather(const ek::Format& f) {
  const int64_t rows = size(30), dim = size(200), count = 1 + below(20);
  const Packed table = pack(f, rows, dim);
  std::vector<int64_t> indices(static_cast<size_t>(count));
  for (int64_t& i : indices) i = below(2 * rows) - rows;
  std::vector<float> out(static_cast<size_t>(count * dim));
  expect(ek::gather_rows(f, table.bytes.data(), rows, dim, indices.data(), count, out.data(), {}), "refused", f.name,
         count, rows, dim);
  indices[0] = rows;
  expect(!ek::gather_rows(f, table.bytes.data(), rows, dim, indices.data(), count, out.data(), {}), "took a bad index",
         f.name, count, rows, dim);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  int count = 0;
  const ek::Format* formats = ek::formats(&count);
  const ek::IsaOps* generic = ek::select_ops("matmul_f32_f32_f32_4x16_generic");
  expect(generic != nullptr, "missing", "generic", 0, 0, 0);
  for (int round = 0; round < rounds && failures == 0; ++round) {
    for (int i = 0; i < count; ++i) {
      formats[i].family == ek::Family::kS8Row ? test_gather(formats[i]) : test_linear(formats[i]);
    }
    test_ops(ek::select_ops(), generic);
    for (const ek::IsaOps* ops : {ek::select_ops(), generic})
      for (const bool i8 : {false, true}) test_cache(ops, i8);
  }
  const ek::Format& huge = *ek::find_format("s4g32n16k4");
  expect(ek::packed_nbytes(huge, int64_t{1} << 40, int64_t{1} << 40) == SIZE_MAX, "overflows", "packed_nbytes", 0, 0,
         0);
  std::printf(failures ? "%d failures\n" : "kernels: ok\n", failures);
  return failures != 0;
}
