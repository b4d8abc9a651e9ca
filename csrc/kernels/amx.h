// Whether Apple's AMX can be used, and the preparation of activations for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgec::kernels {

struct LinearJob;

// Features kAmx and kAmx2 where the instructions compute what they should: products with known answers are computed
// once per process, at the first question. An instruction that the CPU refuses means no.
uint32_t amx_features();

// The process traps these instructions and computes them itself (csrc/emulate/amx_trap.h): amx_features() need not
// guard against refusal. Before the first question only.
void amx_is_trapped(uint32_t features);

// Of prepared activations, those of other kernels of the same formats too. blocks: of 32 along K.
size_t amx_scratch_bytes(int64_t m, int64_t blocks);
void prepare_f16k32(const LinearJob& job, int64_t tile_begin, int64_t tile_end);

}  // namespace edgec::kernels
