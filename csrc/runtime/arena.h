// Where temporaries live: greedy by size over their lifetimes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgec {

struct Lifetime {
  size_t bytes = 0;
  int64_t first = 0, last = 0;  // steps, inclusive
  size_t offset = 0;            // set by layout_arena; 64-byte aligned
};

// Sets every offset so that no two of overlapping lifetimes overlap in memory; the arena's size in bytes.
size_t layout_arena(std::vector<Lifetime>& items);

}  // namespace edgec
