#include "runtime/plan.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"
#include "runtime/error.h"

namespace edgec {
namespace {

constexpr char kMagic[] = "EDGCPLN1";
constexpr int kMaxStack = 64;

[[noreturn]] void fault(const std::string& place, const std::string& reason) {
  throw Error(Code::kPlan, "plan.bin " + place, reason, "Build the artifact again");
}

bool is_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    const size_t extra = lead < 0x80                   ? 0
                         : lead >= 0xc2 && lead < 0xe0 ? 1
                         : lead >> 4 == 0xe            ? 2
                         : lead >= 0xf0 && lead < 0xf5 ? 3
                                                       : 4;
    if (extra == 4 || text.size() - i <= extra) return false;
    uint32_t code = extra == 0 ? lead : lead & (0x3f >> extra);
    for (size_t j = 1; j <= extra; ++j) {
      const auto next = static_cast<uint8_t>(text[i + j]);
      if (next >> 6 != 2) return false;
      code = code << 6 | (next & 0x3f);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[extra] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    i += extra + 1;
  }
  return true;
}

// Words of the member, in order; every read and every count is checked against what is left.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::string place = "header";

  size_t left() const { return (bytes_.size() - at_) / 8; }

  int64_t word() {
    if (left() == 0) fault(place, "it ends in the middle");
    int64_t value;
    std::memcpy(&value, bytes_.data() + at_, 8);
    at_ += 8;
    return value;
  }

  int64_t in(int64_t lo, int64_t hi, const char* what) {
    const int64_t value = word();
    if (value < lo || value > hi)
      fault(place, std::string(what) + " is " + std::to_string(value) + ", not in " + std::to_string(lo) + ".." +
                       std::to_string(hi));
    return value;
  }

  int32_t index(size_t count, const char* what) {
    return static_cast<int32_t>(in(0, static_cast<int64_t>(count) - 1, what));
  }

  // A count of items of at least `words` words each.
  size_t count(size_t words, const char* what) {
    const int64_t limit = static_cast<int64_t>(std::min<size_t>(left() / words, size_t{1} << 30));
    return static_cast<size_t>(in(0, limit, what));
  }

  std::string bytes(const char* what) {
    const auto length = static_cast<size_t>(in(0, static_cast<int64_t>((left() - 1) * 8), what));
    std::string text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    if (!is_utf8(text)) fault(place, "it is not UTF-8");
    at_ += (length + 7) / 8 * 8;
    return text;
  }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 8;
};

enum ExprOp : int64_t { kConst, kSymbol, kEarlier, kAdd, kSub, kMul, kFloorDiv, kMod, kMin, kMax, kBcast, kCeilDiv };

void check_expr(const std::string& place, const std::vector<int64_t>& words, size_t self, size_t symbols) {
  int depth = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t op = words[i];
    if (op < kConst || op > kCeilDiv) fault(place, "unknown operator " + std::to_string(op));
    if (op <= kEarlier) {
      if (++i == words.size()) fault(place, "its program ends in the middle");
      if (op == kSymbol && (words[i] < 0 || words[i] >= static_cast<int64_t>(symbols)))
        fault(place, "unknown symbol " + std::to_string(words[i]));
      if (op == kEarlier && (words[i] < 0 || words[i] >= static_cast<int64_t>(self)))
        fault(place, "expression " + std::to_string(words[i]) + " is no earlier one");
      ++depth;
    } else {
      if (depth < 2) fault(place, "an operator lacks operands");
      --depth;
    }
    if (depth > kMaxStack) fault(place, "its program is too deep");
  }
  if (depth != 1) fault(place, "its program leaves " + std::to_string(depth) + " results");
}

ValueDef read_value(Reader& r, const Plan& plan, uint64_t weights_size) {
  ValueDef v;
  v.dtype = static_cast<DType>(r.in(0, kDTypeCount - 1, "dtype"));
  const auto rank = r.in(0, kMaxRank, "rank");
  for (int64_t i = 0; i < rank; ++i) v.dims.push_back(r.index(plan.exprs.size(), "dim"));
  v.storage = static_cast<Storage>(r.in(0, 6, "storage"));
  v.a = r.word();
  v.b = r.word();
  v.c = r.word();
  if (v.storage == Storage::kExpanded && v.dtype != DType::kF32) fault(r.place, "what is expanded is f32");
  if (v.storage == Storage::kConstant || v.storage == Storage::kExpanded) {
    const auto size = static_cast<int64_t>(weights_size);
    if (v.a < 0 || v.b < 0 || v.a > size || v.b > size - v.a) fault(r.place, "it lies outside weights.bin");
    if (v.a % static_cast<int64_t>(size_of(v.dtype)) != 0) fault(r.place, "its offset is not aligned");
  }
  const auto is_expr = [&](int64_t e) { return e >= 0 && e < static_cast<int64_t>(plan.exprs.size()); };
  if (v.storage == Storage::kTemp && !is_expr(v.a)) fault(r.place, "its size is no expression");
  if (v.storage == Storage::kAlias && !is_expr(v.b)) fault(r.place, "its offset is no expression");
  return v;
}

