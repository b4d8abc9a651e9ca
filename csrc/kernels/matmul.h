// Product of two activations. B is packed panel by panel into the worker's scratch unless few rows use it.

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

static void matmul_tiles(const MatmulArgs& args, const ParallelFor& pool, void* scratch) {
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
        const bool whole = valid == kPanel && args.alpha == 1.0f;
        f32_rows<false>(rows, a + row * args.a_m, args.a_m, args.a_k, direct ? b : panel, direct ? args.b_k : kPanel,
                        args.k, whole ? y + row * args.y_m : sums, whole ? args.y_m : kPanel);
        if (whole) continue;
        for (int64_t r = 0; r < rows; ++r) {
          float* to = y + (row + r) * args.y_m;
          store_n(to, load(sums + r * kPanel) * args.alpha, valid);
          if (valid > 8) store_n(to + 8, load(sums + r * kPanel + 8) * args.alpha, valid - 8);
        }
      }
    }
  });
}
