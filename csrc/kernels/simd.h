// Eight floats in GCC's vector extensions: one source for every instruction set. Included inside a namespace per ISA,
// and everything is static, so that no file built with AVX2 can lend its code to one built without.

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i32x8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef int8_t i8x8u __attribute__((vector_size(8), aligned(1), may_alias));
typedef int16_t i16x16 __attribute__((vector_size(32)));

#define EDGEC_INLINE static inline __attribute__((always_inline))
#define EDGEC_MEMBER __attribute__((always_inline))

EDGEC_INLINE f32x8 load(const float* p) { return *reinterpret_cast<const f32x8u*>(p); }
EDGEC_INLINE void store(float* p, f32x8 v) { *reinterpret_cast<f32x8u*>(p) = v; }
EDGEC_INLINE f32x8 splat(float v) { return f32x8{v, v, v, v, v, v, v, v}; }
EDGEC_INLINE i32x8 splat_i(int32_t v) { return i32x8{v, v, v, v, v, v, v, v}; }
EDGEC_INLINE i32x8 bits(f32x8 v) { return reinterpret_cast<i32x8>(v); }
EDGEC_INLINE f32x8 from_bits(i32x8 v) { return reinterpret_cast<f32x8>(v); }
EDGEC_INLINE f32x8 to_float(i32x8 v) { return __builtin_convertvector(v, f32x8); }
EDGEC_INLINE f32x8 choose(i32x8 mask, f32x8 a, f32x8 b) { return from_bits((bits(a) & mask) | (bits(b) & ~mask)); }
// a > b ? a : b (a < b ? a : b), so that a NaN in a is dropped.
#if defined(__AVX2__)
EDGEC_INLINE f32x8 vmax(f32x8 a, f32x8 b) { return _mm256_max_ps(a, b); }
EDGEC_INLINE f32x8 vmin(f32x8 a, f32x8 b) { return _mm256_min_ps(a, b); }
#else
EDGEC_INLINE f32x8 vmax(f32x8 a, f32x8 b) { return a > b ? a : b; }
EDGEC_INLINE f32x8 vmin(f32x8 a, f32x8 b) { return a < b ? a : b; }
#endif
EDGEC_INLINE f32x8 vabs(f32x8 v) { return from_bits(bits(v) & 0x7fffffff); }
EDGEC_INLINE float sum(f32x8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }
EDGEC_INLINE float max_lane(f32x8 v) {
  float m[4];
  for (int i = 0; i < 4; ++i) m[i] = v[i] > v[i + 4] ? v[i] : v[i + 4];
  m[0] = m[0] > m[2] ? m[0] : m[2];
  m[1] = m[1] > m[3] ? m[1] : m[3];
  return m[0] > m[1] ? m[0] : m[1];
}
// The first n lanes from memory, the others 0; nothing beyond them is touched.
#if defined(__AVX2__)
EDGEC_INLINE __m256i lanes_below(int64_t n) {
  const int32_t count = n > 8 ? 8 : static_cast<int32_t>(n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
EDGEC_INLINE f32x8 load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, lanes_below(n)); }
EDGEC_INLINE void store_n(float* p, f32x8 v, int64_t n) { _mm256_maskstore_ps(p, lanes_below(n), v); }
#else
EDGEC_INLINE f32x8 load_n(const float* p, int64_t n) {
  if (n >= 8) return load(p);
  float t[8] = {};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
EDGEC_INLINE void store_n(float* p, f32x8 v, int64_t n) {
  if (n >= 8) return store(p, v);
  float t[8];
  store(t, v);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}
#endif
// To the nearest integer, ties to even, for |v| < 2^22. Never contracted into an FMA: every ISA gives the same
// integers.
EDGEC_INLINE i32x8 round_even(f32x8 v) {
#if defined(__AVX2__)
  return reinterpret_cast<i32x8>(_mm256_cvtps_epi32(v));
#elif defined(__aarch64__)
  struct {
    float32x4_t low, high;
  } f;
  __builtin_memcpy(&f, &v, 32);
  struct {
    int32x4_t low, high;
  } n = {vcvtnq_s32_f32(f.low), vcvtnq_s32_f32(f.high)};
  i32x8 r;
  __builtin_memcpy(&r, &n, 32);
  return r;
#else
  return bits(v + 12582912.0f) - 0x4b400000;
#endif
}

// 8 bytes as floats; 16 bytes in 16 bits; four numbers of 16 bits again and again; sums of two neighbouring products
// (and added); the sums of neighbours, of a before those of b.
#if defined(__AVX2__)
EDGEC_INLINE f32x8 floats_of(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
EDGEC_INLINE i16x16 widen_i8(const int8_t* p) {
  return reinterpret_cast<i16x16>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
EDGEC_INLINE i16x16 splat_quad(const int16_t* p) {
  return reinterpret_cast<i16x16>(_mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
EDGEC_INLINE i32x8 multiply_pairs(i16x16 a, i16x16 b) {
  return reinterpret_cast<i32x8>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
EDGEC_INLINE i32x8 add_pairs(i32x8 sum, i16x16 a, i16x16 b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return reinterpret_cast<i32x8>(
      _mm256_dpwssd_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return sum + multiply_pairs(a, b);
#endif
}
EDGEC_INLINE i32x8 add_neighbours(i32x8 a, i32x8 b) {
  const __m256i sums = _mm256_hadd_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
  return reinterpret_cast<i32x8>(_mm256_permute4x64_epi64(sums, 0xd8));
}
#else
EDGEC_INLINE f32x8 floats_of(const int8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const i8x8u*>(p), f32x8);
}
EDGEC_INLINE i16x16 widen_i8(const int8_t* p) {
  i16x16 r;
  for (int i = 0; i < 16; ++i) r[i] = p[i];
  return r;
}
EDGEC_INLINE i16x16 splat_quad(const int16_t* p) {
  return i16x16{p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3]};
}
#if defined(__aarch64__)
struct Halves16 {
  int16x8_t low, high;
};
struct Halves32 {
  int32x4_t low, high;
};
template <class To, class From>
EDGEC_INLINE To halves(From v) {
  To r;
  __builtin_memcpy(&r, &v, 32);
  return r;
}
EDGEC_INLINE i32x8 multiply_pairs(i16x16 a, i16x16 b) {
  const Halves16 x = halves<Halves16>(a), y = halves<Halves16>(b);
  const Halves32 r = {
      vpaddq_s32(vmull_s16(vget_low_s16(x.low), vget_low_s16(y.low)), vmull_high_s16(x.low, y.low)),
      vpaddq_s32(vmull_s16(vget_low_s16(x.high), vget_low_s16(y.high)), vmull_high_s16(x.high, y.high))};
  return halves<i32x8>(r);
}
EDGEC_INLINE i32x8 add_pairs(i32x8 sum, i16x16 a, i16x16 b) { return sum + multiply_pairs(a, b); }
EDGEC_INLINE i32x8 add_neighbours(i32x8 a, i32x8 b) {
  const Halves32 x = halves<Halves32>(a), y = halves<Halves32>(b);
  const Halves32 r = {vpaddq_s32(x.low, x.high), vpaddq_s32(y.low, y.high)};
  return halves<i32x8>(r);
}
#else
EDGEC_INLINE i32x8 multiply_pairs(i16x16 a, i16x16 b) {
  i32x8 r;
  for (int i = 0; i < 8; ++i) r[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return r;
}
EDGEC_INLINE i32x8 add_pairs(i32x8 sum, i16x16 a, i16x16 b) { return sum + multiply_pairs(a, b); }
EDGEC_INLINE i32x8 add_neighbours(i32x8 a, i32x8 b) {
  return i32x8{a[0] + a[1], a[2] + a[3], a[4] + a[5], a[6] + a[7], b[0] + b[1], b[2] + b[3], b[4] + b[5], b[6] + b[7]};
}
#endif
#endif

EDGEC_INLINE float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  uint32_t u;
  if (exponent == 31) {
    u = sign | 0x7f800000 | fraction << 13;
  } else if (exponent) {
    u = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    const float f = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    __builtin_memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
#endif
}

// Ties to even; overflow gives infinity.
EDGEC_INLINE uint16_t float_to_half(float f) {
#if defined(__F16C__)
  return _cvtss_sh(f, 0);
#else
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  const uint16_t sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00;
  if (u >= 0x477ff000) return sign | 0x7c00;
  if (u < 0x38800000) {  // subnormal half: let the FPU round at 2^-24
    float a;
    __builtin_memcpy(&a, &u, 4);
    a += 0.5f;
    __builtin_memcpy(&u, &a, 4);
    return sign | static_cast<uint16_t>(u - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13);
#endif
}
EDGEC_INLINE uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  __builtin_memcpy(&v, p, 2);
  return v;
}
// 2^e for -126 <= e <= 127.
EDGEC_INLINE float power_of_two(int e) {
  const int32_t bits = (e + 127) << 23;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
// The least e >= -120 with v / 2^e <= 127, of v > 0 (120 where there is none).
EDGEC_INLINE int scale_exponent(float v) {
  int e = -120;
  while (e < 120 && v > 127.0f * power_of_two(e)) ++e;
  return e;
}
