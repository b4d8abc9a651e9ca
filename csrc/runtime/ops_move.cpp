// Kernels that move elements of any dtype, by their size.
#include <algorithm>
#include <cstring>

#include "runtime/kernel_registry.h"

namespace edgec {
namespace {

// One range should take some 10 us: bytes moved by one worker in that time.
constexpr int64_t kGrainBytes = 64 << 10;

void copy(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  c.require(x.dtype == y.dtype, "x and y have different dtypes");
  c.require(x.nbytes() == y.nbytes(), "x and y have different sizes");
  if (x.data == y.data) return;
  c.pool->parallel_for(static_cast<int64_t>(x.nbytes()), kGrainBytes, [&](int64_t begin, int64_t end, int) {
    std::memcpy(y.as<char>() + begin, x.as<const char>() + begin, static_cast<size_t>(end - begin));
  });
}

void fill_int(const KernelCall& c) {
  const Tensor& y = c.tensor(0);
  c.require(y.dtype == DType::kI64, "y is not i64");
  std::fill_n(y.as<int64_t>(), y.size(), c.integer(1));
}

constexpr Kernel kKernels[] = {
    {"copy", "x -> y", copy},
    {"fill_int", "-> y; value", fill_int},
};

}  // namespace

std::span<const Kernel> move_kernels() { return kKernels; }

}  // namespace edgec
