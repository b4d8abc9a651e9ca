#include "runtime/artifact.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "runtime/error.h"

namespace edgec {
namespace {

constexpr uint32_t kEndSignature = 0x06054b50, kEnd64Signature = 0x06064b50, kLocator64Signature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50, kLocalSignature = 0x04034b50;
constexpr size_t kEndSize = 22, kEntrySize = 46, kLocalSize = 30, kEnd64Size = 56, kLocatorSize = 20;

}  // namespace

Artifact::Artifact(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error(Code::kOpen, path, std::string("it cannot be opened: ") + std::strerror(errno));
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw Error(Code::kOpen, path, "it is no file");
  }
  size_ = static_cast<size_t>(info.st_size);
  void* map = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int fault = errno;
  ::close(fd);
  if (size_ == 0) throw Error(Code::kArchive, path, "it is empty");
  if (map == MAP_FAILED) throw Error(Code::kOpen, path, std::string("it cannot be mapped: ") + std::strerror(fault));
  data_ = static_cast<const std::byte*>(map);
  try {
    read_directory();
  } catch (...) {
    ::munmap(map, size_);
    throw;
  }
}

Artifact::~Artifact() { ::munmap(const_cast<std::byte*>(data_), size_); }

void Artifact::read_directory() {
  const auto fault = [&](const std::string& reason) {
    throw Error(Code::kArchive, path_, reason, "Copy or build the artifact again");
  };
  const auto room = [&](uint64_t at, uint64_t bytes) { return at <= size_ && bytes <= size_ - at; };
  const auto number = [&](uint64_t at, size_t bytes) {
    uint64_t value = 0;
    std::memcpy(&value, data_ + at, bytes);
    return value;
  };
  if (size_ < kEndSize) fault("it is too short for an artifact");
  // edgec writes no archive comment, so the end record is at the very end.
  const size_t end = size_ - kEndSize;
  if (number(end, 4) != kEndSignature) fault("it is no edgec artifact, or it is cut off");
  uint64_t entries = number(end + 10, 2), bytes = number(end + 12, 4), at = number(end + 16, 4);
  if (end >= kLocatorSize && number(end - kLocatorSize, 4) == kLocator64Signature) {
    const uint64_t end64 = number(end - kLocatorSize + 8, 8);
    if (!room(end64, kEnd64Size) || number(end64, 4) != kEnd64Signature) fault("its zip64 record is out of place");
    entries = number(end64 + 32, 8);
    bytes = number(end64 + 40, 8);
    at = number(end64 + 48, 8);
  }
  if (!room(at, bytes) || entries > bytes / kEntrySize) fault("its directory is out of place");
  const uint64_t directory = at, stop = at + bytes;
  for (uint64_t i = 0; i < entries; ++i) {
    if (stop - at < kEntrySize || number(at, 4) != kEntrySignature) fault("its directory is damaged");
    const uint64_t method = number(at + 10, 2), name_size = number(at + 28, 2), extra_size = number(at + 30, 2);
    const uint64_t flags = number(at + 8, 2), comment_size = number(at + 32, 2);
    uint64_t packed = number(at + 20, 4), size = number(at + 24, 4), local = number(at + 42, 4);
    if (stop - at - kEntrySize < name_size + extra_size + comment_size) fault("its directory is damaged");
    const auto crc = static_cast<uint32_t>(number(at + 16, 4));
    const std::string name(reinterpret_cast<const char*>(data_ + at + kEntrySize), name_size);
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < 127; }))
      fault("a member has a damaged name");
    // zip64 extra field: those of size, packed size, offset that do not fit 32 bits, in this order.
    for (uint64_t x = at + kEntrySize + name_size, last = x + extra_size; last - x >= 4;) {
      const uint64_t id = number(x, 2), length = number(x + 2, 2);
      x += 4;
      if (length > last - x) fault("member '" + name + "' has a damaged extra field");
      uint64_t field = x;
      for (uint64_t* value : {&size, &packed, &local}) {
        if (id != 1 || *value != 0xffffffff) continue;
        if (x + length - field < 8) fault("member '" + name + "' has a damaged extra field");
        *value = number(field, 8);
        field += 8;
      }
      x += length;
    }
    const bool deflated = method == 8;
    if ((method != 0 && !deflated) || (flags & 1) != 0) fault("member '" + name + "' is compressed in another way");
    if (!deflated && packed != size) fault("member '" + name + "' has two sizes");
    if (!room(local, kLocalSize) || number(local, 4) != kLocalSignature) fault("member '" + name + "' is out of place");
    const uint64_t begin = local + kLocalSize + number(local + 26, 2) + number(local + 28, 2);
    if (begin > directory || packed > directory - begin) fault("member '" + name + "' is out of place");
    const bool twice = members_.contains(name) || deflated_.contains(name);
    if (twice) fault("member '" + name + "' is there twice");
    (deflated ? deflated_ : members_).emplace(name, Member{std::span(data_ + begin, packed), crc});
    at += kEntrySize + name_size + extra_size + comment_size;
  }
}

}  // namespace edgec
