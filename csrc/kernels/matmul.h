// Product of two activations. B is packed panel by panel into the worker's scratch unless few rows use it.

// Panel of 16 columns from column n: to[k][16], zeros beyond `valid` columns.
static void pack_panel(const float* b, int64_t b_k, int64_t b_n, int64_t depth, int64_t valid, float* to) {
  if (b_n == 1) {
    for (int64_t k = 0; k < depth; ++k, b += b_k, to += kPanel) {
      store(to, load_n(b, valid));
      store(to + 8, valid > 8 ? load_n(b + 8, valid - 8) : splat(0.0f));
    }
    return;
  }
  for (int64_t n = 0; n < kPanel; ++n) {
    const float* from = b + n * b_n;
    for (int64_t k = 0; k < depth; ++k) to[k * kPanel + n] = n < valid ? from[k * b_k] : 0.0f;
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
  if (u.batches * u.panels > 0 && u.batches * u.panels < want && a.m > 2 * kF32Rows) {
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
      const bool direct = args.b_n == 1 && valid == kPanel && last - first <= kF32Rows;
      if (!direct) pack_panel(b, args.b_k, args.b_n, args.k, valid, panel);
      const int64_t tiles = (last - first + kF32Rows - 1) / kF32Rows;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = first + t * (last - first) / tiles, rows = first + (t + 1) * (last - first) / tiles - row;
        f32_rows<false>(rows, a + row * args.a_m, args.a_m, args.a_k, direct ? b : panel, direct ? args.b_k : kPanel,
                        args.k, sums, kPanel);
        for (int64_t r = 0; r < rows; ++r) {
          float* to = y + (row + r) * args.y_m;
          store_n(to, load(sums + r * kPanel) * args.alpha, valid);
          if (valid > 8) store_n(to + 8, load(sums + r * kPanel + 8) * args.alpha, valid - 8);
        }
      }
    }
  });
}
