// runtime/code.h without dlopen: maps an ELF or Mach-O library by itself. So one static program runs the code of Linux,
// Android and macOS artifacts under an emulator that has no arm64 system beside it.
#include <elf.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/code.h"
#include "runtime/error.h"

namespace edgec {
namespace {

[[noreturn]] void fail(const std::string& reason) {
  throw Error(Code::kCodeLoad, "code.so", reason, "Build the artifact again");
}

void set_pattern16(void* to, const void* pattern, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<char*>(to)[i] = static_cast<const char*>(pattern)[i % 16];
}
void zero(void* to, size_t bytes) { std::memset(to, 0, bytes); }
void no_stub() { fail("it binds lazily"); }

// What compiled functions may call: what LLVM makes of loops, and math.h.
uint64_t import_of(const std::string& name) {
  using F1 = float (*)(float);
  using F2 = float (*)(float, float);
  using F3 = float (*)(float, float, float);
  using D1 = double (*)(double);
  using D2 = double (*)(double, double);
  using D3 = double (*)(double, double, double);
  static const std::map<std::string, const void*> table = {
#define MATH1(f) {#f "f", reinterpret_cast<const void*>(F1(std::f))}, {#f, reinterpret_cast<const void*>(D1(std::f))},
#define MATH2(f) {#f "f", reinterpret_cast<const void*>(F2(std::f))}, {#f, reinterpret_cast<const void*>(D2(std::f))},
      MATH1(exp) MATH1(exp2) MATH1(expm1) MATH1(log) MATH1(log2) MATH1(log10) MATH1(log1p) MATH1(sin) MATH1(cos)
          MATH1(tan) MATH1(asin) MATH1(acos) MATH1(atan) MATH1(sinh) MATH1(cosh) MATH1(tanh) MATH1(asinh) MATH1(acosh)
              MATH1(atanh) MATH1(erf) MATH1(erfc) MATH1(tgamma) MATH1(lgamma) MATH1(cbrt) MATH1(sqrt) MATH1(floor)
                  MATH1(ceil) MATH1(trunc) MATH1(round) MATH1(rint) MATH1(nearbyint) MATH1(fabs) MATH2(pow) MATH2(fmod)
                      MATH2(atan2) MATH2(fmax) MATH2(fmin) MATH2(hypot) MATH2(copysign)
#undef MATH1
#undef MATH2
                          {"fmaf", reinterpret_cast<const void*>(F3(std::fma))},
      {"fma", reinterpret_cast<const void*>(D3(std::fma))},
      {"memcpy", reinterpret_cast<const void*>(&std::memcpy)},
      {"memmove", reinterpret_cast<const void*>(&std::memmove)},
      {"memset", reinterpret_cast<const void*>(&std::memset)},
      {"bzero", reinterpret_cast<const void*>(&zero)},
      {"memset_pattern16", reinterpret_cast<const void*>(&set_pattern16)},
      {"dyld_stub_binder", reinterpret_cast<const void*>(&no_stub)},
  };
  const auto found = table.find(name);
  if (found == table.end()) fail("it needs '" + name + "', which no library gives");
  return reinterpret_cast<uint64_t>(found->second);
}

// The file: every read is checked.
struct File {
  std::span<const std::byte> bytes;
  template <class T>
  T at(uint64_t offset) const {
    if (offset > bytes.size() || sizeof(T) > bytes.size() - offset) fail("it is cut off");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
  }
  std::span<const std::byte> part(uint64_t offset, uint64_t size) const {
    if (offset > bytes.size() || size > bytes.size() - offset) fail("it is cut off");
    return bytes.subspan(offset, size);
  }
  std::string text(uint64_t offset) const {
    std::string out;
    for (char c; (c = at<char>(offset + out.size())) != '\0';) out += c;
    return out;
  }
};

struct Image {
  std::byte* base = nullptr;
  size_t size = 0;
  std::map<std::string, uint64_t> exports;  // offsets

