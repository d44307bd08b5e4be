#pragma once
/// When to ask again, and how long to wait before. Pure functions; thread-safe.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace optod::trace {

/// 408, 429 and 5xx but 501 and 505: the same request may go well later.
bool IsRetryable(int http_status);

/// Retry-After in either form of RFC 9110 section 10.2.3: seconds ("120"), or an HTTP date ("Fri, 31 Dec 1999 23:59:59
/// GMT"), which is compared with `now_unix_ms`. A date in the past is 0. nullopt when the text is neither.
std::optional<std::chrono::milliseconds> ParseRetryAfter(const std::string& text, int64_t now_unix_ms);

/// The wait after attempt `attempt` (1 = the first): min(first * 2^(attempt-1), max), of which the upper half is drawn
/// evenly by `random`. The draw keeps callers that failed together from coming back together.
std::chrono::milliseconds Backoff(int attempt, std::chrono::milliseconds first, std::chrono::milliseconds max,
                                  uint64_t random);

}  // namespace optod::trace
