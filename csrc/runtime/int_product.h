// Products of 8-bit integers in 32 bits: the AVX2 kernel behind matmul_int.
#pragma once

#include <cstdint>

namespace edgec::int_product {

inline constexpr int64_t kColumns = 16;

// y[rows, columns] = a . (b - b_zero) for up to kColumns columns of b.
struct Panel {
  const int16_t* a = nullptr;  // [rows, 2 * pairs], the zero point subtracted, 0 beyond k
  int64_t rows = 0, pairs = 0, k = 0;
  const uint8_t* b = nullptr;  // [k, columns], row stride b_stride
  int64_t b_stride = 0, columns = 0;
  bool b_signed = false;
  int16_t b_zero = 0;
  int32_t* y = nullptr;
  int64_t y_stride = 0;
  int16_t* scratch = nullptr;  // 2 * pairs * kColumns
};

// Needs kernels::kAvx2.
void multiply(const Panel& panel);

}  // namespace edgec::int_product
