// Integers of a weight whose columns lie in rows: [k, n], so that a vector holds the same k of eight rows of W.

constexpr int64_t kLanes = kBlock;  // columns that a worker has in L1 at a time
constexpr int64_t kLaneVectors = kLanes / 8;

// The integers less zero points for values over scales (0 where a scale is 0).
EDGEC_INLINE f32x8 round_to(const RoundGrid& grid, f32x8 value, f32x8 scale, f32x8 zero) {
  const f32x8 x = choose(scale != 0.0f, value / scale, splat(0.0f));
  if (grid.table) return nearest_in_table(x);
  const auto levels = static_cast<float>(1 << grid.bits);
  const f32x8 low = grid.zero ? -zero : splat(grid.bits == 4 ? -8.0f : 1.0f - 0.5f * levels);
  const f32x8 high = grid.zero ? splat(levels - 1.0f) - zero : splat(0.5f * levels - 1.0f);
  return to_float(round_even(vmin(vmax(x, low), high)));
}

// rest[i] -= sum_{j < i} m[j][i] * done[j] for the lanes of one i, in order of j.
EDGEC_INLINE void subtract_before(const float* m, int64_t m_j, int64_t i, const float* done, f32x8 rest[kLaneVectors]) {
  for (int64_t j = 0; j < i; ++j) {
    const f32x8 weight = splat(m[j * m_j]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kLaneVectors; ++v) rest[v] -= weight * load(done + j * kLanes + 8 * v);
  }
}

static void gptq_lanes(const GptqArgs& a, int64_t begin, int64_t end, float* errors) {
  for (int64_t at = begin; at < end; at += kLanes) {
    const int64_t count = end - at < kLanes ? end - at : kLanes;
    for (int64_t i = 0; i < a.rows; ++i) {
      f32x8 rest[kLaneVectors];
      for (int64_t v = 0; v < kLaneVectors; ++v) rest[v] = load_n(a.rest + i * a.ld + at + 8 * v, count - 8 * v);
      subtract_before(a.upper + i, a.upper_ld, i, errors, rest);
      const float inverse = 1.0f / a.upper[i * a.upper_ld + i];
      for (int64_t v = 0; v < kLaneVectors; ++v) {
        const int64_t from = a.groups[i] * a.n + at + 8 * v, left = count - 8 * v;
        const f32x8 scale = load_n(a.scale + (left > 0 ? from : 0), left);
        const f32x8 zero = a.grid.zero ? load_n(a.zero + (left > 0 ? from : 0), left) : splat(0.0f);
        const f32x8 q = round_to(a.grid, rest[v], scale, zero), error = (rest[v] - q * scale) * inverse;
        store(errors + i * kLanes + 8 * v, error);
        if (left <= 0) continue;
        store_n(a.q + i * a.n + at + 8 * v, q, left);
        store_n(a.errors + i * a.n + at + 8 * v, error, left);
      }
    }
  }
}

EDGEC_INLINE f32x8 storable(f32x8 scale, const float* unit, int64_t count) {
  f32x8 stored;
  if (unit) {
    const f32x8 u = load_n(unit, count);
    const f32x8 steps = to_float(round_even(clamp(choose(u != 0.0f, scale / u, splat(0.0f)), -127.0f, 127.0f)));
    return steps * u;
  }
  for (int i = 0; i < 8; ++i) stored[i] = half_to_float(float_to_half(scale[i]));
  return stored;
}

