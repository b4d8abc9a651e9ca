#include "runtime/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <pthread/qos.h>
#include <sys/sysctl.h>
#endif

namespace edgec {
namespace {

std::vector<std::string> detect_features() {
  std::vector<std::string> found;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#define EDGEC_FEATURE(gcc_name, llvm_name) \
  if (__builtin_cpu_supports(gcc_name)) found.push_back(llvm_name);
  EDGEC_FEATURE("sse2", "sse2")
  EDGEC_FEATURE("sse3", "sse3")
  EDGEC_FEATURE("ssse3", "ssse3")
  EDGEC_FEATURE("sse4.1", "sse4.1")
  EDGEC_FEATURE("sse4.2", "sse4.2")
  EDGEC_FEATURE("popcnt", "popcnt")
  EDGEC_FEATURE("avx", "avx")
  EDGEC_FEATURE("avx2", "avx2")
  EDGEC_FEATURE("fma", "fma")
  EDGEC_FEATURE("bmi", "bmi")
  EDGEC_FEATURE("bmi2", "bmi2")
  EDGEC_FEATURE("avx512f", "avx512f")
  EDGEC_FEATURE("avx512bw", "avx512bw")
  EDGEC_FEATURE("avx512cd", "avx512cd")
  EDGEC_FEATURE("avx512dq", "avx512dq")
  EDGEC_FEATURE("avx512vl", "avx512vl")
  EDGEC_FEATURE("avx512vnni", "avx512vnni")
#undef EDGEC_FEATURE
  // gcc 12 does not know these by name: leaf 1 ECX bit 29, leaf 7.1 EAX bit 4.
  unsigned a = 0, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
  const bool avx = std::find(found.begin(), found.end(), "avx2") != found.end();
  if (avx && (c >> 29 & 1)) found.push_back("f16c");
  if (c >> 13 & 1) found.push_back("cx16");
  if (c >> 22 & 1) found.push_back("movbe");
  if (c >> 26 & 1) found.push_back("xsave");
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0x80000001U), "c"(0));
  if (c >> 5 & 1) found.push_back("lzcnt");
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
  if (a >= 7) {
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    if (avx && (a >> 4 & 1)) found.push_back("avxvnni");
  }
#elif defined(__aarch64__)
  found.push_back("neon");
#if defined(__linux__)
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  if (caps >> 10 & 1) found.push_back("fullfp16");
  if (caps >> 20 & 1) found.push_back("dotprod");
  if (caps >> 22 & 1) found.push_back("sve");
  if (caps2 >> 13 & 1) found.push_back("i8mm");
  if (caps2 >> 14 & 1) found.push_back("bf16");
  if (caps2 >> 23 & 1) found.push_back("sme");
#if defined(EDGEC_SME2)  // or there are no kernels for what an artifact that asks for it holds
  if (caps2 >> 37 & 1) found.push_back("sme2");
#endif
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  if (has("hw.optional.arm.FEAT_FP16")) found.push_back("fullfp16");
  if (has("hw.optional.arm.FEAT_DotProd")) found.push_back("dotprod");
  if (has("hw.optional.arm.FEAT_I8MM")) found.push_back("i8mm");
  if (has("hw.optional.arm.FEAT_BF16")) found.push_back("bf16");
  if (has("hw.optional.arm.FEAT_SME")) found.push_back("sme");
#if defined(EDGEC_SME2)
  if (has("hw.optional.arm.FEAT_SME2")) found.push_back("sme2");
#endif
#endif
#endif
  std::sort(found.begin(), found.end());
  return found;
}

#if defined(__linux__)
// CPUs of the quota, rounded up; 0: no quota.
int cgroup_cpus() {
  double quota = 0, period = 0;
  std::string word;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> word >> period) {
    if (word == "max") return 0;
    quota = std::atof(word.c_str());
  } else {
    std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(q >> quota) || !(p >> period)) return 0;
  }
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period - 1e-6))) : 0;
}

constexpr char kCpuFolder[] = "/sys/devices/system/cpu";

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}
#endif

}  // namespace

const std::vector<std::string>& cpu_features() {
  static const std::vector<std::string> features = detect_features();
  return features;
}

std::vector<int> big_cpus(const std::vector<int>& cpus, const std::string& folder) {
  std::vector<int> capacity, big;
  for (const int cpu : cpus) {
    std::ifstream file(folder + "/cpu" + std::to_string(cpu) + "/cpu_capacity");
    int value = 0;
    capacity.push_back(file >> value && value > 0 ? value : 1024);
  }
  const int best = capacity.empty() ? 0 : *std::max_element(capacity.begin(), capacity.end());
  for (size_t i = 0; i < cpus.size(); ++i) {
    if (capacity[i] >= best - best / 2) big.push_back(cpus[i]);
  }
  return big;
}

void prefer_big_cores() {
#if defined(__linux__)
  const std::vector<int> cpus = allowed_cpus(), big = big_cpus(cpus, kCpuFolder);
  if (big.empty() || big.size() == cpus.size()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : big) CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);  // of this thread; where it is refused, the scheduler decides
#elif defined(__APPLE__)
  pthread_set_qos_class_self_np(QOS_CLASS_USER_INTERACTIVE, 0);
#endif
}

int default_threads() {
  int count = 0;
#if defined(__linux__)
  count = static_cast<int>(big_cpus(allowed_cpus(), kCpuFolder).size());
  if (const int quota = cgroup_cpus(); quota > 0 && count > 0) count = std::min(count, quota);
#elif defined(__APPLE__)
  size_t size = sizeof(count);
  if (sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nullptr, 0) != 0) count = 0;
#endif
  if (count <= 0) count = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, count);
}

}  // namespace edgec
