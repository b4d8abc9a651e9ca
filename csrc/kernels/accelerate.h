// macOS's Accelerate, whose cblas_sgemm runs on the matrix unit: found at run, since there is no SDK to link with.
#pragma once

#include <cstdint>

namespace edgec::kernels {

// kAccelerate where the library gives cblas_sgemm, asked at the first question; else 0.
uint32_t accelerate_features();

// For tests: another library than the system's, or none (null); not while products run.
void set_accelerate_library(const char* path);

}  // namespace edgec::kernels
