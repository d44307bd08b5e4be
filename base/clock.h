#pragma once
/// Time as a dependency: everything that reads a clock or waits takes a Clock&, so that tests never sleep.

#include <atomic>
#include <chrono>
#include <cstdint>

namespace optod {

class Clock {
 public:
  virtual ~Clock() = default;
  /// Wall time, milliseconds since 1970-01-01 UTC. May jump; for records, never for measuring.
  virtual int64_t NowUnixMs() = 0;
  /// Monotonic time, nanoseconds since an arbitrary start. For measuring and for deadlines.
  virtual int64_t NowMonotonicNs() = 0;
  /// Blocks the calling thread. A fake clock returns at once and advances itself.
  virtual void SleepFor(std::chrono::nanoseconds duration) = 0;
};

/// The machine's clock. Thread-safe; lives for ever.
Clock& SystemClock();

/// A clock for tests: stands still until Advance or SleepFor moves it. Thread-safe.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(int64_t start_unix_ms = 1'700'000'000'000) : unix_ms_(start_unix_ms) {}
  int64_t NowUnixMs() override { return unix_ms_ + monotonic_ns_.load() / 1'000'000; }
  int64_t NowMonotonicNs() override { return monotonic_ns_.load(); }
  void SleepFor(std::chrono::nanoseconds duration) override { Advance(duration); }
  void Advance(std::chrono::nanoseconds duration) { monotonic_ns_ += duration.count(); }

 private:
  const int64_t unix_ms_;
  std::atomic<int64_t> monotonic_ns_{0};
};

}  // namespace optod
