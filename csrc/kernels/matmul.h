// Product of two matrices. B is packed panel by panel into the worker's scratch unless few rows use it; where A does
// not stay in L2 beside it, both are packed block by block.

#if defined(__AVX2__)
// to[i * kPanel + j] = from[j * stride + i] for i, j < 8.
EDGEC_INLINE void transpose8(const float* from, int64_t stride, float* to) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    // Rows i and i + 4 share a register pair: the 128-bit halves are exchanged while loading.
    const float *low = from + i * stride, *high = from + (i + 4) * stride;
    a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    b[i + 2] = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), b[i + 3] = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
    _mm256_storeu_ps(to + (i + 0) * kPanel, _mm256_shuffle_ps(b[i], b[i + 2], 0x44));
    _mm256_storeu_ps(to + (i + 1) * kPanel, _mm256_shuffle_ps(b[i], b[i + 2], 0xee));
    _mm256_storeu_ps(to + (i + 2) * kPanel, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44));
    _mm256_storeu_ps(to + (i + 3) * kPanel, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee));
  }
}
#endif

// Panel of 16 columns from column n: to[k][16], zeros beyond `valid` columns.
static void pack_panel(const float* b, int64_t b_k, int64_t b_n, int64_t depth, int64_t valid, float* to) {
  if (b_n == 1) {
    for (int64_t k = 0; k < depth; ++k, b += b_k, to += kPanel) {
      store(to, load_n(b, valid));
      store(to + 8, valid > 8 ? load_n(b + 8, valid - 8) : splat(0.0f));
    }
    return;
  }
  int64_t done = 0;
#if defined(__AVX2__)
  if (b_k == 1 && valid == kPanel) {
    for (; done + 8 <= depth; done += 8) {
      transpose8(b + done, b_n, to + done * kPanel);
      transpose8(b + 8 * b_n + done, b_n, to + done * kPanel + 8);
    }
  }
#endif
  for (int64_t n = 0; n < kPanel; ++n) {
    const float* from = b + n * b_n;
    for (int64_t k = done; k < depth; ++k) to[k * kPanel + n] = n < valid ? from[k * b_k] : 0.0f;
  }
}

struct MatmulUnits {
  int64_t batches, panels, chunks, chunk_rows;
};
static MatmulUnits matmul_units(const MatmulArgs& a, int workers) {
  MatmulUnits u{1, panels(a.n), 1, a.m};
  for (int i = 0; i < a.batch_rank; ++i) u.batches *= a.batch[i];
  // Too few panels to share among the workers: cut rows too, although each cut packs B again.
  const int64_t want = workers > 1 ? 3 * workers : 1;
  if (u.batches * u.panels > 0 && u.batches * u.panels < want && a.m > kFewRows) {
    u.chunks = (want + u.batches * u.panels - 1) / (u.batches * u.panels);
    u.chunk_rows = (a.m + u.chunks - 1) / u.chunks;
    u.chunk_rows = (u.chunk_rows + kF32Rows - 1) / kF32Rows * kF32Rows;
    u.chunks = (a.m + u.chunk_rows - 1) / u.chunk_rows;
  }
  return u;
}

// Rows [0, rows) of A from column k on, in tiles: to[k][rows of the tile], times alpha.
static void pack_tiles(const MatmulArgs& args, const float* a, int64_t rows, int64_t tiles, int64_t depth, float* to) {
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * rows / tiles, count = (t + 1) * rows / tiles - first;
    const float* from = a + first * args.a_m;
    if (args.a_m == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t r = 0; r < count; ++r) to[k * count + r] = from[k * args.a_k + r] * args.alpha;
      }
    } else {
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = 0; k < depth; ++k) to[k * count + r] = from[r * args.a_m + k * args.a_k] * args.alpha;
      }
    }
    to += count * depth;
  }
}

// The rows of a unit for its next `depth` columns of A, packed or (null) where they lie: panel by panel of B, each
// packed once. onto: y holds a part.
static void matmul_block(const MatmulArgs& args, const float* packed_a, const float* a, const float* b, float* y,
                         int64_t rows, int64_t tiles, int64_t columns, int64_t depth, bool onto, float* panel) {
  alignas(64) float sums[kF32Rows * kPanel];
  for (int64_t n = 0; n < columns; n += kPanel) {
    const int64_t valid = columns - n < kPanel ? columns - n : kPanel;
    pack_panel(b + n * args.b_n, args.b_k, args.b_n, depth, valid, panel);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * rows / tiles, count = (t + 1) * rows / tiles - first;
      const float* tile = packed_a ? packed_a + first * depth : a + first * args.a_m;
      float* to = y + first * args.y_m + n;
      const bool whole = valid == kPanel;
      for (int64_t r = 0; r < count && onto && !whole; ++r) {
        store(sums + r * kPanel, load_n(to + r * args.y_m, valid));
        store(sums + r * kPanel + 8, valid > 8 ? load_n(to + r * args.y_m + 8, valid - 8) : splat(0.0f));
      }
      const auto run = onto ? f32_rows<false, true> : f32_rows<false, false>;
      run(count, tile, packed_a ? 1 : args.a_m, packed_a ? count : 1, panel, kPanel, depth, whole ? to : sums,
          whole ? args.y_m : kPanel);
      for (int64_t r = 0; r < count && !whole; ++r) {
        store_n(to + r * args.y_m, load(sums + r * kPanel), valid);
        if (valid > 8) store_n(to + r * args.y_m + 8, load(sums + r * kPanel + 8), valid - 8);
      }
    }
  }
}

