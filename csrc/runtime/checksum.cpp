#include "runtime/checksum.h"

#include <algorithm>
#include <cstring>

#include "runtime/thread_pool.h"

namespace edgec {
namespace {

constexpr int kLanes = 8;
constexpr size_t kStep = 16 * kLanes;
// The first digits of pi's fractional part: odd, and nothing up the sleeve.
constexpr uint64_t kSecret[kLanes] = {0x243f6a8885a308d3, 0x13198a2e03707345, 0xa4093822299f31d1, 0x082efa98ec4e6c89,
                                      0x452821e638d01377, 0xbe5466cf34e90c6d, 0xc0ac29b7c97c50dd, 0x3f84d5b5b5470917};

uint64_t fold(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t word(const std::byte* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

}  // namespace

uint64_t checksum(std::span<const std::byte> bytes) {
  uint64_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = kSecret[kLanes - 1 - i];
  const auto step = [&lanes](const std::byte* p) {
    for (int i = 0; i < kLanes; ++i) lanes[i] = fold(word(p + 16 * i) ^ kSecret[i], word(p + 16 * i + 8) ^ lanes[i]);
  };
  size_t at = 0;
  for (; at + kStep <= bytes.size(); at += kStep) step(bytes.data() + at);
  if (at < bytes.size()) {
    std::byte last[kStep] = {};
    std::memcpy(last, bytes.data() + at, bytes.size() - at);
    step(last);
  }
  uint64_t sum = bytes.size();
  for (int i = 0; i < kLanes; ++i) sum = fold(sum ^ kSecret[i], lanes[i] ^ kSecret[(i + 3) % kLanes]) + lanes[i];
  return sum;
}

std::vector<uint64_t> checksums(std::span<const std::byte> bytes, size_t piece, int threads) {
  std::vector<uint64_t> sums((bytes.size() + piece - 1) / piece);
  ThreadPool::get(threads)->parallel_for(static_cast<int64_t>(sums.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const size_t at = i * piece;
      sums[i] = checksum(bytes.subspan(at, std::min(piece, bytes.size() - at)));
    }
  });
  return sums;
}

}  // namespace edgec
