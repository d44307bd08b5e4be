#pragma once
/// Pages of lists: opaque tokens that carry where the next page begins and which list they belong to, so that a token
/// of another list is refused. Pure functions.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace optod::services {

/// 0 -> 100; at most 1000. INVALID_ARGUMENT when negative.
absl::StatusOr<int64_t> PageSize(int32_t requested);
/// Where a page begins: a number and, where numbers may repeat, a text that tells equal ones apart.
struct PageStart {
  int64_t number = 0;
  std::string text;
};
/// `scope` names the list (method and filters).
std::string MakePageToken(const std::string& scope, const PageStart& start);
/// "" -> {0, ""}. INVALID_ARGUMENT "page_token: ..." when it is not one of this list.
absl::StatusOr<PageStart> ParsePageToken(const std::string& scope, const std::string& token);

}  // namespace optod::services
