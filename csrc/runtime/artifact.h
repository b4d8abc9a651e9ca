// A memory-mapped *.edgec: a zip whose members are stored, but for deflated texts. Every offset is checked before it is
// used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace edgec {

class Artifact {
 public:
  // Throws Error(kOpen) or Error(kArchive).
  explicit Artifact(const std::string& path);
  ~Artifact();
  Artifact(const Artifact&) = delete;
  Artifact& operator=(const Artifact&) = delete;

  struct Member {
    std::span<const std::byte> bytes;
    uint32_t crc32;
  };

  const std::map<std::string, Member>& members() const { return members_; }
  // Those that are deflated, as they are in the file: nothing here inflates them.
  const std::map<std::string, Member>& deflated() const { return deflated_; }
  size_t size() const { return size_; }

 private:
  void read_directory();

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::map<std::string, Member> members_, deflated_;
};

}  // namespace edgec
