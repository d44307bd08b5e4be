#pragma once
/// A workflow's trace in the words of the API, for whoever records it: the server into its own session, a client over
/// the wire. Pure function.

#include <cstdint>
#include <functional>
#include <string>

#include "optod/v1/trace.pb.h"
#include "trace/workflow/executor.h"

namespace optod::trace {

/// The nodes in their order; inputs that are nodes of the same batch are -1 - position. `node_of`: the id of the node of a
/// parameter, by its name.
v1::RecordNodesRequest NodesOf(const WorkflowTrace& trace, const std::function<int64_t(const std::string&)>& node_of);

}  // namespace optod::trace
