#pragma once
/// Which calls of a recorded run a short prompt may leave out, because another call stands for them: the middle of a
/// long chain (each call of one function works on the result of the one before), and the repeats of a subgraph (the
/// same calls on inputs of the same types, as a map over a data set makes them). O(V + E). Pure function.

#include <string>
#include <utility>
#include <vector>

#include "trace/backward/subgraph.h"
#include "trace/graph/graph.h"

namespace optod::trace {

/// What of a subgraph's node it is, as the problem shows it.
enum class NodeRole : uint8_t { kInput, kVariable, kIntermediate, kOutput };

struct Collapsed {
  std::vector<bool> left_out;  ///< by position in subgraph.nodes; never a variable or an output
  /// Behind which node (by id, ascending) a prompt says what is left out, in words.
  std::vector<std::pair<NodeId, std::string>> notes;
};

/// `roles` by position in subgraph.nodes.
Collapsed CollapseSubgraph(const Graph& graph, const Subgraph& subgraph, const std::vector<NodeRole>& roles);

}  // namespace optod::trace
