// Compiled for AVX2: multiply() may run only where the features are there.
#include "runtime/int_product.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace edgec::int_product {
namespace {

// Two rows of b side by side, as vpmaddwd wants them: columns 0-3 and 8-11, then 4-7 and 12-15.
void pack(const Panel& p) {
  const __m256i zero_point = _mm256_set1_epi16(p.b_zero);
  alignas(16) uint8_t tail[16] = {};
  const auto row = [&](int64_t k) {
    if (k >= p.k) return _mm256_setzero_si256();
    const uint8_t* from = p.b + k * p.b_stride;
    if (p.columns < kColumns) {
      for (int64_t i = 0; i < p.columns; ++i) tail[i] = from[i];
      from = tail;
    }
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i wide = p.b_signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
    return _mm256_sub_epi16(wide, zero_point);
  };
  auto* to = reinterpret_cast<__m256i*>(p.scratch);
  for (int64_t pair = 0; pair < p.pairs; ++pair, to += 2) {
    const __m256i even = row(2 * pair), odd = row(2 * pair + 1);
    _mm256_storeu_si256(to, _mm256_unpacklo_epi16(even, odd));
    _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(even, odd));
  }
}

template <int kRows>
void tile(const Panel& p, int64_t first) {
  __m256i low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  const int16_t* a = p.a + first * 2 * p.pairs;
  const auto* b = reinterpret_cast<const __m256i*>(p.scratch);
  for (int64_t pair = 0; pair < p.pairs; ++pair, b += 2) {
    const __m256i b_low = _mm256_loadu_si256(b), b_high = _mm256_loadu_si256(b + 1);
    for (int r = 0; r < kRows; ++r) {
      int32_t both;
      __builtin_memcpy(&both, a + (r * p.pairs + pair) * 2, 4);
      const __m256i left = _mm256_set1_epi32(both);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(left, b_low));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(left, b_high));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const __m256i out[2] = {_mm256_permute2x128_si256(low[r], high[r], 0x20),
                            _mm256_permute2x128_si256(low[r], high[r], 0x31)};
    __builtin_memcpy(p.y + (first + r) * p.y_stride, out, static_cast<size_t>(p.columns) * 4);
  }
}

}  // namespace

void multiply(const Panel& p) {
  pack(p);
  int64_t row = 0;
  for (; row + 6 <= p.rows; row += 6) tile<6>(p, row);
  if (row + 3 <= p.rows) {
    tile<3>(p, row);
    row += 3;
  }
  for (; row < p.rows; ++row) tile<1>(p, row);
}

}  // namespace edgec::int_product
#else
namespace edgec::int_product {
void multiply(const Panel&) {}
}  // namespace edgec::int_product
#endif
