#include "trace/backward/subgraph.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/status.h"

namespace optod::trace {
namespace {

// A set of node ids that is walked in order of id, 64 at a time.
class NodeSet {
 public:
  explicit NodeSet(uint32_t universe) : words_((universe + 63) / 64, 0) {}
  void Insert(NodeId id) { words_[id / 64] |= uint64_t{1} << (id % 64); }
  bool Contains(NodeId id) const { return words_[id / 64] >> (id % 64) & 1; }

  template <typename F>
  void Ascending(F visit) const {
    for (size_t w = 0; w < words_.size(); ++w) {
      for (uint64_t left = words_[w]; left != 0; left &= left - 1) {
        visit(static_cast<NodeId>(w * 64 + static_cast<size_t>(std::countr_zero(left))));
      }
    }
  }
  // `visit` may insert ids smaller than the one it gets: they are visited too.
  template <typename F>
  void Descending(F visit) {
    for (size_t w = words_.size(); w-- > 0;) {
      uint64_t below = ~uint64_t{0};
      while (const uint64_t left = words_[w] & below) {
        const int bit = 63 - std::countl_zero(left);
        below = (uint64_t{1} << bit) - 1;
        visit(static_cast<NodeId>(w * 64 + static_cast<size_t>(bit)));
      }
    }
  }

 private:
  std::vector<uint64_t> words_;
};

// Sorts by level, keeping the ascending order of ids inside a level: counting sort while levels are dense.
void SortByLevel(const Graph& graph, std::vector<NodeId>& nodes) {
  uint32_t depth = 0;
  for (NodeId id : nodes) depth = std::max(depth, graph.Level(id));
  if (depth > 2 * nodes.size()) {
    std::stable_sort(nodes.begin(), nodes.end(), [&](NodeId a, NodeId b) { return graph.Level(a) < graph.Level(b); });
    return;
  }
  std::vector<uint32_t> begin(size_t{depth} + 2, 0);
  for (NodeId id : nodes) ++begin[graph.Level(id) + 1];
  for (size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  std::vector<NodeId> sorted(nodes.size());
  for (NodeId id : nodes) sorted[begin[graph.Level(id)]++] = id;
  nodes.swap(sorted);
}

}  // namespace

absl::StatusOr<Subgraph> ComputeSubgraph(const Graph& graph, std::span<const NodeId> outputs,
                                         std::span<const NodeId> parameters) {
  for (NodeId id : outputs) {
    if (!graph.Contains(id)) return NotFound("outputs: node ", id, " does not exist");
  }
  for (NodeId id : parameters) {
    if (!graph.Contains(id)) return NotFound("parameters: node ", id, " does not exist");
    if (!graph.IsParameter(id)) return InvalidArgument("parameters: ", graph.Name(id), " is no parameter");
  }
  Subgraph result;
  if (outputs.empty() || parameters.empty()) return result;
  const uint32_t universe = std::max(*std::max_element(outputs.begin(), outputs.end()),
                                     *std::max_element(parameters.begin(), parameters.end())) +
                            1;

  NodeSet ancestors(universe);  // outputs included
  for (NodeId id : outputs) ancestors.Insert(id);
  ancestors.Descending([&](NodeId id) {
    for (NodeId parent : graph.Parents(id)) ancestors.Insert(parent);
  });

  NodeSet wanted(universe), hidden(universe);
  for (NodeId id : parameters) wanted.Insert(id);
  NodeSet on_path(universe);
  ancestors.Ascending([&](NodeId id) {
    bool on = wanted.Contains(id);
    for (NodeId parent : graph.Parents(id)) on = on || on_path.Contains(parent);
    for (NodeId h : graph.HiddenParameters(id)) {
      if (h < universe && wanted.Contains(h)) {
        hidden.Insert(h);
        on = true;
      }
    }
    if (on) on_path.Insert(id);
  });

  NodeSet shown(universe);
  on_path.Ascending([&](NodeId id) {
    shown.Insert(id);
    for (NodeId parent : graph.Parents(id)) shown.Insert(parent);
  });
  shown.Ascending([&](NodeId id) { result.nodes.push_back(id); });
  SortByLevel(graph, result.nodes);

  NodeSet listed(universe);
  for (NodeId id : parameters) {
    if (listed.Contains(id)) continue;
    listed.Insert(id);
    if (on_path.Contains(id)) {
      result.parameters.push_back(id);
    } else if (hidden.Contains(id)) {
      result.parameters.push_back(id);
      result.hidden.push_back(id);
    }
  }
  return result;
}

}  // namespace optod::trace
