// run_linear KERNEL FORMAT M N K: one product by one kernel, whose executed instructions are counted. Prints the sum of
// the result, so that it is needed.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace ek = edgec::kernels;

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const ek::Format* format = ek::find_format(argv[2]);
  const int64_t m = std::atoll(argv[3]), n = std::atoll(argv[4]), k = std::atoll(argv[5]);
  const ek::LinearKernel* kernel = format ? ek::select_linear(*format, m, argv[1]) : nullptr;
  if (!kernel || m < 1 || n < 1 || k < 1) return 3;
  std::mt19937 rng(1);
  std::vector<uint8_t> packed(ek::packed_nbytes(*format, n, k));
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(rng() & 0x3b);  // f16 scales below 1
  std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n));
  for (float& v : x) v = static_cast<float>(static_cast<int32_t>(rng())) * 1e-9f;
  std::vector<uint8_t> scratch(ek::linear_scratch_bytes(*format, m, k, ek::Norm::kNone));
  ek::LinearArgs args;
  args.format = format, args.packed = packed.data(), args.m = m, args.n = n, args.k = k;
  args.x = x.data(), args.ldx = k, args.y = y.data(), args.ldy = n;
  ek::linear(args, {}, scratch.data(), kernel);
  double sum = 0;
  for (float v : y) sum += v;
  std::printf("%.9g\n", sum);
  return 0;
}
