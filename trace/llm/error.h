#pragma once
/// Errors of the gateway with a machine-readable word (LlmErrorReason in gateway.h), and quotes from what an endpoint
/// sent. Thread-safe.

#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/secret.h"

namespace optod::trace {

/// A status that carries `reason` as a payload, which wording changes do not touch.
absl::Status LlmError(absl::StatusCode code, std::string_view reason, const std::string& message);

/// What came, for a message: secrets replaced, then at most `limit` bytes (cut between UTF-8 characters, with "..."),
/// control and invalid bytes as spaces and '?'.
std::string Quote(const std::string& text, std::span<const Secret> secrets, size_t limit = 200);

}  // namespace optod::trace
