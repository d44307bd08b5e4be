#include "server/auth/authenticator.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "base/reason.h"
#include "base/status.h"
#include "server/auth/token.h"

namespace optod::auth {
namespace {

constexpr char kAdminTokenFile[] = "admin.token";

absl::Status Refuse(const char* message, const char* reason) {
  return WithReason(absl::UnauthenticatedError(message), reason);
}

bool ValidUser(const std::string& user) {
  auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  auto digit = [](char c) { return c >= '0' && c <= '9'; };
  if (user.empty() || user.size() > 63 || !lower(user.front()) || user.back() == '-') return false;
  return std::all_of(user.begin(), user.end(), [&](char c) { return lower(c) || digit(c) || c == '-'; });
}

engine::Caller CallerOf(const store::UserRow& user) {
  engine::Caller caller;
  caller.user = user.user;
  caller.admin = user.role == kAdmin;
  caller.viewer = user.role == kViewer;
  return caller;
}

engine::Caller LocalCaller() {
  engine::Caller caller;
  caller.user = "local";
  caller.admin = true;
  return caller;
}

}  // namespace

struct Authenticator::Tables {
  mutable std::shared_mutex mutex;  ///< guards the maps; held for look-ups only
  std::map<std::string, store::UserRow, std::less<>> users;
  std::map<std::string, store::TokenRow, std::less<>> tokens;
  std::mutex changes;  ///< one change at a time, across its commit

