// The packed formats: sizes, packing and its inverse. docs/kernels.md draws the layouts.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/job.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgec::kernels {
namespace {

#include "kernels/simd.h"

constexpr double kScale = 16.0;
#define EDGEC_GROUPS(prefix, suffix, family, bits, symmetric, extra)                                   \
  {prefix "g32" suffix, Family::family, bits, 32, symmetric, false, bits + (kScale + extra) / 32},     \
      {prefix "g64" suffix, Family::family, bits, 64, symmetric, false, bits + (kScale + extra) / 64}, \
      {prefix "g128" suffix, Family::family, bits, 128, symmetric, false, bits + (kScale + extra) / 128}

constexpr Format kFormats[] = {
    EDGEC_GROUPS("s4", "n16k4", kS4N16K4, 4, true, 0),         EDGEC_GROUPS("u4", "n16k4", kU4N16K4, 4, false, 4),
    {"t4g32n16k4", Family::kT4N16K4, 4, 32, true, true, 4.25}, EDGEC_GROUPS("s6", "n16k4", kS6N16K4, 6, true, 0),
    {"s6n16k4", Family::kS6N16K4, 6, 0, true, false, 6},       EDGEC_GROUPS("s8", "n16k4", kS8N16K4, 8, true, 0),
    {"s8n16k4", Family::kS8N16K4, 8, 0, true, false, 8},       {"f32n16", Family::kF32N16, 32, 0, true, false, 32},
    {"f32nk", Family::kF32NK, 32, 0, true, false, 32},         EDGEC_GROUPS("s4", "n32k4", kS4N32K4, 4, true, 0),
    EDGEC_GROUPS("u4", "n32k4", kU4N32K4, 4, false, 4),        EDGEC_GROUPS("s4", "n32k1", kS4N32K1, 4, true, 0),
    EDGEC_GROUPS("u4", "n32k1", kU4N32K1, 4, false, 4),        EDGEC_GROUPS("s8", "row", kS8Row, 8, true, 0),
    {"s8row", Family::kS8Row, 8, 0, true, false, 8},
};

struct Shape {
  int64_t group, groups, blocks, group_blocks, panel_bytes;
};

Shape shape_of(const Format& f, int64_t k) {
  Shape s{};
  s.group = f.group ? f.group : std::max<int64_t>(k, 1);
  s.groups = (k + s.group - 1) / s.group;
  s.blocks = (k + kBlock - 1) / kBlock;
  s.group_blocks = (s.group + kBlock - 1) / kBlock;
  if (is_f32(f.family)) {
    s.panel_bytes = k * kPanel * 4;
  } else if (f.family == Family::kS8Row) {
    s.panel_bytes = kPanel * (2 * s.groups + k);
  } else {
    s.panel_bytes = panel_header_bytes(f.family) + s.groups * header_bytes(f.family) + s.blocks * data_bytes(f.family);
  }
  return s;
}

// Four k of one column travel together, as 32 bits: where those of k = 4i .. 4i + 3 (int8), or of k = 8i .. 8i + 7
// (int4, the first four in the low nibbles), lie in a block.
int64_t word8(int64_t c, int64_t i) { return c / 8 * 256 + c % 8 * 4 + i * 32; }
int64_t word4(int64_t c, int64_t i) { return c / 8 * 128 + c % 8 * 4 + i * 32; }
// 6 bits: of 16 k, the first 12 in three words; the last four, two bits each, above them.
int64_t word6(int64_t c, int64_t i) { return c / 8 * 192 + c % 8 * 4 + i * 32; }
constexpr uint32_t kNibbles = 0x0f0f0f0f, kEights = 0x08080808;
constexpr uint32_t kSixes = 0x3f3f3f3f, kThirtyTwos = 0x20202020, kPairs = 0x03030303;

uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
void store32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, 4); }

