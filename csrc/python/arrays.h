// What the bindings of kernels share: checks of arrays, and the process's threads.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <string>

#include "kernels/kernels.h"
#include "runtime/thread_pool.h"

namespace py = pybind11;
namespace ek = edgec::kernels;

using Floats = py::array_t<float, py::array::forcecast>;

inline void require(bool ok, const std::string& reason) {
  if (!ok) throw py::value_error(reason);
}

// Lends the process's pool of that many threads, kept for the next call.
struct Lent {
  explicit Lent(int threads) {
    require(threads >= 1 && threads <= 256, "threads must be 1 to 256");
    static auto* kept = new std::map<int, std::shared_ptr<edgec::ThreadPool>>;
    pool = (*kept)[threads] = edgec::ThreadPool::get(threads);
    lend.context = pool.get();
    lend.workers = pool->threads();
    lend.run = [](void* context, int64_t n, int64_t grain, void* body_context, ek::ParallelFor::Body body,
                  const ek::Ahead* ahead) {
      static_cast<edgec::ThreadPool*>(context)->parallel_for(
          n, grain, [=](int64_t begin, int64_t end, int worker) { body(body_context, begin, end, worker); }, ahead);
    };
  }
  std::shared_ptr<edgec::ThreadPool> pool;
  ek::ParallelFor lend;
};

inline const ek::IsaOps* ops_of(const std::string& name) {
  const ek::IsaOps* ops = ek::select_ops(name);
  require(ops != nullptr, "no kernel '" + name + "' on this CPU");
  return ops;
}

// Row stride of a [rows, columns] float array whose columns are contiguous.
inline int64_t row_stride(const Floats& array, int64_t columns, const char* name) {
  require(array.ndim() == 2, std::string(name) + " must have two axes");
  require(array.size() == 0 || columns <= 1 || array.strides(1) == sizeof(float),
          std::string(name) + "'s columns must be contiguous");
  require(array.strides(0) % static_cast<int64_t>(sizeof(float)) == 0, std::string(name) + " is misaligned");
  return array.strides(0) / static_cast<int64_t>(sizeof(float));
}
