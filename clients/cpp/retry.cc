#include "clients/cpp/retry.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace optod::client {

bool ShouldRetry(const RetryPolicy& policy, int attempt, const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable && attempt < policy.attempts;
}

std::chrono::milliseconds RetryWait(const RetryPolicy& policy, int attempt, double jitter,
                                    std::optional<std::chrono::milliseconds> retry_after) {
  if (retry_after) return *retry_after;
  const double doubled =
      static_cast<double>(policy.first_wait.count()) * std::ldexp(1.0, std::clamp(attempt - 1, 0, 30));
  const double bounded = std::min(doubled, static_cast<double>(policy.longest_wait.count()));
  return std::chrono::milliseconds(std::llround(bounded * (0.8 + 0.4 * jitter)));
}

std::optional<std::chrono::milliseconds> ParseRetryAfter(const std::string& text) {
  if (text.empty() || text.size() > 8 || text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  const int64_t ms = std::atoll(text.c_str());
  if (ms > 86'400'000) return std::nullopt;
  return std::chrono::milliseconds(ms);
}

}  // namespace optod::client
