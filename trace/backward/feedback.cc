#include "trace/backward/feedback.h"

#include <algorithm>

#include "base/status.h"

namespace optod::trace {

absl::Status FeedbackStore::Backward(const Graph& graph, NodeId output, std::string_view text) {
  if (!graph.Contains(output)) {
    return NotFound("output: node ", output, " does not exist; the graph has ", graph.size(), " nodes");
  }
  entries_.push_back({output, std::string(text)});
  return absl::OkStatus();
}

std::vector<NodeId> FeedbackStore::Outputs() const {
  std::vector<NodeId> outputs;
  for (const FeedbackEntry& e : entries_) outputs.push_back(e.output);
  std::vector<NodeId> sorted = outputs;
  std::sort(sorted.begin(), sorted.end());
  std::vector<bool> taken(sorted.size(), false);
  // Keep the first of each, in order: positions in the sorted list serve as set.
  std::erase_if(outputs, [&](NodeId id) {
    const size_t at = static_cast<size_t>(std::lower_bound(sorted.begin(), sorted.end(), id) - sorted.begin());
    const bool again = taken[at];
    taken[at] = true;
    return again;
  });
  return outputs;
}

std::string FeedbackStore::JoinedText(const Graph& graph) const {
  if (entries_.empty()) return {};
  const bool all_equal = std::all_of(entries_.begin(), entries_.end(),
                                     [&](const FeedbackEntry& e) { return e.text == entries_.front().text; });
  if (all_equal) return entries_.front().text;
  std::string joined;
  for (const FeedbackEntry& e : entries_) {
    if (!joined.empty()) joined += "\n\n";
    joined += graph.PyName(e.output) + ": " + e.text;
  }
  return joined;
}

}  // namespace optod::trace
