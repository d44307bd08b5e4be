#pragma once
/// Graphviz DOT text of a set of nodes: parameters are boxes, other nodes ellipses, exceptions red; an edge runs from
/// parent to child. Stateless.

#include <span>
#include <string>

#include "trace/graph/graph.h"

namespace optod::trace {

struct DotOptions {
  uint32_t print_limit = 100;  ///< code points of description and value in a label; the rest becomes `...`
  bool simple = true;          ///< leave out identity and clone nodes: their edges go to the node they copy
  bool reverse = false;        ///< draw edges from child to parent
};

/// `nodes` in any order; edges whose parent is not among them are left out.
std::string ToDot(const Graph& graph, std::span<const NodeId> nodes, const DotOptions& options = {});

/// All nodes of the graph.
std::string ToDot(const Graph& graph, const DotOptions& options = {});

}  // namespace optod::trace
