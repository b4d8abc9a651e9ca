#include "emulate/amx_model.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace edgec::amx {
namespace {

constexpr uint64_t bits(uint64_t value, int first, int count) { return value >> first & ((uint64_t{1} << count) - 1); }

[[noreturn]] void fault(unsigned op, uint64_t value, const char* reason) {
  char text[160];
  std::snprintf(text, sizeof(text), "AMX op %u, operand %016llx: %s", op, static_cast<unsigned long long>(value),
                reason);
  throw Fault(text);
}

void expect(bool ok, unsigned op, uint64_t value, const char* reason) {
  if (!ok) fault(op, value, reason);
}

template <class T>
T lane(const uint8_t* bytes, int i) {
  T v;
  std::memcpy(&v, bytes + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return v;
}
template <class T>
void set_lane(uint8_t* bytes, int i, T v) {
  std::memcpy(bytes + static_cast<size_t>(i) * sizeof(T), &v, sizeof(T));
}

// 64 bytes of the ring that a pool is.
struct Row {
  uint8_t bytes[64];
};
Row take(const uint8_t* pool, uint64_t offset) {
  Row row;
  for (uint64_t i = 0; i < 64; ++i) row.bytes[i] = pool[(offset + i) & 511];
  return row;
}
// Lanes of `size` bytes from a table register by packed indices of 4 bits.
Row look_up(const Row& indices, const uint8_t* table, int size) {
  Row out;
  for (int i = 0; i < 64 / size; ++i) {
    const int index = indices.bytes[i / 2] >> (i % 2 * 4) & 15;
    std::memcpy(out.bytes + i * size, table + index * size, static_cast<size_t>(size));
  }
  return out;
}

float quiet(float v) { return std::isnan(v) ? __builtin_nanf("") : v; }
uint16_t quiet_half(uint16_t h) { return (h & 0x7fff) > 0x7c00 ? uint16_t{0x7e00} : h; }

// x * y + z, rounded once: the sum in double, made odd where it is not exact, so that the second rounding is harmless.
uint16_t half_fma(uint16_t x, uint16_t y, uint16_t z) {
  const double p = half_to_double(x) * half_to_double(y), a = half_to_double(z);
  double s = p + a;
  if (std::isfinite(s)) {
    const double b = s - p, rest = (p - (s - b)) + (a - b);
    uint64_t word;
    std::memcpy(&word, &s, 8);
    if (rest != 0.0 && (word & 1) == 0) s = std::nextafter(s, rest > 0.0 ? HUGE_VAL : -HUGE_VAL);
  }
  return quiet_half(double_to_half(s));
}

void load_store(Model& m, unsigned op, uint64_t value) {
  auto* memory = reinterpret_cast<uint8_t*>(bits(value, 0, 56));
  const bool many = bits(value, 62, 1), z = op >= kLdz;
  const bool four = !z && many && bits(value, 60, 1);
  expect(bits(value, 63, 1) == 0 && (z || (bits(value, 59, 1) == 0 && bits(value, 61, 1) == 0)), op, value,
         "a bit that is ignored is set");
  if (op == kLdzi || op == kStzi) {
    expect(!many, op, value, "bit 62 is ignored there");
    // Even lanes of memory are one half of the even register, odd lanes of the odd one.
    const auto row = 2 * bits(value, 57, 5), half = bits(value, 56, 1);
    for (uint64_t i = 0; i < 16; ++i) {
      uint8_t* at = m.z[row + i % 2] + 32 * half + i / 2 * 4;
      op == kLdzi ? std::memcpy(at, memory + 4 * i, 4) : std::memcpy(memory + 4 * i, at, 4);
    }
    return;
  }
  expect(z || !bits(value, 60, 1) || four, op, value, "bit 60 without bit 62");
  expect(!four || m.generation >= 2, op, value, "an M1 loads no four registers at once");
  expect(!four || op == kLdx || op == kLdy, op, value, "four registers are loaded, never stored");
  const uint64_t count = four ? 4 : many ? 2 : 1, limit = z ? 64 : 8, first = bits(value, 56, z ? 6 : 3);
  expect(count == 1 || reinterpret_cast<uintptr_t>(memory) % (64 * count) == 0, op, value,
         "more than one register wants memory aligned to their size");
  expect(first + count <= limit, op, value, "registers beyond the last");
  uint8_t* pool = op == kLdx || op == kStx ? m.x : op == kLdy || op == kSty ? m.y : m.z[0];
  const bool store = op == kStx || op == kSty || op == kStz;
  store ? std::memcpy(memory, pool + 64 * first, 64 * count) : std::memcpy(pool + 64 * first, memory, 64 * count);
}

// z (+)= x * y as outer products. Bits 27 to 29 leave z, y or x out.
void fma(Model& m, unsigned op, uint64_t value) {
  expect(bits(value, 63, 1) == 0, op, value, "vector mode is not modelled");
  expect(bits(value, 32, 16) == 0, op, value, "write masks are not modelled");
  expect(bits(value, 48, 12) == 0 && bits(value, 30, 2) == 0 && bits(value, 26, 1) == 0 && bits(value, 19, 1) == 0 &&
             bits(value, 9, 1) == 0 && bits(value, 60, 2) == 0,
         op, value, "a bit that is ignored or not modelled is set");
  const bool no_x = bits(value, 29, 1), no_y = bits(value, 28, 1), no_z = bits(value, 27, 1), wide = bits(value, 62, 1);
  const Row x = take(m.x, bits(value, 10, 9)), y = take(m.y, bits(value, 0, 9));
  const auto row = static_cast<int>(bits(value, 20, 6));
  const bool none = no_x && no_y && no_z;
  // products of f16 are exact in f32
  const auto sum = [&](float a, float b, float z) {
    return none ? 0.0f : quiet(op == kFma16 ? a * b + z : std::fma(a, b, z));
  };
  if (op == kFma32) {
    expect(!wide, op, value, "bit 62 is ignored there");
    expect(bits(value, 27, 3) == 0 || none, op, value, "of sums, all or none of x, y and z");
    expect(row < 4, op, value, "a row beyond the first four");
    for (int j = 0; j < 16; ++j) {
      for (int i = 0; i < 16; ++i) {
        uint8_t* z = m.z[4 * j + row];
        set_lane(z, i, sum(lane<float>(x.bytes, i), lane<float>(y.bytes, j), lane<float>(z, i)));
      }
    }
    return;
  }
  float fx[32], fy[32];
  for (int i = 0; i < 32; ++i) {
    fx[i] = static_cast<float>(half_to_double(lane<uint16_t>(x.bytes, i)));
    fy[i] = static_cast<float>(half_to_double(lane<uint16_t>(y.bytes, i)));
  }
  if (wide) {
    expect(bits(value, 27, 3) == 0 || none, op, value, "of sums, all or none of x, y and z");
    expect(row == 0, op, value, "all rows are used: the row is ignored");
    for (int j = 0; j < 32; ++j) {
      for (int odd = 0; odd < 2; ++odd) {
        float z[16], sums[16];
        std::memcpy(z, m.z[2 * j + odd], 64);
        for (int i = 0; i < 16; ++i) sums[i] = sum(fx[2 * i + odd], fy[j], z[i]);
        std::memcpy(m.z[2 * j + odd], sums, 64);
      }
    }
    return;
  }
  expect(row < 2, op, value, "a row beyond the first two");
  expect(!no_x && no_y && no_z, op, value, "of sums in f16, only copies of x are modelled");
  for (int j = 0; j < 32; ++j) {
    for (int i = 0; i < 32; ++i) set_lane(m.z[2 * j + row], i, quiet_half(lane<uint16_t>(x.bytes, i)));
  }
}

// z[row] += table[x] * y in f16, by indices of 4 bits; of one vector, or of four with one y.
void vecfp(Model& m, unsigned op, uint64_t value) {
  expect(bits(value, 54, 10) == 0, op, value, "a bit that makes it do nothing, or is ignored, is set");
  expect(bits(value, 53, 1) && bits(value, 48, 1) && !bits(value, 47, 1) && !bits(value, 52, 1), op, value,
         "only x by indices of 4 bits is modelled");
  expect(bits(value, 42, 4) == 2, op, value, "only lanes of f16 are modelled");
  expect(!bits(value, 46, 1) && bits(value, 35, 7) == 0 && bits(value, 26, 5) == 0 && !bits(value, 19, 1) &&
             !bits(value, 9, 1),
         op, value, "shuffles, masks and ignored bits are not modelled");
  const bool four = bits(value, 31, 1);
  expect(!four || m.generation >= 2, op, value, "an M1 has no operations of four vectors");
  expect(four ? bits(value, 25, 1) && bits(value, 32, 3) == 3 : bits(value, 32, 3) == 0, op, value,
         "of several vectors, only four by one y are modelled");
  const Row y = take(m.y, bits(value, 0, 9));
  expect(!four || !bits(value, 24, 1), op, value, "a bit of the row that is ignored");
  uint64_t row = bits(value, 20, four ? 4 : 6), from = bits(value, 10, 9);
  for (int v = 0; v < (four ? 4 : 1); ++v, row += 16, from += 16) {
    const Row x = look_up(take(m.x, from & 511), m.x + 64 * bits(value, 49, 3), 2);
    for (int i = 0; i < 32; ++i) {
      set_lane(m.z[row], i,
               half_fma(lane<uint16_t>(x.bytes, i), lane<uint16_t>(y.bytes, i), lane<uint16_t>(m.z[row], i)));
    }
  }
}

// x[register] = z[row].
void extrx(Model& m, unsigned op, uint64_t value) {
  expect((value & ~(uint64_t{63} << 20 | uint64_t{2} << 28 | uint64_t{511} << 10)) == 0 && bits(value, 28, 2) == 2, op,
         value, "only whole rows of 16-bit lanes are modelled");
  const uint64_t to = bits(value, 10, 9);
  for (uint64_t i = 0; i < 64; ++i) m.x[(to + i) & 511] = m.z[bits(value, 20, 6)][i];
}

// z[j][i] += table[x[i]] * y[4 * j], s8 by s8 to s32, by indices of 4 bits.
void matint(Model& m, unsigned op, uint64_t value) {
  expect(bits(value, 54, 1) && bits(value, 53, 1) && bits(value, 48, 1) && !bits(value, 47, 1) && !bits(value, 52, 1),
         op, value, "only x by indices of 4 bits, s8 by s8, is modelled");
  expect(bits(value, 42, 4) == 10 && bits(value, 63, 1) && bits(value, 26, 1), op, value,
         "only signed bytes summed in 32 bits are modelled");
  expect(bits(value, 55, 8) == 0 && !bits(value, 46, 1) && bits(value, 32, 10) == 0 && bits(value, 27, 5) == 0 &&
             bits(value, 19, 7) == 0 && !bits(value, 9, 1),
         op, value, "shifts, shuffles, masks and ignored bits are not modelled");
  const Row y = take(m.y, bits(value, 0, 9));
  const Row x = look_up(take(m.x, bits(value, 10, 9)), m.x + 64 * bits(value, 49, 3), 1);
  for (int j = 0; j < 64; j += 4) {
    for (int i = 0; i < 64; ++i) {
      uint8_t* z = m.z[j + i % 4];
      const int32_t product = static_cast<int8_t>(x.bytes[i]) * static_cast<int8_t>(y.bytes[j]);
      set_lane(z, i / 4, lane<uint32_t>(z, i / 4) + static_cast<uint32_t>(product));
    }
  }
}

}  // namespace

void Model::execute(unsigned op, uint64_t value) {
  if (op == kSetClr) {
    expect(value < 2, op, value, "neither set nor clr");
    expect(enabled == (value == 1), op, value, enabled ? "set although it is set" : "clr although it is not set");
    const int kept = generation;
    *this = Model{};
    generation = kept;
    enabled = value == 0;
    // What was there is gone: numbers that nobody can take for results.
    if (!enabled) std::memset(x, 0xff, sizeof(x)), std::memset(y, 0xff, sizeof(y)), std::memset(z, 0xff, sizeof(z));
    return;
  }
  expect(enabled, op, value, "before set");
  switch (op) {
    case kFma32:
    case kFma16:
      return fma(*this, op, value);
    case kVecfp:
      return vecfp(*this, op, value);
    case kExtrx:
      return extrx(*this, op, value);
    case kMatint:
      return matint(*this, op, value);
    default:
      if (op <= kStzi) return load_store(*this, op, value);
      fault(op, value, "the instruction is not modelled");
  }
}

Model& thread_model() {
  thread_local Model model;
  return model;
}

double half_to_double(uint16_t h) {
  if ((h & 0x7c00) == 0x7c00) return (h & 0x3ff) ? __builtin_nan("") : h & 0x8000 ? -HUGE_VAL : HUGE_VAL;
  // The same fields where float has them, 112 powers of two too low.
  const uint32_t word = (h & 0x8000u) << 16 | (h & 0x7fffu) << 13;
  float v;
  std::memcpy(&v, &word, 4);
  return v * 0x1p112f;
}

uint16_t double_to_half(double v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double a = std::fabs(v);
  if (std::isnan(v)) return 0x7e00;
  if (a >= 65520.0) return sign | 0x7c00;
  if (a == 0.0) return sign;
  int exponent = std::ilogb(a);
  if (exponent < -14) exponent = -14;
  // In units of the last place; a carry into the exponent is what it should be.
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(a, 10 - exponent)));
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent + 14) << 10) + units));
}

}  // namespace edgec::amx
