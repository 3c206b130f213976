#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace localsft {

namespace {

// How often a worker looks for new work before it sleeps. A training step makes thousands of short calls, one after the
// other with some Python between them; waking a sleeping thread costs tens of microseconds (and on a busy machine it
// may wake on its waker's core, which halves the speed of a short product), so a worker spins for about half a
// millisecond.
constexpr int kSpins = 40000;

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

// A run is one number: which run it is, whether a worker may still join it, and how many have. Nobody waits for a
// worker that has not joined: on a busy machine it may be tens of milliseconds until the system lets it, and the others
// have done the tasks by then.
constexpr uint64_t kOpen = 1 << 15, kJoined = kOpen - 1, kRun = 2 * kOpen;

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> run{0};
  std::atomic<uint64_t> finished{0};  // of the workers that have joined
  std::atomic<int64_t> next{0};
  int64_t tasks = 0;
  const std::function<void(int64_t, int)>* fn = nullptr;
  std::atomic<bool> stop{false};

  void work(int thread) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*fn)(task, thread);
  }

  // Whether there is a run after `seen`, which is set to it, and it could be joined.
  bool join(uint64_t& seen) {
    uint64_t now = run.load(std::memory_order_acquire);
    while (now / kRun != seen) {
      if ((now & kOpen) == 0) {
        seen = now / kRun;
        return false;
      }
      if (run.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
        seen = now / kRun;
        return true;
      }
    }
    return false;
  }

  void loop(int thread) {
    uint64_t seen = 0;
    const auto is_new = [&] { return run.load(std::memory_order_acquire) / kRun != seen || stop; };
    while (true) {
      for (int spin = 0; spin < kSpins && !is_new(); ++spin) pause_cpu();
      if (!is_new()) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, is_new);
      }
      if (stop) return;
      if (!join(seen)) continue;
      work(thread);
      finished.fetch_add(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  for (int i = 1; i < threads; ++i) state_->workers.emplace_back([s = state_.get(), i] { s->loop(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(int64_t tasks, const std::function<void(int64_t, int)>& fn) {
  State& s = *state_;
  if (tasks <= 1 || s.workers.empty()) {
    for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  s.fn = &fn;
  s.tasks = tasks;
  s.next.store(0, std::memory_order_relaxed);
  s.finished.store(0, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.run.store((s.run.load(std::memory_order_relaxed) / kRun + 1) * kRun + kOpen, std::memory_order_release);
  }
  s.wake.notify_all();
  s.work(0);
  const uint64_t joined = s.run.fetch_and(~kOpen, std::memory_order_acq_rel) & kJoined;
  // The last tasks are short beside a context switch, but an oversubscribed machine may have parked a worker in one:
  // yield then.
  for (int spin = 0; s.finished.load(std::memory_order_acquire) != joined; ++spin) {
    if (spin < kSpins)
      pause_cpu();
    else
      std::this_thread::yield();
  }
}

}  // namespace localsft
