#pragma once
/// Pages of lists: opaque tokens that carry where the next page begins and which list they belong to, so that a token of another list is refused.
/// Pure functions.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace optod::services {

/// 0 -> 100; at most 1000. INVALID_ARGUMENT when negative.
absl::StatusOr<int64_t> PageSize(int32_t requested);
/// `cursor` of the list named by `scope` (method and filters).
std::string MakePageToken(const std::string& scope, int64_t cursor);
/// "" -> 0. INVALID_ARGUMENT "page_token: ..." when it is not one of this list.
absl::StatusOr<int64_t> ParsePageToken(const std::string& scope, const std::string& token);

}  // namespace optod::services
