// What the executor works out once for each assignment of the plan's symbols: shapes, places in memory, arguments.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "runtime/arena.h"
#include "runtime/error.h"
#include "runtime/executor.h"

namespace edgec {
namespace {

constexpr size_t kCachedBindings = 16;
constexpr size_t kMaxBytes = size_t{1} << 46;
constexpr int64_t kRoomTokens = 512, kMaxLength = int64_t{1} << 40;

[[noreturn]] void value_fault(size_t value, const std::string& reason) {
  throw Error(Code::kPlan, "value " + std::to_string(value), reason);
}

}  // namespace

void Executor::set_parameters(std::vector<int64_t>& symbols, const Request& request) const {
  for (const auto& [name, value] : request.parameters) {
    const auto is_it = [&](const Symbol& s) { return s.input == Symbol::kParameter && s.name == name; };
    if (std::ranges::none_of(plan_.symbols, is_it))
      throw Error(Code::kCall, "parameter '" + name + "'", "the artifact has none of that name");
  }
  for (size_t i = 0; i < symbols.size(); ++i) {
    const Symbol& s = plan_.symbols[i];
    if (s.input != Symbol::kParameter) continue;
    const auto given = std::ranges::find(request.parameters, s.name, &std::pair<std::string, int64_t>::first);
    symbols[i] = given != request.parameters.end() ? given->second : Plan::fallback(s, std::span(symbols).first(i));
  }
}

Binding& Executor::bind(std::span<const std::span<const int64_t>> input_shapes, const Request& request) {
  std::vector<int64_t> symbols;
  symbols.reserve(plan_.symbols.size());
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const ValueDef& v = plan_.values[static_cast<size_t>(plan_.inputs[i].value)];
    if (input_shapes[i].size() != v.dims.size())
      throw Error(Code::kInputShape, "input '" + plan_.inputs[i].name + "'",
                  "shape " + shape_text(input_shapes[i]) + ", expected " + plan_.shape_text(v));
  }
  const int64_t longest = states_.longest(request.slots);
  for (const Symbol& s : plan_.symbols)
    symbols.push_back(s.input < 0 ? longest : input_shapes[static_cast<size_t>(s.input)][static_cast<size_t>(s.axis)]);
  set_parameters(symbols, request);
  Binding& binding = bind_symbols(std::move(symbols));
  check_inputs(input_shapes, binding.exprs);
  if (plan_.states.empty()) {
    if (request.slots != nullptr) throw Error(Code::kCall, "slots", "the artifact keeps no state");
    return binding;
  }
  const auto number = [&](int32_t expr) { return binding.exprs[static_cast<size_t>(expr)]; };
  const State& first = plan_.states.front();
  for (const State& s : plan_.states)
    if (number(s.batch) != number(first.batch) || number(s.growth) != number(first.growth))
      throw Error(Code::kPlan, "state '" + s.past + "'", "it grows unlike the others");
  if (number(first.batch) < 0) throw Error(Code::kPlan, "state '" + first.past + "'", "its batch is negative");
  states_.begin(request.slots, number(first.batch), number(first.growth));
  return binding;
}