// The scale that is best for the integers, where it can be stored and is no worse; slope and gain follow.
EDGEC_INLINE void refit_lanes(const SweepArgs& a, int64_t at, int64_t count, float* slope, const float* q, f32x8* scale,
                              f32x8* gain) {
  f32x8 curve[kLaneVectors] = {}, along[kLaneVectors] = {}, change[kLaneVectors];
  const auto curved = [&](int64_t i, f32x8 to[kLaneVectors]) {
    for (int64_t v = 0; v < kLaneVectors; ++v) to[v] = splat(0.0f);
    for (int64_t j = 0; j < a.rows; ++j) {
      const f32x8 weight = splat(a.h[i * a.h_ld + j]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kLaneVectors; ++v) to[v] += weight * load(q + j * kLanes + 8 * v);
    }
  };
  f32x8 hq[kLaneVectors];
  for (int64_t i = 0; i < a.rows; ++i) {
    curved(i, hq);
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      const f32x8 qi = load(q + i * kLanes + 8 * v);
      curve[v] += qi * hq[v], along[v] += qi * load(slope + i * kLanes + 8 * v);
    }
  }
  for (int64_t v = 0; v < kLaneVectors; ++v) {
    const f32x8 step = choose(curve[v] > 0.0f, along[v] / curve[v], splat(0.0f));
    const f32x8 next = storable(scale[v] + step, a.unit ? a.unit + at + 8 * v : nullptr, count - 8 * v);
    change[v] = next - scale[v];
    const i32x8 good =
        (vabs(next) <= 3.4e38f) & (next != 0.0f) & (change[v] * (change[v] - 2.0f * step) * curve[v] <= 0.0f);
    change[v] = choose(good, change[v], splat(0.0f));
    scale[v] = choose(good, next, scale[v]);
    gain[v] += change[v] * (2.0f * along[v] - change[v] * curve[v]);
  }
  for (int64_t i = 0; i < a.rows; ++i) {
    curved(i, hq);
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      float* to = slope + i * kLanes + 8 * v;
      store(to, load(to) - change[v] * hq[v]);
    }
  }
}

static void sweep_lanes(const SweepArgs& a, int64_t begin, int64_t end, float* scratch) {
  float *slope = scratch, *q = slope + a.rows * kLanes, *moved = q + a.rows * kLanes;
  for (int64_t at = begin; at < end; at += kLanes) {
    const int64_t count = end - at < kLanes ? end - at : kLanes;
    f32x8 scale[kLaneVectors], before[kLaneVectors], zero[kLaneVectors], gain[kLaneVectors];
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      const int64_t left = count - 8 * v, from = left > 0 ? at + 8 * v : 0;
      before[v] = scale[v] = load_n(a.scale + from, left);
      zero[v] = a.grid.zero ? load_n(a.zero + from, left) : splat(0.0f);
      gain[v] = splat(0.0f);
      for (int64_t i = 0; i < a.rows; ++i) {
        store(slope + i * kLanes + 8 * v, load_n(a.slope + i * a.slope_ld + from, left));
        store(q + i * kLanes + 8 * v, load_n(a.q + i * a.n + from, left));
      }
    }
    if (a.refit) refit_lanes(a, at, count, slope, q, scale, gain);
    for (int64_t i = 0; i < a.rows; ++i) {
      f32x8 rest[kLaneVectors];
      for (int64_t v = 0; v < kLaneVectors; ++v) rest[v] = load(slope + i * kLanes + 8 * v);
      subtract_before(a.h + i, a.h_ld, i, moved, rest);
      const float curve = a.h[i * a.h_ld + i], inverse = 1.0f / curve;
      for (int64_t v = 0; v < kLaneVectors; ++v) {
        const int64_t left = count - 8 * v;
        const f32x8 old = load(q + i * kLanes + 8 * v);
        const f32x8 next = round_to(a.grid, old * scale[v] + rest[v] * inverse, scale[v], zero[v]);
        const f32x8 change = (next - old) * scale[v];
        gain[v] += change * (2.0f * rest[v] - change * curve);
        store(moved + i * kLanes + 8 * v, change);
        if (left <= 0) continue;
        store_n(a.q + i * a.n + at + 8 * v, next, left);
        store_n(a.change + i * a.n + at + 8 * v, next * scale[v] - old * before[v], left);
      }
    }
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      for (int64_t i = 0; i < 8 && 8 * v + i < count; ++i) {
        a.scale[at + 8 * v + i] = scale[v][i];
        a.gain[at + 8 * v + i] += static_cast<double>(gain[v][i]);
      }
    }
  }
}
