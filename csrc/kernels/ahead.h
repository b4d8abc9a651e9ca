// What threads that wait fetch into their caches meanwhile: the weights that they will read first in the next product.
#pragma once

#include <cstdint>

namespace edgec::kernels {

// Worker w reads `streams` stretches of `bytes` each, which begin at data + w * share + s * apart.
struct Ahead {
  const uint8_t* data = nullptr;
  int64_t share = 0, apart = 0, bytes = 0;
  int streams = 0;

  // Lines [from, from + 64) of each stream. False: there is nothing left.
  bool fetch(int worker, int64_t from) const {
    if (from >= bytes) return false;
    for (int s = 0; s < streams; ++s) __builtin_prefetch(data + worker * share + s * apart + from, 0, 2);
    return true;
  }
};

}  // namespace edgec::kernels
