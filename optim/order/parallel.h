#pragma once
/// A loop over independent items on several threads, which ends early at the first error or when asked to stop.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "absl/status/status.h"

namespace optod::order {

/// What a long call tells and obeys. Default: nothing and never.
struct Control {
  /// `done` of `total` units (steps, terms, evaluations; the call says which) after `seconds`. From any thread, one at
  /// a time.
  std::function<void(int64_t done, int64_t total, double seconds)> progress;
  /// Asked to stop, a call ends with CANCELLED after the unit at hand; what was finished is kept.
  std::stop_token stop;
};

inline int ThreadCount(int asked) {
  const int cpus = static_cast<int>(std::thread::hardware_concurrency());
  return asked > 0 ? asked : cpus > 0 ? cpus : 1;
}

/// Runs body(0) .. body(count - 1), each once, in any order, on up to `threads` threads (this one among them). Returns
/// the first error seen (items begun by then still end), or CANCELLED.
inline absl::Status ParallelFor(int threads, int64_t count, const std::function<absl::Status(int64_t)>& body,
                                const std::stop_token& stop = {}) {
  std::atomic<int64_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  absl::Status first;
  const auto work = [&] {
    while (!failed.load(std::memory_order_relaxed)) {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= count) return;
      absl::Status status = stop.stop_requested() ? absl::CancelledError("stopped on request") : body(item);
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      if (!failed.exchange(true)) first = std::move(status);
    }
  };
  std::vector<std::jthread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.emplace_back(work);
  work();
  helpers.clear();
  return first;
}

}  // namespace optod::order
