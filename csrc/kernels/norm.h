// The norm and the rotation in front of a product: rows pass them on their way into quantization.

// y = (x - mean) * factor * gain + bias.
struct RowNorm {
  float mean, factor;
};

// Sums of v(x[i]) in 32 partial sums.
template <class F>
EDGEC_INLINE float row_sum(const float* x, int64_t k, F&& v) {
  f32x8 total[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    for (int j = 0; j < 4; ++j) total[j] += v(load(x + i + 8 * j));
  }
  for (; i + 8 <= k; i += 8) total[0] += v(load(x + i));
  float rest = 0.0f;
  for (; i < k; ++i) rest += v(splat(x[i]))[0];
  return sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

static RowNorm row_norm(const LinearArgs& a, const float* x) {
  float mean = 0.0f;
  if (a.norm == Norm::kLayer) mean = row_sum(x, a.k, [](f32x8 v) { return v; }) / static_cast<float>(a.k);
  double squares = row_sum(x, a.k, [mean](f32x8 v) { return (v - mean) * (v - mean); });
  if (!(squares > 1e-30 && squares < 1e38)) {  // float overflows or loses digits there
    double total = 0.0, center = 0.0;
    for (int64_t i = 0; i < a.k && a.norm == Norm::kLayer; ++i) center += x[i];
    center /= static_cast<double>(a.k);
    for (int64_t i = 0; i < a.k; ++i) total += (x[i] - center) * (x[i] - center);
    mean = static_cast<float>(center), squares = total;
  }
  return {mean, static_cast<float>(1.0 / __builtin_sqrt(squares / static_cast<double>(a.k) + a.eps))};
}

// x[at .. at + count) normalised; y has room for whole vectors of 8.
EDGEC_INLINE void normalize(const LinearArgs& a, RowNorm norm, const float* x, int64_t at, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += 8) {
    const int64_t left = count - i;
    f32x8 v = (load_n(x + at + i, left) - norm.mean) * norm.factor;
    if (a.norm_gain) v *= load_n(a.norm_gain + at + i, left);
    if (a.norm_bias) v += load_n(a.norm_bias + at + i, left);
    store(y + i, v);
  }
}

// The rows of a tile: where a block's floats are.
class NormedRows {
 public:
  NormedRows(const LinearJob& job, int64_t first, int64_t rows) : args_(job.args), first_(first) {
    for (int64_t r = 0; args_.norm != Norm::kNone && r < rows && first + r < args_.m; ++r) {
      norms_[r] = row_norm(args_, args_.x + (first + r) * args_.ldx);
    }
  }
  // `left`: floats from `at` to the row's end; 0 for a row of padding.
  EDGEC_MEMBER const float* block(int64_t row, int64_t at, int64_t left) {
    if (left <= 0) return args_.x;
    const float* x = args_.x + (first_ + row) * args_.ldx;
    const int64_t count = left < kBlock ? left : kBlock;
    const bool normed = args_.norm != Norm::kNone;
    if (!normed && !args_.rotate) return x + at;
    if (normed) normalize(args_, norms_[row], x, at, count, buffer_);
    if (args_.rotate && count == kBlock) {
      hadamard_vectors<kBlock / 8>(normed ? buffer_ : x + at, inverse_root(kBlock), buffer_);
    } else if (args_.rotate) {
      for (int64_t i = 0; i < count && !normed; ++i) buffer_[i] = x[at + i];
      hadamard_row(buffer_, count, kBlock);
    }
    return buffer_;
  }

 private:
  const LinearArgs& args_;
  int64_t first_;
  RowNorm norms_[kMaxTileRows];
  alignas(32) float buffer_[kBlock];
};

// Row tiles normalised into [m][k] floats.
[[maybe_unused]] static void prepare_f32(const LinearJob& job, int64_t tile_begin, int64_t tile_end) {
  const LinearArgs& a = job.args;
  float block[kBlock];
  for (int64_t row = job.row(tile_begin); row < job.row(tile_end); ++row) {
    const float* x = a.x + row * a.ldx;
    const RowNorm norm = row_norm(a, x);
    float* out = reinterpret_cast<float*>(job.prepared) + row * a.k;
    for (int64_t at = 0; at < a.k; at += kBlock) {
      const int64_t count = a.k - at < kBlock ? a.k - at : kBlock;
      normalize(a, norm, x, at, count, block);
      __builtin_memcpy(out + at, block, static_cast<size_t>(count) * sizeof(float));
    }
  }
}
