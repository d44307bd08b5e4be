#pragma once
/// When and how long to wait before a call is sent again. Pure functions, thread-safe.

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace optod::client {

struct RetryPolicy {
  int attempts = 4;                           ///< in all; 1 = never again
  std::chrono::milliseconds first_wait{100};  ///< doubled after every attempt
  std::chrono::milliseconds longest_wait{2'000};
};

/// Whether the attempt number `attempt` (1, 2, ...) that ended in `status` is followed by another one.
bool ShouldRetry(const RetryPolicy& policy, int attempt, const absl::Status& status);

/// Wait after attempt number `attempt`: first_wait * 2^(attempt-1), at most longest_wait, scaled by 0.8 + 0.4 *
/// `jitter` (in [0, 1)) so that many clients do not come back at the same moment. `retry_after` (what the server asked
/// for) replaces it.
std::chrono::milliseconds RetryWait(const RetryPolicy& policy, int attempt, double jitter,
                                    std::optional<std::chrono::milliseconds> retry_after);

/// The trailing metadata retry-after-ms: decimal milliseconds. Absent when it is no whole number in [0, one day].
std::optional<std::chrono::milliseconds> ParseRetryAfter(const std::string& text);

}  // namespace optod::client