  const store::UserRow* ActiveUser(std::string_view user) const {
    auto found = users.find(user);
    return found == users.end() || found->second.deleted ? nullptr : &found->second;
  }
  int ActiveAdmins() const {
    return static_cast<int>(std::count_if(users.begin(), users.end(), [](const auto& entry) {
      return entry.second.role == kAdmin && !entry.second.deleted;
    }));
  }
};

Authenticator::Authenticator(Mode mode, store::Store& store, Clock& clock)
    : mode_(mode), store_(store), clock_(clock), tables_(std::make_unique<Tables>()) {}
Authenticator::~Authenticator() = default;

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(Mode mode, store::Store& store, Clock& clock,
                                                                     Fs& fs, const std::string& data_dir) {
  std::unique_ptr<Authenticator> made(new Authenticator(mode, store, clock));
  RETURN_IF_ERROR(made->Load());
  if (mode == Mode::kToken && made->tables_->ActiveAdmins() == 0) RETURN_IF_ERROR(made->WriteFirstAdmin(fs, data_dir));
  return made;
}

absl::Status Authenticator::Load() {
  ASSIGN_OR_RETURN(std::vector<store::UserRow> users, store_.ListUsers());
  ASSIGN_OR_RETURN(std::vector<store::TokenRow> tokens, store_.ListTokens(""));
  for (store::UserRow& row : users) tables_->users[row.user] = row;
  for (store::TokenRow& row : tokens) tables_->tokens[row.token_id] = row;
  return absl::OkStatus();
}

absl::Status Authenticator::WriteFirstAdmin(Fs& fs, const std::string& data_dir) {
  NewToken token = MakeToken();
  std::string text = token.token + "\n";
  // The file before the rows: after a crash in between, the next start sees no admin and writes the file anew.
  RETURN_IF_ERROR(fs.WriteFileAtomic(data_dir + "/" + kAdminTokenFile, BytesOf(text), 0600));
  store::UserRow user{"admin", kAdmin, false, clock_.NowUnixMs()};
  store::TokenRow row{token.id, "admin", "first start", token.secret_sha256, clock_.NowUnixMs(), 0, false};
  RETURN_IF_ERROR(store_.CommitAndWait({{store::PutUser{user}, store::PutToken{row}}, nullptr}));
  tables_->users[user.user] = user;
  tables_->tokens[row.token_id] = row;
  return absl::OkStatus();
}

absl::StatusOr<engine::Caller> Authenticator::Authenticate(const grpc::CallbackServerContext& context) const {
  std::string_view authorization;
  if (mode_ == Mode::kToken) {
    const auto& metadata = context.client_metadata();
    auto found = metadata.find("authorization");
    if (found != metadata.end()) authorization = {found->second.data(), found->second.size()};
    return Check(context.peer(), authorization);
  }
  return LocalCaller();
}

absl::StatusOr<engine::Caller> Authenticator::Check(std::string_view peer, std::string_view authorization) const {
  if (mode_ == Mode::kOff) return LocalCaller();
  if (authorization.empty()) {
    if (peer.starts_with("unix:")) return LocalCaller();
    return Refuse("token: missing; set OPTOD_TOKEN (header authorization: Bearer <token>)", "TOKEN_MISSING");
  }
  constexpr std::string_view kBearer = "Bearer ";
  if (!authorization.starts_with(kBearer))
    return Refuse("token: the header authorization must be `Bearer <token>`", "TOKEN_MALFORMED");
  ASSIGN_OR_RETURN(TokenParts parts, ParseToken(authorization.substr(kBearer.size())));
  std::string hash = HashSecret(parts.secret);
  std::shared_lock lock(tables_->mutex);
  auto found = tables_->tokens.find(parts.id);
  // An unknown id costs the same comparison as a wrong secret and gets the same answer.
  static const std::string kNoHash(32, '\0');
  bool equal = EqualInConstantTime(hash, found == tables_->tokens.end() ? kNoHash : found->second.secret_sha256);
  if (!equal || found == tables_->tokens.end()) return Refuse("token: not known here", "TOKEN_UNKNOWN");
  const store::TokenRow& row = found->second;
  if (row.revoked) return Refuse("token: revoked", "TOKEN_REVOKED");
  if (row.expire_ms != 0 && row.expire_ms <= clock_.NowUnixMs()) return Refuse("token: expired", "TOKEN_EXPIRED");
  const store::UserRow* user = tables_->ActiveUser(row.user);
  if (user == nullptr) return Refuse("token: its user was deleted", "USER_DELETED");
  return CallerOf(*user);
}

absl::StatusOr<store::UserRow> Authenticator::CreateUser(const std::string& user, int role) {
  if (!ValidUser(user)) return InvalidArgument("user_id: \"", user, "\" must match [a-z]([a-z0-9-]{0,61}[a-z0-9])?");
  if (role < kViewer || role > kAdmin) return InvalidArgument("role: must be VIEWER, USER or ADMIN");
  std::lock_guard change(tables_->changes);
  {
    std::shared_lock lock(tables_->mutex);
    const store::UserRow* existing = tables_->ActiveUser(user);
    if (existing != nullptr && existing->role == role) return *existing;
    if (existing != nullptr) return AlreadyExists("user_id: ", user, " exists with another role");
  }
  store::UserRow row{user, role, false, clock_.NowUnixMs()};
  RETURN_IF_ERROR(store_.CommitAndWait({{store::PutUser{row}}, nullptr}));
  std::unique_lock lock(tables_->mutex);
  tables_->users[user] = row;
  return row;
}

absl::StatusOr<store::UserRow> Authenticator::DeleteUser(const std::string& user) {
  std::lock_guard change(tables_->changes);
  store::UserRow row;
  store::Batch batch;
  {
    std::shared_lock lock(tables_->mutex);
    auto found = tables_->users.find(user);
    if (found == tables_->users.end()) return NotFound("name: no user ", user);
    row = found->second;
    if (row.deleted) return row;
    if (row.role == kAdmin && tables_->ActiveAdmins() == 1)
      return FailedPrecondition("name: ", user, " is the last admin");
    for (const auto& [id, token] : tables_->tokens) {
      if (token.user != user || token.revoked) continue;
      store::TokenRow revoked = token;
      revoked.revoked = true;
      batch.mutations.push_back(store::PutToken{revoked});
    }
  }
  row.deleted = true;
  batch.mutations.push_back(store::PutUser{row});
  RETURN_IF_ERROR(store_.CommitAndWait(std::move(batch)));
  std::unique_lock lock(tables_->mutex);
  tables_->users[user] = row;
  for (auto& [id, token] : tables_->tokens) {
    if (token.user == user) token.revoked = true;
  }
  generation_.fetch_add(1, std::memory_order_acq_rel);
  return row;
}

absl::StatusOr<IssuedToken> Authenticator::CreateToken(const std::string& user, const std::string& label,
                                                       int64_t ttl_ms) {
  if (ttl_ms < 0) return InvalidArgument("ttl: ", ttl_ms, " ms is negative");
  if (label.size() > 256) return InvalidArgument("label: ", label.size(), " bytes; at most 256");
  std::lock_guard change(tables_->changes);
  {
    std::shared_lock lock(tables_->mutex);
    if (tables_->ActiveUser(user) == nullptr) return NotFound("user: no user ", user);
  }
  NewToken token = MakeToken();
  int64_t now = clock_.NowUnixMs();
  store::TokenRow row{token.id, user, label, token.secret_sha256, now, ttl_ms == 0 ? 0 : now + ttl_ms, false};
  RETURN_IF_ERROR(store_.CommitAndWait({{store::PutToken{row}}, nullptr}));
  std::unique_lock lock(tables_->mutex);
  tables_->tokens[row.token_id] = row;
  return IssuedToken{row, token.token};
}

absl::StatusOr<store::TokenRow> Authenticator::RevokeToken(const std::string& user, const std::string& token_id) {
  std::lock_guard change(tables_->changes);
  store::TokenRow row;
  {
    std::shared_lock lock(tables_->mutex);
    auto found = tables_->tokens.find(token_id);
    if (found == tables_->tokens.end() || found->second.user != user)
      return NotFound("name: no token ", token_id, " of user ", user);
    row = found->second;
  }
  if (row.revoked) return row;
  row.revoked = true;
  RETURN_IF_ERROR(store_.CommitAndWait({{store::PutToken{row}}, nullptr}));
  std::unique_lock lock(tables_->mutex);
  tables_->tokens[token_id] = row;
  generation_.fetch_add(1, std::memory_order_acq_rel);
  return row;
}

std::vector<store::UserRow> Authenticator::ListUsers() const {
  std::shared_lock lock(tables_->mutex);
  std::vector<store::UserRow> rows;
  for (const auto& [name, row] : tables_->users) rows.push_back(row);
  return rows;
}

std::vector<store::TokenRow> Authenticator::ListTokens(const std::string& user) const {
  std::vector<store::TokenRow> rows;
  {
    std::shared_lock lock(tables_->mutex);
    for (const auto& [id, row] : tables_->tokens) {
      if (row.user == user) rows.push_back(row);
    }
  }
  for (store::TokenRow& row : rows) row.secret_sha256.clear();
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return std::pair(-a.create_ms, a.token_id) < std::pair(-b.create_ms, b.token_id);
  });
  return rows;
}

absl::Status RequireAdmin(const engine::Caller& caller) {
  if (caller.admin) return absl::OkStatus();
  return WithReason(absl::PermissionDeniedError("needs the role admin; you are " + caller.user), "ADMIN_ONLY");
}

absl::Status RequireWriter(const engine::Caller& caller) {
  if (!caller.viewer) return absl::OkStatus();
  return WithReason(absl::PermissionDeniedError("needs the role user or admin; " + caller.user + " is a viewer"),
                    "READ_ONLY");
}

absl::StatusOr<std::string> ResolveUser(const std::string& parent, const engine::Caller& caller,
                                        const std::string& field) {
  if (parent.empty()) return caller.user;
  std::string user = parent.starts_with("users/") ? parent.substr(6) : parent;
  if (!ValidUser(user)) return InvalidArgument(field, ": \"", parent, "\" is not users/USER");
  if (user != caller.user && !caller.admin) return NotFound(field, ": no user ", user);
  return user;
}

}  // namespace optod::auth
