#include "runtime/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <map>

#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "runtime/cpu.h"

namespace edgec {
namespace {

// Long enough to bridge the serial steps of a run and the Python between two runs.
constexpr auto kSpin = std::chrono::microseconds(150);
constexpr int kChunksPerShare = 4;
// A join that takes longer than this and than three chunks was held up by the scheduler.
constexpr auto kLongWait = std::chrono::microseconds(100);
constexpr auto kMinAlone = std::chrono::milliseconds(1), kMaxAlone = std::chrono::milliseconds(50);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A forked child has no workers: pools of an older generation run everything inline and are never joined.
std::atomic<unsigned> process_generation{0};
thread_local bool inside_job = false;

unsigned generation_now() {
#if defined(__linux__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { process_generation.fetch_add(1); });
  (void)registered;
#endif
  return process_generation.load(std::memory_order_relaxed);
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::get(int threads) {
  static std::mutex* mutex = new std::mutex;
  // Kept for the process's life: sleeping threads cost nothing, and joining them at exit could hang.
  static auto* pools = new std::map<std::pair<unsigned, int>, std::shared_ptr<ThreadPool>>;
  const std::lock_guard lock(*mutex);
  std::shared_ptr<ThreadPool>& pool = (*pools)[{generation_now(), threads}];
  if (!pool) pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

ThreadPool::ThreadPool(int threads)
    : threads_(std::max(1, threads)), generation_(generation_now()), shares_(static_cast<size_t>(threads_)) {
  for (int worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { loop(worker); });
}

ThreadPool::~ThreadPool() {
  if (generation_ != process_generation.load()) {
    // The threads were not carried over by fork: forget the handles, for joining would wait forever.
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  {
    const std::lock_guard lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::fork_join(int64_t n, int64_t grain, void* body, Call call, const kernels::Ahead* ahead) {
  if (inside_job || generation_ != process_generation.load(std::memory_order_relaxed) || !busy_.try_lock()) {
    call(body, 0, n, 0);
    return;
  }
  const std::lock_guard lock(busy_, std::adopt_lock);
  const auto start = std::chrono::steady_clock::now();
  if (start < alone_until_) {
    inside_job = true;
    call(body, 0, n, 0);
    inside_job = false;
    return;
  }
  grain = std::max<int64_t>(1, grain);
  const int64_t units = (n + grain - 1) / grain;
  const int64_t shares = std::min<int64_t>(threads_, units);
  const int64_t chunks_per_share = std::clamp<int64_t>(units / shares, 1, kChunksPerShare);
  // Chunks are whole grains, so that a range's start keeps the alignment the kernel's grain stands for.
  const int64_t grains_per_chunk = (units + shares * chunks_per_share - 1) / (shares * chunks_per_share);
  chunk_ = grains_per_chunk * grain;
  const int64_t chunks = (n + chunk_ - 1) / chunk_;
  int64_t begin = 0;
  for (int64_t i = 0; i < threads_; ++i) {
    const int64_t end = i < shares ? std::min(n, (chunks * (i + 1) / shares) * chunk_) : begin;
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(begin, std::memory_order_relaxed);
    share.end = end;
    begin = end;
  }
  body_ = body;
  call_ = call;
  if (ahead != nullptr) ahead_ = *ahead;
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) {
    {
      const std::lock_guard sleep_lock(sleep_mutex_);
    }
    wake_.notify_all();
  }
  inside_job = true;
  const int64_t own_chunks = work(0);
  inside_job = false;
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  join(start, own_chunks);
}

void ThreadPool::join(std::chrono::steady_clock::time_point start, int64_t own_chunks) {
  const auto finished = std::chrono::steady_clock::now();
  int64_t fetched = 0;
  for (int spins = 1; active_.load(std::memory_order_seq_cst) != 0; ++spins) {
    wait(ahead_, 0, fetched);
    if (spins % 4096 == 0) std::this_thread::yield();
  }
  const auto now = std::chrono::steady_clock::now();
  const auto chunk = (finished - start) / std::max<int64_t>(1, own_chunks);
  if (now - finished > 3 * chunk + kLongWait) {
    backoff_ = std::clamp<std::chrono::nanoseconds>(std::max(2 * backoff_, 2 * (now - finished)), kMinAlone, kMaxAlone);
    alone_until_ = now + backoff_;
  } else {
    backoff_ -= backoff_ / 8;
  }
}

void ThreadPool::wait(const kernels::Ahead& ahead, int worker, int64_t& at) {
  if (ahead.fetch(worker, at)) {
    at += 64;
  } else {
    relax();
  }
}

int64_t ThreadPool::work(int worker) {
  int64_t chunks = 0;
  for (int i = 0; i < threads_; ++i) {
    Share& share = shares_[static_cast<size_t>((worker + i) % threads_)];
    for (;;) {
      // Looks before it takes, so that idle workers do not drag the line away from its owner.
      if (share.next.load(std::memory_order_relaxed) >= share.end) break;
      const int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      call_(body_, begin, std::min(begin + chunk_, share.end), worker);
      ++chunks;
    }
  }
  return chunks;
}

void ThreadPool::loop(int worker) {
  inside_job = true;
  prefer_big_cores();
  uint32_t seen = 0;
  kernels::Ahead ahead;
  int64_t fetched = 0;
  for (;;) {
    auto deadline = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 1;; ++spins) {
      const uint32_t epoch = epoch_.load(std::memory_order_acquire);
      if ((epoch & 1) != 0 && epoch != seen) {
        active_.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t now = epoch_.load(std::memory_order_seq_cst);
        if ((now & 1) != 0) {
          seen = now;
          work(worker);
          if (ahead_.data != ahead.data) fetched = 0;
          ahead = ahead_;
        }
        active_.fetch_sub(1, std::memory_order_seq_cst);
        deadline = std::chrono::steady_clock::now() + kSpin;
        continue;
      }
      wait(ahead, worker, fetched);
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > deadline) break;
    }
    std::unique_lock lock(sleep_mutex_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] {
      const uint32_t epoch = epoch_.load(std::memory_order_seq_cst);
      return stop_.load() || ((epoch & 1) != 0 && epoch != seen);
    });
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
    if (stop_.load()) return;
  }
}

}  // namespace edgec