Step read_step(Reader& r, const Plan& plan, size_t self, size_t n_steps) {
  Step s;
  s.kind = static_cast<Step::Kind>(r.in(0, 3, "kind"));
  s.name = plan.strings[static_cast<size_t>(r.index(plan.strings.size(), "name"))];
  s.extent =
      static_cast<int32_t>(r.in(s.kind == Step::kCall ? 0 : -1, static_cast<int64_t>(plan.exprs.size()) - 1, "extent"));
  s.grain = r.in(s.kind == Step::kCall ? 1 : 0, int64_t{1} << 48, "grain");
  const size_t n_args = r.count(2, "argument count");
  if (s.kind == Step::kCall && n_args > kMaxCallArgs) fault(r.place, "it has more than 64 arguments");
  for (size_t i = 0; i < n_args; ++i) {
    Arg arg;
    arg.kind = static_cast<Arg::Kind>(r.in(0, 6, "argument kind"));
    switch (arg.kind) {
      case Arg::kValue:
        arg.v = r.index(plan.values.size(), "value");
        break;
      case Arg::kDim:
      case Arg::kScratch:
        arg.v = r.index(plan.exprs.size(), "expression");
        break;
      case Arg::kString:
        arg.v = r.index(plan.strings.size(), "string");
        break;
      default:
        arg.v = r.word();
    }
    if (s.kind == Step::kCall && arg.kind == Arg::kString) fault(r.place, "a call takes no string");
    if (s.kind == Step::kCall && arg.kind == Arg::kValue &&
        plan.values[static_cast<size_t>(arg.v)].storage == Storage::kState)
      fault(r.place, "a call takes no state");
    s.args.push_back(arg);
  }
  s.origin = plan.strings[static_cast<size_t>(r.index(plan.strings.size(), "origin"))];
  // Jumps go forward only, so that every run ends.
  if (s.kind == Step::kJump || s.kind == Step::kJumpIfFalse) {
    const size_t at = s.kind == Step::kJump ? 0 : 1;
    if (s.args.size() != at + 1 || s.args[at].kind != Arg::kInt) fault(r.place, "it has no target");
    const int64_t target = s.args[at].v;
    if (target <= static_cast<int64_t>(self) || target > static_cast<int64_t>(n_steps))
      fault(r.place, "it jumps to step " + std::to_string(target));
    if (at == 1 &&
        (s.args[0].kind != Arg::kValue || plan.values[static_cast<size_t>(s.args[0].v)].dtype != DType::kBool))
      fault(r.place, "its condition is no bool");
  }
  return s;
}

void resolve_roots(Plan& plan) {
  for (size_t i = 0; i < plan.values.size(); ++i) {
    size_t root = i;
    for (size_t hops = 0; plan.values[root].storage == Storage::kAlias; ++hops) {
      const int64_t next = plan.values[root].a;
      if (next < 0 || next >= static_cast<int64_t>(plan.values.size()) || hops > plan.values.size())
        fault("value " + std::to_string(i), "it is an alias of nothing");
      root = static_cast<size_t>(next);
    }
    if (root != i && plan.values[root].storage == Storage::kState)
      fault("value " + std::to_string(i), "it is an alias of a state");
    plan.values[i].root = static_cast<int32_t>(root);
  }
}

void check_links(const Plan& plan) {
  const auto n_steps = static_cast<int64_t>(plan.steps.size());
  for (size_t i = 0; i < plan.inputs.size(); ++i) {
    const ValueDef& v = plan.values[static_cast<size_t>(plan.inputs[i].value)];
    if (v.storage != Storage::kInput || v.a != static_cast<int64_t>(i))
      fault("input " + std::to_string(i), "its value is stored elsewhere");
  }
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    const ValueDef& v = plan.values[static_cast<size_t>(plan.outputs[i].value)];
    const ValueDef& root = plan.values[static_cast<size_t>(v.root)];
    if (root.storage != Storage::kOutput || root.a != static_cast<int64_t>(i))
      fault("output " + std::to_string(i), "its value is stored elsewhere");
  }
  for (size_t i = 0; i < plan.values.size(); ++i) {
    const ValueDef& v = plan.values[i];
    const std::string place = "value " + std::to_string(i);
    const size_t ports = v.storage == Storage::kInput ? plan.inputs.size() : plan.outputs.size();
    if ((v.storage == Storage::kInput || v.storage == Storage::kOutput) &&
        (v.a < 0 || v.a >= static_cast<int64_t>(ports)))
      fault(place, "no such input or output");
    if (v.storage == Storage::kState) {
      if (v.a < 0 || v.a >= static_cast<int64_t>(plan.states.size())) fault(place, "no such state");
      if (v.dims.size() != 4 || v.dtype != plan.states[static_cast<size_t>(v.a)].dtype)
        fault(place, "its type is not its state's");
    }
    if (v.storage == Storage::kTemp && (v.b < 0 || v.c < v.b || (v.c >= n_steps && v.c > 0)))
      fault(place, "its lifetime is no range of steps");
  }
  for (size_t i = 0; i < plan.symbols.size(); ++i) {
    const Symbol& s = plan.symbols[i];
    const std::string place = "symbol " + std::to_string(i);
    if (s.input < 0) continue;
    if (s.input >= static_cast<int32_t>(plan.inputs.size())) fault(place, "no such input");
    const Port& port = plan.inputs[static_cast<size_t>(s.input)];
    const size_t rank = plan.values[static_cast<size_t>(port.value)].dims.size();
    if (s.axis < 0 || s.axis >= static_cast<int32_t>(rank)) fault(place, "no such axis");
  }
}

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

