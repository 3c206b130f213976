// A pool of worker threads, passed as an argument: no globals, one owner (ops.h: Context).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace localsft {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // threads >= 1, the caller's own included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls fn(task, thread) once for each task in [0, tasks), thread in [0, size()), and returns when all are done.
  // Tasks are handed out one by one by an atomic counter, in rising order: laptops have fast and slow cores, so no
  // static split. A task must write only what no other task of the same call writes; then results do not depend on
  // the number of threads. fn must not throw and must not call run again.
  void run(int64_t tasks, const std::function<void(int64_t task, int thread)>& fn);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace localsft
