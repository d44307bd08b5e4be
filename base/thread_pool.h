#pragma once
/// Threads for work that must not run on gRPC's: a fixed pool, serial executors (strands) on top of it, and timers. All thread-safe.

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"

namespace optod {

using Task = absl::AnyInvocable<void()>;

/// A fixed number of threads over one FIFO queue. The destructor runs what is queued, then joins.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Post(Task task);
  int threads() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Runs its tasks one at a time, in order, on a pool. The pool must outlive it; tasks queued at destruction still run.
class Strand {
 public:
  explicit Strand(ThreadPool& pool);
  ~Strand();
  void Post(Task task);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// One thread that posts tasks to a pool at their time.
class Timers {
 public:
  explicit Timers(ThreadPool& pool);
  ~Timers();   ///< Stop
  /// Drops what is not due; from here on After drops its task as well. For an owner whose pool still runs tasks that set
  /// timers, their own successors above all: Stop, then end the pool, then the timers. A task that was posted runs.
  void Stop();
  /// Returns a handle for Cancel; 0, which Cancel ignores, after Stop.
  uint64_t After(std::chrono::nanoseconds delay, Task task);
  void Cancel(uint64_t handle);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod
