#include "runtime/executor.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "runtime/cpu.h"
#include "runtime/error.h"

namespace edgec {
namespace {

// f(a0, ..., a(n-1), begin, end): one instantiation for each argument count.
using Invoker = int32_t (*)(void* function, const uint64_t* a, int64_t begin, int64_t end);

template <size_t>
using Word = uint64_t;

template <size_t... I>
int32_t invoke(void* function, const uint64_t* a, int64_t begin, int64_t end, std::index_sequence<I...>) {
  return reinterpret_cast<int32_t (*)(Word<I>..., int64_t, int64_t)>(function)(a[I]..., begin, end);
}

template <size_t N>
int32_t invoke_n(void* function, const uint64_t* a, int64_t begin, int64_t end) {
  return invoke(function, a, begin, end, std::make_index_sequence<N>{});
}

template <size_t... N>
constexpr std::array<Invoker, sizeof...(N)> make_invokers(std::index_sequence<N...>) {
  return {invoke_n<N>...};
}

constexpr auto kInvokers = make_invokers(std::make_index_sequence<kMaxCallArgs + 1>{});

}  // namespace

Executor::Executor(std::span<const std::byte> plan, std::span<const std::byte> code, std::span<const std::byte> weights,
                   int threads)
    : plan_(Plan::decode(plan, weights.size())),
      states_(plan_),
      code_(code),
      weights_(weights),
      expanded_(plan_, weights) {
  if (reinterpret_cast<uintptr_t>(weights_.data()) % 16 != 0)
    throw Error(Code::kArchive, "weights.bin", "it is not aligned", "Build the artifact again");
  threads_ = std::min(threads > 0 ? threads : default_threads(), 256);
  pool_ = ThreadPool::get(threads_);
  functions_.resize(plan_.steps.size());
  kernels_.resize(plan_.steps.size());
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    if (step.kind == Step::kCall) functions_[i] = code_.function(step.name);
    if (step.kind != Step::kKernel) continue;
    check_kernel_step(i);
  }
  find_growing();
}

void Executor::check_kernel_step(size_t index) {
  const Step& step = plan_.steps[index];
  const std::string place = "plan.bin step " + std::to_string(index);
  const Kernel* kernel = kernels_[index] = find_kernel(step.name);
  if (kernel == nullptr)
    throw Error(Code::kPlan, place, "this edgec has no kernel '" + step.name + "'",
                "Run it with the edgec that built it");
  if (const std::string why = match_signature(kernel->signature, step.args); !why.empty())
    throw Error(Code::kPlan, place, step.name + ": " + why, "Build the artifact again with this edgec");
  const std::vector<Parameter> parameters = parse_signature(kernel->signature);
  size_t at = 0;
  for (const Parameter& p : parameters) {
    if (p.kind > Parameter::kOutput) break;
    const size_t repeat = p.variadic ? step.args.size() - (parameters.size() - 1) : 1;
    for (size_t i = at; i < at + repeat; ++i) {
      if (step.args[i].kind != Arg::kValue) continue;
      const int32_t root = plan_.values[static_cast<size_t>(step.args[i].v)].root;
      const Storage storage = plan_.values[static_cast<size_t>(root)].storage;
      if (p.kind == Parameter::kOutput &&
          (storage == Storage::kConstant || storage == Storage::kExpanded || storage == Storage::kInput))
        throw Error(Code::kPlan, place, step.name + " writes to an input or a constant");
      if (p.state != (storage == Storage::kState))
        throw Error(Code::kPlan, place, step.name + ": '" + p.name + (p.state ? "' is no state" : "' is a state"));
    }
    at += repeat;
  }
}

KernelCall Executor::kernel_call(const Binding& b, const Binding::BoundStep& bound, size_t index) const {
  const Step& step = plan_.steps[index];
  std::span<const ArgRef> following;
  if (bound.following < b.steps.size()) {
    const Binding::BoundStep& next = b.steps[bound.following];
    following = {b.args.data() + next.args, next.n_args};
  }
  return {{b.args.data() + bound.args, bound.n_args},
          pool_.get(),
          step.name,
          step.origin,
          scratch_.data(),
          bound.scratch_shared,
          bound.scratch_stride,
          following};
}

