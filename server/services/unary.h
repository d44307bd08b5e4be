#pragma once
/// The shape of every unary handler: authenticate, call the engine, convert the answer, finish. Nothing here blocks.

#include <grpcpp/support/server_callback.h>

#include <utility>

#include "absl/status/statusor.h"
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

}  // namespace optod::services
