// From run-time dtypes to C++ types.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "runtime/half.h"
#include "runtime/kernel_registry.h"

namespace edgec {

// One range of a parallel loop should take some 10 us: the elements or bytes that one worker handles in that time.
inline constexpr int64_t kGrainBytes = 64 << 10, kGrainElements = 8 << 10;

// Calls f(T()) with the unsigned integer of that size in bytes.
template <class F>
void by_size(size_t bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(uint8_t());
    case 2:
      return f(uint16_t());
    case 4:
      return f(uint32_t());
    default:
      return f(uint64_t());
  }
}

// Calls f(T()) with the dtype's type; bool is uint8_t.
template <class F>
void by_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kI8:
      return f(int8_t());
    case DType::kI16:
      return f(int16_t());
    case DType::kU16:
      return f(uint16_t());
    case DType::kI32:
      return f(int32_t());
    case DType::kU32:
      return f(uint32_t());
    case DType::kI64:
      return f(int64_t());
    case DType::kU64:
      return f(uint64_t());
    case DType::kF16:
      return f(F16());
    case DType::kBF16:
      return f(BF16());
    case DType::kF32:
      return f(float());
    case DType::kF64:
      return f(double());
    default:
      return f(uint8_t());
  }
}

inline bool is_integer(DType dtype) { return dtype >= DType::kI8 && dtype <= DType::kU64; }

// Index tensors of any integer dtype, negative ones counting from the end. An index that is out of range reads as 0 and
// is kept, for workers cannot throw: check() does.
class Indices {
 public:
  Indices(const KernelCall& call, const Tensor& tensor) : call_(call), data_(tensor.data), dtype_(tensor.dtype) {
    call.require(is_integer(tensor.dtype), "its indices are no integers");
  }

  int64_t at(int64_t i, int64_t size) {
    int64_t index = raw(i);
    if (index < 0) index += size;
    if (index >= 0 && index < size) [[likely]]
      return index;
    bad_size_.store(size, std::memory_order_relaxed);
    bad_.store(i, std::memory_order_relaxed);
    return -1;
  }

  void check() const {
    if (const int64_t i = bad_.load(); i >= 0)
      call_.fail("index " + std::to_string(raw(i)) + " is outside of " + std::to_string(bad_size_.load()) +
                 " elements");
  }

 private:
  int64_t raw(int64_t i) const {
    switch (dtype_) {
      case DType::kI64:
      case DType::kU64:
        return static_cast<const int64_t*>(data_)[i];
      case DType::kI32:
        return static_cast<const int32_t*>(data_)[i];
      case DType::kU32:
        return static_cast<const uint32_t*>(data_)[i];
      case DType::kI16:
        return static_cast<const int16_t*>(data_)[i];
      case DType::kU16:
        return static_cast<const uint16_t*>(data_)[i];
      case DType::kI8:
        return static_cast<const int8_t*>(data_)[i];
      default:
        return static_cast<const uint8_t*>(data_)[i];
    }
  }

  const KernelCall& call_;
  const void* data_;
  DType dtype_;
  std::atomic<int64_t> bad_{-1}, bad_size_{0};
};

inline int64_t product(std::span<const int64_t> dims, size_t first, size_t last) {
  int64_t n = 1;
  for (size_t i = first; i < last; ++i) n *= dims[i];
  return n;
}

// An axis parameter, checked against a rank.
inline size_t axis_of(const KernelCall& c, size_t arg, const Tensor& x) {
  const int64_t axis = c.integer(arg);
  c.require(axis >= 0 && axis < x.rank(), "its axis does not fit the rank");
  return static_cast<size_t>(axis);
}

}  // namespace edgec