Binding& Executor::bind_symbols(std::vector<int64_t> symbols) {
  auto found = std::find_if(bindings_.begin(), bindings_.end(), [&](const auto& b) { return b->symbols == symbols; });
  if (found != bindings_.end()) {
    bindings_.splice(bindings_.begin(), bindings_, found);
    return *bindings_.front();
  }
  for (size_t i = 0; i < symbols.size(); ++i) {
    const Symbol& s = plan_.symbols[i];
    if (symbols[i] >= s.lo && (s.hi < 0 || symbols[i] <= s.hi)) continue;
    const std::string reason = std::to_string(symbols[i]) + ", the artifact takes " + std::to_string(s.lo) +
                               (s.hi >= 0 ? " to " + std::to_string(s.hi) : " and more");
    if (s.input == Symbol::kParameter) throw Error(Code::kCall, "parameter '" + s.name + "'", "it is " + reason);
    if (s.input == Symbol::kLength) throw Error(Code::kContext, "", "the tokens kept (" + s.name + ") are " + reason);
    throw Error(Code::kInputShape, "input '" + plan_.inputs[static_cast<size_t>(s.input)].name + "'",
                "axis " + std::to_string(s.axis) + " (" + s.name + ") is " + reason);
  }
  // One binding for each choice of the other symbols, which follows the states' length as far as its memory goes.
  if (!growing_.exprs.empty()) {
    const auto same = [&](const std::unique_ptr<Binding>& b) {
      for (size_t i = 0; i < symbols.size(); ++i)
        if (plan_.symbols[i].input != Symbol::kLength && b->symbols[i] != symbols[i]) return false;
      return true;
    };
    found = std::find_if(bindings_.begin(), bindings_.end(), same);
    if (found != bindings_.end()) {
      std::unique_ptr<Binding> binding = std::move(*found);
      bindings_.erase(found);
      if (grow(*binding, symbols)) {
        bindings_.push_front(std::move(binding));
        return *bindings_.front();
      }
    }
  }
  bindings_.push_front(make_binding(std::move(symbols)));
  if (bindings_.size() > kCachedBindings) bindings_.pop_back();
  return *bindings_.front();
}

void Executor::check_inputs(std::span<const std::span<const int64_t>> input_shapes,
                            const std::vector<int64_t>& exprs) const {
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const ValueDef& v = plan_.values[static_cast<size_t>(plan_.inputs[i].value)];
    for (size_t axis = 0; axis < v.dims.size(); ++axis) {
      if (exprs[static_cast<size_t>(v.dims[axis])] == input_shapes[i][axis]) continue;
      std::string reason = "shape " + shape_text(input_shapes[i]) + ", expected " + plan_.shape_text(v);
      const std::string name = plan_.text(v.dims[axis]);
      if (name != std::to_string(exprs[static_cast<size_t>(v.dims[axis])]))
        reason += " with " + name + " = " + std::to_string(exprs[static_cast<size_t>(v.dims[axis])]);
      throw Error(Code::kInputShape, "input '" + plan_.inputs[i].name + "'", reason);
    }
  }
}

void Executor::run_check(const Check& c, const std::vector<int64_t>& exprs) const {
  const int64_t a = exprs[static_cast<size_t>(c.a)], b = exprs[static_cast<size_t>(c.b)];
  const bool holds = c.kind == Check::kEqual ? a == b : c.kind == Check::kAtLeast ? a >= b : a == b || a == 1 || b == 1;
  if (holds) return;
  static constexpr const char* kWant[] = {"equal", "at least", "equal or 1"};
  throw Error(Code::kCheck, c.message,
              plan_.text(c.a) + " is " + std::to_string(a) + " and " + plan_.text(c.b) + " is " + std::to_string(b) +
                  "; needed: " + kWant[c.kind]);
}

std::unique_ptr<Binding> Executor::make_binding(std::vector<int64_t> symbols) const {
  std::vector<int64_t> exprs;
  plan_.evaluate(symbols, exprs);
  for (const Check& c : plan_.checks) run_check(c, exprs);
  auto b = std::make_unique<Binding>();
  b->symbols = std::move(symbols);
  b->exprs = std::move(exprs);
  for (size_t i = 0; i < b->symbols.size(); ++i)
    if (plan_.symbols[i].input == Symbol::kLength)
      b->room_length = (std::min(b->symbols[i], kMaxLength) / kRoomTokens + 1) * kRoomTokens;
  bind_values(*b);
  bind_steps(*b);
  return b;
}