// One column's 32 values into a block, and back. flip: kEights for s4, whose nibbles are q + 8.
void put_column(const uint8_t* q, Family family, uint32_t flip, int64_t c, uint8_t* block) {
  if (family == Family::kS8N16K4) {
    for (int64_t i = 0; i < 8; ++i) std::memcpy(block + word8(c, i), q + 4 * i, 4);
    return;
  }
  if (is_k1(family)) {
    for (int64_t i = 0; i < kBlock; ++i) {
      block[k1_at(i) + c / 2] |= static_cast<uint8_t>(((q[i] ^ flip) & 15) << (c % 2 * 4));
    }
    return;
  }
  if (family == Family::kS6N16K4) {
    for (int64_t i = 0; i < 6; ++i) {
      const uint8_t* from = q + i / 3 * 16;
      const uint32_t u = (load32(from + i % 3 * 4) & kSixes) ^ kThirtyTwos;
      const uint32_t last = (load32(from + 12) & kSixes) ^ kThirtyTwos;
      store32(block + word6(c, i), u | (last >> (4 - i % 3 * 2) & kPairs) << 6);
    }
    return;
  }
  if (panel_columns(family) == 32) {
    for (int64_t i = 0; i < 16; ++i) {
      const uint32_t low = (q[2 * i] ^ flip) & 15, high = (q[2 * i + 1] ^ flip) & 15;
      block[i / 2 * 64 + 2 * c + i % 2] = static_cast<uint8_t>(low | high << 4);
    }
    return;
  }
  for (int64_t i = 0; i < 4; ++i) {
    const uint32_t low = (load32(q + 8 * i) ^ flip) & kNibbles, high = (load32(q + 8 * i + 4) ^ flip) & kNibbles;
    store32(block + word4(c, i), low | high << 4);
  }
}
void get_column(const uint8_t* block, Family family, uint32_t flip, int64_t c, uint8_t* q) {
  if (family == Family::kS8N16K4) {
    for (int64_t i = 0; i < 8; ++i) std::memcpy(q + 4 * i, block + word8(c, i), 4);
    return;
  }
  if (family == Family::kS6N16K4) {
    uint32_t last[2] = {};
    for (int64_t i = 0; i < 6; ++i) {
      const uint32_t both = load32(block + word6(c, i));
      store32(q + i / 3 * 16 + i % 3 * 4, both & kSixes);
      last[i / 3] |= (both >> 6 & kPairs) << (4 - i % 3 * 2);
    }
    store32(q + 12, last[0]), store32(q + 28, last[1]);
    for (int64_t i = 0; i < kBlock; ++i) q[i] = static_cast<uint8_t>(q[i] - 32);
    return;
  }
  if (is_k1(family)) {
    for (int64_t i = 0; i < kBlock; ++i) q[i] = block[k1_at(i) + c / 2] >> (c % 2 * 4) & 15;
  } else if (panel_columns(family) == 32) {
    for (int64_t i = 0; i < 16; ++i) {
      const uint8_t pair = block[i / 2 * 64 + 2 * c + i % 2];
      q[2 * i] = pair & 15, q[2 * i + 1] = pair >> 4;
    }
  } else {
    for (int64_t i = 0; i < 4; ++i) {
      const uint32_t both = load32(block + word4(c, i));
      store32(q + 8 * i, both & kNibbles);
      store32(q + 8 * i + 4, both >> 4 & kNibbles);
    }
  }
  for (int64_t i = 0; i < kBlock && flip; ++i) q[i] = static_cast<uint8_t>(q[i] - 8);
}

// ---- t4: nibbles are indices of kTable; a scale is an integer times a power of two of its row ----

constexpr auto kIndex = [] {  // of the value that is the byte, or of the nearest
  std::array<uint8_t, 256> index{};
  for (int v = -128; v < 128; ++v) {
    int best = 0;
    for (int i = 1; i < 16; ++i) {
      const int now = v - kTable[i], was = v - kTable[best];
      if (now * now < was * was) best = i;
    }
    index[static_cast<uint8_t>(v)] = static_cast<uint8_t>(best);
  }
  return index;
}();

// The least e with |scale| / 2^e <= 127 for all of a row's scales.
int row_exponent(const uint16_t* scale, int64_t groups) {
  uint16_t most = 0;
  for (int64_t g = 0; g < groups; ++g) most = std::max<uint16_t>(most, scale[g] & 0x7fff);
  return most ? scale_exponent(half_to_float(most)) : 0;
}

uint16_t table_scale(const uint8_t* panel, const uint8_t* header, int64_t c) {
  return float_to_half(static_cast<float>(static_cast<int8_t>(header[c])) *
                       power_of_two(static_cast<int8_t>(panel[c])));
}

void look_up(uint8_t q[kBlock]) {
  for (int64_t i = 0; i < kBlock; ++i) q[i] = static_cast<uint8_t>(kTable[q[i] & 15]);
}

uint32_t flip_of(const Format& f) { return f.symmetric && !f.table ? kEights : 0; }

// Calls on_group(header, group) for each group and on_block(data, block) for each block of a panel.
template <class F, class G>
void walk(const Shape& s, Family family, int64_t panel_offset, F&& on_group, G&& on_block) {
  int64_t at = panel_offset + panel_header_bytes(family);
  for (int64_t g = 0, b = 0; g < s.groups; ++g) {
    on_group(at, g);
    at += header_bytes(family);
    for (int64_t i = 0; i < s.group_blocks && b < s.blocks; ++i, ++b, at += data_bytes(family)) on_block(at, b);
  }
}

}  // namespace

