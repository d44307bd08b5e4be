#pragma once
/// What a program needs to know about an error besides its code: a reason it can branch on, the field that is wrong,
/// when to come back. They ride in the status as payloads and leave the server as trailing metadata (`optod-reason`,
/// `optod-field`, `retry-after-ms`). Pure functions.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"

namespace optod {

inline constexpr char kReasonUrl[] = "optod/reason";              ///< UPPER_SNAKE, e.g. REQUEST_ID_REUSED
inline constexpr char kFieldUrl[] = "optod/field";                ///< e.g. hyperparameters.lr
inline constexpr char kRetryAfterUrl[] = "optod/retry-after-ms";  ///< decimal milliseconds

inline absl::Status WithPayload(absl::Status status, const char* url, const std::string& value) {
  if (!status.ok()) status.SetPayload(url, absl::Cord(value));
  return status;
}
inline absl::Status WithReason(absl::Status status, const std::string& reason) {
  return WithPayload(std::move(status), kReasonUrl, reason);
}
inline absl::Status WithField(absl::Status status, const std::string& field) {
  return WithPayload(std::move(status), kFieldUrl, field);
}
inline absl::Status WithRetryAfterMs(absl::Status status, int64_t ms) {
  return WithPayload(std::move(status), kRetryAfterUrl, std::to_string(ms));
}
/// The payload's text, "" when there is none.
inline std::string PayloadOf(const absl::Status& status, const char* url) {
  auto payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace optod
