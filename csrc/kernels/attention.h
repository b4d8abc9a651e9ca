// Attention with an online softmax. A unit of work is (batch, kv head, block of query rows, stretch of the keys); rows
// of all query heads that share the kv head count as rows of one block, so that K and V are read once for them all.
// Cached keys lie in panels of 16 tokens (cache.h), the form of a product's right operand: nothing is packed.

constexpr int64_t kQBlock = 240, kKvBlock = 128, kSplitKeys = 64;
static_assert(kQBlock % kF32Rows == 0);

// Keys and values of one head of one row of the batch.
struct KvHead {
  const float *k, *v;  // or:
  const int8_t *k8, *v8;
  const float *k_scale, *v_scale;
  int64_t k_stride, v_stride;  // between tokens; k's only where it is not in panels
  bool panels;
  int64_t len, offset;  // query i stands at position i + offset
};

static KvHead kv_head_of(const AttentionArgs& a, int64_t batch, int64_t head) {
  KvHead h = {};
  if (!a.cache) {
    h.k = a.k + batch * a.k_stride[0] + head * a.k_stride[1];
    h.v = a.v + batch * a.v_stride[0] + head * a.v_stride[1];
    h.k_stride = a.k_stride[2], h.v_stride = a.v_stride[2];
    h.len = a.kv_len, h.offset = a.causal_offset;
    return h;
  }
  const CacheRows& c = *a.cache;
  const std::byte* base = c.bases[batch];
  h.panels = true, h.v_stride = a.v_dim;
  h.len = c.lengths[batch] + c.growth, h.offset = h.len - a.q_len;
  if (c.i8) {
    h.k8 = reinterpret_cast<const int8_t*>(base + c.k_offset) + head * c.capacity * quads(a.dim) * 4;
    h.v8 = reinterpret_cast<const int8_t*>(base + c.v_offset) + head * c.capacity * a.v_dim;
    h.k_scale = reinterpret_cast<const float*>(base + c.k_scales) + head * c.capacity;
    h.v_scale = reinterpret_cast<const float*>(base + c.v_scales) + head * c.capacity;
  } else {
    h.k = reinterpret_cast<const float*>(base + c.k_offset) + head * c.capacity * a.dim;
    h.v = reinterpret_cast<const float*>(base + c.v_offset) + head * c.capacity * a.v_dim;
  }
  return h;
}

static int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// How the work is cut.
struct AttentionCut {
  int64_t rows, block, blocks, splits;
};
static AttentionCut cut_attention(const AttentionArgs& a, int workers) {
  AttentionCut c{a.heads / a.kv_heads * a.q_len, kQBlock, 1, 1};
  if (c.rows < kQBlock) c.block = (c.rows + kF32Rows - 1) / kF32Rows * kF32Rows;
  const int64_t heads = a.batch * a.kv_heads;
  if (c.rows == 0 || heads == 0) return {0, kF32Rows, 0, 1};
  // Enough blocks for the workers, unless a block would have less than a tile.
  while (c.block > kF32Rows && heads * ((c.rows + c.block - 1) / c.block) < 2 * workers) c.block -= kF32Rows;
  c.blocks = (c.rows + c.block - 1) / c.block;
  c.block = ((c.rows + c.blocks - 1) / c.blocks + kF32Rows - 1) / kF32Rows * kF32Rows;  // of equal height
  const int64_t units = heads * c.blocks, want = (3 * workers + units - 1) / units;
  if (workers > 1 && c.rows <= kFewRows) c.splits = want < a.kv_len / kSplitKeys ? want : a.kv_len / kSplitKeys;
  c.splits = c.splits < 1 ? 1 : c.splits;
  return c;
}

struct AttentionScratch {
  float *q, *q_scale, *keys, *values, *scores, *out, *peak, *total;
  int32_t* position;
  int16_t* q16;
};
static int64_t worker_floats(const AttentionArgs& a, const AttentionCut& c) {
  return c.block * (a.dim + padded(a.v_dim) + 4 + quads(a.dim) * 2) + kKvBlock * (a.dim + padded(a.v_dim) + kF32Rows);
}
static int64_t part_floats(const AttentionArgs& a, const AttentionCut& c) { return c.block * (padded(a.v_dim) + 2); }
static int64_t attention_floats(const AttentionArgs& a, int workers) {
  const AttentionCut c = cut_attention(a, workers);
  const int64_t parts = c.splits > 1 ? a.batch * a.kv_heads * c.blocks * c.splits : 0;
  return workers * worker_floats(a, c) + parts * part_floats(a, c);
}
static AttentionScratch lay_out(const AttentionArgs& a, const AttentionCut& c, float* at) {
  AttentionScratch s;
  s.q = at, at += c.block * a.dim;
  s.out = at, at += c.block * padded(a.v_dim);
  s.peak = at, at += c.block;
  s.total = at, at += c.block;
  s.q_scale = at, at += c.block;
  s.position = reinterpret_cast<int32_t*>(at), at += c.block;
  s.q16 = reinterpret_cast<int16_t*>(at), at += c.block * quads(a.dim) * 2;
  s.keys = at, at += kKvBlock * a.dim;
  s.values = at, at += kKvBlock * padded(a.v_dim);
  s.scores = at;
  return s;
}

