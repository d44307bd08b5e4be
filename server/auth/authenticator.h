#pragma once
/// Who calls. With authentication off (loopback and Unix sockets only) everybody is the user `local` with all rights.
/// With it on, a call carries `authorization: Bearer optod_<id>_<secret>` (token.h); a call over the Unix socket
/// without a token is `local`, because the socket's file mode (0600) already says who may connect.
///
/// All users and tokens are in memory (the data directory has one server): a check takes no disk read, and a revocation
/// acts on the next call. The store has SHA-256 of secrets only. Thread-safe. Changes block until they are durable:
/// never call those on a gRPC thread.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/fs.h"
#include "server/engine/engine.h"
#include "server/store/store.h"

namespace grpc {
class CallbackServerContext;
}

namespace optod::auth {

enum class Mode { kOff, kToken };

/// Values of admin.proto User.Role.
enum Role { kViewer = 1, kUser = 2, kAdmin = 3 };

struct IssuedToken {
  store::TokenRow row;
  std::string token;  ///< the whole token; exists here and nowhere else
};

class Authenticator {
 public:
  /// Loads users and tokens. With Mode::kToken and no admin yet, makes the user `admin` with a token and writes it to
  /// `data_dir`/admin.token (mode 0600). `store`, `clock` must outlive it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(Mode mode, store::Store& store, Clock& clock, Fs& fs,
                                                               const std::string& data_dir);
  ~Authenticator();

  /// The caller of a gRPC call. What every handler asks first. UNAUTHENTICATED: no token, malformed, unknown, wrong,
  /// revoked, expired, user deleted.
  absl::StatusOr<engine::Caller> Authenticate(const grpc::CallbackServerContext& context) const;
  /// The same from its parts: peer as gRPC prints it ("ipv4:...", "unix:..."), value of the header `authorization` (""
  /// = absent).
  absl::StatusOr<engine::Caller> Check(std::string_view peer, std::string_view authorization) const;
  /// Grows with every revocation and deletion. A long-lived stream that sees it changed authenticates again.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }
  Mode mode() const { return mode_; }

  // ---- changes; blocking. Names of users: engine::IsResourceId.
  /// ALREADY_EXISTS unless the user was deleted before (then it comes back with the new role) or exists with this very
  /// role (a retry).
  absl::StatusOr<store::UserRow> CreateUser(const std::string& user, int role);
  /// Revokes all tokens. FAILED_PRECONDITION for the last admin.
  absl::StatusOr<store::UserRow> DeleteUser(const std::string& user);
  /// ttl_ms 0 = never expires. NOT_FOUND when there is no such user.
  absl::StatusOr<IssuedToken> CreateToken(const std::string& user, const std::string& label, int64_t ttl_ms);
  /// Idempotent.
  absl::StatusOr<store::TokenRow> RevokeToken(const std::string& user, const std::string& token_id);
  std::vector<store::UserRow> ListUsers() const;                           ///< by name; deleted ones too
  std::vector<store::TokenRow> ListTokens(const std::string& user) const;  ///< newest first; without the hashes

 private:
  Authenticator(Mode mode, store::Store& store, Clock& clock);
  absl::Status Load();
  absl::Status WriteFirstAdmin(Fs& fs, const std::string& data_dir);

  struct Tables;
  const Mode mode_;
  store::Store& store_;
  Clock& clock_;
  std::unique_ptr<Tables> tables_;
  std::atomic<uint64_t> generation_{1};
};

/// PERMISSION_DENIED unless the caller may administer / may change things (is no viewer).
absl::Status RequireAdmin(const engine::Caller& caller);
absl::Status RequireWriter(const engine::Caller& caller);
/// "" or "users/U" -> U, when it is the caller's own or the caller is an admin; NOT_FOUND otherwise (what you may not
/// see does not exist).
absl::StatusOr<std::string> ResolveUser(const std::string& parent, const engine::Caller& caller,
                                        const std::string& field);

}  // namespace optod::auth
