#pragma once
/// One node as a compact byte string for the store, and back. Little numbers are varints, strings are length-prefixed;
/// the first byte is the format version (1). Stateless functions.
///
/// A graph is rebuilt by restoring its nodes in id order: names and levels come out as they were, and are checked.

#include <string>
#include <string_view>

#include "trace/graph/graph.h"

namespace optod::trace {

/// Bytes of node `id` (contained in the graph), with its current value.
std::string EncodeNode(const Graph& graph, NodeId id);

/// Adds an encoded node. Errors: DATA_LOSS when the bytes are cut, of an unknown version, or do not fit the graph
/// (parent that is not there, other index than recorded). The graph is then as before.
absl::StatusOr<NodeId> RestoreNode(Graph& graph, std::string_view bytes);

}  // namespace optod::trace
