#include "runtime/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <string>

#include "runtime/error.h"

namespace edgec {

Block::~Block() { std::free(data_); }

void Block::reserve(size_t bytes) {
  if (bytes <= size_ && data_ != nullptr) return;
  constexpr size_t kHuge = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHuge ? kHuge : 64;
  if (bytes > SIZE_MAX / 4) throw Error(Code::kMemory, "", std::to_string(bytes) + " bytes are more than memory has");
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  std::free(data_);
  size_ = 0;
  data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (data_ == nullptr)
    throw Error(Code::kMemory, "", std::to_string(bytes) + " bytes cannot be had", "Use smaller inputs");
#if defined(__linux__)
  if (alignment == kHuge) ::madvise(data_, rounded, MADV_HUGEPAGE);
#endif
  size_ = rounded;
}

}  // namespace edgec