// Scores of one row against `count` keys, then their softmax terms in place; the row of the output is rescaled. Only
// keys [first, last) are seen.
static void softmax_row(const AttentionArgs& a, const float* mask, int64_t count, int64_t first, int64_t last,
                        float* scores, float* out, float* peak, float* total) {
  if (a.softcap > 0.0f) {
    for (int64_t j = 0; j < count; j += 8) store(scores + j, a.softcap * vtanh(load(scores + j) * (1.0f / a.softcap)));
  }
  if (mask) {
    const int64_t stride = a.mask_stride[3];
    if (stride == 1) {
      for (int64_t j = 0; j < count; j += 8) store(scores + j, load(scores + j) + load_n(mask + j, count - j));
    } else {
      for (int64_t j = 0; j < count; ++j) scores[j] += mask[j * stride];
    }
  }
  const int64_t end = (count + 7) / 8 * 8;
  for (int64_t j = 0; j < first; ++j) scores[j] = -__builtin_inff();
  for (int64_t j = last; j < end; ++j) scores[j] = -__builtin_inff();
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

#include "kernels/attention_few.h"

// A block's keys as f32 panels, and columns [from, v_dim) of its values as panels of 16 columns, those of 8 bits
// without their scales.
static const float* block_keys(const AttentionArgs& a, const KvHead& h, int64_t kv, int64_t count, float* to) {
  if (h.panels && h.k) return h.k + kv * a.dim;
  for (int64_t n = 0; n < count; n += kPanel) {
    const int64_t valid = count - n < kPanel ? count - n : kPanel;
    pack_panel(h.k + (kv + n) * h.k_stride, 1, h.k_stride, a.dim, valid, to + n * a.dim);
  }
  return to;
}
static void pack_values(const AttentionArgs& a, const KvHead& h, int64_t kv, int64_t count, int64_t from, float* to) {
  for (int64_t d = from; d < a.v_dim; d += kPanel) {
    const int64_t valid = a.v_dim - d < kPanel ? a.v_dim - d : kPanel;
    float* panel = to + d * kKvBlock;
    if (!h.v8) {
      pack_panel(h.v + kv * h.v_stride + d, h.v_stride, 1, count, valid, panel);
      continue;
    }
    for (int64_t t = 0; t < count; ++t, panel += kPanel) {
      const int8_t* v = h.v8 + (kv + t) * h.v_stride + d;
      if (valid == kPanel) {
        store(panel, floats_of(v));
        store(panel + 8, floats_of(v + 8));
      } else {
        for (int64_t i = 0; i < kPanel; ++i) panel[i] = i < valid ? static_cast<float>(v[i]) : 0.0f;
      }
    }
  }
}

// The rows' queries, scaled; in 16 bits as well where the keys are of 8 bits.
static void prepare_rows(const AttentionArgs& a, const KvHead& h, int64_t batch, int64_t kv_head, int64_t first,
                         int64_t rows, const AttentionScratch& s) {
  const int64_t shared = a.heads / a.kv_heads, v_pad = padded(a.v_dim), quad_count = quads(a.dim);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t head = kv_head * shared + (first + r) / a.q_len, position = (first + r) % a.q_len;
    const float* from = a.q + batch * a.q_stride[0] + head * a.q_stride[1] + position * a.q_stride[2];
    float* q = s.q + r * a.dim;
    for (int64_t d = 0; d < a.dim; ++d) q[d] = from[d] * a.scale;
    s.position[r] = static_cast<int32_t>(position);
    s.peak[r] = -__builtin_inff();
    s.total[r] = 0.0f;
    for (int64_t d = 0; d < v_pad; d += 8) store(s.out + r * v_pad + d, splat(0.0f));
    if (!h.k8) continue;
    // As many levels as the sum of dim products of 8 bits leaves room for in 32.
    const int64_t room = INT32_MAX / (127 * 4 * (quad_count > 0 ? quad_count : 1));
    s.q_scale[r] = quantize_row_i16(q, a.dim, room < INT16_MAX ? static_cast<float>(room) : 32767.0f, quad_count * 4,
                                    s.q16 + r * quad_count * 4);
  }
}

