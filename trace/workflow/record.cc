#include "trace/workflow/record.h"

namespace optod::trace {

v1::RecordNodesRequest NodesOf(const WorkflowTrace& trace, const std::function<int64_t(const std::string&)>& node_of) {
  v1::RecordNodesRequest record;
  for (const TraceNode& node : trace.nodes) {
    v1::Node* out = record.add_nodes();
    out->set_base(node.base);
    out->set_kind(node.kind == NodeKind::kException ? v1::Node::EXCEPTION
                  : node.kind == NodeKind::kNode    ? v1::Node::NODE
                                                    : v1::Node::MESSAGE);
    out->set_op(node.op);
    out->set_description(node.description);
    out->set_type(node.type);
    out->set_text(node.text);
    if (node.json) out->set_json(*node.json);
    for (const TraceNode::Input& input : node.inputs) {
      v1::NodeInput* from = out->add_inputs();
      from->set_argument(input.argument);
      from->set_node(input.node >= 0 ? -1 - input.node : node_of(input.parameter));
    }
  }
  return record;
}

}  // namespace optod::trace
