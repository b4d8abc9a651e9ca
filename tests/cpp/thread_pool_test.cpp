// Several callers share pools: every index is visited once, by a worker that nobody else is at the time.
#include "runtime/thread_pool.h"

#include <atomic>
#include <cstdio>
#include <random>

int main() {
  for (const int threads : {1, 2, 3, 5}) {
    const auto pool = edgec::ThreadPool::get(threads);
    std::atomic<long> faults{0};
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 3; ++caller)
      callers.emplace_back([&, caller] {
        std::mt19937 rng(caller);
        for (int round = 0; round < 2000; ++round) {
          const int64_t n = static_cast<int64_t>(rng() % 500), grain = 1 + static_cast<int64_t>(rng() % 40);
          std::vector<int> visits(static_cast<size_t>(n)), by_worker(static_cast<size_t>(threads));
          pool->parallel_for(n, grain, [&](int64_t begin, int64_t end, int worker) {
            if (worker < 0 || worker >= threads || begin >= end || begin % grain != 0) ++faults;
            ++by_worker[static_cast<size_t>(worker)];  // a race here is two calls at once with one worker
            for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
          });
          for (const int count : visits) faults += count != 1;
          if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // workers fall asleep
        }
      });
    for (std::thread& caller : callers) caller.join();
    if (faults != 0) {
      std::printf("%d threads: %ld faults\n", threads, faults.load());
      return 1;
    }
  }
}
