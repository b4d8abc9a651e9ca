// int4 and int8 products of few rows: how panels are walked. The including file has stream_blocks<family, rows>,
// kStreamedRows and row_bytes.

// Panels that a thread reads in turn, block by block: each is a stream of its own to the hardware's prefetcher, which a
// single stream leaves half idle (and software prefetch only holds up: docs/kernels.md).
constexpr int kStreams = 4;
constexpr int64_t kStretch = 64;  // blocks that every row tile passes before the next ones are read

// Few rows: weights are used as they arrive, from several panels in turn.
template <Family kFamily>
static void linear_streamed(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                            int64_t panel_end) {
  constexpr int64_t kRowBytes = row_bytes(kFamily), kMaxTiles = 4;
  alignas(64) float totals[kStreams * kMaxTiles * kStreamedRows * kPanel];
  const uint8_t* packed = static_cast<const uint8_t*>(job.args.packed);
  // Each stream walks through panels of its own, one after the other in memory.
  for (; tile_begin < tile_end; tile_begin += kMaxTiles) {
    const int64_t stop = tile_begin + kMaxTiles < tile_end ? tile_begin + kMaxTiles : tile_end;
    const int64_t first = job.row(tile_begin), rows = job.row(stop) - first;
    const int64_t each = (panel_end - panel_begin + kStreams - 1) / kStreams;
    for (int64_t i = 0; i < each; ++i) {
      const uint8_t* panels[kStreams];
      int64_t index[kStreams];
      int count = 0;
      for (int64_t p = panel_begin + i; p < panel_end; p += each) {
        index[count] = p;
        panels[count++] = packed + p * job.panel_bytes;
      }
      for (int64_t j = 0; j < count * rows * kPanel; ++j) totals[j] = 0.0f;
      for (int64_t from = 0; from < job.blocks; from += kStretch) {
        const int64_t to = from + kStretch < job.blocks ? from + kStretch : job.blocks;
        for (int64_t tile = tile_begin; tile < stop; ++tile) {
          const int64_t row = job.row(tile), height = job.row(tile + 1) - row;
          const uint8_t* a = job.prepared + row * job.blocks * kRowBytes;
          float* out = totals + (row - first) * kPanel;
          switch (height) {
#define EDGEC_ROWS(n)                                                                     \
  case n:                                                                                 \
    if constexpr (n <= kStreamedRows)                                                     \
      stream_blocks<kFamily, n>(a, panels, count, from, to, job.group_blocks, out, rows); \
    break;
            EDGEC_EACH_OF_6(EDGEC_ROWS)
#undef EDGEC_ROWS
          }
        }
      }
      for (int s = 0; s < count; ++s) {
        for (int64_t tile = tile_begin; tile < stop; ++tile) {
          const int64_t row = job.row(tile), height = job.row(tile + 1) - row;
          float* sums = totals + (s * rows + row - first) * kPanel;
          if (kFamily == Family::kT4N16K4) apply_exponents(panels[s], height, sums);
          store_tile(job, row, height, index[s], sums);
        }
      }
    }
  }
}
