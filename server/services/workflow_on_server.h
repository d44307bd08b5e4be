#pragma once
/// What every run of a declared workflow in this server shares: whether it may run here, and how its trace is recorded.
/// Internal to server/services.

#include <map>
#include <string>

#include "absl/status/status.h"
#include "optod/v1/trace.pb.h"
#include "server/services/workflow_service.h"
#include "trace/graph/graph.h"
#include "trace/workflow/executor.h"

namespace optod::services {

/// FAILED_PRECONDITION: this server's executor is not `sandbox`.
absl::Status CheckExecutor(const WorkflowParts& parts);

/// What steps may reach in this server, but for model calls.
trace::WorkflowServices ServicesHere(const WorkflowParts& parts);

/// The nodes for TraceFamily::RecordNodes. `parameters`: the graph's node of each name.
v1::RecordNodesRequest NodesOf(const trace::WorkflowTrace& trace,
                               const std::map<std::string, trace::NodeId>& parameters);

}  // namespace optod::services
