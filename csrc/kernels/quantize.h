// Weights to groups of 4, 6 or 8 bits. For each candidate (step, zero) of a group: round, then the step that is best
// for those integers in closed form (weighted least squares); the candidate with the least weighted squared error wins.
// The final integers are rounded again with the step as f16 stores it.

constexpr int kMaxGroupVectors = 16;  // groups above 128 take the max, without a search

struct GroupFit {
  f32x8 w[kMaxGroupVectors], h[kMaxGroupVectors];  // weights and importances, 0 beyond the group's end
  int vectors;
  float error;  // what is gained over rounding everything to 0: larger is better
  float step;
  int zero;
};

EDGEC_INLINE f32x8 clamp(f32x8 v, float low, float high) {
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
}

// Tries integers clamp(round(w / step), low - zero, high - zero).
EDGEC_INLINE void try_candidate(GroupFit* g, float inverse, int zero, float low, float high) {
  f32x8 wq = splat(0.0f), qq = splat(0.0f);
  const float from = low - static_cast<float>(zero), to = high - static_cast<float>(zero);
  for (int i = 0; i < g->vectors; ++i) {
    const f32x8 q = to_float(round_even(clamp(g->w[i] * inverse, from, to)));
    const f32x8 hq = g->h[i] * q;
    wq += hq * g->w[i];
    qq += hq * q;
  }
  const float a = sum(wq), b = sum(qq);
  // Error = sum h w^2 - a^2 / b at step a / b.
  if (b > 0.0f && a * a > g->error * b) {
    g->error = a * a / b;
    g->step = a / b;
    g->zero = zero;
  }
}

// The values of kTable next to those of v.
EDGEC_INLINE f32x8 nearest_in_table(f32x8 v) {
  f32x8 q = splat(static_cast<float>(kTable[0]));
#pragma GCC unroll 15
  for (int i = 1; i < 16; ++i) {
    const float middle = 0.5f * static_cast<float>(kTable[i - 1] + kTable[i]);
    q += from_bits(bits(splat(static_cast<float>(kTable[i] - kTable[i - 1]))) & (v > middle));
  }
  return q;
}

// Tries kTable times `step`, or (best_step) times the best step for the same integers.
EDGEC_INLINE void try_table(GroupFit* g, float step, bool best_step) {
  f32x8 wq = splat(0.0f), qq = splat(0.0f);
  const float inverse = 1.0f / step;
  for (int i = 0; i < g->vectors; ++i) {
    const f32x8 q = nearest_in_table(g->w[i] * inverse), hq = g->h[i] * q;
    wq += hq * g->w[i];
    qq += hq * q;
  }
  const float a = sum(wq), b = sum(qq);
  if (!(b > 0.0f)) return;
  if (best_step) step = a / b;
  const float gain = (2.0f * a - b * step) * step;  // a^2 / b at the best step
  if (gain > g->error) g->error = gain, g->step = step;
}

// A row in kTable's values: a step for each group as above, then the nearest integers times the row's power of two.
static void quantize_table_row(const QuantizeArgs& args, int64_t row, int64_t groups) {
  const float* w = args.w + row * args.k;
  uint16_t* scale = args.scale + row * groups;
  float most = 0.0f;
  double noise = 0.0, signal = 0.0;
  // The first pass finds the steps, the second one the integers for them once the row's exponent is known.
  for (int pass = 0; pass < 2; ++pass) {
    const float unit = pass && most > 0.0f ? power_of_two(scale_exponent(most)) : 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * kBlock, count = args.k - at < kBlock ? args.k - at : kBlock;
      GroupFit fit;
      fit.vectors = static_cast<int>((count + 7) / 8);
      fit.error = 0.0f;
      fit.step = 0.0f;
      float top = 0.0f;
      for (int64_t i = at; i < at + count; ++i) {
        const float a = w[i] < 0 ? -w[i] : w[i];
        top = a > top || a != a ? a : top;
      }
      // In units of the largest weight, or of the first pass's step: squares of tiny and huge weights fit float.
      const float norm = pass ? unit * 127.0f : top;
      if (norm > 0.0f && norm < 1e38f) {
        for (int i = 0; i < fit.vectors; ++i) {
          fit.w[i] = load_n(w + at + 8 * i, count - 8 * i) * (1.0f / norm);
          fit.h[i] = args.importance ? load_n(args.importance + at + 8 * i, count - 8 * i) : splat(1.0f);
        }
      }
      if (!pass) {
        float step = top / 16.0f;
        if (args.search && norm > 0.0f && norm < 1e38f) {
          for (int i = -5; i <= 3; ++i) {
            const float s = (1.0f + 0.06f * static_cast<float>(i)) / 16.0f;
            try_table(&fit, s, true);
            try_table(&fit, -s, true);
          }
          step = fit.step * norm;
        }
        scale[g] = float_to_half(step);
        const float size = half_to_float(scale[g] & 0x7fff);
        most = size > most ? size : most;
        continue;
      }
      const float wanted = unit > 0.0f ? half_to_float(scale[g]) / unit : 0.0f;
      float integer = static_cast<float>(round_even(splat(wanted))[0]);
      if (args.search && norm > 0.0f && norm < 1e38f) {
        for (int d = -1; d <= 1; ++d) {
          const float s = integer + static_cast<float>(d);
          if (s != 0.0f && s >= -127.0f && s <= 127.0f) try_table(&fit, s / 127.0f, false);
        }
        integer = to_float(round_even(splat(fit.step * 127.0f)))[0];
      }
      scale[g] = float_to_half(integer * unit);
      const float stored = half_to_float(scale[g]), inverse = stored != 0.0f ? 1.0f / stored : 0.0f;
      for (int64_t i = 0; i < count; i += 8) {
        const f32x8 x = load_n(w + at + i, count - i);
        const f32x8 q = stored != 0.0f ? nearest_in_table(x * inverse) : splat(0.0f), rest = q * stored - x;
        for (int64_t j = 0; j < 8 && i + j < count; ++j) {
          args.q[row * args.k + at + i + j] = static_cast<int8_t>(q[j]);
          noise += static_cast<double>(rest[j]) * rest[j], signal += static_cast<double>(x[j]) * x[j];
        }
      }
    }
  }
  if (args.error) args.error[2 * row] = noise, args.error[2 * row + 1] = signal;
}

