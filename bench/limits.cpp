// What this machine can do at most, for bench/kernels.py: DRAM reads, int8 multiply-adds, f32 multiply-adds. x86-64
// with AVX2; one of the functions needs AVX-512 VNNI.
#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

template <class F>
double seconds(int threads, F&& work) {
  std::atomic<int> ready{0};
  std::vector<std::thread> others;
  const auto meet = [&](int i) {
    ready.fetch_add(1);
    while (ready.load() < threads) {
    }
    work(i);
  };
  for (int i = 1; i < threads; ++i) others.emplace_back(meet, i);
  while (ready.load() < threads - 1) {
  }
  const auto start = std::chrono::steady_clock::now();
  meet(0);
  for (auto& t : others) t.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

// GB/s of reading `bytes` at `data` once, in equal parts, each as four streams: a core that reads a single one, with
// software prefetch or without, gets some 60% of that.
extern "C" double read_bandwidth(const uint8_t* data, int64_t bytes, int threads) {
  constexpr int kStreams = 4;
  std::atomic<int64_t> sink{0};
  const int64_t stream = bytes / threads / kStreams / 4096 * 4096;
  const double s = seconds(threads, [&](int i) {
    const uint8_t* p = data + i * kStreams * stream;
    __m256i a[4] = {};
    for (int64_t at = 0; at < stream; at += 256) {
      for (int k = 0; k < kStreams; ++k) {
        for (int j = 0; j < 8; ++j) {
          const void* from = p + k * stream + at + 32 * j;
          a[j % 4] = _mm256_xor_si256(a[j % 4], _mm256_loadu_si256(static_cast<const __m256i*>(from)));
        }
      }
    }
    sink += _mm256_extract_epi64(_mm256_xor_si256(_mm256_xor_si256(a[0], a[1]), _mm256_xor_si256(a[2], a[3])), 0);
  });
  return static_cast<double>(stream * kStreams * threads) / s / 1e9;
}

// GOP/s (2 a multiply-add) of four maddubs summed in int16, one madd, one add; six independent sums.
extern "C" double int8_limit(int64_t rounds, int threads) {
  std::atomic<int64_t> sink{0};
  const double s = seconds(threads, [&](int) {
    const __m256i u = _mm256_set1_epi8(3), v = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
    __m256i acc[6] = {};
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        __m256i a, b;
        __asm__ volatile(
            "vpmaddubsw %[v], %[u], %[a]\n\tvpmaddubsw %[v], %[u], %[b]\n\tvpaddw %[b], %[a], %[a]\n\t"
            "vpmaddubsw %[v], %[u], %[b]\n\tvpaddw %[b], %[a], %[a]\n\t"
            "vpmaddubsw %[v], %[u], %[b]\n\tvpaddw %[b], %[a], %[a]\n\t"
            "vpmaddwd %[ones], %[a], %[a]\n\tvpaddd %[a], %[s], %[s]"
            : [s] "+x"(acc[j]), [a] "=&x"(a), [b] "=&x"(b)
            : [u] "x"(u), [v] "x"(v), [ones] "x"(ones));
      }
    }
    sink += _mm256_extract_epi64((acc[0] + acc[1] + acc[2]) + (acc[3] + acc[4] + acc[5]), 0);
  });
  return 2.0 * 128 * 6 * static_cast<double>(rounds) * threads / s / 1e9;
}

// GOP/s of vpdpbusd on 512 bits, twelve independent sums; 0 where the CPU has none.
extern "C" double vnni_limit(int64_t rounds, int threads) {
  if (!__builtin_cpu_supports("avx512vnni")) return 0;
  const double s = seconds(threads, [&](int) {
#define DOT(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n\t"
    for (int64_t i = 0; i < rounds; ++i) {
      __asm__ volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11)
                       :
                       :
                       : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                         "xmm11");
    }
#undef DOT
    __asm__ volatile("vzeroupper");
  });
  return 2.0 * 64 * 12 * static_cast<double>(rounds) * threads / s / 1e9;
}

// GFLOP/s of f32 FMA; twelve independent sums.
extern "C" double fma_limit(int64_t rounds, int threads) {
  std::atomic<int64_t> sink{0};
  const double s = seconds(threads, [&](int) {
    const __m256 u = _mm256_set1_ps(1.0f);
    __m256 acc[12] = {};
#define FMA(i) "vfmadd231ps %[u], %[u], %" #i "\n\t"
    for (int64_t i = 0; i < rounds; ++i) {
      __asm__ volatile(FMA(0) FMA(1) FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7) FMA(8) FMA(9) FMA(10) FMA(11)
                       : "+x"(acc[0]), "+x"(acc[1]), "+x"(acc[2]), "+x"(acc[3]), "+x"(acc[4]), "+x"(acc[5]),
                         "+x"(acc[6]), "+x"(acc[7]), "+x"(acc[8]), "+x"(acc[9]), "+x"(acc[10]), "+x"(acc[11])
                       : [u] "x"(u));
    }
#undef FMA
    // Constant indices only: with a loop the sums would live in memory.
    const __m256 low = (acc[0] + acc[1] + acc[2]) + (acc[3] + acc[4] + acc[5]);
    const __m256 high = (acc[6] + acc[7] + acc[8]) + (acc[9] + acc[10] + acc[11]);
    sink += _mm256_extract_epi32(_mm256_castps_si256(low + high), 0);
  });
  return 2.0 * 8 * 12 * static_cast<double>(rounds) * threads / s / 1e9;
}
