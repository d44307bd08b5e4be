#include "clients/cpp/trace_recorder.h"

#include "base/status.h"

namespace optod::client {
namespace {

// Half of what one call may hold (TraceService.RecordNodes).
constexpr int kBatchNodes = 5'000;
constexpr size_t kBatchBytes = 8u << 20;

}  // namespace

absl::StatusOr<TraceRecorder::Ref> TraceRecorder::Add(v1::Node node,
                                                      const std::vector<std::pair<std::string, Ref>>& inputs) {
  if (node.inputs_size() > 0) return InvalidArgument("node.inputs: must be empty; inputs are given beside the node");
  const auto flushed = static_cast<int64_t>(ids_.size());
  const int64_t added = flushed + pending_.nodes_size();
  for (const auto& [argument, ref] : inputs) {
    if (ref.index >= added || (ref.index < 0 && ref.id < 0))
      return InvalidArgument("node input ", argument, ": no such node");
    v1::NodeInput* input = node.add_inputs();
    input->set_argument(argument);
    if (ref.id >= 0)
      input->set_node(ref.id);
    else
      input->set_node(ref.index < flushed ? ids_[static_cast<size_t>(ref.index)] : -1 - (ref.index - flushed));
  }
  pending_bytes_ += node.ByteSizeLong();
  *pending_.add_nodes() = std::move(node);
  if (pending_.nodes_size() >= kBatchNodes || pending_bytes_ >= kBatchBytes) RETURN_IF_ERROR(Flush());
  return Ref{added, -1};
}

absl::Status TraceRecorder::Flush() {
  if (pending_.nodes_size() == 0) return absl::OkStatus();
  pending_.set_session(session_);
  ASSIGN_OR_RETURN(const v1::RecordNodesResponse response, client_.RecordNodes(pending_));
  if (response.nodes_size() != pending_.nodes_size())
    return Internal("record: the server named another number of nodes");
  for (const v1::RecordedNode& node : response.nodes()) ids_.push_back(node.id());
  pending_.Clear();
  pending_bytes_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> TraceRecorder::Id(Ref ref) const {
  if (ref.id >= 0) return ref.id;
  if (ref.index < 0 || ref.index >= static_cast<int64_t>(ids_.size()))
    return FailedPrecondition("node: not flushed yet");
  return ids_[static_cast<size_t>(ref.index)];
}

}  // namespace optod::client
