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

std::string MakePageToken(const std::string& scope, const PageStart& start) {
  std::string text = std::to_string(start.number) + "~" + start.text;
  return Digest(scope, text) + text;
}

absl::StatusOr<PageStart> ParsePageToken(const std::string& scope, const std::string& token) {
  PageStart start;
  if (token.empty()) return start;
  if (token.size() > kDigestHex) {
    std::string text = token.substr(kDigestHex);
    const char* end = text.data() + text.size();
    auto [rest, error] = std::from_chars(text.data(), end, start.number);
    if (error == std::errc() && rest != end && *rest == '~' && token.substr(0, kDigestHex) == Digest(scope, text)) {
      start.text.assign(rest + 1, end);
      return start;
    }
  }
  return InvalidArgument("page_token: not a token of this list");
}

}  // namespace optod::services
