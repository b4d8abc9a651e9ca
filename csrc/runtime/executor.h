// Runs a plan: binds dims, lays out the arena, and goes through the steps without allocating.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/code.h"
#include "runtime/expanded.h"
#include "runtime/kernel_registry.h"
#include "runtime/memory.h"
#include "runtime/plan.h"
#include "runtime/states.h"
#include "runtime/thread_pool.h"

namespace edgec {

// All addresses and shapes of the plan for one assignment of its symbols. Not movable: fixups point into it.
struct Binding {
  struct BoundStep {
    size_t slots = 0, n_slots = 0;  // call: its 8-byte arguments, repeated for each worker when it has scratch
    size_t args = 0, n_args = 0;    // kernel
    size_t following = 0;           // the next step of the same kernel; itself if it is the only one
    int64_t extent = 0;
    bool per_worker = false;
    size_t scratch_shared = 0, scratch_stride = 0;
  };
  // Where the address of a caller's array goes, at every run.
  struct Fixup {
    void** target;
    int32_t port;
    bool output;
    int64_t offset;
  };

  std::vector<int64_t> symbols, exprs;
  std::vector<int64_t> dims;          // of all values, one after another
  std::vector<size_t> dims_begin;     // one more than values
  std::vector<int64_t> offsets;       // of each value from its root's start
  std::vector<size_t> nbytes, rooms;  // rooms: of temps, the memory each has
  int64_t room_length = 0;            // of the states, up to which the temps have room
  std::vector<size_t> arena_offsets;  // of roots
  size_t arena_bytes = 0, temp_bytes = 0, scratch_bytes = 0;
  std::vector<uint64_t> slots;
  std::vector<ArgRef> args;
  std::vector<BoundStep> steps;
  std::vector<Fixup> fixups;
  const std::byte* resolved_arena = nullptr;
  const std::byte* resolved_scratch = nullptr;

  Binding() = default;
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;
  std::span<const int64_t> shape(int32_t value) const {
    const auto v = static_cast<size_t>(value);
    return {dims.data() + dims_begin[v], dims_begin[v + 1] - dims_begin[v]};
  }
};

// Sees each compiled function before and after it runs, over its whole extent in the thread that called run(). Slots
// are its 8-byte arguments as passed.
class CallObserver {
 public:
  virtual ~CallObserver() = default;
  virtual void before(const Step& step, std::span<const ArgRef> args, std::span<const uint64_t> slots,
                      int64_t extent) = 0;
  virtual void after() = 0;
};

class Executor {
 public:
  // The members must outlive the executor. threads <= 0: default_threads().
  Executor(std::span<const std::byte> plan, std::span<const std::byte> code, std::span<const std::byte> weights,
           int threads);

  const Plan& plan() const { return plan_; }
  int threads() const { return threads_; }

  // Held from bind() to the end of run().
  std::mutex& mutex() { return mutex_; }

  // What a run is given beside its inputs.
  struct Request {
    const std::vector<int64_t>* slots = nullptr;                // of each row; null: every row starts empty
    std::vector<std::pair<std::string, int64_t>> parameters{};  // by name; others take their default
  };

  // The binding for inputs of these shapes (dtypes are the caller's to check). Throws Error.
  Binding& bind(std::span<const std::span<const int64_t>> input_shapes, const Request& request);

  // The same for these symbols, in the plan's order, without inputs or slots: for its figures only.
  Binding& bind_symbols(std::vector<int64_t> symbols);

  States& states() { return states_; }
  // Must outlive the runs; null: nobody.
  void observe(CallObserver* observer) { observer_ = observer; }

  // step_ns: null, or one number for each step, set to the time it took (-1: it was jumped over).
  void run(Binding& binding, std::span<void* const> inputs, std::span<void* const> outputs, int64_t* step_ns = nullptr);

 private:
  void check_kernel_step(size_t index);
  void resolve(Binding& b) const;
  KernelCall kernel_call(const Binding& b, const Binding::BoundStep& bound, size_t index) const;
  void run_call(const Binding& b, size_t index) const;

  // binding.cpp: from sizes to a Binding
  void set_parameters(std::vector<int64_t>& symbols, const Request& request) const;
  void check_inputs(std::span<const std::span<const int64_t>> input_shapes, const std::vector<int64_t>& exprs) const;
  std::unique_ptr<Binding> make_binding(std::vector<int64_t> symbols) const;
  void bind_values(Binding& b) const;
  void size_value(Binding& b, size_t value) const;
  void check_place(Binding& b, size_t value) const;
  void check_outputs(const Binding& b) const;
  void run_check(const Check& check, const std::vector<int64_t>& exprs) const;
  std::vector<int64_t> roomy_exprs(const Binding& b, int64_t length) const;
  void find_growing();
  // The binding for another length of the states; false: it must be made anew.
  bool grow(Binding& b, const std::vector<int64_t>& symbols) const;
  void bind_steps(Binding& b) const;

  Plan plan_;
  States states_;
  CodeLibrary code_;
  std::span<const std::byte> weights_;
  Expanded expanded_;
  int threads_;
  CallObserver* observer_ = nullptr;
  std::shared_ptr<ThreadPool> pool_;
  std::vector<void*> functions_;
  std::vector<const Kernel*> kernels_;
  struct {
    std::vector<size_t> exprs, checks, values, steps;  // that follow the states' length
  } growing_;
  Block arena_, scratch_;
  std::mutex mutex_;
  std::list<std::unique_ptr<Binding>> bindings_;  // most recent first
};

}  // namespace edgec
