// int4 and int8 products of many rows: each stretch of a panel is unpacked once, into L1, and every row tile runs over
// it. The including file has Unpack<family> and kUnpackedRows.

template <Family kFamily>
static void linear_unpacked(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                            int64_t panel_end) {
  using U = Unpack<kFamily>;
  constexpr int64_t kTiles = 144 / kUnpackedRows;
  typename U::Block unpacked[U::kDepth];
  alignas(64) float sums[kTiles * kUnpackedRows * kPanel];
  const int64_t stretches = (job.blocks + U::kDepth - 1) / U::kDepth;
  for (; tile_begin < tile_end; tile_begin += kTiles) {
    const int64_t stop = tile_begin + kTiles < tile_end ? tile_begin + kTiles : tile_end;
    const int64_t first_row = job.row(tile_begin), last_row = job.row(stop);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const uint8_t* b = static_cast<const uint8_t*>(job.args.packed) + panel * job.panel_bytes;
      for (int64_t i = 0; i < (last_row - first_row) * kPanel; ++i) sums[i] = 0.0f;
      for (int64_t s = 0; s < stretches; ++s) {
        const int64_t from = s * job.blocks / stretches, to = (s + 1) * job.blocks / stretches;
        U::blocks(b, from, to, job.group_blocks, unpacked);
        // What is unpacked next comes into L2 meanwhile, a share with each tile.
        const uint8_t* ahead = b + to * job.panel_bytes / job.blocks;
        const int64_t step = (to - from) * data_bytes(kFamily) / (stop - tile_begin) + 64;
        for (int64_t tile = tile_begin; tile < stop; ++tile) {
          for (const uint8_t* until = ahead + step; ahead < until; ahead += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
          }
          const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
          const uint8_t* a = job.prepared + (row * job.blocks + from * rows) * U::kRow;
          float* out = sums + (row - first_row) * kPanel;
          switch (rows) {
#define EDGEC_ROWS(n)                                                                   \
  case n:                                                                               \
    if constexpr (n <= kUnpackedRows) U::template tile<n>(a, unpacked, to - from, out); \
    break;
            EDGEC_EACH_OF_12(EDGEC_ROWS)
#undef EDGEC_ROWS
          }
        }
      }
      for (int64_t tile = tile_begin; tile < stop; ++tile) {
        const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
        float* out = sums + (row - first_row) * kPanel;
        if (kFamily == Family::kT4N16K4) apply_exponents(b, rows, out);
        store_tile(job, row, rows, panel, out);
      }
    }
  }
}