// Rows [first, first + rows) of a kv head against the keys [begin, end): s.out holds their sums, not yet divided.
static void attention_block(const AttentionArgs& a, const KvHead& h, int64_t batch, int64_t kv_head, int64_t first,
                            int64_t rows, int64_t begin, int64_t end, const AttentionScratch& s) {
  const int64_t shared = a.heads / a.kv_heads, v_pad = padded(a.v_dim), depth = quads(a.dim);
  prepare_rows(a, h, batch, kv_head, first, rows, s);
  // However many the rows: a sequence gets the same numbers alone and beside others.
  const bool in_i8 = h.k8 != nullptr;
  // V in place when few rows use it; packed otherwise, since its rows' stride may map them all to a few cache sets.
  const bool few = rows <= kFewRows, in_place = h.panels ? h.v != nullptr || few : few;
  const int64_t whole = a.v_dim / kPanel * kPanel;
  int64_t last_seen = end, first_seen = begin;
  if (a.causal || a.window > 0) {
    int64_t low = a.q_len, high = 0;
    for (int64_t r = 0; r < rows; ++r) {
      low = s.position[r] < low ? s.position[r] : low;
      high = s.position[r] > high ? s.position[r] : high;
    }
    if (a.causal && high + h.offset + 1 < last_seen) last_seen = high + h.offset + 1;
    if (a.window > 0 && low + h.offset + 1 - a.window > first_seen)
      first_seen = (low + h.offset + 1 - a.window) / kPanel * kPanel;
  }
  for (int64_t kv = first_seen; kv < last_seen; kv += kKvBlock) {
    const int64_t count = last_seen - kv < kKvBlock ? last_seen - kv : kKvBlock;
    const float* keys = in_i8 ? nullptr : block_keys(a, h, kv, count, s.keys);
    pack_values(a, h, kv, count, in_place ? whole : 0, s.values);
    for (int64_t r = 0; r < rows; r += kF32Rows) {
      const int64_t mr = rows - r < kF32Rows ? rows - r : kF32Rows;
      int64_t low[kF32Rows], high[kF32Rows], seen = 0, hidden = count;
      for (int64_t i = 0; i < mr; ++i) {
        const int64_t at = s.position[r + i] + h.offset + 1 - kv;  // keys of this block up to the row's own position
        high[i] = a.causal ? (at < 0 ? 0 : at < count ? at : count) : count;
        low[i] = a.window > 0 && at > a.window ? at - a.window : 0;
        low[i] = low[i] < high[i] ? low[i] : high[i];
        seen = high[i] > seen ? high[i] : seen;
        hidden = low[i] < hidden ? low[i] : hidden;
      }
      if (seen <= hidden) continue;
      for (int64_t n = 0; n < seen; n += kPanel) {
        if (in_i8) {
          in_fours(mr, [&]<int kRows>(int64_t i) {
            score_i8<kRows>(s.q16 + (r + i) * depth * 4, s.q_scale + r + i, h.k8 + (kv + n) * depth * 4,
                            h.k_scale + kv + n, depth, s.scores + i * kKvBlock + n);
          });
        } else if (few) {
          in_fours(mr, [&]<int kRows>(int64_t i) {
            score_f32<kRows>(s.q + (r + i) * a.dim, a.dim, keys + n * a.dim, s.scores + i * kKvBlock + n);
          });
        } else {
          f32_rows<false>(mr, s.q + r * a.dim, a.dim, 1, keys + n * a.dim, kPanel, a.dim, s.scores + n, kKvBlock);
        }
      }
      for (int64_t i = 0; i < mr; ++i) {
        const int64_t row = first + r + i, head = kv_head * shared + row / a.q_len;
        const int64_t* m = a.mask_stride;
        const float* mask =
            a.mask ? a.mask + batch * m[0] + head * m[1] + s.position[r + i] * m[2] + kv * m[3] : nullptr;
        float* scores = s.scores + i * kKvBlock;
        softmax_row(a, mask, seen, low[i], high[i], scores, s.out + (r + i) * v_pad, s.peak + r + i, s.total + r + i);
        if (!in_i8) continue;
        for (int64_t t = 0; t < seen; t += 8) store(scores + t, load(scores + t) * load(h.v_scale + kv + t));
      }
      int64_t d = 0;
      if (few) {
        d = whole;
        if (in_i8) {
          gather_few(mr, s.scores, h.v8 + kv * h.v_stride, h.v_stride, seen, whole, s.out + r * v_pad, v_pad);
        } else {
          gather_few(mr, s.scores, h.v + kv * h.v_stride, h.v_stride, seen, whole, s.out + r * v_pad, v_pad);
        }
      }
      for (; d < a.v_dim; d += kPanel) {
        const bool here = in_place && d < whole;
        const float* v = here ? h.v + kv * h.v_stride + d : s.values + d * kKvBlock;
        f32_rows<true>(mr, s.scores, kKvBlock, 1, v, here ? h.v_stride : kPanel, seen, s.out + r * v_pad + d, v_pad);
      }
    }
  }
}

