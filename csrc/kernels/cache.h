// The layouts of cached keys and values, of one head. Keys lie in panels of 16 tokens: f32 [token / 16][dim][16], 8
// bits [token / 16][dim / 4][16][4]; values in rows [token][dim]. 8-bit items have one f32 scale for each token.

EDGEC_INLINE int64_t quads(int64_t n) { return (n + 3) / 4; }

// q = round(x / scale) with scale = largest / levels, zeros up to `width`; the scale.
template <class T>
static float quantize_row(const float* x, int64_t n, float levels, int64_t width, T* q) {
  f32x8 top = splat(0.0f);
  for (int64_t i = 0; i < n; i += 8) top = vmax(vabs(load_n(x + i, n - i)), top);
  const float scale = max_lane(top) / levels, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < width; i += 8) {
    f32x8 v = i < n ? load_n(x + i, n - i) * inverse : splat(0.0f);
    v = vmin(vmax(v, splat(-levels)), splat(levels));
    typedef T x8 __attribute__((vector_size(8 * sizeof(T))));
    const x8 r = __builtin_convertvector(round_even(v), x8);
    __builtin_memcpy(q + i, &r, static_cast<size_t>(width - i < 8 ? width - i : 8) * sizeof(T));
  }
  return scale;
}
static float quantize_row_i16(const float* x, int64_t n, float levels, int64_t width, int16_t* q) {
  return quantize_row(x, n, levels, width, q);
}

static void cache_write_head(const CacheWrite& w) {
  for (int64_t i = 0; i < w.count; ++i) {
    const float* x = w.from + i * w.stride;
    const int64_t token = w.first + i, lane = token % kPanel;
    if (!w.i8) {
      float* to = static_cast<float*>(w.to) + (w.panels ? (token - lane) * w.dim + lane : token * w.dim);
      const int64_t step = w.panels ? kPanel : 1;
      for (int64_t d = 0; d < w.dim; ++d) to[d * step] = x[d];
      continue;
    }
    int8_t* to = static_cast<int8_t*>(w.to);
    if (!w.panels) {
      w.scales[token] = quantize_row(x, w.dim, 127.0f, w.dim, to + token * w.dim);
      continue;
    }
    int8_t q[kCacheDim];
    const int64_t count = quads(w.dim);
    w.scales[token] = quantize_row(x, w.dim, 127.0f, count * 4, q);
    to += (token - lane) * count * 4 + lane * 4;
    for (int64_t d = 0; d < count; ++d) __builtin_memcpy(to + d * 64, q + 4 * d, 4);
  }
}
