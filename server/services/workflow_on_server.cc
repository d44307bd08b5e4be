#include "server/services/workflow_on_server.h"

#include "base/status.h"

namespace optod::services {

absl::Status CheckExecutor(const WorkflowParts& parts) {
  if (parts.executor == "disabled") return FailedPrecondition("executor: disabled on this server");
  if (parts.executor != "sandbox")
    return FailedPrecondition("executor: this server leaves workflows to clients (executor ", parts.executor,
                              "); run it there (optoctl optimize), or start the server with --executor sandbox");
  return absl::OkStatus();
}

trace::WorkflowServices ServicesHere(const WorkflowParts& parts) {
  trace::WorkflowServices services;
  services.clock = parts.engine->context().clock;
  services.sandbox = &parts.sandbox();
  return services;
}

}  // namespace optod::services