static float* out_row(const AttentionArgs& a, int64_t batch, int64_t kv_head, int64_t row) {
  const int64_t head = kv_head * (a.heads / a.kv_heads) + row / a.q_len, position = row % a.q_len;
  return a.out + batch * a.out_stride[0] + head * a.out_stride[1] + position * a.out_stride[2];
}

// One row from the sums over each stretch of the keys, `step` floats apart.
static void combine_row(const AttentionArgs& a, const float* out, const float* peak, const float* total, int64_t step,
                        int64_t splits, bool any, float* to) {
  float high = -__builtin_inff(), all = 0.0f;
  for (int64_t i = 0; i < splits; ++i) high = peak[i * step] > high ? peak[i * step] : high;
  const float base = high == -__builtin_inff() ? 0.0f : high;
  if (splits == 1) {
    all = *total;
  } else {
    for (int64_t i = 0; i < splits; ++i) all += total[i * step] * vexp_negative(splat(peak[i * step] - base))[0];
  }
  const float inverse = any ? 1.0f / all : 0.0f;
  for (int64_t d = 0; d < a.v_dim; d += 8) {
    f32x8 sums = load(out + d);
    if (splits > 1) {
      sums = splat(0.0f);
      for (int64_t i = 0; i < splits; ++i)
        sums += load(out + i * step + d) * vexp_negative(splat(peak[i * step] - base))[0];
    }
    store_n(to + d, sums * inverse, a.v_dim - d);
  }
}

static void attention_heads(const AttentionArgs& a, const ParallelFor& pool, void* scratch) {
  const AttentionCut c = cut_attention(a, pool.workers);
  const int64_t v_pad = padded(a.v_dim), floats = worker_floats(a, c), part = part_floats(a, c);
  float* parts = static_cast<float*>(scratch) + pool.workers * floats;
  const int64_t grain = 1 + kGrainMacs / (1 + c.block * (a.kv_len / c.splits) * (a.dim + a.v_dim));
  parallel(pool, a.batch * a.kv_heads * c.blocks * c.splits, grain, [&](int64_t begin, int64_t end, int worker) {
    AttentionScratch s = lay_out(a, c, static_cast<float*>(scratch) + worker * floats);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t split = unit % c.splits, block = unit / c.splits % c.blocks;
      const int64_t kv_head = unit / c.splits / c.blocks % a.kv_heads, batch = unit / c.splits / c.blocks / a.kv_heads;
      const int64_t first = block * c.block, rows = c.rows - first < c.block ? c.rows - first : c.block;
      const KvHead h = kv_head_of(a, batch, kv_head);
      // Whole panels in each stretch, but for the last.
      const int64_t stretch = (h.len / c.splits + kPanel - 1) / kPanel * kPanel;
      const int64_t from = split * stretch < h.len ? split * stretch : h.len;
      const int64_t to = split + 1 < c.splits && from + stretch < h.len ? from + stretch : h.len;
      if (c.splits > 1) {
        s.out = parts + unit * part;
        s.peak = s.out + c.block * v_pad, s.total = s.peak + c.block;
      }
      attention_block(a, h, batch, kv_head, first, rows, from, to, s);
      if (c.splits > 1) continue;
      for (int64_t r = 0; r < rows; ++r)
        combine_row(a, s.out + r * v_pad, s.peak + r, s.total + r, 0, 1, h.len > 0,
                    out_row(a, batch, kv_head, first + r));
    }
  });
  if (c.splits == 1) return;
  for (int64_t unit = 0; unit < a.batch * a.kv_heads * c.blocks; ++unit) {
    const int64_t first = unit % c.blocks * c.block, rows = c.rows - first < c.block ? c.rows - first : c.block;
    const float* out = parts + unit * c.splits * part;
    const int64_t kv_head = unit / c.blocks % a.kv_heads, batch = unit / c.blocks / a.kv_heads;
    const bool any = kv_head_of(a, batch, kv_head).len > 0;
    for (int64_t r = 0; r < rows; ++r) {
      const float* peak = out + c.block * v_pad + r;
      combine_row(a, out + r * v_pad, peak, peak + c.block, part, c.splits, any, out_row(a, batch, kv_head, first + r));
    }
  }
}