int64_t apply(int64_t op, int64_t a, int64_t b) {
  int64_t out = 0;
  const auto guard = [](bool overflow) {
    if (overflow) throw Error(Code::kCheck, "", "a size does not fit 64 bits");
  };
  if (op == kFloorDiv || op == kMod || op == kCeilDiv) {
    if (b == 0) throw Error(Code::kCheck, "", "a size is divided by a dim of 0");
    guard(a == INT64_MIN && b == -1);
  }
  switch (op) {
    case kAdd:
      guard(__builtin_add_overflow(a, b, &out));
      return out;
    case kSub:
      guard(__builtin_sub_overflow(a, b, &out));
      return out;
    case kMul:
      guard(__builtin_mul_overflow(a, b, &out));
      return out;
    case kFloorDiv:
      return floor_div(a, b);
    case kMod:
      return a - floor_div(a, b) * b;
    case kMin:
      return std::min(a, b);
    case kMax:
      return std::max(a, b);
    case kBcast:
      return a == 1 ? b : a;
    default:  // kCeilDiv
      return a / b + (a % b != 0 && (a < 0) == (b < 0));
  }
}

int64_t run_program(std::span<const int64_t> words, std::span<const int64_t> symbols, std::span<const int64_t> exprs) {
  int64_t stack[kMaxStack + 1];
  int depth = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t op = words[i];
    if (op <= kEarlier) {
      const int64_t v = words[++i];
      stack[depth++] = op == kConst ? v : (op == kSymbol ? symbols : exprs)[static_cast<size_t>(v)];
    } else {
      --depth;
      stack[depth - 1] = apply(op, stack[depth - 1], stack[depth]);
    }
  }
  return stack[0];
}

}  // namespace

