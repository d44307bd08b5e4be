#pragma once
/// optod.v1.SessionService at the gRPC edge. Handlers authenticate, call the engine, finish; tensor streams are in tensor_streams.h.

#include <memory>

#include "server/auth/authenticator.h"
#include "server/engine/engine.h"

namespace grpc {
class Service;
}

namespace optod::services {

/// `engine` and `authenticator` must outlive the service.
std::unique_ptr<grpc::Service> MakeSessionService(engine::Engine& engine, const auth::Authenticator& authenticator);

}  // namespace optod::services
