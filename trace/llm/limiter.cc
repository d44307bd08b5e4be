#include "trace/llm/limiter.h"

#include <algorithm>

#include "trace/llm/error.h"

namespace optod::trace {
namespace {

constexpr std::chrono::milliseconds kCancelPoll{50};
constexpr double kMinuteNs = 60e9;

absl::Status Cancelled() { return LlmError(absl::StatusCode::kCancelled, "cancelled", "llm call: cancelled"); }

}  // namespace

bool IsCancelled(const std::atomic<bool>* cancelled) { return cancelled != nullptr && cancelled->load(); }

absl::Status SleepUnlessCancelled(Clock& clock, std::chrono::nanoseconds duration, const std::atomic<bool>* cancelled) {
  const int64_t end = clock.NowMonotonicNs() + duration.count();
  while (!IsCancelled(cancelled)) {
    const std::chrono::nanoseconds left(end - clock.NowMonotonicNs());
    if (left.count() <= 0) return absl::OkStatus();
    clock.SleepFor(std::min<std::chrono::nanoseconds>(left, kCancelPoll));
  }
  return Cancelled();
}

Limiter::Limiter(Clock& clock, int max_concurrency, int requests_per_minute, int64_t tokens_per_minute)
    : clock_(clock),
      max_concurrency_(max_concurrency),
      requests_{static_cast<double>(requests_per_minute), static_cast<double>(requests_per_minute)},
      tokens_{static_cast<double>(tokens_per_minute), static_cast<double>(tokens_per_minute)},
      filled_at_ns_(clock.NowMonotonicNs()) {}

int64_t Limiter::Debt(const Bucket& bucket) {
  // A request goes when at least one unit is there.
  if (bucket.per_minute <= 0 || bucket.level >= 1) return 0;
  return static_cast<int64_t>((1 - bucket.level) / bucket.per_minute * kMinuteNs) + 1;
}

int64_t Limiter::TakeRates(int64_t tokens) {
  std::lock_guard lock(mutex_);
  const int64_t now = clock_.NowMonotonicNs();
  for (Bucket* bucket : {&requests_, &tokens_}) {
    bucket->level = std::min(bucket->per_minute,
                             bucket->level + static_cast<double>(now - filled_at_ns_) / kMinuteNs * bucket->per_minute);
  }
  filled_at_ns_ = now;
  const int64_t wait = std::max(Debt(requests_), Debt(tokens_));
  if (wait > 0) return wait;
  requests_.level -= 1;
  tokens_.level -= static_cast<double>(tokens);
  return 0;
}

absl::Status Limiter::Enter(int64_t tokens, const std::atomic<bool>* cancelled) {
  {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_ticket_++;
    queue_.push_back(ticket);
    // The flag is somebody else's plain atomic, which notifies nobody: it is looked at in steps.
    while (!IsCancelled(cancelled) && !(queue_.front() == ticket && inside_ < max_concurrency_))
      left_.wait_for(lock, kCancelPoll);
    queue_.erase(std::find(queue_.begin(), queue_.end(), ticket));
    left_.notify_all();
    if (IsCancelled(cancelled)) return Cancelled();
    ++inside_;
  }
  while (const int64_t wait = TakeRates(tokens)) {
    if (absl::Status status = SleepUnlessCancelled(clock_, std::chrono::nanoseconds(wait), cancelled); !status.ok()) {
      std::lock_guard lock(mutex_);
      --inside_;
      left_.notify_all();
      return status;
    }
  }
  return absl::OkStatus();
}

void Limiter::Leave(int64_t expected_tokens, int64_t tokens) {
  std::lock_guard lock(mutex_);
  --inside_;
  tokens_.level += static_cast<double>(expected_tokens - tokens);
  left_.notify_all();
}

}  // namespace optod::trace
