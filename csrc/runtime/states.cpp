#include "runtime/states.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/kernels.h"
#include "runtime/error.h"

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

namespace edgec {
namespace {

constexpr size_t kMaxSlotBytes = size_t{1} << 42;
constexpr int64_t kMaxCapacity = int64_t{1} << 31, kMaxSlots = 1 << 16;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Pages::Pages(size_t bytes) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  // One page more that nobody may touch.
  mapped_ = round_up(bytes, page) + page;
  void* at = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED)
    throw Error(Code::kMemory, "", std::to_string(bytes) + " bytes for a sequence's state cannot be reserved",
                "Use fewer slots or a smaller context");
  data_ = static_cast<std::byte*>(at);
  ::mprotect(data_ + (mapped_ - page), page, PROT_NONE);
}

Pages::~Pages() { ::munmap(data_, mapped_); }

States::States(const Plan& plan) : plan_(plan), views_(plan.states.size()) { layout(kDefaultCapacity); }

void States::layout(int64_t capacity) {
  if (capacity < 1 || capacity > kMaxCapacity)
    throw Error(Code::kCall, "", "a context of " + std::to_string(capacity) + " tokens");
  std::vector<StateView> views(plan_.states.size());
  size_t at = 0;
  const size_t tokens = round_up(static_cast<size_t>(capacity), kernels::kPanel);
  for (size_t i = 0; i < views.size(); ++i) {
    const State& s = plan_.states[i];
    StateView& v = views[i];
    v.capacity = static_cast<int64_t>(tokens);
    v.heads = s.heads;
    v.dim = s.dim;
    v.dtype = s.dtype;
    v.keys = s.keys;
    const bool i8 = s.dtype == DType::kI8;
    v.token_bytes = static_cast<size_t>(kernels::cache_bytes(s.dim, s.keys, i8));
    // heads and dim are below 2^24 and tokens below 2^32: no overflow of 128 bits, and the sum is held below 2^42.
    const auto heads = static_cast<unsigned __int128>(s.heads);
    const unsigned __int128 all = heads * tokens * (v.token_bytes + (i8 ? 4 : 0));
    if (all > kMaxSlotBytes || at + static_cast<size_t>(all) > kMaxSlotBytes)
      throw Error(Code::kMemory, "", "states of " + std::to_string(capacity) + " tokens are too large",
                  "Use a smaller context");
    v.head_bytes = tokens * v.token_bytes;
    v.offset = at;
    at = round_up(at + static_cast<size_t>(heads) * v.head_bytes, 64);
    if (i8) {
      v.scales = at;
      at = round_up(at + static_cast<size_t>(heads) * tokens * 4, 64);
    }
  }
  std::ranges::copy(views, views_.begin());  // in place: bindings point to them
  capacity_ = capacity;
  slot_bytes_ = at;
}

States::Slot States::make_slot() const { return {std::make_unique<Pages>(slot_bytes_), 0}; }

void States::reserve(int64_t slots, int64_t capacity) {
  if (slots < 1 || slots > kMaxSlots) throw Error(Code::kCall, "", std::to_string(slots) + " slots");
  if (capacity != capacity_) {
    const int64_t before = capacity_;
    std::vector<Slot> fresh;
    try {
      layout(capacity);
      while (static_cast<int64_t>(fresh.size()) < slots) fresh.push_back(make_slot());
    } catch (...) {
      layout(before);
      throw;
    }
    slots_ = std::move(fresh);
    unnamed_.clear();
    return;
  }
  std::vector<Slot> more;
  while (this->slots() + static_cast<int64_t>(more.size()) < slots) more.push_back(make_slot());
  for (Slot& s : more) slots_.push_back(std::move(s));
  slots_.resize(static_cast<size_t>(slots));
}

const States::Slot& States::slot(int64_t index) const {
  if (index < 0 || index >= slots())
    throw Error(Code::kCall, "", "slot " + std::to_string(index) + " of " + std::to_string(slots()),
                "Reserve more slots first");
  return slots_[static_cast<size_t>(index)];
}

int64_t States::length(int64_t index) const { return slot(index).length; }

