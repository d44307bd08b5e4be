#pragma once
/// The shape of every unary handler: authenticate, call the engine or work on a pool, convert the answer, finish. Nothing here blocks.

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <utility>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/services/status.h"

namespace optod::services {

/// Runs `call(caller, done)` for an authenticated caller; `done` takes an absl::StatusOr<Response>.
template <typename Response, typename Call>
grpc::ServerUnaryReactor* RunUnary(const auth::Authenticator& authenticator, grpc::CallbackServerContext* context, Response* response, Call call) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto caller = authenticator.Authenticate(*context);
  if (!caller.ok()) {
    reactor->Finish(ToGrpc(caller.status(), context));
    return reactor;
  }
  call(*caller, [context, response, reactor](absl::StatusOr<Response> result) {
    if (result.ok()) *response = *std::move(result);
    reactor->Finish(ToGrpc(result.status(), context));
  });
  return reactor;
}

/// Finishes at once with an error.
inline grpc::ServerUnaryReactor* Refuse(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status, context));
  return reactor;
}

/// For work that may block (store reads, commits): authenticates on gRPC's thread, works on the pool, answers. The request and the response live until
/// Finish, so `work` may use both.
inline grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* context, const auth::Authenticator& authenticator, ThreadPool& pool,
                                           std::function<absl::Status(const engine::Caller&)> work) {
  absl::StatusOr<engine::Caller> caller = authenticator.Authenticate(*context);
  if (!caller.ok()) return Refuse(context, caller.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  pool.Post([context, reactor, caller = *std::move(caller), work = std::move(work)] { reactor->Finish(ToGrpc(work(caller), context)); });
  return reactor;
}

}  // namespace optod::services
