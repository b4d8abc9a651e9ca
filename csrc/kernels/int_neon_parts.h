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
// What takes back the offset of a row's block: its sum times -8, -1 (u4, which has zero points) or -32.
template <Family kFamily>
EDGEC_INLINE int32_t neon_correction(const uint8_t* sums) {
  int16_t pair[2];
  __builtin_memcpy(pair, sums, 4);
  return (pair[0] + pair[1]) * (kFamily == Family::kS6N16K4 ? 32 : 1);
}
// Nibbles to the integers that are multiplied: t4's come from its table.
template <Family kFamily>
EDGEC_INLINE int8x16_t neon_nibbles(uint8x16_t index) {
  return kFamily == Family::kT4N16K4 ? vqtbl1q_s8(vld1q_s8(kTable), index) : vreinterpretq_s8_u8(index);
}
// 6 bits: four steps of q + 32 from three vectors.
struct NeonSixes {
  uint8x16_t step[4];
};
EDGEC_INLINE NeonSixes neon_sixes(uint8x16_t a, uint8x16_t b, uint8x16_t c) {
  const uint8x16_t mask = vdupq_n_u8(63);
  const uint8x16_t last = vshrq_n_u8(vsriq_n_u8(vsriq_n_u8(a, b, 2), c, 4), 2);
  return {{vandq_u8(a, mask), vandq_u8(b, mask), vandq_u8(c, mask), last}};
}
// t4: four integer scales of a group, and the powers of two of four columns of a panel.
EDGEC_INLINE int32x4_t neon_integer_scales(const uint8_t* header, int quarter) {
  int32_t four;
  __builtin_memcpy(&four, header + 4 * quarter, 4);
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}
EDGEC_INLINE float32x4_t neon_units(const uint8_t* panel, int quarter) {
  float unit[4];
  for (int c = 0; c < 4; ++c) unit[c] = power_of_two(static_cast<int8_t>(panel[4 * quarter + c]));
  return vld1q_f32(unit);
}