  ~Image() {
    if (base != nullptr) ::munmap(base, size);
  }
  void reserve(uint64_t bytes) {
    if (bytes == 0 || bytes > (uint64_t{1} << 32)) fail("its size is no size");
    size = bytes;
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail("there is no memory for it");
    base = static_cast<std::byte*>(at);
  }
  void copy(uint64_t to, std::span<const std::byte> from) {
    if (to > size || from.size() > size - to) fail("a segment is out of place");
    if (!from.empty()) std::memcpy(base + to, from.data(), from.size());
  }
  void put(uint64_t to, uint64_t value) {
    if (to > size || size - to < 8) fail("a relocation is out of place");
    std::memcpy(base + to, &value, 8);
  }
  uint64_t get(uint64_t from) const {
    if (from > size || size - from < 8) fail("a relocation is out of place");
    uint64_t value;
    std::memcpy(&value, base + from, 8);
    return value;
  }
  void seal() {
    __builtin___clear_cache(reinterpret_cast<char*>(base), reinterpret_cast<char*>(base + size));
    if (::mprotect(base, size, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) fail("it cannot be made executable");
  }
};

void load_elf(const File& file, Image& image) {
  const auto header = file.at<Elf64_Ehdr>(0);
#if defined(__aarch64__)
  constexpr int kMachine = EM_AARCH64, kRelative = 1027, kGlob = 1025, kJump = 1026, kWord = 257;
#else
  constexpr int kMachine = EM_X86_64, kRelative = 8, kGlob = 6, kJump = 7, kWord = 1;
#endif
  if (header.e_machine != kMachine) fail("it is for another CPU");
  std::vector<Elf64_Phdr> segments;
  uint64_t end = 0;
  for (int i = 0; i < header.e_phnum; ++i) {
    segments.push_back(file.at<Elf64_Phdr>(header.e_phoff + static_cast<uint64_t>(i) * sizeof(Elf64_Phdr)));
    const Elf64_Phdr& s = segments.back();
    if (s.p_type == PT_LOAD) end = std::max(end, s.p_vaddr + s.p_memsz);
  }
  image.reserve(end);
  std::map<int64_t, uint64_t> dynamic;
  for (const Elf64_Phdr& s : segments) {
    if (s.p_type == PT_LOAD) image.copy(s.p_vaddr, file.part(s.p_offset, s.p_filesz));
    for (uint64_t at = 0; s.p_type == PT_DYNAMIC && at < s.p_filesz; at += sizeof(Elf64_Dyn)) {
      const auto entry = file.at<Elf64_Dyn>(s.p_offset + at);
      dynamic.emplace(entry.d_tag, entry.d_un.d_val);
    }
  }
  // Tables are read from the image: their addresses are virtual.
  const File memory{{image.base, image.size}};
  const auto symbol = [&](uint64_t index) {
    return memory.at<Elf64_Sym>(dynamic[DT_SYMTAB] + index * sizeof(Elf64_Sym));
  };
  const auto name = [&](const Elf64_Sym& s) { return memory.text(dynamic[DT_STRTAB] + s.st_name); };
  const auto address = [&](uint64_t index) {
    const Elf64_Sym s = symbol(index);
    return s.st_shndx == SHN_UNDEF ? import_of(name(s)) : reinterpret_cast<uint64_t>(image.base) + s.st_value;
  };
  const auto relocate = [&](uint64_t table, uint64_t bytes) {
    for (uint64_t at = table; at < table + bytes; at += sizeof(Elf64_Rela)) {
      const auto r = memory.at<Elf64_Rela>(at);
      const auto kind = static_cast<int>(ELF64_R_TYPE(r.r_info));
      const auto addend = static_cast<uint64_t>(r.r_addend);
      if (kind == kRelative) {
        image.put(r.r_offset, reinterpret_cast<uint64_t>(image.base) + addend);
      } else if (kind == kGlob || kind == kJump || kind == kWord) {
        image.put(r.r_offset, address(ELF64_R_SYM(r.r_info)) + addend);
      } else {
        fail("it has a relocation of kind " + std::to_string(kind));
      }
    }
  };
  relocate(dynamic[DT_RELA], dynamic[DT_RELASZ]);
  relocate(dynamic[DT_JMPREL], dynamic[DT_PLTRELSZ]);
  // The number of symbols stands in the section headers only.
  for (int i = 0; i < header.e_shnum; ++i) {
    const auto s = file.at<Elf64_Shdr>(header.e_shoff + static_cast<uint64_t>(i) * sizeof(Elf64_Shdr));
    if (s.sh_type != SHT_DYNSYM) continue;
    for (uint64_t k = 0; k < s.sh_size / sizeof(Elf64_Sym); ++k) {
      const Elf64_Sym found = symbol(k);
      if (found.st_shndx != SHN_UNDEF && found.st_value < image.size) image.exports[name(found)] = found.st_value;
    }
  }
}

// Mach-O, as Apple's mach-o/loader.h has it: segments, and LC_DYLD_INFO's rebase and bind programs.
class MachO {
 public:
  MachO(const File& file, Image& image) : file_(file), image_(image) {}

