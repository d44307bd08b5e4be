#pragma once
/// The feedback a session has received since the last zeroing: an ordered list of (output node, text). Calling Backward
/// again on the same node, or on several nodes, is allowed; nothing is propagated eagerly (subgraph.h computes what a
/// parameter sees). Not thread-safe; owned by one session.

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "trace/graph/graph.h"

namespace optod::trace {

struct FeedbackEntry {
  NodeId output = kNoNode;
  std::string text;
};

class FeedbackStore {
 public:
  /// Records feedback on `output`. Errors: NOT_FOUND for an unknown node. An exact repeat of an entry is kept.
  absl::Status Backward(const Graph& graph, NodeId output, std::string_view text);
  void ZeroFeedback() { entries_.clear(); }

  bool empty() const { return entries_.empty(); }
  const std::vector<FeedbackEntry>& entries() const { return entries_; }
  std::vector<NodeId> Outputs() const;  ///< without repeats, in order of first feedback

  /// One text for the prompt: the text itself when all entries agree; else one paragraph an entry, `py_name: text`.
  std::string JoinedText(const Graph& graph) const;

 private:
  std::vector<FeedbackEntry> entries_;
};

}  // namespace optod::trace
