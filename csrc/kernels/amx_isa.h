// AMX instructions: their words on an Apple CPU (and under an emulator that traps them), a software model elsewhere.
// Each takes the 64 bits that its general register holds. docs/amx.md has the fields.
#pragma once

#include <cstdint>

#if defined(EDGEC_AMX_MODEL)
#include "emulate/amx_model.h"
#define EDGEC_AMX_OP(name, op) \
  inline void name(uint64_t operand) { edgec::amx::thread_model().execute(op, operand); }
#define EDGEC_AMX_SWITCH(name, immediate) \
  inline void name() { edgec::amx::thread_model().execute(17, immediate); }
#else
// The number of a register from its name: the assembler has it as a symbol.
__asm__(
    ".irp edgec_i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, "
    "27, 28, 29, 30\n"
    ".set edgec_number_x\\edgec_i, \\edgec_i\n"
    ".endr\n");
#define EDGEC_AMX_OP(name, op)                                                                               \
  __attribute__((always_inline)) inline void name(uint64_t operand) {                                        \
    __asm__ volatile(".word 0x00201000 + (%1 << 5) + edgec_number_%0" : : "r"(operand), "i"(op) : "memory"); \
  }
#define EDGEC_AMX_SWITCH(name, immediate)                                                                     \
  __attribute__((always_inline)) inline void name() {                                                         \
    __asm__ volatile("nop\n\tnop\n\tnop\n\t.word 0x00201000 + (17 << 5) + %0" : : "i"(immediate) : "memory"); \
  }
#endif

namespace edgec::kernels::amx {

EDGEC_AMX_OP(ldx, 0)
EDGEC_AMX_OP(ldy, 1)
EDGEC_AMX_OP(ldz, 4)
EDGEC_AMX_OP(stz, 5)
EDGEC_AMX_OP(stzi, 7)
EDGEC_AMX_OP(extrx, 8)
EDGEC_AMX_OP(fma16, 15)
EDGEC_AMX_OP(vecfp, 19)
EDGEC_AMX_SWITCH(set, 0)
EDGEC_AMX_SWITCH(clr, 1)

}  // namespace edgec::kernels::amx
#undef EDGEC_AMX_OP
#undef EDGEC_AMX_SWITCH