  void load() {
    const auto commands = file_.at<uint32_t>(16);
    uint64_t at = 32, end = 0;
    std::vector<uint64_t> info, symbols;
    for (uint32_t i = 0; i < commands; ++i) {
      const auto kind = file_.at<uint32_t>(at) & 0x7fffffff, size = file_.at<uint32_t>(at + 4);
      if (kind == kSegment) {
        segments_.push_back({file_.at<uint64_t>(at + 24), file_.at<uint64_t>(at + 32), file_.at<uint64_t>(at + 40),
                             file_.at<uint64_t>(at + 48)});
        end = std::max(end, segments_.back().address + segments_.back().size);
      } else if (kind == kDyldInfo) {
        for (uint64_t k = 0; k < 10; ++k) info.push_back(file_.at<uint32_t>(at + 8 + 4 * k));
      } else if (kind == kSymbols) {
        for (uint64_t k = 0; k < 4; ++k) symbols.push_back(file_.at<uint32_t>(at + 8 + 4 * k));
      } else if (kind == kChained) {
        fail("it has chained fixups");
      }
      if (size < 8) fail("it is damaged");
      at += size;
    }
    image_.reserve(end);
    for (const Segment& s : segments_) image_.copy(s.address, file_.part(s.offset, std::min(s.bytes, s.size)));
    if (!info.empty()) {
      run(info[0], info[1], true);   // rebase
      run(info[2], info[3], false);  // bind
      run(info[6], info[7], false);  // lazy: bound at once
    }
    for (uint64_t k = 0; symbols.size() == 4 && k < symbols[1]; ++k) {
      const uint64_t entry = symbols[0] + 16 * k;
      const auto type = file_.at<uint8_t>(entry + 4);
      const auto value = file_.at<uint64_t>(entry + 8);
      std::string name = file_.text(symbols[2] + file_.at<uint32_t>(entry));
      if ((type & 0x0e) == 0x0e && (type & 1) && name.starts_with('_') && value < image_.size)
        image_.exports[name.substr(1)] = value;
    }
  }

 private:
  static constexpr uint32_t kSegment = 0x19, kDyldInfo = 0x22, kSymbols = 0x2, kChained = 0x34;
  struct Segment {
    uint64_t address, size, offset, bytes;
  };

  uint64_t leb(uint64_t& at) const {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = file_.at<uint8_t>(at++);
      if (shift < 64) value |= static_cast<uint64_t>(byte & 127) << shift;
      if (!(byte & 128)) return value;
    }
  }

  // One program of opcodes (high four bits) with immediates (low four).
  void run(uint64_t begin, uint64_t bytes, bool rebase) {
    uint64_t where = 0, addend = 0;
    std::string name;
    const auto apply = [&] {
      image_.put(where, rebase ? image_.get(where) + reinterpret_cast<uint64_t>(image_.base)
                               : import_of(name.starts_with('_') ? name.substr(1) : name) + addend);
      where += 8;
    };
    const auto times = [&](uint64_t count, uint64_t skip) {
      if (count > image_.size) fail("it is damaged");
      for (uint64_t k = 0; k < count; ++k, where += skip) apply();
    };
    const auto segment = [&](uint64_t index, uint64_t& at) {
      if (index >= segments_.size()) fail("it is damaged");
      where = segments_[index].address + leb(at);
    };
    for (uint64_t at = begin; at < begin + bytes;) {
      const auto byte = file_.at<uint8_t>(at++);
      const int op = byte >> 4, imm = byte & 15;
      if (rebase) {
        if (op == 2) {
          segment(static_cast<uint64_t>(imm), at);
        } else if (op == 3) {
          where += leb(at);
        } else if (op == 4) {
          where += 8 * static_cast<uint64_t>(imm);
        } else if (op == 5) {
          times(static_cast<uint64_t>(imm), 0);
        } else if (op == 6) {
          times(leb(at), 0);
        } else if (op == 7) {
          const uint64_t skip = leb(at);
          times(1, skip);
        } else if (op == 8) {
          const uint64_t count = leb(at), skip = leb(at);
          times(count, skip);
        } else if (op > 8) {
          fail("it has an unknown rebase opcode");
        }
        continue;
      }
      if (op == 4) {
        name = file_.text(at);
        at += name.size() + 1;
      } else if (op == 2 || op == 6) {
        const uint64_t value = leb(at);
        if (op == 6) addend = value;
      } else if (op == 7) {
        segment(static_cast<uint64_t>(imm), at);
      } else if (op == 8) {
        where += leb(at);
      } else if (op == 9) {
        times(1, 0);
      } else if (op == 10) {
        const uint64_t skip = leb(at);
        times(1, skip);
      } else if (op == 11) {
        times(1, 8 * static_cast<uint64_t>(imm));
      } else if (op == 12) {
        const uint64_t count = leb(at), skip = leb(at);
        times(count, skip);
      } else if (op == 13) {
        fail("it binds by thread");
      }
    }
  }

  const File& file_;
  Image& image_;
  std::vector<Segment> segments_;
};

}  // namespace

CodeLibrary::CodeLibrary(std::span<const std::byte> code) {
  if (code.empty()) return;
  const File file{code};
  auto image = std::make_unique<Image>();
  const auto magic = file.at<uint32_t>(0);
  if (magic == 0x464c457f) {
    load_elf(file, *image);
  } else if (magic == 0xfeedfacf) {
    MachO(file, *image).load();
  } else {
    fail("it is neither ELF nor Mach-O");
  }
  image->seal();
  handle_ = image.release();
}

CodeLibrary::~CodeLibrary() { delete static_cast<Image*>(handle_); }

void* CodeLibrary::function(const std::string& name) const {
  const auto* image = static_cast<const Image*>(handle_);
  const auto found = image != nullptr ? image->exports.find(name) : decltype(image->exports.find(name)){};
  if (image == nullptr || found == image->exports.end()) fail("it has no function '" + name + "'");
  return image->base + found->second;
}

}  // namespace edgec
