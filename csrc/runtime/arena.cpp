#include "runtime/arena.h"

#include <algorithm>
#include <numeric>

namespace edgec {

size_t layout_arena(std::vector<Lifetime>& items) {
  constexpr size_t kAlign = 64;
  const auto rounded = [](size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; };
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return items[a].bytes > items[b].bytes; });
  std::vector<uint32_t> placed;  // by offset
  size_t total = 0;
  for (const uint32_t i : order) {
    Lifetime& item = items[i];
    if (item.bytes == 0) continue;
    // The tightest gap between those alive at the same time, else their end.
    size_t free_from = 0, best = SIZE_MAX, best_gap = SIZE_MAX;
    for (const uint32_t j : placed) {
      const Lifetime& other = items[j];
      if (other.last < item.first || other.first > item.last) continue;
      if (other.offset >= free_from + item.bytes && other.offset - free_from < best_gap) {
        best = free_from;
        best_gap = other.offset - free_from;
      }
      free_from = std::max(free_from, other.offset + rounded(other.bytes));
    }
    item.offset = best != SIZE_MAX ? best : free_from;
    total = std::max(total, item.offset + rounded(item.bytes));
    const auto at = std::upper_bound(placed.begin(), placed.end(), item.offset,
                                     [&](size_t offset, uint32_t j) { return offset < items[j].offset; });
    placed.insert(at, i);
  }
  return total;
}

}  // namespace edgec