void Executor::resolve(Binding& b) const {
  b.fixups.clear();
  const auto place = [&](void** target, int32_t value) {
    const auto v = static_cast<size_t>(value);
    const auto root = static_cast<size_t>(plan_.values[v].root);
    const ValueDef& r = plan_.values[root];
    *target = nullptr;
    switch (r.storage) {
      case Storage::kConstant:
        *target = const_cast<std::byte*>(weights_.data() + r.a + b.offsets[v]);
        break;
      case Storage::kExpanded:
        *target = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(expanded_.data(r)) + b.offsets[v]);
        break;
      case Storage::kTemp:
        *target = arena_.data() + b.arena_offsets[root] + b.offsets[v];
        break;
      case Storage::kState:
        break;
      default:
        b.fixups.push_back({target, static_cast<int32_t>(r.a), r.storage == Storage::kOutput, b.offsets[v]});
    }
  };
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    const Binding::BoundStep& bound = b.steps[i];
    for (size_t j = 0; j < step.args.size(); ++j) {
      ArgRef& ref = b.args[bound.args + j];
      if (ref.kind == Arg::kValue) place(&ref.tensor.data, static_cast<int32_t>(step.args[j].v));
    }
    if (step.kind != Step::kCall) continue;
    const size_t copies = bound.per_worker ? static_cast<size_t>(threads_) : 1;
    for (size_t worker = 0; worker < copies; ++worker) {
      uint64_t* slots = b.slots.data() + bound.slots + worker * bound.n_slots;
      std::byte* scratch = scratch_.data() + worker * bound.scratch_stride;
      for (size_t j = 0; j < step.args.size(); ++j) {
        const ArgRef& ref = b.args[bound.args + j];
        if (ref.kind == Arg::kValue) {
          place(reinterpret_cast<void**>(&slots[j]), static_cast<int32_t>(step.args[j].v));
        } else if (ref.kind == Arg::kScratch) {
          slots[j] = reinterpret_cast<uint64_t>(scratch);
          scratch += round_up(static_cast<size_t>(ref.i));
        } else {
          slots[j] = ref.kind == Arg::kAbsent ? 0 : static_cast<uint64_t>(ref.i);
        }
      }
    }
  }
  b.resolved_arena = arena_.data();
  b.resolved_scratch = scratch_.data();
}

void Executor::run(Binding& b, std::span<void* const> inputs, std::span<void* const> outputs, int64_t* step_ns) {
  arena_.reserve(b.arena_bytes);
  scratch_.reserve(b.scratch_bytes);
  if (b.resolved_arena != arena_.data() || b.resolved_scratch != scratch_.data()) resolve(b);
  for (const Binding::Fixup& f : b.fixups) {
    void* base = (f.output ? outputs : inputs)[static_cast<size_t>(f.port)];
    *f.target = static_cast<std::byte*>(base) + f.offset;
  }
  if (step_ns != nullptr) std::fill_n(step_ns, plan_.steps.size(), int64_t{-1});
  for (size_t i = 0; i < plan_.steps.size();) {
    const Step& step = plan_.steps[i];
    const auto start = step_ns != nullptr ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
    size_t next = i + 1;
    switch (step.kind) {
      case Step::kCall:
        run_call(b, i);
        break;
      case Step::kKernel:
        kernels_[i]->run(kernel_call(b, b.steps[i], i));
        break;
      case Step::kJump:
        next = static_cast<size_t>(step.args[0].v);
        break;
      case Step::kJumpIfFalse: {
        const Tensor& condition = b.args[b.steps[i].args].tensor;
        if (condition.size() != 1)
          throw Error(Code::kValue, step.origin, "its condition has " + std::to_string(condition.size()) + " elements");
        if (*condition.as<const uint8_t>() == 0) next = static_cast<size_t>(step.args[1].v);
      }
    }
    if (step_ns != nullptr) step_ns[i] = (std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1);
    i = next;
  }
  if (!plan_.states.empty()) states_.commit();
}

void Executor::run_call(const Binding& b, size_t index) const {
  const Binding::BoundStep& bound = b.steps[index];
  const Invoker invoker = kInvokers[bound.n_slots];
  void* function = functions_[index];
  const uint64_t* slots = b.slots.data() + bound.slots;
  const size_t stride = bound.per_worker ? bound.n_slots : 0;
  std::atomic<int32_t> status{0};
  if (observer_ != nullptr) {
    observer_->before(plan_.steps[index], {b.args.data() + bound.args, bound.n_args}, {slots, bound.n_slots},
                      bound.extent);
    if (bound.extent > 0) status = invoker(function, slots, 0, bound.extent);
    observer_->after();
  } else {
    pool_->parallel_for(bound.extent, plan_.steps[index].grain, [&](int64_t begin, int64_t end, int worker) {
      const int32_t result = invoker(function, slots + static_cast<size_t>(worker) * stride, begin, end);
      if (result != 0) status.store(result, std::memory_order_relaxed);
    });
  }
  if (const int32_t result = status.load(); result != 0)
    throw Error(Code::kInternal, plan_.steps[index].origin,
                plan_.steps[index].name + " returned " + std::to_string(result));
}

}  // namespace edgec
