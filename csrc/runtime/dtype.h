#pragma once

#include <cstddef>
#include <cstdint>

namespace edgec {

// The codes of plan.bin.
enum class DType : int32_t { kBool, kI8, kU8, kI16, kU16, kI32, kU32, kI64, kU64, kF16, kBF16, kF32, kF64, kBytes };
inline constexpr int kDTypeCount = 14;

inline constexpr size_t kDTypeSize[kDTypeCount] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1};
inline constexpr const char* kDTypeName[kDTypeCount] = {"bool", "i8",  "u8",  "i16",  "u16", "i32", "u32",
                                                        "i64",  "u64", "f16", "bf16", "f32", "f64", "bytes"};

inline constexpr size_t size_of(DType dtype) { return kDTypeSize[static_cast<int>(dtype)]; }
inline constexpr const char* name_of(DType dtype) { return kDTypeName[static_cast<int>(dtype)]; }

}  // namespace edgec
