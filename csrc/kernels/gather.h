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
