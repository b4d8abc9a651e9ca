#include "runtime/expanded.h"

#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "runtime/error.h"

namespace edgec {
namespace {

constexpr size_t kAlign = 64;

struct Stored {
  size_t blocks, inner, lanes;
  const std::byte* scales;
  const int8_t* q;

  size_t floats() const { return blocks * inner * lanes; }
};

// The header and what follows it, if the bytes are exactly that.
Stored parse(std::span<const std::byte> bytes, const std::string& place) {
  const auto fault = [&](const char* why) { throw Error(Code::kPlan, place, why, "Build the artifact again"); };
  std::array<int64_t, 3> head;
  if (bytes.size() < sizeof(head)) fault("its constant is too short");
  std::memcpy(head.data(), bytes.data(), sizeof(head));
  const auto most = static_cast<int64_t>(bytes.size());
  int64_t channels = 0, values = 0;
  for (const int64_t n : head)
    if (n < 1 || n > most) fault("its constant has no such shape");
  if (__builtin_mul_overflow(head[0], head[2], &channels) || channels > most ||
      __builtin_mul_overflow(channels, head[1], &values) || values > most ||
      values + 4 * channels != most - static_cast<int64_t>(sizeof(head)))
    fault("its constant is not of the size that it says");
  const std::byte* scales = bytes.data() + sizeof(head);
  const auto* q = reinterpret_cast<const int8_t*>(scales + 4 * channels);
  return {static_cast<size_t>(head[0]), static_cast<size_t>(head[1]), static_cast<size_t>(head[2]), scales, q};
}

// kLanes: known at compile time, so that it becomes vectors; 0: any number.
template <size_t kLanes>
void expand(const Stored& s, float* __restrict to) {
  const size_t lanes = kLanes ? kLanes : s.lanes;
  std::vector<float> scale(lanes);
  const int8_t* __restrict q = s.q;
  for (size_t b = 0; b < s.blocks; ++b) {
    std::memcpy(scale.data(), s.scales + 4 * b * lanes, 4 * lanes);
    const float* __restrict f = scale.data();
    for (size_t i = 0; i < s.inner; ++i, to += lanes, q += lanes)
      for (size_t r = 0; r < lanes; ++r) to[r] = f[r] * static_cast<float>(q[r]);
  }
}

void expand_any(const Stored& s, float* to) {
  switch (s.lanes) {
    case 4:
      return expand<4>(s, to);
    case 6:
      return expand<6>(s, to);
    case 8:
      return expand<8>(s, to);
    default:
      return expand<0>(s, to);
  }
}

}  // namespace

Expanded::Expanded(const Plan& plan, std::span<const std::byte> weights) {
  std::map<int64_t, std::pair<Stored, size_t>> found;  // and the place in memory
  size_t total = 0;
  for (size_t i = 0; i < plan.values.size(); ++i) {
    const ValueDef& v = plan.values[i];
    if (v.storage != Storage::kExpanded || found.contains(v.a)) continue;
    const std::string place = "plan.bin value " + std::to_string(i);
    const Stored s = parse(weights.subspan(static_cast<size_t>(v.a), static_cast<size_t>(v.b)), place);
    found.emplace(v.a, std::pair{s, total});
    total += (4 * s.floats() + kAlign - 1) / kAlign * kAlign;
    if (total > 4 * (weights.size() + kAlign * found.size()))
      throw Error(Code::kPlan, place, "its constants overlap", "Build the artifact again");
  }
  if (found.empty()) return;
  memory_.reserve(total);
  for (const auto& [offset, entry] : found) {
    auto* to = reinterpret_cast<float*>(memory_.data() + entry.second);
    expand_any(entry.first, to);
    parts_.emplace(offset, Part{to, 4 * entry.first.floats()});
  }
}

}  // namespace edgec
