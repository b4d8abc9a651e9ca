// What the process may use: CPU features by their LLVM names, and how many threads pay.
#pragma once

#include <string>
#include <vector>

namespace edgec {

// Features of this CPU that edgec's targets can require, sorted.
const std::vector<std::string>& cpu_features();

// Threads that affinity, the cgroup CPU quota and (on mixed CPUs) the big cores allow; at least 1.
int default_threads();

}  // namespace edgec
