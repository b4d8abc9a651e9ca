// Rows of a kS8Row table: [f16 scale per group][s8 values].
static void gather_s8row(const Format& format, const void* packed, int64_t rows, int64_t dim, const int64_t* indices,
                         int64_t begin, int64_t end, float* out) {
  const int64_t group = format.group ? format.group : dim, groups = group ? (dim + group - 1) / group : 0;
  const int64_t row_bytes = 2 * groups + dim;
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* scales =
        static_cast<const uint8_t*>(packed) + (indices[i] + (indices[i] < 0 ? rows : 0)) * row_bytes;
    const int8_t* q = reinterpret_cast<const int8_t*>(scales + 2 * groups);
    float* to = out + i * dim;
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = half_to_float(load_u16(scales + 2 * g));
      const int64_t stop = (g + 1) * group < dim ? (g + 1) * group : dim;
      int64_t d = g * group;
      for (; d + 8 <= stop; d += 8) {
        i8x8 v;
        __builtin_memcpy(&v, q + d, 8);
        store(to + d, __builtin_convertvector(v, f32x8) * scale);
      }
      for (; d < stop; ++d) to[d] = static_cast<float>(q[d]) * scale;
    }
  }
}

// A row of a weight that a product reads in panels: a tied table.
static void gather_panel_row(const Format& format, const void* packed, int64_t dim, int64_t row, float* out) {
  if (format.family == Family::kF32NK) {
    __builtin_memcpy(out, static_cast<const float*>(packed) + row * dim, sizeof(float) * dim);
    return;
  }
  if (format.family == Family::kF32N16) {
    const float* from = static_cast<const float*>(packed) + row / kPanel * kPanel * dim + row % kPanel;
    for (int64_t d = 0; d < dim; ++d) out[d] = from[d * kPanel];
    return;
  }
  for (int64_t d = 0; d < dim; d += kBlock) {
    uint8_t q[kBlock];
    uint16_t bits;
    int zero;
    unpack_block(format, packed, dim, row, d / kBlock, q, &bits, &zero);
    const float scale = half_to_float(bits);
    for (int64_t i = 0; i < kBlock && d + i < dim; i += 8) {
      i8x8 v;
      __builtin_memcpy(&v, q + i, 8);
      const f32x8 value = __builtin_convertvector(v, f32x8) - static_cast<float>(zero);
      store_n(out + d + i, value * scale, dim - d - i);
    }
  }
}

static void gather_packed(const Format& format, const void* packed, int64_t rows, int64_t dim, const int64_t* indices,
                          int64_t begin, int64_t end, float* out) {
  if (format.family == Family::kS8Row) return gather_s8row(format, packed, rows, dim, indices, begin, end, out);
  for (int64_t i = begin; i < end; ++i) {
    gather_panel_row(format, packed, dim, indices[i] + (indices[i] < 0 ? rows : 0), out + i * dim);
  }
}
