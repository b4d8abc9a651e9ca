#include "runtime/arena.h"

#include <algorithm>
#include <numeric>

#include "runtime/memory.h"

namespace edgec {

size_t layout_arena(std::vector<Lifetime>& items) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return items[a].bytes > items[b].bytes; });
  // Time in at most 256 slices, each with the placed items alive in it: most items meet few others.
  int64_t steps = 1;
  for (const Lifetime& item : items) steps = std::max(steps, item.last + 1);
  const int64_t width = (steps + 255) / 256;
  std::vector<std::vector<uint32_t>> slices(static_cast<size_t>((steps + width - 1) / width));
  std::vector<uint32_t> neighbours;
  size_t total = 0;
  for (const uint32_t i : order) {
    Lifetime& item = items[i];
    if (item.bytes == 0) continue;
    const int64_t first_slice = item.first / width, last_slice = item.last / width;
    neighbours.clear();
    for (int64_t slice = first_slice; slice <= last_slice; ++slice)
      for (const uint32_t j : slices[static_cast<size_t>(slice)]) {
        const Lifetime& other = items[j];
        const bool counted_here = std::max(other.first / width, first_slice) == slice;
        if (counted_here && other.last >= item.first && other.first <= item.last) neighbours.push_back(j);
      }
    std::sort(neighbours.begin(), neighbours.end(),
              [&](uint32_t a, uint32_t b) { return items[a].offset < items[b].offset; });
    // The tightest gap between those alive at the same time, else their end.
    size_t free_from = 0, best = SIZE_MAX, best_gap = SIZE_MAX;
    for (const uint32_t j : neighbours) {
      const Lifetime& other = items[j];
      if (other.offset >= free_from + item.bytes && other.offset - free_from < best_gap) {
        best = free_from;
        best_gap = other.offset - free_from;
      }
      free_from = std::max(free_from, other.offset + round_up(other.bytes));
    }
    item.offset = best != SIZE_MAX ? best : free_from;
    total = std::max(total, item.offset + round_up(item.bytes));
    for (int64_t slice = first_slice; slice <= last_slice; ++slice) slices[static_cast<size_t>(slice)].push_back(i);
  }
  return total;
}

}  // namespace edgec
