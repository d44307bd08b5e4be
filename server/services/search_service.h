#pragma once
/// optod.v1.SearchService at the gRPC edge, and the proposals that searches wait for.

#include <memory>

#include "server/auth/authenticator.h"
#include "server/engine/engine.h"

namespace grpc {
class Service;
}

namespace optod::services {

/// `engine` (whose context has trace services) and `authenticator` must outlive the service.
std::unique_ptr<grpc::Service> MakeSearchService(engine::Engine& engine, const auth::Authenticator& authenticator);

}  // namespace optod::services
