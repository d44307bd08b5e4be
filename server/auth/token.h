#pragma once
/// Tokens: `optod_<id>_<secret>`, id = 12 of [a-z0-9], secret = 43 of [0-9A-Za-z] from the kernel's generator (256
/// bits: a fast hash is enough, there is nothing to guess). The id names the token in lists and logs; the secret is
/// shown once and kept as SHA-256. Pure functions, thread-safe.

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace optod::auth {

struct TokenParts {
  std::string_view id, secret;  ///< into the text that was parsed
};
/// UNAUTHENTICATED when the shape is wrong; the message never shows the text.
absl::StatusOr<TokenParts> ParseToken(std::string_view token);

struct NewToken {
  std::string id;
  std::string token;          ///< the whole text
  std::string secret_sha256;  ///< raw 32 bytes
};
NewToken MakeToken();

/// Raw 32 bytes.
std::string HashSecret(std::string_view secret);
/// Looks at every byte whatever they are.
bool EqualInConstantTime(std::string_view a, std::string_view b);

}  // namespace optod::auth
