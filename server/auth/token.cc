#include "server/auth/token.h"

#include <algorithm>

#include "base/random_id.h"
#include "base/reason.h"
#include "base/sha256.h"
#include "base/status.h"

namespace optod::auth {
namespace {

constexpr std::string_view kPrefix = "optod_";
constexpr std::string_view kBase62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
constexpr size_t kIdLength = 12;
constexpr size_t kSecretLength = 43;  // 62^43 > 2^256

bool AllOf(std::string_view text, std::string_view alphabet) {
  return text.find_first_not_of(alphabet) == std::string_view::npos;
}

}  // namespace

absl::StatusOr<TokenParts> ParseToken(std::string_view token) {
  TokenParts parts;
  bool shaped = token.size() == kPrefix.size() + kIdLength + 1 + kSecretLength && token.starts_with(kPrefix) &&
                token[kPrefix.size() + kIdLength] == '_';
  if (shaped) {
    parts.id = token.substr(kPrefix.size(), kIdLength);
    parts.secret = token.substr(kPrefix.size() + kIdLength + 1);
    shaped = AllOf(parts.id, "0123456789abcdefghijklmnopqrstuvwxyz") && AllOf(parts.secret, kBase62);
  }
  if (!shaped) {
    return WithReason(absl::UnauthenticatedError("token: malformed; must look like optod_<id>_<secret>"),
                      "TOKEN_MALFORMED");
  }
  return parts;
}

NewToken MakeToken() {
  std::string secret;
  while (secret.size() < kSecretLength) {
    std::byte bytes[64];
    FillRandom(bytes);
    for (std::byte byte : bytes) {
      unsigned value = std::to_integer<unsigned>(byte) & 63u;
      if (value < kBase62.size() && secret.size() < kSecretLength) secret += kBase62[value];
    }
  }
  std::string id = RandomId(kIdLength);
  return {id, std::string(kPrefix) + id + "_" + secret, HashSecret(secret)};
}

std::string HashSecret(std::string_view secret) {
  Sha256 hash;
  hash.Update(secret);
  Sha256Digest digest = hash.Finish();
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  return *const_cast<volatile unsigned char*>(&difference) == 0;
}

}  // namespace optod::auth
