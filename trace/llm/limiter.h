#pragma once
/// What one endpoint lets through: so many requests at once, so many requests and tokens a minute. Waiters go in the
/// order they came and can be cancelled. Thread-safe.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>

#include "absl/status/status.h"
#include "base/clock.h"

namespace optod::trace {

bool IsCancelled(const std::atomic<bool>* cancelled);

/// Sleeps on `clock` in steps of 50 ms; CANCELLED [cancelled] as soon as the flag is seen.
absl::Status SleepUnlessCancelled(Clock& clock, std::chrono::nanoseconds duration, const std::atomic<bool>* cancelled);

class Limiter {
 public:
  /// 0 a minute = no limit. A minute's worth may be spent at once; after that it comes back evenly.
  Limiter(Clock& clock, int max_concurrency, int requests_per_minute, int64_t tokens_per_minute);

  /// Waits for a place on the wire and for the rates. `tokens` is what the request is expected to use. Every OK needs
  /// one Leave.
  absl::Status Enter(int64_t tokens, const std::atomic<bool>* cancelled);
  /// Gives the place back; `tokens` is what was really used and corrects the expectation passed to Enter.
  void Leave(int64_t expected_tokens, int64_t tokens);

 private:
  /// Nanoseconds until the rates allow a request; takes from them and returns 0 when they do now.
  int64_t TakeRates(int64_t tokens);

  /// A bucket that holds `per_minute` and fills at that pace. It may be overdrawn by one request, which then waits the
  /// debt out for others.
  struct Bucket {
    double per_minute = 0, level = 0;
  };
  static int64_t Debt(const Bucket& bucket);

  Clock& clock_;
  const int max_concurrency_;
  std::mutex mutex_;
  std::condition_variable left_;
  std::deque<uint64_t> queue_;  ///< tickets of the waiters, in order
  uint64_t next_ticket_ = 0;
  int inside_ = 0;
  Bucket requests_, tokens_;
  int64_t filled_at_ns_;
};

}  // namespace optod::trace