void Executor::size_value(Binding& b, size_t i) const {
  const ValueDef& v = plan_.values[i];
  size_t bytes = size_of(v.dtype), at = b.dims_begin[i];
  for (const int32_t e : v.dims) {
    const int64_t dim = b.exprs[static_cast<size_t>(e)];
    if (dim < 0)
      throw Error(Code::kCheck, "", "these inputs make a dim of " + std::to_string(dim) + " (" + plan_.text(e) + ")",
                  "Use larger inputs");
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(dim), &bytes) || bytes > kMaxBytes)
      throw Error(Code::kMemory, "", "these inputs make a tensor of shape " + plan_.shape_text(v) + ", too large",
                  "Use smaller inputs");
    b.dims[at++] = dim;
  }
  b.nbytes[i] = bytes;
  if (v.storage == Storage::kState) {
    const State& s = plan_.states[static_cast<size_t>(v.a)];
    const std::span<const int64_t> dims = b.shape(static_cast<int32_t>(i));
    if (dims[0] != b.exprs[static_cast<size_t>(s.batch)] || dims[1] != s.heads || dims[3] != s.dim)
      value_fault(i, "its shape is not its state's");
  }
  if ((v.storage == Storage::kConstant && bytes > static_cast<size_t>(v.b)) ||
      (v.storage == Storage::kExpanded && bytes > expanded_.nbytes(v)))
    value_fault(i, "its constant is too short");
  if (v.storage == Storage::kTemp) {
    const int64_t room = b.exprs[static_cast<size_t>(v.a)];
    if (room < 0 || static_cast<size_t>(room) < bytes || static_cast<size_t>(room) > kMaxBytes)
      value_fault(i, "its memory of " + std::to_string(room) + " bytes does not fit its shape");
  }
}

void Executor::check_place(Binding& b, size_t i) const {
  const ValueDef& v = plan_.values[i];
  int64_t offset = 0;
  size_t at = i;
  for (; plan_.values[at].storage == Storage::kAlias; at = static_cast<size_t>(plan_.values[at].a)) {
    const int64_t step = b.exprs[static_cast<size_t>(plan_.values[at].b)];
    if (step < 0 || __builtin_add_overflow(offset, step, &offset)) value_fault(i, "its offset is negative");
  }
  const ValueDef& root = plan_.values[at];
  const size_t room = root.storage == Storage::kTemp       ? static_cast<size_t>(b.exprs[static_cast<size_t>(root.a)])
                      : root.storage == Storage::kConstant ? static_cast<size_t>(root.b)
                      : root.storage == Storage::kExpanded ? expanded_.nbytes(root)
                                                           : b.nbytes[at];
  if (static_cast<size_t>(offset) > room || b.nbytes[i] > room - static_cast<size_t>(offset))
    value_fault(i, "it lies outside the value it is an alias of");
  b.offsets[i] = offset;
  if (v.storage == Storage::kOutput) {
    const auto port = static_cast<size_t>(plan_.outputs[static_cast<size_t>(v.a)].value);
    if (b.nbytes[i] > b.nbytes[port]) value_fault(i, "it is larger than the output it is written to");
  }
}

void Executor::check_outputs(const Binding& b) const {
  for (const Port& p : plan_.outputs) {
    const auto root = static_cast<size_t>(plan_.values[static_cast<size_t>(p.value)].root);
    if (b.offsets[static_cast<size_t>(p.value)] != 0 || b.nbytes[root] > b.nbytes[static_cast<size_t>(p.value)])
      throw Error(Code::kPlan, "output '" + p.name + "'", "its array is smaller than what is written to it");
  }
}

// Sizes that grow with the states get room for more tokens, so that a binding serves many runs.
std::vector<int64_t> Executor::roomy_exprs(const Binding& b, int64_t length) const {
  std::vector<int64_t> symbols(b.symbols), exprs(b.exprs);
  for (size_t i = 0; i < symbols.size(); ++i)
    if (plan_.symbols[i].input == Symbol::kLength) symbols[i] = length;
  try {
    for (const size_t e : growing_.exprs) exprs[e] = plan_.evaluate(e, symbols, exprs);
  } catch (const Error&) {
    return b.exprs;
  }
  return exprs;
}

