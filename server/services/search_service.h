#pragma once
/// optod.v1.SearchService at the gRPC edge, and the proposals and (with a workflow) evaluations that searches wait for.

#include <memory>

#include "server/auth/authenticator.h"
#include "server/engine/engine.h"
#include "server/services/workflow_service.h"

namespace grpc {
class Service;
}

namespace optod::services {

/// `engine` (whose context has trace services), `authenticator` and what `workflow` points to must outlive the service.
std::unique_ptr<grpc::Service> MakeSearchService(engine::Engine& engine, const auth::Authenticator& authenticator,
                                                 WorkflowParts workflow);

}  // namespace optod::services
