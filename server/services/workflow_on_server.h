#pragma once
/// What every run of a declared workflow in this server shares: whether it may run here, and with what.
/// Internal to server/services.

#include "absl/status/status.h"
#include "server/services/workflow_service.h"
#include "trace/workflow/executor.h"

namespace optod::services {

/// FAILED_PRECONDITION: this server's executor is not `sandbox`.
absl::Status CheckExecutor(const WorkflowParts& parts);

/// What steps may reach in this server, but for model calls.
trace::WorkflowServices ServicesHere(const WorkflowParts& parts);

}  // namespace optod::services
