#pragma once
/// optod.v1.WorkflowService at the gRPC edge: single model calls for clients that run their workflows themselves, and
/// runs in this server's sandbox.

#include <functional>
#include <memory>
#include <string>

#include "optod/v1/workflow.pb.h"
#include "server/auth/authenticator.h"
#include "server/engine/engine.h"
#include "trace/sandbox/sandbox.h"

namespace grpc {
class Service;
}

namespace optod::services {

struct WorkflowParts {
  engine::Engine* engine = nullptr;  ///< whose context has trace services
  const auth::Authenticator* authenticator = nullptr;
  std::string executor = "client";  ///< "disabled", "sandbox" or "client": where workflows run
  std::function<const trace::Sandbox&()> sandbox;
};

/// What `parts` points to must outlive the service.
std::unique_ptr<grpc::Service> MakeWorkflowService(WorkflowParts parts);

/// As ExecuteRun: starts it and answers with the operation. In workflow_run.cc.
void StartWorkflowRun(const WorkflowParts& parts, const engine::Caller& caller, const v1::ExecuteRunRequest& request,
                      engine::Done<v1::Operation> done);

}  // namespace optod::services