void Executor::bind_values(Binding& b) const {
  const size_t n = plan_.values.size();
  b.nbytes.resize(n);
  b.offsets.resize(n);
  b.rooms.resize(n);
  b.arena_offsets.resize(n);
  size_t n_dims = 0;
  for (const ValueDef& v : plan_.values) {
    b.dims_begin.push_back(n_dims);
    n_dims += v.dims.size();
  }
  b.dims_begin.push_back(n_dims);
  b.dims.resize(n_dims);
  for (size_t i = 0; i < n; ++i) size_value(b, i);
  const std::vector<int64_t> roomy = growing_.exprs.empty() ? b.exprs : roomy_exprs(b, b.room_length);
  std::vector<Lifetime> lives;
  std::vector<size_t> owners;
  for (size_t i = 0; i < n; ++i) {
    const ValueDef& v = plan_.values[i];
    if (v.storage != Storage::kTemp) continue;
    const auto bytes = static_cast<size_t>(b.exprs[static_cast<size_t>(v.a)]);
    const auto more = static_cast<size_t>(std::max<int64_t>(0, roomy[static_cast<size_t>(v.a)]));
    b.rooms[i] = more > bytes && more <= kMaxBytes ? more : bytes;
    lives.push_back({b.rooms[i], v.b, v.c, 0});
    owners.push_back(i);
    b.temp_bytes += round_up(b.rooms[i]);
  }
  b.arena_bytes = layout_arena(lives);
  for (size_t i = 0; i < owners.size(); ++i) b.arena_offsets[owners[i]] = lives[i].offset;
  for (size_t i = 0; i < n; ++i) check_place(b, i);
  check_outputs(b);
}

// Which parts of a binding follow the states' length.
void Executor::find_growing() {
  std::vector<bool> symbols, exprs, values;
  for (const Symbol& s : plan_.symbols) symbols.push_back(s.input == Symbol::kLength);
  if (std::ranges::find(symbols, true) == symbols.end()) return;
  // A parameter's default may follow the length: then it is a symbol like others, and each value binds anew.
  for (size_t i = 0; i < plan_.exprs.size(); ++i) {
    exprs.push_back(plan_.reads(i, symbols, exprs));
    if (exprs.back()) growing_.exprs.push_back(i);
  }
  const auto grows = [&](int64_t expr) { return exprs[static_cast<size_t>(expr)]; };
  for (size_t i = 0; i < plan_.checks.size(); ++i)
    if (grows(plan_.checks[i].a) || grows(plan_.checks[i].b)) growing_.checks.push_back(i);
  for (const ValueDef& v : plan_.values)
    values.push_back(std::ranges::any_of(v.dims, grows) || (v.storage == Storage::kTemp && grows(v.a)) ||
                     (v.storage == Storage::kAlias && grows(v.b)));
  // Values that share memory are checked together.
  std::vector<bool> roots(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i]) roots[static_cast<size_t>(plan_.values[i].root)] = true;
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] || roots[static_cast<size_t>(plan_.values[i].root)]) growing_.values.push_back(i);
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    bool any = step.extent >= 0 && grows(step.extent);
    for (const Arg& arg : step.args)
      any = any || (arg.kind == Arg::kValue && values[static_cast<size_t>(arg.v)]) ||
            ((arg.kind == Arg::kDim || arg.kind == Arg::kScratch) && grows(arg.v));
    if (any) growing_.steps.push_back(i);
  }
}

