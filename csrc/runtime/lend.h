// The pool of a kernel's call, as csrc/kernels takes it.
#pragma once

#include "kernels/kernels.h"
#include "runtime/kernel_registry.h"

namespace edgec {

inline kernels::ParallelFor parallel_for(const KernelCall& c) {
  return {c.pool, c.pool->threads(),
          [](void* pool, int64_t n, int64_t grain, void* context, kernels::ParallelFor::Body body,
             const kernels::Ahead* ahead) {
            static_cast<ThreadPool*>(pool)->parallel_for(
                n, grain, [=](int64_t begin, int64_t end, int worker) { body(context, begin, end, worker); }, ahead);
          }};
}

}  // namespace edgec
