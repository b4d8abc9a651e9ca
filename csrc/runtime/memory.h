// A block of 64-byte aligned memory that grows.
#pragma once

#include <cstddef>

namespace edgec {

inline size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

class Block {
 public:
  Block() = default;
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // At least `bytes`; what was in it is lost when it grows. Throws Error(kMemory).
  void reserve(size_t bytes);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgec
