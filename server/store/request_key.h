#pragma once
/// The 64-bit hash under which a request is indexed: FNV-1a over user, method and request id with zero bytes between,
/// then mixed (splitmix64). Stored in the database: must never change.

#include <cstdint>
#include <string_view>

namespace optod::store {

inline int64_t RequestKeyHash(std::string_view user, std::string_view method, std::string_view request_id) {
  uint64_t h = 0xcbf29ce484222325u;
  const auto add = [&h](std::string_view text) {
    for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
    h *= 0x100000001b3u;  // the zero byte
  };
  add(user);
  add(method);
  add(request_id);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int64_t>(h ^ (h >> 31));
}

/// Where a key is looked for after a place taken by another one with the same hash. The place after the last is the
/// first.
inline int64_t NextPlace(int64_t hash) { return static_cast<int64_t>(static_cast<uint64_t>(hash) + 1); }

}  // namespace optod::store