const Format* formats(int* count) {
  *count = static_cast<int>(std::size(kFormats));
  return kFormats;
}

const Format* find_format(std::string_view name) {
  for (const Format& f : kFormats) {
    if (name == f.name) return &f;
  }
  return nullptr;
}

size_t packed_nbytes(const Format& f, int64_t n, int64_t k) {
  // n and k may come from a file: a size beyond 2^62 becomes one that nothing can have.
  constexpr int64_t kLimit = int64_t{1} << 62;
  if (n < 0 || k < 0 || k > kLimit / 128 || n > kLimit / 2) return SIZE_MAX;
  const Shape s = shape_of(f, k);
  const bool rows = f.family == Family::kS8Row;
  const int64_t columns = panel_columns(f.family);
  const int64_t unit = rows ? s.panel_bytes / kPanel : s.panel_bytes, count = rows ? n : (n + columns - 1) / columns;
  return unit && count > kLimit / unit ? SIZE_MAX : static_cast<size_t>(count * unit);
}

void pack_panels(const Format& f, const void* q, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k,
                 int64_t panel_begin, int64_t panel_end, void* packed) {
  const Shape s = shape_of(f, k);
  uint8_t* out = static_cast<uint8_t*>(packed);
  const uint8_t* bytes = static_cast<const uint8_t*>(q);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t column = p * kPanel, valid = std::min<int64_t>(kPanel, n - column);
    if (f.family == Family::kS8Row) {
      for (int64_t r = column; r < column + valid; ++r) {
        uint8_t* row = out + r * (s.panel_bytes / kPanel);
        std::memcpy(row, scale + r * s.groups, 2 * s.groups);
        if (k) std::memcpy(row + 2 * s.groups, bytes + r * k, k);
      }
      continue;
    }
    // A panel of 32 columns is two of 16 to callers: each half clears and writes bytes of its own, the last one maybe
    // the half beyond n too.
    const int64_t halves = panel_columns(f.family) / kPanel, first = p % halves * kPanel;
    const int64_t span = p == panels(n) - 1 && first == 0 ? halves : 1;
    if (s.panel_bytes && halves == 1) std::memset(out + p * s.panel_bytes, 0, s.panel_bytes);
    if (f.family == Family::kF32NK) {
      std::memcpy(out + p * s.panel_bytes, static_cast<const float*>(q) + column * k, 4 * valid * k);
      continue;
    }
    if (f.family == Family::kF32N16) {
      const float* w = static_cast<const float*>(q) + column * k;
      float* to = reinterpret_cast<float*>(out + p * s.panel_bytes);
      for (int64_t i = 0; i < k && valid == kPanel; ++i) {
        for (int64_t c = 0; c < kPanel; ++c) to[i * kPanel + c] = w[c * k + i];
      }
      for (int64_t c = 0; c < valid && valid < kPanel; ++c) {
        for (int64_t i = 0; i < k; ++i) to[i * kPanel + c] = w[c * k + i];
      }
      continue;
    }
    float inverse[kPanel] = {};
    for (int64_t c = 0; c < valid && f.table; ++c) {
      const int e = row_exponent(scale + (column + c) * s.groups, s.groups);
      out[p * s.panel_bytes + c] = static_cast<uint8_t>(static_cast<int8_t>(e));
      inverse[c] = power_of_two(-e);
    }
    walk(
        s, f.family, p / halves * s.panel_bytes,
        [&](int64_t at, int64_t g) {
          uint8_t* zeros = out + at + 32 * halves + first / 2;
          for (int64_t c = first; c < first + kPanel * span && halves > 1; ++c)
            std::memset(out + at + scale_at(f.family, c), 0, 2);
          if (!f.symmetric && halves > 1) std::memset(zeros, 0, 8 * span);
          for (int64_t c = 0; c < valid; ++c) {
            if (f.table) {
              const float v = half_to_float(scale[(column + c) * s.groups + g]) * inverse[c];
              out[at + c] = static_cast<uint8_t>(static_cast<int8_t>(!(v < 127)  ? 127
                                                                     : v <= -127 ? -127
                                                                     : v < 0     ? v - 0.5f
                                                                                 : v + 0.5f));
              continue;
            }
            std::memcpy(out + at + scale_at(f.family, first + c), scale + (column + c) * s.groups + g, 2);
            if (!f.symmetric) zeros[c / 2] |= (zero[(column + c) * s.groups + g] & 15) << (c % 2 * 4);
          }
        },
        [&](int64_t at, int64_t b) {
          if (is_k1(f.family)) {
            for (int64_t i = 0; i < kBlock; ++i) std::memset(out + at + 16 * i + first / 2, 0, 8 * span);
          } else {
            for (int64_t i = 0; i < 8 && halves > 1; ++i) std::memset(out + at + 64 * i + 2 * first, 0, 32 * span);
          }
          const int64_t length = std::min(kBlock, k - b * kBlock);
          for (int64_t c = 0; c < valid; ++c) {
            const uint8_t* from = bytes + (column + c) * k + b * kBlock;
            uint8_t padded[kBlock] = {};
            if (length < kBlock) from = static_cast<const uint8_t*>(std::memcpy(padded, from, length));
            if (f.table) {
              for (int64_t i = 0; i < kBlock; ++i) padded[i] = kIndex[from[i]];
              from = padded;
            }
            put_column(from, f.family, flip_of(f), first + c, out + at);
          }
        });
  }
}

