// What the Arm tiles of every instruction set share.

// Four f16 scales from a group's header.
EDGEC_INLINE float32x4_t neon_scales(const uint8_t* header, int quarter) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(header) + 4 * quarter)));
}
// The zero points of four columns.
EDGEC_INLINE int32x4_t neon_zeros(const uint8_t* header, int quarter) {
  const int z = load_u16(header + 32 + 2 * quarter);
  const int32_t four[4] = {z & 15, z >> 4 & 15, z >> 8 & 15, z >> 12};
  return vld1q_s32(four);
}
// The -8 or -1 times sum of a row's block.
EDGEC_INLINE int32_t neon_correction(const uint8_t* sums) {
  int16_t pair[2];
  __builtin_memcpy(pair, sums, 4);
  return pair[0] + pair[1];
}
