#pragma once
/// The minimal subgraph that explains how parameters reached the outputs: every node on a path from a parameter to an
/// output, and the direct parents of each of these (constants, and nodes computed elsewhere), nothing above. One
/// descending and two ascending passes over bitmaps: O(V + E), no recursion, duplicate inputs counted once. Source:
/// Cheng, Nie, Swaminathan, "Trace is the Next AutoDiff", 2024 (arXiv 2406.16218), minimal subgraph propagation.

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/graph/graph.h"

namespace optod::trace {

struct Subgraph {
  std::vector<NodeId> nodes;  ///< sorted by (level, id); empty when no parameter influenced an output
  std::vector<NodeId>
      parameters;              ///< the given parameters that influenced an output, in the order given, without repeats
  std::vector<NodeId> hidden;  ///< those of `parameters` that act only inside traceable bodies: not among `nodes`
};

/// Errors: NOT_FOUND for an unknown id; INVALID_ARGUMENT when one of `parameters` is no parameter node.
absl::StatusOr<Subgraph> ComputeSubgraph(const Graph& graph, std::span<const NodeId> outputs,
                                         std::span<const NodeId> parameters);

}  // namespace optod::trace
