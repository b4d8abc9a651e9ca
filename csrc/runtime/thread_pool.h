// Fork-join over ranges. Workers spin briefly between jobs, then sleep; nobody waits for a worker that has not woken
// up.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/ahead.h"

namespace edgec {

class ThreadPool {
 public:
  // The process's pool of that many threads (the caller's among them); started on first use, shared by sessions.
  static std::shared_ptr<ThreadPool> get(int threads);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls f(begin, end, worker) over disjoint ranges that cover [0, n), none shorter than `grain` but the last; worker
  // is in [0, threads()) and no two calls at once have the same. f must not throw. While another caller has the pool,
  // or inside f, everything runs on the calling thread as worker 0. ahead: what threads may fetch while they wait, from
  // now to the next one that is given.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, F&& f, const kernels::Ahead* ahead = nullptr) {
    if (n <= 0) return;
    if (threads_ == 1 || n <= grain) {
      f(int64_t{0}, n, 0);
      return;
    }
    using Body = std::remove_reference_t<F>;
    fork_join(
        n, grain, const_cast<void*>(static_cast<const void*>(&f)),
        [](void* body, int64_t begin, int64_t end, int worker) { (*static_cast<Body*>(body))(begin, end, worker); },
        ahead);
  }

 private:
  using Call = void (*)(void* body, int64_t begin, int64_t end, int worker);

  // A worker's own share of the range: it takes chunks from the front, and so do those who have finished theirs.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void fork_join(int64_t n, int64_t grain, void* body, Call call, const kernels::Ahead* ahead);
  void loop(int worker);

  int64_t work(int worker);
  // Fetches a line of what comes next, or pauses; `at` counts the bytes.
  static void wait(const kernels::Ahead& ahead, int worker, int64_t& at);
  void join(std::chrono::steady_clock::time_point start, int64_t own_chunks);

  const int threads_;
  const unsigned generation_;
  std::mutex busy_;
  void* body_ = nullptr;
  Call call_ = nullptr;
  int64_t chunk_ = 1;
  std::vector<Share> shares_;
  kernels::Ahead ahead_;  // read by workers while they are counted in active_

  // While other processes hold the cores, a worker that was interrupted in a chunk makes everybody wait for its next
  // time slice: after such a wait the caller works alone for a while.
  std::chrono::steady_clock::time_point alone_until_{};
  std::chrono::nanoseconds backoff_{0};

  // Odd while a job is open. A worker announces itself in active_, then looks at epoch_; the caller closes epoch_, then
  // waits for active_ to be 0: one of the two always sees the other.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> active_{0};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace edgec
