// AMX by trap and emulate, on arm64 Linux: the CPU (or qemu) refuses an instruction, and the signal's handler computes
// it with the software model. So the words that are encoded in the kernels are what is tested. At load.
#if defined(__aarch64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstring>

#include "emulate/amx_model.h"
#include "kernels/amx.h"
#include "kernels/cpu_features.h"

namespace edgec::amx {
namespace {

[[noreturn]] void give_up(const char* reason) {
  const auto put = [](const char* text) { return write(2, text, std::strlen(text)) >= 0; };
  put("EC1802|AMX|"), put(reason), put("|This is a fault of edgec's kernels\n");
  _exit(1);
}

void on_refusal(int, siginfo_t*, void* context) {
  mcontext_t& cpu = static_cast<ucontext_t*>(context)->uc_mcontext;
  uint32_t word;
  std::memcpy(&word, reinterpret_cast<const void*>(cpu.pc), 4);
  if ((word & 0xfffffc00) != 0x00201000) give_up("an instruction that this CPU lacks");
  const unsigned op = word >> 5 & 31, number = word & 31;
  try {
    thread_model().execute(op, op == kSetClr ? number : number == 31 ? 0 : cpu.regs[number]);
  } catch (const Fault& fault) {
    give_up(fault.what());
  }
  cpu.pc += 4;
}

__attribute__((constructor)) void install() {
  struct sigaction action = {};
  action.sa_sigaction = on_refusal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGILL, &action, nullptr) != 0) return;
  kernels::amx_is_trapped(kernels::kAmx | kernels::kAmx2);
}

}  // namespace
}  // namespace edgec::amx
#endif
