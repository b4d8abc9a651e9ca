// What the process may use: CPU features by their LLVM names, and how many threads pay.
#pragma once

#include <string>
#include <vector>

namespace edgec {

// Features of this CPU that edgec's targets can require, sorted.
const std::vector<std::string>& cpu_features();

// Threads that affinity, the cgroup CPU quota and (on mixed CPUs) the big cores allow; at least 1.
int default_threads();

// Of these CPUs those with at least half of the best one's capacity: on mixed CPUs a little core makes the others wait.
// folder: /sys/devices/system/cpu, whose cpuN/cpu_capacity says it; where it says nothing, all of them.
std::vector<int> big_cpus(const std::vector<int>& cpus, const std::string& folder);

// Keeps the calling thread on big cores (macOS: asks for performance cores); nothing where all cores are alike.
void prefer_big_cores();

}  // namespace edgec
