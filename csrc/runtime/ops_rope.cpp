// Rotary position embedding.
#include <cstring>

#include "kernels/kernels.h"
#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"

namespace edgec {
namespace {

// Pairs (i, i + half) of a head.
void turn_halves(const float* __restrict x, const float* __restrict cos, const float* __restrict sin, int64_t half,
                 float* __restrict y) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    y[i] = a * cos[i] - b * sin[i];
    y[half + i] = b * cos[i] + a * sin[i];
  }
}

void turn_pairs(const float* __restrict x, const float* __restrict cos, const float* __restrict sin, int64_t half,
                float* __restrict y) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cos[i] - b * sin[i];
    y[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

void rope(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &cos = c.tensor(1), &sin = c.tensor(2), &y = c.tensor(3);
  for (const Tensor* t : {&x, &cos, &sin})
    c.require(t->rank() == 3 && t->dtype == DType::kF32, "it takes f32 of rank 3");
  c.require(y.rank() == 4 && y.dtype == DType::kF32, "it gives f32 of rank 4");
  const int64_t batch = x.dims[0], steps = x.dims[1], width = x.dims[2];
  const int64_t heads = c.integer(4), dim = c.integer(5), start = c.integer(6), half = cos.dims[2];
  const bool interleaved = c.integer(7) != 0;
  const int64_t block = c.integer(8);
  c.require(block >= 0 && (block & (block - 1)) == 0, "its rotation's block is no power of two");
  c.require(heads >= 0 && dim >= 0 && start >= 0 && heads <= width && dim <= width && start <= width &&
                start + heads * dim <= width,
            "its columns are outside of its operand");
  c.require(half >= 0 && 2 * half <= dim, "its angles do not fit the heads");
  c.require((cos.dims[0] == 1 || cos.dims[0] == batch) && cos.dims[1] == steps, "cos does not fit");
  for (size_t i = 0; i < 3; ++i) c.require(cos.dims[i] == sin.dims[i], "cos and sin differ");
  c.require(y.dims[0] == batch && y.dims[1] == steps && y.dims[2] == heads && y.dims[3] == dim, "y does not fit");
  const auto *from = x.as<const float>(), *turn = cos.as<const float>(), *lift = sin.as<const float>();
  auto* to = y.as<float>();
  const int64_t grain = 1 + kGrainBytes / (1 + heads * dim * 4);
  c.pool->parallel_for(batch * steps, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t angle = (cos.dims[0] == 1 ? row % steps : row) * half;
      for (int64_t head = 0; head < heads; ++head) {
        const float* in = from + row * width + start + head * dim;
        float* out = to + (row * heads + head) * dim;
        (interleaved ? turn_pairs : turn_halves)(in, turn + angle, lift + angle, half, out);
        std::memcpy(out + 2 * half, in + 2 * half, static_cast<size_t>(dim - 2 * half) * sizeof(float));
      }
      if (block) kernels::hadamard_rows(to, dim, block, row * heads, (row + 1) * heads);
    }
  });
}

constexpr Kernel kKernels[] = {{"rope", "x, cos, sin -> y; heads, dim, start, interleaved, rotate", rope}};

}  // namespace

std::span<const Kernel> rope_kernels() { return kKernels; }

}  // namespace edgec
