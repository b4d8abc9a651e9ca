// The decoded plan.bin: tables of indices, all of them checked, so that whoever runs the plan need not look again.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/dtype.h"

namespace edgec {

inline constexpr int64_t kPlanVersion = 4;
inline constexpr int kMaxRank = 16;
inline constexpr int kMaxCallArgs = 64;

struct Symbol {
  std::string name;
  int32_t input = 0, axis = 0;  // input kParameter: set at run; kLength: of the states, the longest row's
  int64_t lo = 0, hi = -1;
  std::vector<int64_t> fallback;  // a parameter's default: a program over earlier symbols

  static constexpr int32_t kParameter = -1, kLength = -2;
};

enum class Storage : int32_t { kInput, kConstant, kTemp, kOutput, kAlias, kState, kExpanded };

// Kept from run to run in place of an input and an output.
struct State {
  std::string past, present;
  DType dtype = DType::kF32;  // or kI8, with an f32 scale for each token and head
  bool keys = false;          // laid out for products with queries (csrc/kernels/cache.h)
  int64_t heads = 0, dim = 0;
  int32_t batch = 0, growth = 0;  // exprs: rows of a run, and tokens that it adds to each
};

struct ValueDef {
  DType dtype = DType::kF32;
  Storage storage = Storage::kTemp;
  std::vector<int32_t> dims;  // exprs
  int64_t a = 0, b = 0, c = 0;
  int32_t root = 0;  // the value whose memory this one is in; itself if no alias
};

struct Port {
  std::string name;
  int32_t value = 0;
};

struct Check {
  enum Kind : int32_t { kEqual, kAtLeast, kBroadcast } kind = kEqual;
  int32_t a = 0, b = 0;
  std::string message;
};

struct Arg {
  enum Kind : int32_t { kValue, kDim, kInt, kDouble, kScratch, kAbsent, kString } kind = kValue;
  int64_t v = 0;
};

struct Step {
  enum Kind : int32_t { kCall, kKernel, kJump, kJumpIfFalse } kind = kCall;
  std::string name, origin;
  int32_t extent = -1;
  int64_t grain = 1;
  std::vector<Arg> args;
};

struct Plan {
  std::vector<std::string> strings;
  std::vector<Symbol> symbols;
  std::vector<std::vector<int64_t>> exprs;
  std::vector<Port> inputs, outputs;
  std::vector<State> states;
  std::vector<ValueDef> values;
  std::vector<Check> checks;
  std::vector<Step> steps;

  // Throws Error(kPlan) with the place of the first fault.
  static Plan decode(std::span<const std::byte> bytes, uint64_t weights_size);

  // All exprs for these symbols; throws Error(kCheck) on overflow or division by zero.
  void evaluate(std::span<const int64_t> symbol_values, std::vector<int64_t>& out) const;

  // One of them, the earlier ones known.
  int64_t evaluate(size_t expr, std::span<const int64_t> symbol_values, std::span<const int64_t> earlier) const;
  // Whether an expr reads one of these symbols or earlier exprs.
  bool reads(size_t expr, const std::vector<bool>& symbols, const std::vector<bool>& earlier) const;

  // A parameter's default, from the symbols before it; throws as evaluate.
  static int64_t fallback(const Symbol& symbol, std::span<const int64_t> earlier);

  // "n", "4" or "((2 * n) + 1)": for messages and for session.inputs.
  std::string text(int32_t expr) const;
  std::string shape_text(const ValueDef& value) const;

 private:
  std::string text(int32_t expr, int& budget) const;
};

}  // namespace edgec