// Large products: a unit is some rows by some columns of y, and goes through the depth in pieces. Each sum runs over
// the depth in order, as in small products.
static void matmul_blocks(const MatmulArgs& args, const ParallelFor& pool, void* scratch) {
  int64_t batches = 1;
  for (int i = 0; i < args.batch_rank; ++i) batches *= args.batch[i];
  const int64_t row_units = (args.m + kMatmulRows - 1) / kMatmulRows;
  const int64_t column_units = (args.n + kMatmulColumns - 1) / kMatmulColumns;
  const bool in_place = args.a_k == 1 && args.alpha == 1.0f;
  parallel(pool, batches * row_units * column_units, 1, [&](int64_t begin, int64_t end, int worker) {
    float* tiles_of_a = static_cast<float*>(scratch) + worker * kMatmulFloats;
    float* panel = tiles_of_a + kMatmulRows * kMatmulDepth;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t column = unit % column_units * kMatmulColumns, row_unit = unit / column_units % row_units;
      const int64_t row = row_unit * args.m / row_units, rows = (row_unit + 1) * args.m / row_units - row;
      const int64_t columns = args.n - column < kMatmulColumns ? args.n - column : kMatmulColumns;
      const int64_t tiles = (rows + kF32Rows - 1) / kF32Rows;
      int64_t rest = unit / column_units / row_units;
      const float *a = args.a + row * args.a_m, *b = args.b + column * args.b_n;
      float* y = args.y + row * args.y_m + column;
      for (int i = args.batch_rank - 1; i >= 0; --i) {
        const int64_t at = rest % args.batch[i];
        rest /= args.batch[i];
        a += at * args.a_batch[i], b += at * args.b_batch[i], y += at * args.y_batch[i];
      }
      for (int64_t k = 0; k < args.k; k += kMatmulDepth) {
        const int64_t depth = args.k - k < kMatmulDepth ? args.k - k : kMatmulDepth;
        const float* from = a + k * args.a_k;
        if (!in_place) pack_tiles(args, from, rows, tiles, depth, tiles_of_a);
        matmul_block(args, in_place ? nullptr : tiles_of_a, from, b + k * args.b_k, y, rows, tiles, columns, depth,
                     args.add || k > 0, panel);
      }
    }
  });
}

static void matmul_tiles(const MatmulArgs& args, const ParallelFor& pool, void* scratch) {
  if (matmul_in_blocks(args)) return matmul_blocks(args, pool, scratch);
  const MatmulUnits u = matmul_units(args, pool.workers);
  const int64_t grain = 1 + kGrainMacs / (1 + u.chunk_rows * kPanel * args.k);
  parallel(pool, u.batches * u.panels * u.chunks, grain, [&](int64_t begin, int64_t end, int worker) {
    float* panel = static_cast<float*>(scratch) + worker * args.k * kPanel;
    float sums[kF32Rows * kPanel];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t chunk = unit % u.chunks, p = unit / u.chunks % u.panels;
      int64_t rest = unit / u.chunks / u.panels;
      const float *a = args.a, *b = args.b + p * kPanel * args.b_n;
      float* y = args.y + p * kPanel;
      for (int i = args.batch_rank - 1; i >= 0; --i) {
        const int64_t at = rest % args.batch[i];
        rest /= args.batch[i];
        a += at * args.a_batch[i], b += at * args.b_batch[i], y += at * args.y_batch[i];
      }
      const int64_t valid = args.n - p * kPanel < kPanel ? args.n - p * kPanel : kPanel;
      const int64_t first = chunk * u.chunk_rows;
      const int64_t last = first + u.chunk_rows < args.m ? first + u.chunk_rows : args.m;
      // Few rows: read in place, for packing would cost more than it saves.
      const bool direct = args.b_n == 1 && valid == kPanel && last - first <= kFewRows;
      if (!direct) pack_panel(b, args.b_k, args.b_n, args.k, valid, panel);
      const int64_t tiles = (last - first + kF32Rows - 1) / kF32Rows;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = first + t * (last - first) / tiles, rows = first + (t + 1) * (last - first) / tiles - row;
        const bool whole = valid == kPanel && args.alpha == 1.0f && !args.add;
        f32_rows<false>(rows, a + row * args.a_m, args.a_m, args.a_k, direct ? b : panel, direct ? args.b_k : kPanel,
                        args.k, whole ? y + row * args.y_m : sums, whole ? args.y_m : kPanel);
        if (whole) continue;
        for (int64_t r = 0; r < rows; ++r) {
          float* to = y + (row + r) * args.y_m;
          for (int64_t c = 0; c < valid; c += 8) {
            const f32x8 more = load(sums + r * kPanel + c) * args.alpha;
            store_n(to + c, args.add ? load_n(to + c, valid - c) + more : more, valid - c);
          }
        }
      }
    }
  });
}
