// Runs an artifact once, under an emulator: run ARTIFACT THREADS REPEATS REQUEST RESULT. Made by edgec.emulate.
//
// REQUEST: int64 words: parameters, then each (name_bytes, name padded to words, value); inputs in the plan's order,
// each (rank, dims..., bytes padded to words). RESULT: outputs in the plan's order in the same form, with the dtype
// before the rank. A failure prints one line "EC1234|where|reason|hint" to stderr and exits with 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/artifact.h"
#include "runtime/error.h"
#include "runtime/executor.h"
#include "runtime/memory.h"

namespace {

using edgec::Code;
using edgec::Error;

struct Request {
  std::vector<int64_t> words;
  size_t at = 0;

  explicit Request(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) throw Error(Code::kOpen, path, "it cannot be opened");
    std::fseek(file, 0, SEEK_END);
    words.resize(static_cast<size_t>(std::ftell(file)) / 8);
    std::rewind(file);
    const size_t got = std::fread(words.data(), 8, words.size(), file);
    std::fclose(file);
    if (got != words.size()) throw Error(Code::kOpen, path, "it cannot be read");
  }
  int64_t word() { return *take(1); }
  int64_t* take(size_t n) {
    if (n > words.size() - at) throw Error(Code::kOpen, "the request", "it is cut off");
    at += n;
    return words.data() + at - n;
  }
};

void run(int argc, char** argv) {
  if (argc != 6) throw Error(Code::kValue, "run", "usage: run ARTIFACT THREADS REPEATS REQUEST RESULT");
  const edgec::Artifact file(argv[1]);
  const auto member = [&](const char* name) {
    const auto found = file.members().find(name);
    return found == file.members().end() ? std::span<const std::byte>() : found->second.bytes;
  };
  edgec::Executor executor(member("plan.bin"), member("code.so"), member("weights.bin"), std::atoi(argv[2]));
  const edgec::Plan& plan = executor.plan();
  Request request(argv[4]);
  edgec::Executor::Request options;
  for (int64_t i = request.word(); i > 0; --i) {
    const auto bytes = static_cast<size_t>(request.word());
    const std::string name(reinterpret_cast<const char*>(request.take((bytes + 7) / 8)), bytes);
    options.parameters.emplace_back(name, request.word());
  }
  std::vector<std::span<const int64_t>> shapes;
  std::vector<void*> inputs, outputs;
  for (const edgec::Port& port : plan.inputs) {
    const auto rank = static_cast<size_t>(request.word());
    shapes.emplace_back(request.take(rank), rank);
    size_t bytes = edgec::size_of(plan.values[static_cast<size_t>(port.value)].dtype);
    for (const int64_t d : shapes.back()) bytes *= static_cast<size_t>(d);
    inputs.push_back(request.take((bytes + 7) / 8));
  }
  edgec::Binding& binding = executor.bind(shapes, options);
  std::vector<std::unique_ptr<edgec::Block>> results;
  for (const edgec::Port& port : plan.outputs) {
    results.push_back(std::make_unique<edgec::Block>());
    results.back()->reserve((binding.nbytes[static_cast<size_t>(port.value)] + 15) / 8 * 8);
    outputs.push_back(results.back()->data());
  }
  for (int i = std::atoi(argv[3]); i > 0; --i) {
    edgec::Binding& bound = executor.bind(shapes, options);
    executor.run(bound, inputs, outputs);
  }
  std::FILE* out = std::fopen(argv[5], "wb");
  if (out == nullptr) throw Error(Code::kOpen, argv[5], "it cannot be written");
  const auto put = [&](const void* data, size_t words) { std::fwrite(data, 8, words, out); };
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    const int32_t value = plan.outputs[i].value;
    const auto shape = binding.shape(value);
    const int64_t head[] = {static_cast<int64_t>(plan.values[static_cast<size_t>(value)].dtype),
                            static_cast<int64_t>(shape.size())};
    put(head, 2);
    put(shape.data(), shape.size());
    put(outputs[i], (binding.nbytes[static_cast<size_t>(value)] + 7) / 8);
  }
  if (std::fclose(out) != 0) throw Error(Code::kOpen, argv[5], "it cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "EC%d|%s|%s|%s\n", static_cast<int>(e.code), e.where.c_str(), e.what(), e.hint.c_str());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "EC1901||%s|\n", e.what());
  }
  return 1;
}
