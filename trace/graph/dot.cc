#include "trace/graph/dot.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace optod::trace {
namespace {

// First `limit` code points, `...` for the rest, quoted for a DOT string.
void AppendLabelPart(std::string& out, std::string_view text, uint32_t limit) {
  uint32_t points = 0;
  for (char c : text) {
    if ((static_cast<unsigned char>(c) & 0xC0) != 0x80 && points++ == limit) {
      out += "...";
      return;
    }
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) >= 0x20 || c == '\t') {
      out += c;
    }
  }
}

bool IsCopy(const Graph& graph, NodeId id) {
  return graph.Kind(id) == NodeKind::kMessage && graph.Parents(id).size() == 1 &&
         (graph.Op(id) == "identity" || graph.Op(id) == "clone");
}

void AppendNode(std::string& out, const Graph& graph, NodeId id, uint32_t limit) {
  out += "  n" + std::to_string(id) + " [label=\"";
  AppendLabelPart(out, graph.PyName(id), UINT32_MAX);
  const auto description = graph.Description(id);
  if (description && !description->empty()) {
    out += "\\n";
    AppendLabelPart(out, *description, limit);
  }
  out += "\\n";
  AppendLabelPart(out, graph.ValueText(id), limit);
  out += graph.IsParameter(id) ? "\", shape=box" : "\", shape=ellipse";
  if (graph.Kind(id) == NodeKind::kException) out += ", color=red, fontcolor=red";
  out += "];\n";
}

}  // namespace

std::string ToDot(const Graph& graph, std::span<const NodeId> nodes, const DotOptions& options) {
  std::vector<bool> shown(graph.size(), false);
  for (NodeId id : nodes) shown[id] = true;
  // In the simple form a copy stands for its source, if the source is in the picture. Parents have smaller ids: one
  // pass.
  std::vector<NodeId> drawn_as(graph.size());
  std::iota(drawn_as.begin(), drawn_as.end(), 0u);
  for (NodeId id = 0; options.simple && id < graph.size(); ++id) {
    if (shown[id] && IsCopy(graph, id) && shown[graph.Parents(id)[0]]) drawn_as[id] = drawn_as[graph.Parents(id)[0]];
  }
  std::string out = "digraph trace {\n";
  for (NodeId id : nodes) {
    if (drawn_as[id] == id) AppendNode(out, graph, id, options.print_limit);
  }
  for (NodeId id : nodes) {
    if (drawn_as[id] != id) continue;
    std::vector<NodeId> done;  // a repeated input is one edge
    for (NodeId parent : graph.Parents(id)) {
      if (!shown[parent]) continue;
      const NodeId from = drawn_as[parent];
      if (std::find(done.begin(), done.end(), from) != done.end()) continue;
      done.push_back(from);
      out += options.reverse ? "  n" + std::to_string(id) + " -> n" + std::to_string(from) + ";\n"
                             : "  n" + std::to_string(from) + " -> n" + std::to_string(id) + ";\n";
    }
  }
  return out + "}\n";
}

std::string ToDot(const Graph& graph, const DotOptions& options) {
  std::vector<NodeId> all(graph.size());
  std::iota(all.begin(), all.end(), 0u);
  return ToDot(graph, all, options);
}

}  // namespace optod::trace
