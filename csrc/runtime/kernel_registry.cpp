#include "runtime/kernel_registry.h"

#include <cstring>
#include <sstream>

namespace edgec {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> names;
  std::stringstream stream(text);
  for (std::string name; std::getline(stream, name, ',');) {
    const size_t first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
    if (first != std::string::npos) names.push_back(name.substr(first, last - first + 1));
  }
  return names;
}

}  // namespace

std::string shape_text(std::span<const int64_t> dims) {
  std::string out = "(";
  for (size_t i = 0; i < dims.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(dims[i]);
  return out + (dims.size() == 1 ? ",)" : ")");
}

double KernelCall::real(size_t i) const {
  double value;
  std::memcpy(&value, &args[i].i, 8);
  return value;
}

void KernelCall::fail(const std::string& reason, Code code) const {
  throw Error(code, origin.empty() ? std::string(name) : std::string(origin) + " (" + std::string(name) + ")", reason);
}

std::vector<Parameter> parse_signature(const char* signature) {
  const std::string text(signature);
  const size_t arrow = text.find("->"), semicolon = text.find(';');
  std::vector<Parameter> out;
  for (std::string& name : split(text.substr(0, arrow))) {
    Parameter p;
    p.optional = name.back() == '?';
    p.variadic = name.back() == '*';
    p.state = name.back() == '@';
    if (p.optional || p.variadic || p.state) name.pop_back();
    p.name = name;
    out.push_back(p);
  }
  const size_t end = semicolon == std::string::npos ? text.size() : semicolon;
  for (std::string& name : split(text.substr(arrow + 2, end - arrow - 2))) {
    Parameter p;
    p.kind = Parameter::kOutput;
    p.optional = name.back() == '?';
    p.state = name.back() == '@';
    if (p.optional || p.state) name.pop_back();
    p.name = name;
    out.push_back(p);
  }
  if (semicolon == std::string::npos) return out;
  for (std::string& name : split(text.substr(semicolon + 1))) {
    Parameter p;
    p.kind = Parameter::kInt;
    p.variadic = name.back() == '*';
    if (p.variadic) name.pop_back();
    const size_t colon = name.find(':');
    if (colon != std::string::npos) p.kind = name[colon + 1] == 'f' ? Parameter::kReal : Parameter::kText;
    p.name = name.substr(0, colon);
    out.push_back(p);
  }
  return out;
}

std::string match_signature(const char* signature, std::span<const Arg> args) {
  const std::vector<Parameter> parameters = parse_signature(signature);
  const auto mismatch = [&](const std::string& why) { return why + "; the signature is " + signature; };
  // A variadic parameter takes what the others leave: at least one input, any number of ints.
  const size_t fixed = parameters.size() - 1;
  size_t at = 0;
  for (const Parameter& p : parameters) {
    size_t repeat = 1;
    if (p.variadic) {
      repeat = args.size() >= fixed ? args.size() - fixed : 0;
      if (repeat == 0 && p.kind == Parameter::kInput) return mismatch("it has too few arguments");
    }
    for (; repeat > 0; --repeat, ++at) {
      if (at >= args.size()) return mismatch("it has too few arguments");
      const Arg::Kind kind = args[at].kind;
      bool ok = false;
      switch (p.kind) {
        case Parameter::kInput:
        case Parameter::kOutput:
          ok = kind == Arg::kValue || (p.optional && kind == Arg::kAbsent);
          break;
        case Parameter::kInt:
          ok = kind == Arg::kDim || kind == Arg::kInt;
          break;
        case Parameter::kReal:
          ok = kind == Arg::kDouble;
          break;
        case Parameter::kText:
          ok = kind == Arg::kString;
          break;
      }
      if (!ok) return mismatch("argument " + std::to_string(at) + " does not fit '" + p.name + "'");
    }
  }
  return at == args.size() ? "" : mismatch("it has too many arguments");
}

std::vector<const Kernel*> all_kernels() {
  std::vector<const Kernel*> out;
  for (const auto table : {move_kernels(), index_kernels(), reduce_kernels(), rnn_kernels(), matrix_kernels(),
                           attention_kernels(), rope_kernels()})
    for (const Kernel& kernel : table) out.push_back(&kernel);
  return out;
}

const Kernel* find_kernel(std::string_view name) {
  static const std::vector<const Kernel*> kernels = all_kernels();
  for (const Kernel* kernel : kernels)
    if (name == kernel->name) return kernel;
  return nullptr;
}

}  // namespace edgec
