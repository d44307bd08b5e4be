#include "server/services/admin_service.h"

#include <algorithm>
#include <utility>

#include "base/random_id.h"
#include "base/reason.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optod/v1/admin.grpc.pb.h"
#include "server/log/log.h"
#include "server/services/backup.h"
#include "server/services/pages.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

void SetTime(int64_t unix_ms, google::protobuf::Timestamp* time) {
  time->set_seconds(unix_ms / 1000);
  time->set_nanos(static_cast<int32_t>(unix_ms % 1000) * 1'000'000);
}

void FillUser(const store::UserRow& row, v1::User* user) {
  user->set_name("users/" + row.user);
  user->set_role(static_cast<v1::User::Role>(row.role));
  user->set_deleted(row.deleted);
  SetTime(row.create_ms, user->mutable_create_time());
}

void FillToken(const store::TokenRow& row, v1::Token* token) {
  token->set_name("users/" + row.user + "/tokens/" + row.token_id);
  token->set_label(row.label);
  SetTime(row.create_ms, token->mutable_create_time());
  if (row.expire_ms != 0) SetTime(row.expire_ms, token->mutable_expire_time());
  token->set_revoked(row.revoked);
}

/// users/U/tokens/T.
absl::StatusOr<std::pair<std::string, std::string>> ParseTokenName(const std::string& name) {
  size_t middle = name.find("/tokens/");
  if (!name.starts_with("users/") || middle == std::string::npos)
    return InvalidArgument("name: \"", name, "\" is not users/USER/tokens/TOKEN");
  return std::pair(name.substr(6, middle - 6), name.substr(middle + 8));
}

class AdminService final : public v1::AdminService::CallbackService {
 public:
  AdminService(AdminParts parts, ServerState state) : parts_(std::move(parts)), state_(std::move(state)) {}

  ServerUnaryReactor* GetServerInfo(CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                    v1::ServerInfo* info) override {
    return RunOnPool(context, [this, info](const Caller& caller) { return FillInfo(caller, info); });
  }

