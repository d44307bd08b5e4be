#pragma once
/// The body of a unary handler whose work may block (store reads, commits): authenticate on gRPC's thread, work on a pool, answer. The request and the
/// response live until Finish, so the work may use both.

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/services/status.h"

namespace optod::services {

/// Finishes at once with an error.
inline grpc::ServerUnaryReactor* Refuse(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status, context));
  return reactor;
}

/// `work` gets the caller and fills the response that it has captured.
inline grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* context, const auth::Authenticator& authenticator, ThreadPool& pool,
                                           std::function<absl::Status(const engine::Caller&)> work) {
  absl::StatusOr<engine::Caller> caller = authenticator.Authenticate(*context);
  if (!caller.ok()) return Refuse(context, caller.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  pool.Post([context, reactor, caller = *std::move(caller), work = std::move(work)] { reactor->Finish(ToGrpc(work(caller), context)); });
  return reactor;
}

}  // namespace optod::services
