// Constants that a file has in 8 bits and the session holds in f32: weights of convolutions, whose kernels read floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>

#include "runtime/memory.h"
#include "runtime/plan.h"

namespace edgec {

// Stored: int64 blocks, inner, lanes; an f32 scale for each [block, lane]; int8 [block, inner, lane]. Value: the
// product.
class Expanded {
 public:
  // All such constants of the plan. Throws Error(kPlan) for one that is not as it should be, or if they would take more
  // than four times the memory of the weights.
  Expanded(const Plan& plan, std::span<const std::byte> weights);

  // Of a value of storage kExpanded.
  const float* data(const ValueDef& v) const { return at(v).data; }
  size_t nbytes(const ValueDef& v) const { return at(v).nbytes; }

 private:
  struct Part {
    const float* data;
    size_t nbytes;
  };
  const Part& at(const ValueDef& v) const { return parts_.at(v.a); }

  std::map<int64_t, Part> parts_;  // by offset
  Block memory_;
};

}  // namespace edgec
