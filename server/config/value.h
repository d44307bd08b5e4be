#pragma once
/// Texts of the operator as values, and the nearest known name for a misspelt one. Pure functions.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace optod::config {

/// "10s", "500ms", "2m", "1h"; a bare number is seconds. Milliseconds; >= 0.
absl::StatusOr<int64_t> ParseDurationMs(const std::string& text);
/// "512MiB", "2GiB", "64KiB", "1000"; binary units only. Bytes; > 0.
absl::StatusOr<int64_t> ParseBytes(const std::string& text);
/// A whole number >= 1.
absl::StatusOr<int64_t> ParseCount(const std::string& text);
/// true/false, yes/no, on/off, 1/0.
absl::StatusOr<bool> ParseBool(const std::string& text);
/// The known name with the least edit distance when it is at most a third of the name's length (and at least 2 are
/// allowed); "" otherwise.
std::string Nearest(std::string_view name, std::span<const std::string_view> known);

}  // namespace optod::config