Plan Plan::decode(std::span<const std::byte> bytes, uint64_t weights_size) {
  if (bytes.size() < 16 || std::memcmp(bytes.data(), kMagic, 8) != 0) fault("header", "it is no plan");
  Reader r(bytes);
  if (const int64_t version = r.word(); version != kPlanVersion)
    throw Error(Code::kPlan, "plan.bin",
                "version " + std::to_string(version) + ", this edgec runs " + std::to_string(kPlanVersion),
                "Build the artifact again");
  Plan plan;
  const auto each = [&](const char* what, size_t words, auto&& read) {
    r.place = what;
    const size_t n = r.count(words, "count");
    for (size_t i = 0; i < n; ++i) {
      r.place = std::string(what) + " " + std::to_string(i);
      read(i, n);
    }
  };
  const auto string = [&](const char* what) {
    return plan.strings[static_cast<size_t>(r.index(plan.strings.size(), what))];
  };
  each("string", 1, [&](size_t, size_t) { plan.strings.push_back(r.bytes("length")); });
  each("symbol", 6, [&](size_t i, size_t) {
    Symbol s;
    s.name = string("name");
    s.input = static_cast<int32_t>(r.in(Symbol::kLength, INT32_MAX, "input"));
    s.axis = static_cast<int32_t>(r.in(0, kMaxRank - 1, "axis"));
    s.lo = r.in(0, INT64_MAX, "lower bound");
    s.hi = r.in(-1, INT64_MAX, "upper bound");
    s.fallback.resize(r.count(1, "length of the default"));
    for (int64_t& word : s.fallback) word = r.word();
    if (s.input == Symbol::kParameter) check_expr(r.place, s.fallback, 0, i);
    plan.symbols.push_back(std::move(s));
  });
  each("expression", 1, [&](size_t i, size_t) {
    std::vector<int64_t> words(r.count(1, "length"));
    for (int64_t& word : words) word = r.word();
    check_expr(r.place, words, i, plan.symbols.size());
    plan.exprs.push_back(std::move(words));
  });
  const auto port = [&] { return Port{string("name"), static_cast<int32_t>(r.in(0, INT32_MAX, "value"))}; };
  each("input", 2, [&](size_t, size_t) { plan.inputs.push_back(port()); });
  each("value", 6, [&](size_t, size_t) { plan.values.push_back(read_value(r, plan, weights_size)); });
  each("output", 2, [&](size_t, size_t) { plan.outputs.push_back(port()); });
  each("state", 8, [&](size_t, size_t) {
    constexpr int64_t kMost = int64_t{1} << 24;
    State s;
    s.past = string("past");
    s.present = string("present");
    s.dtype = static_cast<DType>(r.in(0, kDTypeCount - 1, "dtype"));
    if (s.dtype != DType::kF32 && s.dtype != DType::kI8) fault(r.place, "its dtype is none of a state");
    s.keys = r.in(0, 1, "role") != 0;
    s.heads = r.in(1, kMost, "heads");
    s.dim = r.in(1, s.dtype == DType::kI8 ? kernels::kCacheDim : kMost, "dim");
    s.batch = r.index(plan.exprs.size(), "batch");
    s.growth = r.index(plan.exprs.size(), "growth");
    plan.states.push_back(std::move(s));
  });
  each("check", 4, [&](size_t, size_t) {
    Check c;
    c.kind = static_cast<Check::Kind>(r.in(0, 2, "kind"));
    c.a = r.index(plan.exprs.size(), "expression");
    c.b = r.index(plan.exprs.size(), "expression");
    c.message = string("message");
    plan.checks.push_back(std::move(c));
  });
  each("step", 6, [&](size_t i, size_t n) { plan.steps.push_back(read_step(r, plan, i, n)); });
  r.place = "end";
  if (r.left() != 0 || bytes.size() % 8 != 0) fault("end", "something follows the last step");
  for (const auto* ports : {&plan.inputs, &plan.outputs})
    for (const Port& p : *ports)
      if (p.value >= static_cast<int32_t>(plan.values.size())) fault("'" + p.name + "'", "it has no value");
  resolve_roots(plan);
  check_links(plan);
  return plan;
}

void Plan::evaluate(std::span<const int64_t> symbol_values, std::vector<int64_t>& out) const {
  out.clear();
  out.reserve(exprs.size());
  for (const std::vector<int64_t>& words : exprs) out.push_back(run_program(words, symbol_values, out));
}

int64_t Plan::evaluate(size_t expr, std::span<const int64_t> symbol_values, std::span<const int64_t> earlier) const {
  return run_program(exprs[expr], symbol_values, earlier);
}

bool Plan::reads(size_t expr, const std::vector<bool>& of_symbols, const std::vector<bool>& earlier) const {
  const std::vector<int64_t>& words = exprs[expr];
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] > kEarlier) continue;
    const int64_t op = words[i++];
    if (op != kConst && (op == kSymbol ? of_symbols : earlier)[static_cast<size_t>(words[i])]) return true;
  }
  return false;
}

int64_t Plan::fallback(const Symbol& symbol, std::span<const int64_t> earlier) {
  return run_program(symbol.fallback, earlier, {});
}

std::string Plan::text(int32_t expr) const {
  int budget = 200;  // operands: expressions refer to each other, and a hostile plan's text would have no end
  return text(expr, budget);
}

std::string Plan::text(int32_t expr, int& budget) const {
  static constexpr const char* kInfix[] = {"+", "-", "*", "//", "%"};
  static constexpr const char* kNamed[] = {"min", "max", "bcast", "ceildiv"};
  std::vector<std::string> stack;
  const std::vector<int64_t>& words = exprs[static_cast<size_t>(expr)];
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t op = words[i];
    if (op <= kEarlier) {
      if (--budget < 0) return "...";
      const int64_t v = words[++i];
      stack.push_back(op == kConst    ? std::to_string(v)
                      : op == kSymbol ? symbols[static_cast<size_t>(v)].name
                                      : text(static_cast<int32_t>(v), budget));
    } else {
      const std::string b = std::move(stack.back());
      stack.pop_back();
      std::string& a = stack.back();
      if (op <= kMod)
        a = "(" + a + " " + kInfix[op - kAdd] + " " + b + ")";
      else
        a = std::string(kNamed[op - kMin]) + "(" + a + ", " + b + ")";
    }
  }
  return std::move(stack.back());
}

std::string Plan::shape_text(const ValueDef& value) const {
  std::string out = "(";
  for (size_t i = 0; i < value.dims.size(); ++i) out += (i > 0 ? ", " : "") + text(value.dims[i]);
  return out + (value.dims.size() == 1 ? ",)" : ")");
}

}  // namespace edgec