bool Executor::grow(Binding& b, const std::vector<int64_t>& symbols) const {
  b.symbols = symbols;
  const std::vector<int64_t> offsets = b.offsets;
  for (const size_t e : growing_.exprs) b.exprs[e] = plan_.evaluate(e, symbols, b.exprs);
  for (const size_t c : growing_.checks) run_check(plan_.checks[c], b.exprs);
  for (const size_t i : growing_.values) {
    size_value(b, i);
    const ValueDef& v = plan_.values[i];
    if (v.storage == Storage::kTemp && static_cast<size_t>(b.exprs[static_cast<size_t>(v.a)]) > b.rooms[i])
      return false;
  }
  for (const size_t i : growing_.values) check_place(b, i);
  check_outputs(b);
  if (b.offsets != offsets) return false;
  for (const size_t i : growing_.steps) {
    const Step& step = plan_.steps[i];
    Binding::BoundStep& bound = b.steps[i];
    for (size_t j = 0; j < step.args.size(); ++j) {
      ArgRef& ref = b.args[bound.args + j];
      if (ref.kind != Arg::kDim && ref.kind != Arg::kScratch) continue;
      const int64_t value = b.exprs[static_cast<size_t>(step.args[j].v)];
      if (ref.kind == Arg::kScratch && value != ref.i) return false;
      ref.i = value;
      if (step.kind != Step::kCall || ref.kind != Arg::kDim) continue;
      for (size_t worker = 0; worker < (bound.per_worker ? static_cast<size_t>(threads_) : 1); ++worker)
        b.slots[bound.slots + worker * bound.n_slots + j] = static_cast<uint64_t>(value);
    }
    if (step.kind == Step::kCall) bound.extent = b.exprs[static_cast<size_t>(step.extent)];
    if (step.kind == Step::kKernel && kernels_[i]->scratch != nullptr) {
      const ScratchSize size = kernels_[i]->scratch(kernel_call(b, bound, i));
      if (size.shared > bound.scratch_shared || size.per_worker > bound.scratch_stride) return false;
    }
  }
  return true;
}

void Executor::bind_steps(Binding& b) const {
  const auto workers = static_cast<size_t>(threads_);
  size_t n_args = 0;
  for (const Step& step : plan_.steps) n_args += step.args.size();
  b.args.reserve(n_args);
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    Binding::BoundStep bound;
    size_t scratch = 0;
    bound.args = b.args.size();
    bound.n_args = step.args.size();
    for (const Arg& arg : step.args) {
      ArgRef ref;
      ref.kind = arg.kind;
      ref.i = arg.v;
      if (arg.kind == Arg::kValue) {
        const ValueDef& v = plan_.values[static_cast<size_t>(arg.v)];
        ref.tensor = {nullptr, v.dtype, b.shape(static_cast<int32_t>(arg.v))};
        if (v.storage == Storage::kState) ref.tensor.state = &states_.view(static_cast<size_t>(v.a));
      } else if (arg.kind == Arg::kDim || arg.kind == Arg::kScratch) {
        ref.i = b.exprs[static_cast<size_t>(arg.v)];
      } else if (arg.kind == Arg::kString) {
        ref.string = plan_.strings[static_cast<size_t>(arg.v)];
      }
      if (arg.kind == Arg::kScratch) {
        if (ref.i < 0 || static_cast<size_t>(ref.i) > kMaxBytes)
          throw Error(Code::kPlan, "step " + std::to_string(i), "its scratch is no size");
        scratch += round_up(static_cast<size_t>(ref.i));
      }
      b.args.push_back(ref);
    }
    if (step.kind == Step::kCall) {
      bound.extent = b.exprs[static_cast<size_t>(step.extent)];
      bound.per_worker = scratch > 0;
      bound.scratch_stride = scratch;
      bound.slots = b.slots.size();
      bound.n_slots = step.args.size();
      b.slots.resize(b.slots.size() + bound.n_slots * (bound.per_worker ? workers : 1));
    } else if (step.kind == Step::kKernel && kernels_[i]->scratch != nullptr) {
      KernelCall call = kernel_call(b, bound, i);
      const ScratchSize size = kernels_[i]->scratch(call);
      bound.scratch_shared = round_up(size.shared);
      bound.scratch_stride = round_up(size.per_worker);
    }
    const size_t total = bound.scratch_shared + bound.scratch_stride * workers;
    if (total > kMaxBytes) throw Error(Code::kMemory, step.origin, "its scratch is too large");
    b.scratch_bytes = std::max(b.scratch_bytes, total);
    b.steps.push_back(bound);
  }
  // Backwards, twice: the first of a kernel's steps follows its last, in the next run.
  std::unordered_map<const Kernel*, size_t> next;
  for (size_t i = 2 * b.steps.size(); i-- > 0;) {
    const size_t step = i % b.steps.size();
    if (kernels_[step] == nullptr) continue;
    if (next.contains(kernels_[step])) b.steps[step].following = next[kernels_[step]];
    next[kernels_[step]] = step;
  }
}

}  // namespace edgec