void States::set_length(int64_t index, int64_t n) {
  if (n < 0 || n > slot(index).length)
    throw Error(Code::kCall, "",
                "slot " + std::to_string(index) + " holds " + std::to_string(length(index)) + " tokens, not " +
                    std::to_string(n) + " or more");
  slots_[static_cast<size_t>(index)].length = n;
}

void States::copy_slot(int64_t source, int64_t target, int64_t n) {
  const Slot& from = slot(source);
  (void)slot(target);
  if (n < 0 || n > from.length)
    throw Error(Code::kCall, "",
                "slot " + std::to_string(source) + " holds " + std::to_string(from.length) + " tokens, not " +
                    std::to_string(n));
  Slot& to = slots_[static_cast<size_t>(target)];
  if (source != target) {
    const size_t tokens = round_up(static_cast<size_t>(n), kernels::kPanel);  // keys lie in whole panels
    const std::byte* a = from.pages->data();
    std::byte* b = to.pages->data();
    for (const StateView& v : views_) {
      for (size_t head = 0; head < static_cast<size_t>(v.heads); ++head) {
        const size_t at = v.offset + head * v.head_bytes;
        std::memcpy(b + at, a + at, tokens * v.token_bytes);
        const size_t scales = v.scales + head * static_cast<size_t>(v.capacity) * 4;
        if (v.dtype == DType::kI8) std::memcpy(b + scales, a + scales, tokens * 4);
      }
    }
  }
  to.length = n;
}

void States::read(int64_t index, size_t state, float* out) const {
  const Slot& s = slot(index);
  const StateView& v = views_[state];
  kernels::CacheWrite w;
  w.dim = v.dim;
  w.panels = v.keys;
  w.i8 = v.dtype == DType::kI8;
  for (int64_t head = 0; head < v.heads; ++head) {
    w.to = s.pages->data() + v.offset + static_cast<size_t>(head) * v.head_bytes;
    w.scales = reinterpret_cast<float*>(s.pages->data() + v.scales) + head * v.capacity;
    for (int64_t token = 0; token < s.length; ++token)
      for (int64_t d = 0; d < v.dim; ++d) *out++ = kernels::cache_read(w, token, d);
  }
}

int64_t States::longest(const std::vector<int64_t>* slots) const {
  int64_t most = 0;
  if (slots != nullptr)
    for (const int64_t index : *slots) most = std::max(most, length(index));
  return most;
}

void States::begin(const std::vector<int64_t>* slots, int64_t batch, int64_t growth) {
  if (slots != nullptr) {
    if (static_cast<int64_t>(slots->size()) != batch)
      throw Error(Code::kCall, "slots",
                  std::to_string(slots->size()) + " of them for " + std::to_string(batch) + " rows");
    std::vector<int64_t> sorted(*slots);
    std::ranges::sort(sorted);
    if (std::ranges::adjacent_find(sorted) != sorted.end())
      throw Error(Code::kCall, "slots", "two rows of one run have the same slot");
  } else if (batch > kMaxSlots) {
    throw Error(Code::kMemory, "", "a batch of " + std::to_string(batch), "Use fewer rows");
  }
  const int64_t most = longest(slots);
  if (growth < 0 || growth > capacity_ - most)
    throw Error(Code::kContext, "",
                (most > 0 ? std::to_string(growth) + " tokens after " + std::to_string(most)
                          : std::to_string(growth) + " tokens") +
                    ", and the context holds " + std::to_string(capacity_),
                "Shorten the text, or load the model with a larger max_context");
  if (slots == nullptr)
    while (static_cast<int64_t>(unnamed_.size()) < batch) unnamed_.push_back(make_slot());
  bases_.clear();
  lengths_.clear();
  rows_.clear();
  for (size_t row = 0; row < static_cast<size_t>(batch); ++row) {
    if (slots != nullptr) rows_.push_back((*slots)[row]);
    const Slot& s = slots != nullptr ? slots_[static_cast<size_t>(rows_.back())] : unnamed_[row];
    bases_.push_back(s.pages->data());
    lengths_.push_back(s.length);
  }
  growth_ = growth;
  for (StateView& v : views_) {
    v.bases = bases_.data();
    v.lengths = lengths_.data();
    v.rows = batch;
    v.longest = most;
  }
}

void States::commit() {
  for (const int64_t row : rows_) slots_[static_cast<size_t>(row)].length += growth_;
}

}  // namespace edgec
