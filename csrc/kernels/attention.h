// Attention with an online softmax. A unit of work is (batch, kv head, block of query rows); rows of all query heads
// that share the kv head count as rows of one block, so that decoding with grouped heads reads K and V once.

constexpr int64_t kQBlock = 20 * kF32Rows, kKvBlock = 128;

struct AttentionScratch {
  float *q, *keys, *values, *scores, *out, *peak, *total;
};
static int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }
static int64_t attention_floats(const AttentionArgs& a) {
  return kQBlock * a.dim + kKvBlock * a.dim + kKvBlock * padded(a.v_dim) + kF32Rows * kKvBlock +
         kQBlock * padded(a.v_dim) + 2 * kQBlock;
}

// Scores of one row against `count` keys, then their softmax terms in place; the row of the output is rescaled.
static void softmax_row(const AttentionArgs& a, int64_t batch, int64_t head, int64_t position, int64_t kv,
                        int64_t count, float* scores, float* out, float* peak, float* total) {
  if (a.softcap > 0.0f) {
    for (int64_t j = 0; j < count; j += 8) store(scores + j, a.softcap * vtanh(load(scores + j) * (1.0f / a.softcap)));
  }
  if (a.mask) {
    const int64_t* s = a.mask_stride;
    const float* mask = a.mask + batch * s[0] + head * s[1] + position * s[2] + kv * s[3];
    if (s[3] == 1) {
      for (int64_t j = 0; j < count; j += 8) store(scores + j, load(scores + j) + load_n(mask + j, count - j));
    } else {
      for (int64_t j = 0; j < count; ++j) scores[j] += mask[j * s[3]];
    }
  }
  int64_t seen = count;
  if (a.causal) {
    seen = position + a.causal_offset + 1 - kv;
    seen = seen < 0 ? 0 : seen < count ? seen : count;
  }
  const int64_t end = (count + 7) / 8 * 8;
  if (a.window > 0) {
    int64_t hidden = position + a.causal_offset + 1 - a.window - kv;
    hidden = hidden < seen ? hidden : seen;
    for (int64_t j = 0; j < hidden; ++j) scores[j] = -__builtin_inff();
  }
  for (int64_t j = seen; j < end; ++j) scores[j] = -__builtin_inff();
  f32x8 top = splat(*peak);
  for (int64_t j = 0; j < end; j += 8) top = vmax(load(scores + j), top);
  const float high = max_lane(top);
  // All -inf so far: exponentials against 0 give 0, and a row that stays so divides 0 by 0: NaN, as plain softmax has.
  const float base = high == -__builtin_inff() ? 0.0f : high;
  f32x8 added = splat(0.0f);
  for (int64_t j = 0; j < end; j += 8) {
    const f32x8 e = vexp_negative(load(scores + j) - base);
    store(scores + j, e);
    added += e;
  }
  if (high != *peak) {
    const float keep = vexp_negative(splat(*peak - base))[0];
    *total *= keep;
    for (int64_t d = 0; d < padded(a.v_dim); d += 8) store(out + d, load(out + d) * keep);
    *peak = high;
  }
  *total += sum(added);
}