static void quantize_group(const QuantizeArgs& args, const float* w, const float* importance, int64_t count, int8_t* q,
                           uint16_t* scale, uint8_t* zero_out, double* error) {
  const int levels = 1 << args.bits;
  const float low = args.symmetric ? static_cast<float>(args.bits == 8 ? -127 : -levels / 2) : 0.0f;
  const float high = static_cast<float>(args.symmetric ? levels / 2 - 1 : levels - 1);
  float least = 0.0f, most = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    least = w[i] < least ? w[i] : least;
    most = w[i] > most ? w[i] : most;
  }
  float step;
  int zero = 0;
  if (args.symmetric) {
    // The side with the larger magnitude gets the longer half of the range.
    const float top = -least > most ? least : most;
    step = args.bits == 8 || !args.search ? (top < 0 ? -top : top) / high : top / low;
  } else {
    step = (most - least) / high;
    zero = step > 0.0f && step < 1e38f ? static_cast<int>(-least / step + 0.5f) : 0;
  }
  if (args.search && step != 0.0f && step < 1e38f && step > -1e38f && count <= 8 * kMaxGroupVectors) {
    GroupFit g;
    g.vectors = static_cast<int>((count + 7) / 8);
    g.error = 0.0f;
    g.step = step;
    g.zero = zero;
    const float unit = 1.0f / step;  // keeps squares of tiny and huge weights within float
    for (int i = 0; i < g.vectors; ++i) {
      g.w[i] = load_n(w + 8 * i, count - 8 * i) * unit;
      g.h[i] = importance ? load_n(importance + 8 * i, count - 8 * i) : splat(1.0f);
    }
    if (args.symmetric && args.bits == 8) {
      for (int i = 0; i <= 4; ++i) try_candidate(&g, 1.0f + 0.01f * static_cast<float>(i), 0, low, high);
    } else if (args.symmetric && args.bits == 6) {
      for (int i = -8; i <= 8; ++i) {
        const float inverse = 1.0f + 0.015f * static_cast<float>(i);
        try_candidate(&g, inverse, 0, low, high);
        try_candidate(&g, -inverse, 0, low, high);
      }
    } else if (args.symmetric) {
      for (int i = -12; i <= 8; ++i) {
        const float inverse = 1.0f + 0.04f * static_cast<float>(i);
        try_candidate(&g, inverse, 0, low, high);
        try_candidate(&g, -inverse, 0, low, high);
      }
    } else {
      for (int i = -2; i <= 8; ++i) {
        const float inverse = 1.0f + 0.05f * static_cast<float>(i);
        for (int z = zero - 2; z <= zero + 2; ++z) {
          if (z >= 0 && z <= static_cast<int>(high)) try_candidate(&g, inverse, z, low, high);
        }
      }
      // Around the middle of the range as well, so that this is never worse than the symmetric grid.
      const float span = -least > most ? -least : most;
      for (int i = -12; i <= 8 && args.bits == 4; ++i) {
        const float inverse = step / span * 8.0f * (1.0f + 0.04f * static_cast<float>(i));
        try_candidate(&g, inverse, 7, low, high);
        try_candidate(&g, inverse, 8, low, high);
      }
    }
    step = step * g.step;
    zero = g.zero;
  }
  *scale = float_to_half(step);
  const float stored = half_to_float(*scale);
  const float inverse = stored != 0.0f ? 1.0f / stored : 0.0f;
  if (zero_out) *zero_out = static_cast<uint8_t>(zero);
  const float from = low - static_cast<float>(zero), to = high - static_cast<float>(zero);
  f32x8 noise = splat(0.0f), signal = splat(0.0f);
  for (int64_t i = 0; i < count; i += 8) {
    const f32x8 x = load_n(w + i, count - i);
    const i32x8 integer = round_even(clamp(x * inverse, from, to)), v = integer + zero;
    const f32x8 rest = to_float(integer) * stored - x;
    noise += rest * rest;
    signal += x * x;
    for (int64_t j = 0; j < 8 && i + j < count; ++j) q[i + j] = static_cast<int8_t>(v[j]);
  }
  if (error) {
    error[0] += static_cast<double>(sum(noise));
    error[1] += static_cast<double>(sum(signal));
  }
}

static void quantize_weights(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t group = args.group ? args.group : args.k;
  const int64_t groups = group ? (args.k + group - 1) / group : 0;
  for (int64_t r = row_begin; r < row_end; ++r) {
    if (args.table) {
      quantize_table_row(args, r, groups);
      continue;
    }
    if (args.error) args.error[2 * r] = args.error[2 * r + 1] = 0.0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * group, count = args.k - at < group ? args.k - at : group;
      quantize_group(args, args.w + r * args.k + at, args.importance ? args.importance + at : nullptr, count,
                     args.q + r * args.k + at, args.scale + r * groups + g,
                     args.zero ? args.zero + r * groups + g : nullptr, args.error ? args.error + 2 * r : nullptr);
    }
  }
}
