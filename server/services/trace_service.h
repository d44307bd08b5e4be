#pragma once
/// optod.v1.TraceService and optod.v1.OperationService at the gRPC edge.

#include <memory>

#include "server/auth/authenticator.h"
#include "server/engine/engine.h"
#include "server/engine/operations.h"

namespace grpc {
class Service;
}

namespace optod::services {

/// `engine` (whose context has trace services) and `authenticator` must outlive the service.
std::unique_ptr<grpc::Service> MakeTraceService(engine::Engine& engine, const auth::Authenticator& authenticator);
std::unique_ptr<grpc::Service> MakeOperationService(engine::Operations& operations, const auth::Authenticator& authenticator);

}  // namespace optod::services
