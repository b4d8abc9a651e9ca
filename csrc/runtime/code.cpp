#include "runtime/code.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "runtime/error.h"

namespace edgec {
namespace {

void write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error(Code::kCodeLoad, "code.so", std::string("it cannot be unpacked: ") + std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

}  // namespace

CodeLibrary::CodeLibrary(std::span<const std::byte> elf) {
  if (elf.empty()) return;
  std::string path;
#if defined(__linux__) && defined(MFD_CLOEXEC)
  // The descriptor stays open: dlopen knows libraries by path, and a path used twice would give the first one again.
  fd_ = ::memfd_create("edgec-code", MFD_CLOEXEC);
  if (fd_ >= 0) {
    write_all(fd_, elf);
    path = "/proc/self/fd/" + std::to_string(fd_);
    handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  }
#endif
  if (handle_ == nullptr && (fd_ < 0 || ::access(path.c_str(), R_OK) != 0)) {
    std::string file = (std::filesystem::temp_directory_path() / "edgec-XXXXXX").string();
    const int fd = ::mkstemp(file.data());
    if (fd < 0) throw Error(Code::kCodeLoad, "code.so", "no temporary file can be made for it");
    try {
      write_all(fd, elf);
      handle_ = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    } catch (...) {
      ::close(fd);
      ::unlink(file.c_str());
      throw;
    }
    ::close(fd);
    ::unlink(file.c_str());
  }
  if (handle_ == nullptr) {
    const char* reason = ::dlerror();
    const std::string text = reason != nullptr ? reason : "unknown fault";
    if (fd_ >= 0) ::close(fd_);
    throw Error(Code::kCodeLoad, "code.so", "it does not load: " + text,
                "Build the artifact for this machine's target");
  }
}

CodeLibrary::~CodeLibrary() {
  if (handle_ != nullptr) ::dlclose(handle_);
  if (fd_ >= 0) ::close(fd_);
}

void* CodeLibrary::function(const std::string& name) const {
  void* address = handle_ != nullptr ? ::dlsym(handle_, name.c_str()) : nullptr;
  if (address == nullptr)
    throw Error(Code::kCodeLoad, "code.so", "it has no function '" + name + "'", "Build the artifact again");
  return address;
}

}  // namespace edgec
