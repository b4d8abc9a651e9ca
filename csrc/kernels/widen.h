// Weights of 16 bits, or turned round, as rows of f32.

EDGEC_INLINE f32x8 widen8(const uint16_t* p, WidenArgs::Type type) {
  if (type == WidenArgs::kBF16) {
    i32x8 v;
    for (int i = 0; i < 8; ++i) v[i] = static_cast<int32_t>(uint32_t{p[i]} << 16);
    return from_bits(v);
  }
#if defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  f32x8 v;
  for (int i = 0; i < 8; ++i) v[i] = half_to_float(p[i]);
  return v;
#endif
}

EDGEC_INLINE float widen1(const void* x, int64_t i, WidenArgs::Type type) {
  if (type == WidenArgs::kF32) return static_cast<const float*>(x)[i];
  const uint16_t v = static_cast<const uint16_t*>(x)[i];
  if (type == WidenArgs::kF16) return half_to_float(v);
  const uint32_t u = uint32_t{v} << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

EDGEC_INLINE f32x8 widen8(const void* x, int64_t i, WidenArgs::Type type) {
  return type == WidenArgs::kF32 ? load(static_cast<const float*>(x) + i)
                                 : widen8(static_cast<const uint16_t*>(x) + i, type);
}

template <WidenArgs::Type type>
static void widen_as(const WidenArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t columns = a.columns;
  int64_t r = row_begin;
  for (; a.row_stride == 1 && a.column_stride != 1 && r + 8 <= row_end; r += 8) {  // squares, turned round
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8) {
      float square[8][8];
      for (int64_t j = 0; j < 8; ++j) store(square[j], widen8(a.x, r + (c + j) * a.column_stride, type));
      for (int64_t i = 0; i < 8; ++i) {
        for (int64_t j = 0; j < 8; ++j) a.y[(r + i) * columns + c + j] = square[j][i];
      }
    }
    for (; c < columns; ++c) {
      for (int64_t i = 0; i < 8; ++i) a.y[(r + i) * columns + c] = widen1(a.x, r + i + c * a.column_stride, type);
    }
  }
  for (; r < row_end; ++r) {
    int64_t c = 0;
    for (; a.column_stride == 1 && c + 8 <= columns; c += 8) {
      store(a.y + r * columns + c, widen8(a.x, r * a.row_stride + c, type));
    }
    for (; c < columns; ++c) {
      a.y[r * columns + c] = widen1(a.x, r * a.row_stride + c * a.column_stride, type);
    }
  }
}

static void widen(const WidenArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.type == WidenArgs::kF16) return widen_as<WidenArgs::kF16>(a, row_begin, row_end);
  if (a.type == WidenArgs::kBF16) return widen_as<WidenArgs::kBF16>(a, row_begin, row_end);
  widen_as<WidenArgs::kF32>(a, row_begin, row_end);
}
