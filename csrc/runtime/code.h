// code.so, loaded from memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace edgec {

class CodeLibrary {
 public:
  CodeLibrary() = default;
  explicit CodeLibrary(std::span<const std::byte> elf);
  ~CodeLibrary();
  CodeLibrary(const CodeLibrary&) = delete;
  CodeLibrary& operator=(const CodeLibrary&) = delete;

  // Throws Error(kCodeLoad) if there is no such function.
  void* function(const std::string& name) const;

 private:
  void* handle_ = nullptr;
  int fd_ = -1;
};

}  // namespace edgec