  ServerUnaryReactor* CreateUser(CallbackServerContext* context, const v1::CreateUserRequest* request,
                                 v1::User* response) override {
    return RunForAdmin(context, [this, request, response](const Caller& caller) -> absl::Status {
      int role = request->role() == v1::User::ROLE_UNSPECIFIED ? v1::User::USER : static_cast<int>(request->role());
      ASSIGN_OR_RETURN(store::UserRow row, parts_.authenticator->CreateUser(request->user_id(), role));
      log::Info("user_created", {{"user", row.user}, {"by", caller.user}});
      FillUser(row, response);
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* ListUsers(CallbackServerContext* context, const v1::ListUsersRequest* request,
                                v1::ListUsersResponse* response) override {
    return RunForAdmin(context, [this, request, response](const Caller&) -> absl::Status {
      ASSIGN_OR_RETURN(int64_t size, PageSize(request->page_size()));
      ASSIGN_OR_RETURN(PageStart start, ParsePageToken("users", request->page_token()));
      std::vector<store::UserRow> rows = parts_.authenticator->ListUsers();
      int64_t count = static_cast<int64_t>(rows.size());
      int64_t end = std::min(count, start.number + size);
      for (int64_t i = start.number; i < end; ++i) FillUser(rows[static_cast<size_t>(i)], response->add_users());
      if (end < count) response->set_next_page_token(MakePageToken("users", {end, ""}));
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* DeleteUser(CallbackServerContext* context, const v1::DeleteUserRequest* request,
                                 v1::User* response) override {
    return RunForAdmin(context, [this, request, response](const Caller& caller) -> absl::Status {
      ASSIGN_OR_RETURN(std::string user, auth::ResolveUser(request->name(), caller, "name"));
      ASSIGN_OR_RETURN(store::UserRow row, parts_.authenticator->DeleteUser(user));
      log::Info("user_deleted", {{"user", row.user}, {"by", caller.user}});
      FillUser(row, response);
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* CreateToken(CallbackServerContext* context, const v1::CreateTokenRequest* request,
                                  v1::CreateTokenResponse* response) override {
    return RunOnPool(context, [this, request, response](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireWriter(caller));
      ASSIGN_OR_RETURN(std::string user, auth::ResolveUser(request->user(), caller, "user"));
      const auto& ttl = request->ttl();
      if (request->has_ttl() && (ttl.seconds() < 0 || ttl.nanos() < 0 || (ttl.seconds() == 0 && ttl.nanos() == 0))) {
        return InvalidArgument("ttl: must be > 0 (absent = never expires)");
      }
      if (ttl.seconds() > int64_t{1000} * 365 * 86400)
        return InvalidArgument("ttl: ", ttl.seconds(), " s is over 1000 years");
      int64_t ttl_ms = ttl.seconds() * 1000 + (ttl.nanos() + 999'999) / 1'000'000;
      ASSIGN_OR_RETURN(auth::IssuedToken issued, parts_.authenticator->CreateToken(user, request->label(), ttl_ms));
      log::Info("token_created", {{"user", user}, {"token_id", issued.row.token_id}, {"by", caller.user}});
      FillToken(issued.row, response->mutable_token());
      response->set_secret(issued.token);
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* ListTokens(CallbackServerContext* context, const v1::ListTokensRequest* request,
                                 v1::ListTokensResponse* response) override {
    return RunOnPool(context, [this, request, response](const Caller& caller) -> absl::Status {
      ASSIGN_OR_RETURN(std::string user, auth::ResolveUser(request->user(), caller, "user"));
      for (const store::TokenRow& row : parts_.authenticator->ListTokens(user)) FillToken(row, response->add_tokens());
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* RevokeToken(CallbackServerContext* context, const v1::RevokeTokenRequest* request,
                                  v1::Token* response) override {
    return RunOnPool(context, [this, request, response](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireWriter(caller));
      ASSIGN_OR_RETURN(auto name, ParseTokenName(request->name()));
      ASSIGN_OR_RETURN(std::string user, auth::ResolveUser("users/" + name.first, caller, "name"));
      ASSIGN_OR_RETURN(store::TokenRow row, parts_.authenticator->RevokeToken(user, name.second));
      log::Info("token_revoked", {{"user", user}, {"token_id", row.token_id}, {"by", caller.user}});
      FillToken(row, response);
      return absl::OkStatus();
    });
  }

  ServerUnaryReactor* GetUsage(CallbackServerContext* context, const v1::GetUsageRequest* request,
                               v1::GetUsageResponse* response) override {
    return RunOnPool(context, [this, request, response](const Caller& caller) -> absl::Status {
      if (!parts_.usage) return Unimplemented("this server counts no usage");
      return parts_.usage(caller, *request, response);
    });
  }

  ServerUnaryReactor* Backup(CallbackServerContext* context, const v1::BackupRequest* request,
                             v1::Operation* response) override {
    return RunForAdmin(
        context, [this, request, response](const Caller& caller) { return RunBackup(caller, *request, response); });
  }

  ServerUnaryReactor* Drain(CallbackServerContext* context, const v1::DrainRequest* request,
                            v1::DrainResponse*) override {
    return RunForAdmin(context, [this, request](const Caller& caller) -> absl::Status {
      if (request->grace().seconds() < 0 || request->grace().nanos() < 0) return InvalidArgument("grace: is negative");
      if (request->grace().seconds() > 86400)
        return InvalidArgument("grace: ", request->grace().seconds(), " s; at most one day");
      int64_t grace_ms =
          request->has_grace() ? request->grace().seconds() * 1000 + request->grace().nanos() / 1'000'000 : -1;
      log::Info("drain_requested", {{"by", caller.user}});
      state_.request_drain(grace_ms);
      return absl::OkStatus();
    });
  }

 private:
  using Work = std::function<absl::Status(const Caller&)>;

  ServerUnaryReactor* RunOnPool(CallbackServerContext* context, Work work) {
    return services::RunOnPool(context, *parts_.authenticator, *parts_.care, std::move(work));
  }
  ServerUnaryReactor* RunForAdmin(CallbackServerContext* context, Work work) {
    return RunOnPool(context, [work = std::move(work)](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireAdmin(caller));
      return work(caller);
    });
  }

  absl::Status FillInfo(const Caller& caller, v1::ServerInfo* info) {
    info->set_version(state_.version);
    info->set_user(caller.user);
    info->set_is_admin(caller.admin);
    info->set_authentication(parts_.authenticator->mode() == auth::Mode::kToken);
    int64_t uptime_ms = state_.uptime_ms();
    info->mutable_uptime()->set_seconds(uptime_ms / 1000);
    info->mutable_uptime()->set_nanos(static_cast<int32_t>(uptime_ms % 1000) * 1'000'000);
    info->set_normal_path(state_.normal_path);
    for (const std::string& name : state_.llm_endpoints()) info->add_llm_endpoints(name);
    info->set_commits_per_second(state_.commits_per_second());
    info->set_sessions_loaded(state_.sessions_loaded());
    info->set_resident_bytes(state_.resident_bytes());
    for (const auto& [name, implemented] : state_.services) (*info->mutable_services())[name] = implemented;
    for (const HealthCheck& check : state_.checks()) {
      v1::Check* out = info->add_checks();
      out->set_name(check.name);
      out->set_ok(check.ok);
      out->set_detail(check.detail);
    }
    return absl::OkStatus();
  }

  /// The operation row is durable with its result before the answer leaves: the caller sees a done operation and can
  /// read it again later.
  absl::Status RunBackup(const Caller& caller, const v1::BackupRequest& request, v1::Operation* response) {
    std::string id = request.backup_id().empty() ? "backup-" + RandomId(8) : request.backup_id();
    if (!engine::IsResourceId(id))
      return InvalidArgument("backup_id: \"", id, "\" must match [a-z]([a-z0-9-]{0,61}[a-z0-9])?");
    // The same request id finds the same operation: a retry gets the first answer.
    std::string operation = request.request_id().empty()
                                ? RandomId()
                                : "backup-" + Sha256Hex(std::string_view(request.request_id())).substr(0, 32);
    absl::StatusOr<store::OperationRow> before = parts_.store->GetOperation(caller.user, operation);
    if (before.ok()) return AnswerAgain(*before, request, response);
    if (!absl::IsNotFound(before.status())) return before.status();

    response->set_name("users/" + caller.user + "/operations/" + operation);
    response->set_kind("backup");
    response->set_target("backups/" + id);
    SetTime(parts_.clock->NowUnixMs(), response->mutable_create_time());
    ASSIGN_OR_RETURN(BackupOutcome outcome, BackupInto(parts_.data_dir + "/backups/" + id, *parts_.store,
                                                       *parts_.blobs, *parts_.queue, *parts_.fs));
    v1::BackupResult result;
    result.set_path(outcome.path);
    result.set_bytes(outcome.bytes);
    result.set_blobs(outcome.blobs);
    result.set_jobs(outcome.jobs);
    result.set_integrity_ok(true);  // BackupTo fails otherwise
    response->mutable_response()->PackFrom(result);
    response->set_done(true);
    response->set_progress(1);
    SetTime(parts_.clock->NowUnixMs(), response->mutable_end_time());
    store::OperationRow row{caller.user,
                            operation,
                            true,
                            response->SerializeAsString(),
                            request.SerializeAsString(),
                            parts_.clock->NowUnixMs()};
    log::Info("backup_done", {{"backup", id}, {"bytes", outcome.bytes}, {"blobs", outcome.blobs}, {"by", caller.user}});
    return parts_.store->CommitAndWait({{store::PutOperation{row}}, nullptr});
  }

  static absl::Status AnswerAgain(const store::OperationRow& row, const v1::BackupRequest& request,
                                  v1::Operation* response) {
    if (row.request != request.SerializeAsString()) {
      return WithReason(Aborted("request_id: ", request.request_id(), " was used for another request"),
                        "REQUEST_ID_REUSED");
    }
    if (!response->ParseFromString(row.payload)) return DataLoss("the stored operation cannot be read");
    return absl::OkStatus();
  }

  AdminParts parts_;
  ServerState state_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(AdminParts parts, ServerState state) {
  return std::make_unique<AdminService>(std::move(parts), std::move(state));
}

}  // namespace optod::services
