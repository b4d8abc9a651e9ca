// A software model of Apple's AMX, for what edgec's kernels use of it, written from the public description at
// github.com/corsix/amx. It is strict: whatever it does not model, and whatever the description does not promise, is a
// Fault.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace edgec::amx {

enum Op : unsigned {
  kLdx = 0,
  kLdy = 1,
  kStx = 2,
  kSty = 3,
  kLdz = 4,
  kStz = 5,
  kLdzi = 6,
  kStzi = 7,
  kExtrx = 8,
  kFma32 = 12,
  kFma16 = 15,
  kSetClr = 17,
  kVecfp = 19,
  kMatint = 20,
};

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Model {
  alignas(64) uint8_t x[512] = {}, y[512] = {}, z[64][64] = {};
  bool enabled = false;
  int generation = 2;  // 1: M1; 2: M2, which loads four registers at once and has operations of four vectors

  // value: what the general register holds; for kSetClr the immediate. Throws Fault.
  void execute(unsigned op, uint64_t value);
};

// The calling thread's registers.
Model& thread_model();

// IEEE binary16: to double exactly, and back, rounded once, ties to even.
double half_to_double(uint16_t h);
uint16_t double_to_half(double v);

}  // namespace edgec::amx