void unpack_panels(const Format& f, const void* packed, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end,
                   void* q, uint16_t* scale, uint8_t* zero) {
  const Shape s = shape_of(f, k);
  const uint8_t* in = static_cast<const uint8_t*>(packed);
  uint8_t* bytes = static_cast<uint8_t*>(q);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t column = p * kPanel, valid = std::min<int64_t>(kPanel, n - column);
    if (f.family == Family::kS8Row) {
      for (int64_t r = column; r < column + valid; ++r) {
        const uint8_t* row = in + r * (s.panel_bytes / kPanel);
        std::memcpy(scale + r * s.groups, row, 2 * s.groups);
        if (k) std::memcpy(bytes + r * k, row + 2 * s.groups, k);
      }
      continue;
    }
    if (f.family == Family::kF32NK) {
      std::memcpy(static_cast<float*>(q) + column * k, in + p * s.panel_bytes, 4 * valid * k);
      continue;
    }
    if (f.family == Family::kF32N16) {
      float* w = static_cast<float*>(q) + column * k;
      const uint8_t* from = in + p * s.panel_bytes;
      for (int64_t c = 0; c < valid; ++c) {
        for (int64_t i = 0; i < k; ++i) std::memcpy(w + c * k + i, from + (i * kPanel + c) * 4, 4);
      }
      continue;
    }
    const int64_t halves = panel_columns(f.family) / kPanel, first = p % halves * kPanel;
    walk(
        s, f.family, p / halves * s.panel_bytes,
        [&](int64_t at, int64_t g) {
          const uint8_t* zeros = in + at + 32 * halves + first / 2;
          for (int64_t c = 0; c < valid; ++c) {
            if (f.table) {
              scale[(column + c) * s.groups + g] = table_scale(in + p * s.panel_bytes, in + at, c);
              continue;
            }
            std::memcpy(scale + (column + c) * s.groups + g, in + at + scale_at(f.family, first + c), 2);
            if (!f.symmetric) zero[(column + c) * s.groups + g] = zeros[c / 2] >> (c % 2 * 4) & 15;
          }
        },
        [&](int64_t at, int64_t b) {
          const int64_t length = std::min(kBlock, k - b * kBlock);
          for (int64_t c = 0; c < valid; ++c) {
            uint8_t column_values[kBlock];
            get_column(in + at, f.family, flip_of(f), first + c, column_values);
            if (f.table) look_up(column_values);
            std::memcpy(bytes + (column + c) * k + b * kBlock, column_values, length);
          }
        });
  }
}

void unpack_block(const Format& f, const void* packed, int64_t k, int64_t row, int64_t block, uint8_t q[32],
                  uint16_t* scale, int* zero) {
  const Shape s = shape_of(f, k);
  const int64_t columns = panel_columns(f.family), c = row % columns, g = block / s.group_blocks;
  const uint8_t* panel = static_cast<const uint8_t*>(packed) + row / columns * s.panel_bytes;
  const uint8_t* in =
      panel + panel_header_bytes(f.family) + g * header_bytes(f.family) + g * s.group_blocks * data_bytes(f.family);
  if (f.table) {
    *scale = table_scale(panel, in, c);
  } else {
    std::memcpy(scale, in + scale_at(f.family, c), 2);
  }
  *zero = f.symmetric ? 0 : in[2 * columns + c / 2] >> (c % 2 * 4) & 15;
  in += header_bytes(f.family) + (block - g * s.group_blocks) * data_bytes(f.family);
  get_column(in, f.family, flip_of(f), c, q);
  if (f.table) look_up(q);
}

}  // namespace edgec::kernels
