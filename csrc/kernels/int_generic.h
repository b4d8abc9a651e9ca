// int4 and int8 tiles in plain C++: the reference of their packed formats, and the kernel of CPUs without one of their
// own.

static float dot_block_generic(Family family, const uint8_t* values, const int16_t* wide, int64_t pair_sum,
                               const uint8_t* data, int zero, int column) {
  int32_t total = 0;
  if (family == Family::kS8N16K4) {
    const uint8_t* at = data + column / 8 * 256 + column % 8 * 4;
    constexpr int kOrder[4] = {0, 2, 1, 3};  // as prepared
    for (int k = 0; k < 32; ++k) total += wide[k / 4 * 4 + kOrder[k % 4]] * static_cast<int8_t>(at[k / 4 * 32 + k % 4]);
    return static_cast<float>(total);
  }
  if (family == Family::kS6N16K4) {
    const uint8_t* at = data + column / 8 * 192 + column % 8 * 4;
    for (int k = 0; k < 32; ++k) {
      const uint8_t *three = at + k / 16 * 96 + k % 4, *own = three + k / 4 % 4 * 32;
      const int last = three[0] >> 6 << 4 | three[32] >> 6 << 2 | three[64] >> 6;
      total += (k % 16 < 12 ? *own & 63 : last) * static_cast<int8_t>(values[k]);
    }
    return static_cast<float>(total + 32 * static_cast<int32_t>(pair_sum));
  }
  // 32 bytes hold 8 columns x 4 k: low nibbles one step of k, high nibbles the next. Or 64 bytes 32 columns x 4 k; or
  // 16 bytes 32 columns.
  const bool k1 = is_k1(family), wide_panel = panel_columns(family) == 32 && !k1;
  const uint8_t* at = data + (k1 ? column / 2 : wide_panel ? column * 2 : column / 8 * 128 + column % 8 * 4);
  for (int k = 0; k < 32; ++k) {
    const int nibble = k1           ? at[k1_at(k)] >> (column % 2 * 4) & 15
                       : wide_panel ? at[k / 4 * 64 + k % 4 / 2] >> (k % 2 * 4) & 15
                                    : at[k / 8 * 32 + k % 4] >> (k / 4 % 2 * 4) & 15;
    const int u = family == Family::kT4N16K4 ? kTable[nibble] + 16 : nibble;
    total += u * static_cast<int8_t>(values[k]);
  }
  // pair_sum is -8, -16 or -1 times the activations' sum.
  return static_cast<float>(total + static_cast<int32_t>(pair_sum) * (has_zeros(family) ? zero : 1));
}

template <Family kFamily>
static void linear_int_generic(const LinearJob& job, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                               int64_t panel_end) {
  constexpr bool kWide = kFamily == Family::kS8N16K4;
  constexpr int64_t kValues = kWide ? 64 : 32, kRow = kWide ? 68 : 40;
  constexpr int64_t kColumns = panel_columns(kFamily);
  float sums[4 * kPanel];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = job.row(tile), rows = job.row(tile + 1) - row;
      const uint8_t* from = static_cast<const uint8_t*>(job.args.packed) + panel * kPanel / kColumns * job.panel_bytes;
      const uint8_t* b = from + panel_header_bytes(kFamily);
      const int first = static_cast<int>(panel * kPanel % kColumns);
      const uint8_t* a = job.prepared + row * job.blocks * kRow;
      for (float& s : sums) s = 0.0f;
      for (int64_t block = 0; block < job.blocks;) {
        const uint8_t* header = b;
        float scale[kPanel];
        int zero[kPanel];
        for (int c = 0; c < kPanel; ++c) {
          scale[c] = kFamily == Family::kT4N16K4 ? static_cast<float>(static_cast<int8_t>(header[c]))
                                                 : half_to_float(load_u16(header + scale_at(kFamily, first + c)));
          zero[c] = has_zeros(kFamily) ? header[2 * kColumns + (first + c) / 2] >> (c % 2 * 4) & 15 : 0;
        }
        b += header_bytes(kFamily);
        for (int64_t i = 0; i < job.group_blocks && block < job.blocks; ++i, ++block) {
          for (int64_t r = 0; r < rows; ++r) {
            float row_scale;
            int16_t wide[32] = {}, pair[2] = {};
            __builtin_memcpy(&row_scale, a + rows * kValues + 4 * r, 4);
            if (kWide) {
              __builtin_memcpy(wide, a + r * kValues, 64);
            } else {
              __builtin_memcpy(pair, a + rows * (kValues + 4) + 4 * r, 4);
            }
            for (int c = 0; c < kPanel; ++c) {
              const float dot =
                  dot_block_generic(kFamily, a + r * kValues, wide, pair[0] + pair[1], b, zero[c], first + c);
              sums[r * kPanel + c] += dot * (scale[c] * row_scale);
            }
          }
          b += data_bytes(kFamily);
          a += rows * kRow;
        }
      }
      if (kFamily == Family::kT4N16K4) apply_exponents(from, rows, sums);
      store_tile(job, row, rows, panel, sums);
    }
  }
}
