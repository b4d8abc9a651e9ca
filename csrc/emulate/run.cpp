// Runs an artifact, under an emulator: run ARTIFACT THREADS REPEATS REQUEST RESULT [RECORD]. Made by edgec.emulate.
//
// REQUEST: int64 words: parameters, then each (name_bytes, name padded to words, value); inputs in the plan's order,
// each (rank, dims..., bytes padded to words). RESULT: outputs in the plan's order in the same form, with the dtype
// before the rank. RECORD: the first call of each compiled function (class Recorder). A failure prints one line
// "EC1234|where|reason|hint" to stderr and exits with 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <set>
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

// The first call of each function, as int64 words: name bytes, name padded to words, extent, slots, areas (-1: more
// bytes than kLargest), each slot; each area of memory: address, bytes, dtype (-1: scratch), what it held before and
// after the call, padded to words.
class Recorder : public edgec::CallObserver {
 public:
  static constexpr size_t kLargest = size_t{16} << 20;

  explicit Recorder(const char* path) : path_(path), out_(std::fopen(path, "wb")) {
    if (out_ == nullptr) throw Error(Code::kOpen, path_, "it cannot be written");
  }
  void finish() {
    if (std::fclose(out_) != 0) throw Error(Code::kOpen, path_, "it cannot be written");
  }

  void before(const edgec::Step& step, std::span<const edgec::ArgRef> args, std::span<const uint64_t> slots,
              int64_t extent) override {
    areas_.clear();
    if (extent <= 0 || !seen_.insert(step.name).second) return;
    size_t total = 0;
    for (size_t i = 0; i < args.size(); ++i) {
      const edgec::ArgRef& arg = args[i];
      const bool value = arg.kind == edgec::Arg::kValue;
      if (!value && arg.kind != edgec::Arg::kScratch) continue;
      Area area{slots[i],
                value ? arg.tensor.nbytes() : static_cast<size_t>(arg.i),
                value ? static_cast<int64_t>(arg.tensor.dtype) : -1,
                {}};
      if ((total += area.bytes) <= kLargest) area.held.assign(area.data(), area.data() + area.bytes);
      areas_.push_back(std::move(area));
    }
    put(static_cast<int64_t>(step.name.size()));
    put(step.name.data(), step.name.size());
    put(extent);
    put(static_cast<int64_t>(slots.size()));
    put(total <= kLargest ? static_cast<int64_t>(areas_.size()) : -1);
    put(slots.data(), slots.size_bytes());
    if (total > kLargest) areas_.clear();
  }

  void after() override {
    for (const Area& area : areas_) {
      put(static_cast<int64_t>(area.address));
      put(static_cast<int64_t>(area.bytes));
      put(area.dtype);
      put(area.held.data(), area.bytes);
      put(area.data(), area.bytes);
    }
  }

 private:
  struct Area {
    uint64_t address;
    size_t bytes;
    int64_t dtype;
    std::vector<char> held;
    const char* data() const { return reinterpret_cast<const char*>(address); }
  };

  void put(int64_t word) { put(&word, sizeof(word)); }
  void put(const void* data, size_t bytes) {
    constexpr char kZeros[8] = {};
    std::fwrite(data, 1, bytes, out_);
    std::fwrite(kZeros, 1, (8 - bytes % 8) % 8, out_);
  }

  const char* path_;
  std::FILE* out_;
  std::set<std::string> seen_;
  std::vector<Area> areas_;
};

void run(int argc, char** argv) {
  if (argc != 6 && argc != 7)
    throw Error(Code::kValue, "run", "usage: run ARTIFACT THREADS REPEATS REQUEST RESULT [RECORD]");
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
  std::unique_ptr<Recorder> recorder;
  if (argc == 7) {
    recorder = std::make_unique<Recorder>(argv[6]);
    executor.observe(recorder.get());
  }
  for (int i = std::atoi(argv[3]); i > 0; --i) {
    edgec::Binding& bound = executor.bind(shapes, options);
    executor.run(bound, inputs, outputs);
  }
  if (recorder) recorder->finish();
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
