// 16-bit floats as storage: arithmetic goes through float.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace edgec {

struct F16 {
  uint16_t bits = 0;

  F16() = default;
  explicit F16(float value) {
    // Rounds to nearest even by adding in a float whose ulp is the half's (Giesen, "float->half variants").
    const uint32_t f = std::bit_cast<uint32_t>(value), sign = f & 0x80000000U;
    uint32_t v = f ^ sign;
    if (v >= 0x47800000U) {
      bits = v > 0x7f800000U ? 0x7e00 : 0x7c00;
    } else if (v < 0x38800000U) {
      bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(std::bit_cast<float>(v) + 0.5f) - 0x3f000000U);
    } else {
      v += 0xc8000fffU + ((v >> 13) & 1);
      bits = static_cast<uint16_t>(v >> 13);
    }
    bits = static_cast<uint16_t>(bits | (sign >> 16));
  }
  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000U | (magnitude & 0x3ff) << 13);
    const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    return sign != 0 ? -value : value;
  }
};

struct BF16 {
  uint16_t bits = 0;

  BF16() = default;
  explicit BF16(float value) {
    const uint32_t f = std::bit_cast<uint32_t>(value);
    bits = std::isnan(value) ? static_cast<uint16_t>((f >> 16) | 0x40)
                             : static_cast<uint16_t>((f + 0x7fff + ((f >> 16) & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// What sums and products of T are computed in.
template <class T>
struct Wide {
  using type = T;
};
template <>
struct Wide<F16> {
  using type = float;
};
template <>
struct Wide<BF16> {
  using type = float;
};

}  // namespace edgec
