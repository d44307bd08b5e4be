#pragma once
/// The messages of a store's refusals, the same from every implementation. They name the row, not the machine.

#include <cstdint>
#include <string>

#include "base/status.h"

namespace optod::store {

inline absl::Status NoSession(int64_t uid) { return NotFound("session uid ", uid, " does not exist"); }
inline absl::Status NoSession(const std::string& user, const std::string& id) {
  return NotFound("users/", user, "/sessions/", id, " does not exist");
}
inline absl::Status SessionMoved(int64_t uid, int64_t stored, int64_t given) {
  return Aborted("session uid ", uid, ": revision ", given, " does not follow the stored revision ", stored);
}
inline absl::Status NoVersion(int64_t uid, int64_t number) {
  return NotFound("session uid ", uid, ": version ", number, " does not exist");
}
inline absl::Status NoNode(int64_t uid, int64_t id) {
  return NotFound("session uid ", uid, ": node ", id, " does not exist");
}
inline absl::Status SessionTaken(const std::string& user, const std::string& id) {
  return AlreadyExists("users/", user, "/sessions/", id, " already exists");
}
inline absl::Status VersionTaken(int64_t uid, int64_t number) {
  return AlreadyExists("session uid ", uid, ": version ", number, " already exists");
}
inline absl::Status NodeTaken(int64_t uid, int64_t id) {
  return AlreadyExists("session uid ", uid, ": node ", id, " already exists");
}
inline absl::Status NoSnapshot(int64_t uid, int64_t number) {
  return NotFound("session uid ", uid, ": no snapshot at or before version ", number);
}
inline absl::Status NoRequest(const std::string& method, const std::string& request_id) {
  return NotFound("request id ", request_id, " of ", method, " is not known");
}
inline absl::Status RequestTaken(const std::string& method, const std::string& request_id) {
  return AlreadyExists("request id ", request_id, " of ", method, " is already answered");
}

}  // namespace optod::store
