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

v1::RecordNodesRequest NodesOf(const trace::WorkflowTrace& trace,
                               const std::map<std::string, trace::NodeId>& parameters) {
  v1::RecordNodesRequest record;
  for (const trace::TraceNode& node : trace.nodes) {
    v1::Node* out = record.add_nodes();
    out->set_base(node.base);
    out->set_kind(node.kind == trace::NodeKind::kException ? v1::Node::EXCEPTION
                  : node.kind == trace::NodeKind::kNode    ? v1::Node::NODE
                                                           : v1::Node::MESSAGE);
    out->set_op(node.op);
    out->set_description(node.description);
    out->set_type(node.type);
    out->set_text(node.text);
    if (node.json) out->set_json(*node.json);
    for (const trace::TraceNode::Input& input : node.inputs) {
      v1::NodeInput* from = out->add_inputs();
      from->set_argument(input.argument);
      from->set_node(input.node >= 0 ? -1 - input.node : static_cast<int64_t>(parameters.at(input.parameter)));
    }
  }
  return record;
}

}  // namespace optod::services