static void attention_block(const AttentionArgs& a, int64_t batch, int64_t kv_head, int64_t first, int64_t rows,
                            const AttentionScratch& s) {
  const int64_t shared = a.heads / a.kv_heads, v_pad = padded(a.v_dim);
  int64_t last_seen = a.kv_len;
  if (a.causal) {
    last_seen = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t seen = (first + r) % a.q_len + a.causal_offset + 1;
      last_seen = seen > last_seen ? seen : last_seen;
    }
    last_seen = last_seen < a.kv_len ? last_seen : a.kv_len;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t head = kv_head * shared + (first + r) / a.q_len, position = (first + r) % a.q_len;
    const float* q = a.q + batch * a.q_stride[0] + head * a.q_stride[1] + position * a.q_stride[2];
    for (int64_t d = 0; d < a.dim; ++d) s.q[r * a.dim + d] = q[d] * a.scale;
    s.peak[r] = -__builtin_inff();
    s.total[r] = 0.0f;
    for (int64_t d = 0; d < v_pad; d += 8) store(s.out + r * v_pad + d, splat(0.0f));
  }
  for (int64_t kv = 0; kv < last_seen; kv += kKvBlock) {
    const int64_t count = last_seen - kv < kKvBlock ? last_seen - kv : kKvBlock;
    const float* keys = a.k + batch * a.k_stride[0] + kv_head * a.k_stride[1] + kv * a.k_stride[2];
    const float* values = a.v + batch * a.v_stride[0] + kv_head * a.v_stride[1] + kv * a.v_stride[2];
    for (int64_t n = 0; n < count; n += kPanel) {
      const int64_t valid = count - n < kPanel ? count - n : kPanel;
      pack_panel(keys + n * a.k_stride[2], 1, a.k_stride[2], a.dim, valid, s.keys + n * a.dim);
    }
    // V in place when few rows use it; packed otherwise, since its rows' stride may map them all to a few cache sets.
    const bool packed = rows > 2 * kF32Rows;
    for (int64_t d = packed ? 0 : a.v_dim / kPanel * kPanel; d < a.v_dim; d += kPanel) {
      const int64_t valid = a.v_dim - d < kPanel ? a.v_dim - d : kPanel;
      pack_panel(values + d, a.v_stride[2], 1, count, valid, s.values + d * kKvBlock);
    }
    for (int64_t r = 0; r < rows; r += kF32Rows) {
      const int64_t mr = rows - r < kF32Rows ? rows - r : kF32Rows;
      for (int64_t n = 0; n < count; n += kPanel) {
        f32_rows<false>(mr, s.q + r * a.dim, a.dim, 1, s.keys + n * a.dim, kPanel, a.dim, s.scores + n, kKvBlock);
      }
      for (int64_t i = 0; i < mr; ++i) {
        const int64_t row = first + r + i;
        softmax_row(a, batch, kv_head * shared + row / a.q_len, row % a.q_len, kv, count, s.scores + i * kKvBlock,
                    s.out + (r + i) * v_pad, s.peak + r + i, s.total + r + i);
      }
      for (int64_t d = 0; d < a.v_dim; d += kPanel) {
        const bool direct = !packed && a.v_dim - d >= kPanel;
        f32_rows<true>(mr, s.scores, kKvBlock, 1, direct ? values + d : s.values + d * kKvBlock,
                       direct ? a.v_stride[2] : kPanel, count, s.out + r * v_pad + d, v_pad);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t head = kv_head * shared + (first + r) / a.q_len, position = (first + r) % a.q_len;
    float* out = a.out + batch * a.out_stride[0] + head * a.out_stride[1] + position * a.out_stride[2];
    const f32x8 inverse = splat(a.kv_len ? 1.0f / s.total[r] : 0.0f);
    for (int64_t d = 0; d < a.v_dim; d += 8) store_n(out + d, load(s.out + r * v_pad + d) * inverse, a.v_dim - d);
  }
}

// The arguments of one row of the batch, its cache taken as k and v.
static AttentionArgs row_args(const AttentionArgs& a, int64_t batch) {
  AttentionArgs r = a;
  if (!a.cache) return r;
  const CacheRows& c = *a.cache;
  r.kv_len = c.lengths[batch] + c.growth;
  r.causal_offset = r.kv_len - a.q_len;
  r.k = reinterpret_cast<const float*>(c.bases[batch] + c.k_offset);
  r.v = reinterpret_cast<const float*>(c.bases[batch] + c.v_offset);
  r.k_stride[0] = r.v_stride[0] = 0;
  return r;
}

static void attention_heads(const AttentionArgs& a, const ParallelFor& pool, void* scratch) {
  const int64_t rows = a.heads / a.kv_heads * a.q_len;
  // Enough blocks for the workers, unless a block would have less than a tile.
  int64_t block = kQBlock;
  while (block > kF32Rows && a.batch * a.kv_heads * ((rows + block - 1) / block) < 2 * pool.workers) block -= kF32Rows;
  const int64_t blocks = (rows + block - 1) / block;
  block = ((rows + blocks - 1) / blocks + kF32Rows - 1) / kF32Rows * kF32Rows;  // of equal height
  const int64_t grain = 1 + kGrainMacs / (1 + block * a.kv_len * (a.dim + a.v_dim));
  parallel(pool, a.batch * a.kv_heads * blocks, grain, [&](int64_t begin, int64_t end, int worker) {
    AttentionScratch s;
    float* at = static_cast<float*>(scratch) + worker * attention_floats(a);
    const int64_t v_pad = padded(a.v_dim);
    s.q = at, at += kQBlock * a.dim;
    s.keys = at, at += kKvBlock * a.dim;
    s.values = at, at += kKvBlock * v_pad;
    s.scores = at, at += kF32Rows * kKvBlock;
    s.out = at, at += kQBlock * v_pad;
    s.peak = at, s.total = at + kQBlock;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % blocks * block, head = unit / blocks % a.kv_heads;
      const int64_t batch = unit / blocks / a.kv_heads;
      attention_block(row_args(a, batch), batch, head, first, rows - first < block ? rows - first : block, s);
    }
  });
}
