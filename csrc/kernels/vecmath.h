// Elementary functions on f32x8. Bounds are over all floats, in ulp of the result
// (tests/property/test_kernels_math.py).

// e^v, 1 ulp; overflow gives infinity, underflow goes through the subnormals to 0.
EDGEC_INLINE f32x8 vexp(f32x8 v) {
  v = v > 89.0f ? splat(89.0f) : v;
  v = v < -104.0f ? splat(-104.0f) : v;
  f32x8 t = v * 1.44269504f + 12582912.0f;
  const i32x8 n = bits(t) - 0x4b400000;
  t = t - 12582912.0f;
  f32x8 r = v - t * 0.693145752f;  // ln 2 in two parts
  r = r - t * 1.42860677e-06f;
  f32x8 p = r * 1.3814467e-03f + 8.3687808e-03f;
  p = p * r + 4.16683927e-02f;
  p = p * r + 1.66665196e-01f;
  p = p * r + 4.99999940e-01f;
  p = p * (r * r) + r + 1.0f;
  const i32x8 half = n >> 1;
  return p * from_bits((half + 127) << 23) * from_bits((n - half + 127) << 23);
}

// e^v for v <= 0, 1 ulp; below -87 it is 0, without subnormals.
EDGEC_INLINE f32x8 vexp_negative(f32x8 v) {
  f32x8 t = v * 1.44269504f + 12582912.0f;
  const f32x8 power = from_bits((bits(t) + 127) << 23);
  t = t - 12582912.0f;
  f32x8 r = v - t * 0.693145752f;
  r = r - t * 1.42860677e-06f;
  f32x8 p = r * 1.3814467e-03f + 8.3687808e-03f;
  p = p * r + 4.16683927e-02f;
  p = p * r + 1.66665196e-01f;
  p = p * r + 4.99999940e-01f;
  p = p * (r * r) + r + 1.0f;
  // Keeps NaN: only what compares below is cleared.
  return from_bits(bits(p * power) & ~(v < -87.0f));
}

// 3 ulp.
EDGEC_INLINE f32x8 verf(f32x8 v) {
  const f32x8 a = vabs(v), s = v * v;
  f32x8 p = s * 7.85390730e-05f - 8.01020884e-04f;
  p = p * s + 5.18832961e-03f;
  p = p * s - 2.68538129e-02f;
  p = p * s + 1.12835854e-01f;
  p = p * s - 3.76126260e-01f;
  p = p * s + 1.12837911e+00f;
  const f32x8 small = v * p;
  f32x8 c = a > 4.0f ? splat(4.0f) : a;
  f32x8 q = c * 1.85574070e-04f - 2.93960795e-03f;
  q = q * c + 2.18053199e-02f;
  q = q * c - 1.03037372e-01f;
  q = q * c - 6.38225675e-01f;
  q = q * c - 1.12704003e+00f;
  q = q * c - 3.53718788e-04f;
  const f32x8 large = from_bits(bits(1.0f - vexp(q)) | (bits(v) & INT32_MIN));
  return a < 1.0f ? small : large;
}

// 2 ulp.
EDGEC_INLINE f32x8 vtanh(f32x8 v) {
  const f32x8 a = vabs(v), s = v * v;
  f32x8 p = s * -5.66003518e-03f + 2.05910373e-02f;
  p = p * s - 5.37210889e-02f;
  p = p * s + 1.33311272e-01f;
  p = p * s - 3.33332598e-01f;
  const f32x8 small = v + v * (s * p);
  const f32x8 large = from_bits(bits(1.0f - 2.0f / (vexp(a + a) + 1.0f)) | (bits(v) & INT32_MIN));
  return a < 0.625f ? small : large;
}

// 3 ulp, but 0 below -88.7, where e^-v overflows.
EDGEC_INLINE f32x8 vsigmoid(f32x8 v) { return 1.0f / (1.0f + vexp(-v)); }

EDGEC_INLINE f32x8 vsilu(f32x8 v) { return v / (1.0f + vexp(-v)); }

EDGEC_INLINE f32x8 activate(Activation act, f32x8 v) {
  switch (act) {
    case Activation::kRelu:
      return v < 0.0f ? splat(0.0f) : v;
    case Activation::kGelu:
      return 0.5f * v * (1.0f + verf(v * 0.707106781f));
    case Activation::kGeluTanh:
      return 0.5f * v * (1.0f + vtanh(0.797884561f * (v + 0.044715f * v * v * v)));
    case Activation::kSilu:
      return vsilu(v);
    case Activation::kTanh:
      return vtanh(v);
    case Activation::kSigmoid:
      return vsigmoid(v);
    default:
      return v;
  }
}
