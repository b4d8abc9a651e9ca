#include "capi/manifest_features.h"

#include "runtime/error.h"

namespace edgec {
namespace {

constexpr int kMaxDepth = 64;

// Walks JSON text without building it; members that nobody asks for are skipped. Escapes in strings stay as they are:
// no name that is compared has one.
class Reader {
 public:
  Reader(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  // member(key) must read exactly one value.
  template <class F>
  void object(F&& member) {
    expect('{');
    if (take('}')) return;
    do {
      const std::string_view key = string();
      expect(':');
      member(key);
    } while (take(','));
    expect('}');
  }

  template <class F>
  void array(F&& element) {
    expect('[');
    if (take(']')) return;
    do element();
    while (take(','));
    expect(']');
  }

  std::string_view string() {
    expect('"');
    const size_t begin = at_;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\') ++at_;
    }
    if (at_ >= text_.size()) fail();
    return text_.substr(begin, at_++ - begin);
  }

  void skip(int depth = 0) {
    if (depth > kMaxDepth) fail();
    switch (peek()) {
      case '{':
        return object([&](std::string_view) { skip(depth + 1); });
      case '[':
        return array([&] { skip(depth + 1); });
      case '"':
        string();
        return;
      default: {  // a number, true, false or null
        const size_t begin = at_;
        while (at_ < text_.size() && std::string_view(",]} \n\r\t").find(text_[at_]) == std::string_view::npos) ++at_;
        if (at_ == begin) fail();
      }
    }
  }

  char peek() {
    while (at_ < text_.size() && std::string_view(" \n\r\t").find(text_[at_]) != std::string_view::npos) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

 private:
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail();
  }
  [[noreturn]] void fail() const {
    throw Error(Code::kManifest, where_ + " manifest.json", "it is malformed at byte " + std::to_string(at_),
                "Copy or build the artifact again");
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

TargetNeeds read_target(std::string_view json, const std::string& where) {
  TargetNeeds found;
  bool there = false;
  Reader reader(json, where);
  reader.object([&](std::string_view key) {
    if (key != "target") return reader.skip();
    there = true;
    reader.object([&](std::string_view field) {
      if (field == "triple") {
        found.triple = reader.string();
      } else if (field == "features") {
        reader.array([&] { found.features.emplace_back(reader.string()); });
      } else {
        reader.skip();
      }
    });
  });
  if (!there || found.triple.empty())
    throw Error(Code::kManifest, where + " manifest.json", "it names no target", "Copy or build the artifact again");
  return found;
}

}  // namespace edgec
