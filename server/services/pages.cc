#include "server/services/pages.h"

#include <charconv>
#include <string_view>

#include "base/sha256.h"
#include "base/status.h"

namespace optod::services {
namespace {

constexpr size_t kDigestHex = 16;

std::string Digest(const std::string& scope, const std::string& cursor) {
  return Sha256Hex(std::string_view(scope + '\n' + cursor)).substr(0, kDigestHex);
}

}  // namespace

absl::StatusOr<int64_t> PageSize(int32_t requested) {
  if (requested < 0) return InvalidArgument("page_size: ", requested, " is negative");
  if (requested == 0) return 100;
  return requested > 1000 ? 1000 : requested;
}

std::string MakePageToken(const std::string& scope, int64_t cursor) {
  std::string text = std::to_string(cursor);
  return Digest(scope, text) + text;
}

absl::StatusOr<int64_t> ParsePageToken(const std::string& scope, const std::string& token) {
  if (token.empty()) return 0;
  if (token.size() > kDigestHex) {
    std::string text = token.substr(kDigestHex);
    int64_t cursor = 0;
    auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), cursor);
    if (error == std::errc() && rest == text.data() + text.size() && token.substr(0, kDigestHex) == Digest(scope, text)) return cursor;
  }
  return InvalidArgument("page_token: not a token of this list");
}

}  // namespace optod::services
