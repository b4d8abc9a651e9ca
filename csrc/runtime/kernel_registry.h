// Built-in kernels: what a plan's `kernel` steps run. Each has a name and a signature, which plan and call are checked
// against.
//
// signature := inputs "->" outputs [";" parameters]     each a comma-separated list of names
//   an input "x" is a tensor, "x?" may be absent, "x*" (the last input) stands for one or more, "x@" is a state
//   a parameter "n" is an int64 (dim or immediate), "v:f" a double, "v:s" a string; the arguments are in the
//   signature's order
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/error.h"
#include "runtime/plan.h"
#include "runtime/states.h"
#include "runtime/thread_pool.h"

namespace edgec {

struct Tensor {
  void* data = nullptr;  // null for a state
  DType dtype = DType::kF32;
  std::span<const int64_t> dims;
  const StateView* state = nullptr;

  int rank() const { return static_cast<int>(dims.size()); }
  int64_t size() const {
    int64_t n = 1;
    for (const int64_t dim : dims) n *= dim;
    return n;
  }
  size_t item_size() const { return size_of(dtype); }
  size_t nbytes() const { return static_cast<size_t>(size()) * item_size(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

std::string shape_text(std::span<const int64_t> dims);

struct ArgRef {
  Arg::Kind kind = Arg::kAbsent;
  Tensor tensor;            // kValue
  int64_t i = 0;            // kDim, kInt; the bits of kDouble; bytes of kScratch
  std::string_view string;  // kString
};

// The resolved arguments of one kernel step.
struct KernelCall {
  std::span<const ArgRef> args;
  ThreadPool* pool = nullptr;
  std::string_view name, origin;
  std::byte* scratch_base = nullptr;
  size_t scratch_shared = 0, scratch_stride = 0;  // bytes, multiples of 64
  std::span<const ArgRef> following;              // of the next step of the same kernel, which a hint may come from

  bool has(size_t i) const { return i < args.size() && args[i].kind != Arg::kAbsent; }
  const Tensor& tensor(size_t i) const { return args[i].tensor; }
  const Tensor* optional(size_t i) const { return has(i) ? &args[i].tensor : nullptr; }
  int64_t integer(size_t i) const { return args[i].i; }
  double real(size_t i) const;
  std::string_view string(size_t i) const { return args[i].string; }
  std::byte* shared_scratch() const { return scratch_base; }
  std::byte* scratch(int worker) const {
    return scratch_base + scratch_shared + static_cast<size_t>(worker) * scratch_stride;
  }

  // Throws Error(kValue) naming the step unless `ok`.
  void require(bool ok, const char* reason) const {
    if (!ok) fail(reason);
  }
  [[noreturn]] void fail(const std::string& reason, Code code = Code::kValue) const;
};

struct ScratchSize {
  size_t shared = 0, per_worker = 0;  // bytes
};

struct Kernel {
  const char* name;
  const char* signature;
  void (*run)(const KernelCall&);
  // What `run` needs, from the bound arguments (data pointers are null then).
  ScratchSize (*scratch)(const KernelCall&) = nullptr;
};

// A tensor is writable when it stands behind the arrow.
struct Parameter {
  enum Kind { kInput, kOutput, kInt, kReal, kText } kind = kInput;
  bool optional = false, variadic = false, state = false;
  std::string name;
};

std::vector<Parameter> parse_signature(const char* signature);

// "" if these argument kinds fit the signature, else the reason.
std::string match_signature(const char* signature, std::span<const Arg> args);

const Kernel* find_kernel(std::string_view name);
std::vector<const Kernel*> all_kernels();

// One table per ops_*.cpp; kernel_registry.cpp lists them.
std::span<const Kernel> move_kernels();
std::span<const Kernel> index_kernels();
std::span<const Kernel> reduce_kernels();
std::span<const Kernel> rnn_kernels();
std::span<const Kernel> matrix_kernels();
std::span<const Kernel> attention_kernels();
std::span<const Kernel> rope_kernels();

}  // namespace edgec
