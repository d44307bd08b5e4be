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
  const double doubled = static_cast<double>(policy.first_wait.count()) * std::ldexp(1.0, std::clamp(attempt - 1, 0, 30));
  const double bounded = std::min(doubled, static_cast<double>(policy.longest_wait.count()));
  return std::chrono::milliseconds(std::llround(bounded * (0.8 + 0.4 * jitter)));
}

std::optional<std::chrono::milliseconds> ParseRetryAfter(const std::string& text) {
  if (text.empty()) return std::nullopt;
  char* end = nullptr;
  const double seconds = std::strtod(text.c_str(), &end);
  if (*end != '\0' || !std::isfinite(seconds) || seconds < 0 || seconds > 86'400) return std::nullopt;
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

}  // namespace optod::client
