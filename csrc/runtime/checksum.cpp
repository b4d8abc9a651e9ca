#include "runtime/checksum.h"

#include <algorithm>
#include <cstring>
#include <system_error>

namespace edgec {
namespace {

constexpr int kLanes = 8;
constexpr size_t kStep = 16 * kLanes, kAhead = 4096;
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
  for (; at + kStep <= bytes.size(); at += kStep) {
    if (at + kAhead + kStep <= bytes.size()) {  // the hardware's own prefetch stops at the end of a page
      __builtin_prefetch(bytes.data() + at + kAhead);
      __builtin_prefetch(bytes.data() + at + kAhead + 64);
    }
    step(bytes.data() + at);
  }
  if (at < bytes.size()) {
    std::byte last[kStep] = {};
    std::memcpy(last, bytes.data() + at, bytes.size() - at);
    step(last);
  }
  uint64_t sum = bytes.size();
  for (int i = 0; i < kLanes; ++i) sum = fold(sum ^ kSecret[i], lanes[i] ^ kSecret[(i + 3) % kLanes]) + lanes[i];
  return sum;
}

Checksums::Checksums(std::span<const std::byte> bytes, size_t piece, int threads)
    : bytes_(bytes), piece_(piece), sums_((bytes.size() + piece - 1) / piece) {
  constexpr int kEnough = 8;  // memory is not read faster by more
  for (int i = 1; i < std::min(threads, kEnough) && static_cast<size_t>(i) < sums_.size(); ++i) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      break;  // who waits does it alone
    }
  }
}

Checksums::~Checksums() {
  next_ = sums_.size();
  for (std::thread& thread : threads_) thread.join();
}

void Checksums::work() {
  for (size_t i; (i = next_.fetch_add(1)) < sums_.size();) {
    const size_t at = i * piece_;
    sums_[i] = checksum(bytes_.subspan(at, std::min(piece_, bytes_.size() - at)));
  }
}

const std::vector<uint64_t>& Checksums::wait() {
  work();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  return sums_;
}

}  // namespace edgec
