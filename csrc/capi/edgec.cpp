#include "capi/edgec.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "capi/manifest_features.h"
#include "runtime/artifact.h"
#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/executor.h"
#include "runtime/memory.h"

using edgec::Code;
using edgec::Error;

static_assert(EDGEC_MAX_RANK == edgec::kMaxRank && EDGEC_F64 == static_cast<int>(edgec::DType::kF64));

namespace {

thread_local std::string last_error;

// f's exceptions become a status and a message.
template <class F>
int32_t guarded(F&& f) {
  last_error.clear();
  try {
    f();
    return 0;
  } catch (const Error& e) {
    last_error = "EC" + std::to_string(static_cast<int>(e.code)) + (e.where.empty() ? "" : " " + e.where) + ": " +
                 e.what() + (e.hint.empty() ? "" : ". " + e.hint);
    return static_cast<int32_t>(e.code);
  } catch (const std::bad_alloc&) {
    last_error = "EC1606: there is not enough memory";
    return static_cast<int32_t>(Code::kMemory);
  } catch (const std::exception& e) {
    last_error = std::string("EC1901: ") + e.what();
    return static_cast<int32_t>(Code::kInternal);
  }
}

// CRC-32 of zip (ISO 3309).
uint32_t crc32(std::span<const std::byte> bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (const std::byte b : bytes) crc = table[(crc ^ static_cast<uint32_t>(b)) & 255] ^ (crc >> 8);
  return ~crc;
}

std::span<const std::byte> member(const edgec::Artifact& file, const char* name, const std::string& path, bool needed,
                                  bool check) {
  const auto found = file.members().find(name);
  if (found == file.members().end()) {
    if (!needed) return {};
    throw Error(Code::kArchive, path, std::string("it has no ") + name, "Is it an edgec artifact?");
  }
  if (check && crc32(found->second.bytes) != found->second.crc32)
    throw Error(Code::kDamaged, path + " " + name, "its checksum does not fit", "Copy or build the artifact again");
  return found->second.bytes;
}

void check_target(const edgec::TargetNeeds& needs, const std::string& path) {
#if defined(__x86_64__)
  const bool fits = needs.triple.starts_with("x86_64");
#elif defined(__aarch64__)
  const bool fits = needs.triple.starts_with("aarch64") || needs.triple.starts_with("arm64");
#else
  const bool fits = true;
#endif
#if defined(__APPLE__)
  const bool system = needs.triple.find("apple") != std::string::npos;
#else
  const bool system = needs.triple.find("apple") == std::string::npos;
#endif
  const char* hint = "Build it for this machine's target";
  if (!fits || !system) throw Error(Code::kTarget, path, "it is for " + needs.triple, hint);
  const auto& have = edgec::cpu_features();
  for (const std::string& feature : needs.features) {
    const std::string name = feature.starts_with("+") ? feature.substr(1) : feature;
    if (std::find(have.begin(), have.end(), name) == have.end())
      throw Error(Code::kTarget, path, "this CPU lacks " + name, hint);
  }
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

struct edgec_session {
  explicit edgec_session(const std::string& path) : file(path) {}

  edgec::Artifact file;
  std::unique_ptr<edgec::Executor> executor;
  std::unique_ptr<edgec::Block[]> results;  // of the outputs, kept until the next run

  const edgec::Plan& plan() const { return executor->plan(); }

  void describe(const std::vector<edgec::Port>& ports, int32_t index, edgec_port* port) const {
    if (port == nullptr || index < 0 || static_cast<size_t>(index) >= ports.size())
      throw Error(Code::kValue, "port " + std::to_string(index), "there is none of that number");
    const edgec::Port& p = ports[static_cast<size_t>(index)];
    const edgec::ValueDef& v = plan().values[static_cast<size_t>(p.value)];
    *port = {p.name.c_str(), static_cast<edgec_dtype>(v.dtype), static_cast<int32_t>(v.dims.size()), {}};
    for (size_t i = 0; i < v.dims.size(); ++i) {
      const std::vector<int64_t>& words = plan().exprs[static_cast<size_t>(v.dims[i])];
      port->shape[i] = words.size() == 2 && words[0] == 0 ? words[1] : -1;
    }
  }

  template <class F>
  void with_states(F&& f) {
    const std::lock_guard held(executor->mutex());
    f(executor->states());
  }

  void run(const edgec_run_options* options, const edgec_tensor* inputs, int32_t input_count, edgec_tensor* outputs,
           int32_t output_count) {
    const size_t n = plan().inputs.size(), m = plan().outputs.size();
    if (static_cast<size_t>(input_count) != n || (n > 0 && inputs == nullptr))
      throw Error(Code::kInputName, "", std::to_string(input_count) + " inputs, not " + std::to_string(n));
    if (static_cast<size_t>(output_count) != m || (m > 0 && outputs == nullptr))
      throw Error(Code::kOutputName, "", std::to_string(output_count) + " outputs, not " + std::to_string(m));
    std::vector<std::span<const int64_t>> shapes;
    std::vector<void*> in, out;
    for (size_t i = 0; i < n; ++i) {
      const edgec::ValueDef& v = plan().values[static_cast<size_t>(plan().inputs[i].value)];
      const edgec_tensor& t = inputs[i];
      const std::string where = "input '" + plan().inputs[i].name + "'";
      if (static_cast<int>(t.dtype) != static_cast<int>(v.dtype))
        throw Error(Code::kInputDtype, where, "dtype " + std::to_string(t.dtype) + ", expected " + name_of(v.dtype));
      if (t.rank < 0 || t.rank > EDGEC_MAX_RANK) throw Error(Code::kInputShape, where, "its rank is no rank");
      const int64_t least = t.rank == 0 ? 1 : *std::min_element(t.shape, t.shape + t.rank);
      if (least < 0) throw Error(Code::kInputShape, where, "a negative size");
      if (t.data == nullptr && least > 0) throw Error(Code::kInputShape, where, "its data is NULL");
      if (reinterpret_cast<uintptr_t>(t.data) % edgec::size_of(v.dtype) != 0)
        throw Error(Code::kInputShape, where, "its data is not aligned to its elements");
      shapes.emplace_back(t.shape, static_cast<size_t>(t.rank));
      in.push_back(t.data);
    }
    edgec::Executor::Request request;
    std::vector<int64_t> slots;
    if (options != nullptr && options->slots != nullptr) {
      slots.assign(options->slots, options->slots + std::max(options->slot_count, 0));
      request.slots = &slots;
    }
    for (int32_t i = 0; options != nullptr && i < options->parameter_count; ++i)
      request.parameters.emplace_back(options->parameter_names[i], options->parameter_values[i]);
    const std::lock_guard held(executor->mutex());
    edgec::Binding& binding = executor->bind(shapes, request);
    if (!results) results = std::make_unique<edgec::Block[]>(m);
    for (size_t i = 0; i < m; ++i) {
      const int32_t value = plan().outputs[i].value;
      results[i].reserve(std::max<size_t>(binding.nbytes[static_cast<size_t>(value)], 1));
      out.push_back(results[i].data());
    }
    executor->run(binding, in, out);
    for (size_t i = 0; i < m; ++i) {
      const int32_t value = plan().outputs[i].value;
      const auto shape = binding.shape(value);
      outputs[i] = {results[i].data(),
                    static_cast<edgec_dtype>(plan().values[static_cast<size_t>(value)].dtype),
                    static_cast<int32_t>(shape.size()),
                    {}};
      std::copy(shape.begin(), shape.end(), outputs[i].shape);
    }
  }
};

extern "C" {

int32_t edgec_api_version(void) { return EDGEC_API_VERSION; }

const char* edgec_error(void) { return last_error.c_str(); }

int32_t edgec_open(const char* path, int32_t threads, edgec_session** session) {
  return guarded([&] {
    if (session == nullptr || path == nullptr) throw Error(Code::kValue, "edgec_open", "a pointer is NULL");
    *session = nullptr;
    const std::string name = path;
    auto made = std::make_unique<edgec_session>(name);
    check_target(edgec::read_target(text_of(member(made->file, "manifest.json", name, true, true)), name), name);
    const auto plan = member(made->file, "plan.bin", name, true, true);
    const auto code = member(made->file, "code.so", name, false, true);
    const auto weights = member(made->file, "weights.bin", name, true, false);  // numbers only: none can do harm
    made->executor = std::make_unique<edgec::Executor>(plan, code, weights, threads);
    *session = made.release();
  });
}

void edgec_close(edgec_session* session) { delete session; }

int32_t edgec_input_count(const edgec_session* session) { return static_cast<int32_t>(session->plan().inputs.size()); }

int32_t edgec_output_count(const edgec_session* session) {
  return static_cast<int32_t>(session->plan().outputs.size());
}

int32_t edgec_input(const edgec_session* session, int32_t index, edgec_port* port) {
  return guarded([&] { session->describe(session->plan().inputs, index, port); });
}

int32_t edgec_output(const edgec_session* session, int32_t index, edgec_port* port) {
  return guarded([&] { session->describe(session->plan().outputs, index, port); });
}

int32_t edgec_reserve(edgec_session* session, int64_t slots, int64_t capacity) {
  return guarded([&] { session->with_states([&](edgec::States& states) { states.reserve(slots, capacity); }); });
}

int32_t edgec_length(edgec_session* session, int64_t slot, int64_t* length) {
  return guarded([&] { session->with_states([&](edgec::States& states) { *length = states.length(slot); }); });
}

int32_t edgec_set_length(edgec_session* session, int64_t slot, int64_t n) {
  return guarded([&] { session->with_states([&](edgec::States& states) { states.set_length(slot, n); }); });
}

int32_t edgec_run(edgec_session* session, const edgec_run_options* options, const edgec_tensor* inputs,
                  int32_t input_count, edgec_tensor* outputs, int32_t output_count) {
  return guarded([&] { session->run(options, inputs, input_count, outputs, output_count); });
}
}
