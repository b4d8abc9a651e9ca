// What a session keeps from run to run: for each slot (a sequence) one block of memory that holds all states of a plan,
// reserved for the whole context and touched as the sequence grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/plan.h"

namespace edgec {

// One state as a kernel sees it: a row's head is at bases[row] + offset + head * head_bytes, laid out as
// csrc/kernels/cache.h says.
struct StateView {
  std::byte* const* bases = nullptr;  // of the batch's rows
  const int64_t* lengths = nullptr;   // tokens that each held before this run
  int64_t rows = 0, longest = 0, capacity = 0 /* whole panels */, heads = 0, dim = 0;
  DType dtype = DType::kF32;
  bool keys = false;
  size_t offset = 0, head_bytes = 0, token_bytes = 0;
  size_t scales = 0;  // i8: f32 scales [heads][capacity], from the row's base on

  std::byte* at(int64_t row, int64_t head) const {
    return bases[row] + offset + static_cast<size_t>(head) * head_bytes;
  }
  float* scales_at(int64_t row, int64_t head) const {
    return reinterpret_cast<float*>(bases[row] + scales) + head * capacity;
  }
};

// Pages that are reserved first and used when they are written to.
class Pages {
 public:
  explicit Pages(size_t bytes);  // throws Error(kMemory)
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t mapped_ = 0;
};

class States {
 public:
  static constexpr int64_t kDefaultCapacity = 4096;

  explicit States(const Plan& plan);

  int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
  int64_t capacity() const { return capacity_; }

  // Keeps the sequences unless the capacity changes. Throws Error(kCall, kMemory), and nothing has changed then.
  void reserve(int64_t slots, int64_t capacity);

  int64_t length(int64_t slot) const;
  // Forgets all but the first n tokens.
  void set_length(int64_t slot, int64_t n);
  // The first n tokens of `source` become `target`'s content.
  void copy_slot(int64_t source, int64_t target, int64_t n);

  // All tokens of a slot's state as f32: out [heads, length, dim].
  void read(int64_t slot, size_t state, float* out) const;

  // The longest of these slots (null: no slots; every row starts empty).
  int64_t longest(const std::vector<int64_t>* slots) const;

  // Chooses the rows of the next run. Throws Error(kCall, kContext, kMemory).
  void begin(const std::vector<int64_t>* slots, int64_t batch, int64_t growth);
  // The rows have grown, unless they were no slots.
  void commit();

  const StateView& view(size_t state) const { return views_[state]; }

 private:
  struct Slot {
    std::unique_ptr<Pages> pages;
    int64_t length = 0;
  };
  void layout(int64_t capacity);
  Slot make_slot() const;
  const Slot& slot(int64_t index) const;

  const Plan& plan_;
  int64_t capacity_ = 0;
  size_t slot_bytes_ = 0;
  std::vector<Slot> slots_, unnamed_;  // unnamed: rows of runs without slots
  std::vector<StateView> views_;
  std::vector<int64_t> rows_;  // slots of the run under way; empty: unnamed ones
  std::vector<std::byte*> bases_;
  std::vector<int64_t> lengths_;
  int64_t growth_ = 0;
};

}  // namespace edgec
