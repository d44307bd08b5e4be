#include "trace/optimizers/collapse.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"

namespace optod::trace {
namespace {

constexpr size_t kLongChain = 6;  // longer ones lose their middle
constexpr size_t kChainHead = 2;  // calls kept at its start; one at its end
constexpr size_t kManyRepeats = 4;
constexpr size_t kRepeatsKept = 2;

uint64_t Mix(uint64_t h, uint64_t x) {
  h ^= x + 0x9E3779B97F4A7C15ull + (h << 6) + (h >> 2);
  h *= 0xBF58476D1CE4E5B9ull;
  return h ^ (h >> 31);
}
uint64_t OfText(std::string_view interned) {
  return Mix(reinterpret_cast<uintptr_t>(interned.data()), interned.size());
}

class Collapser {
 public:
  Collapser(const Graph& graph, const Subgraph& subgraph, const std::vector<NodeRole>& roles)
      : g_(graph), nodes_(subgraph.nodes), roles_(roles), place_(graph.size(), kNone) {
    for (size_t i = 0; i < nodes_.size(); ++i) place_[nodes_[i]] = static_cast<uint32_t>(i);
  }

  Collapsed Run() {
    out_.left_out.assign(nodes_.size(), false);
    Shapes();
    Chains();
    Repeats();
    UnusedInputs();
    std::sort(out_.notes.begin(), out_.notes.end());
    return std::move(out_);
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  bool IsCall(size_t i) const { return roles_[i] == NodeRole::kIntermediate || roles_[i] == NodeRole::kOutput; }

  // Equal for calls of the same form all the way down to variables (each its own) and inputs (alike by type).
  void Shapes() {
    shape_.assign(nodes_.size(), 0);
    children_.assign(nodes_.size(), 0);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const NodeId id = nodes_[i];
      if (roles_[i] == NodeRole::kVariable) {
        shape_[i] = Mix(1, id);
      } else if (!IsCall(i)) {
        shape_[i] = Mix(2, OfText(g_.TypeName(id)));
      } else {
        uint64_t h = Mix(3, OfText(g_.FunctionName(id)));
        const auto parents = g_.Parents(id);
        for (size_t k = 0; k < parents.size(); ++k) {
          const uint32_t p = place_[parents[k]];
          h = Mix(Mix(h, OfText(g_.Argument(id, k))), p == kNone ? 0 : shape_[p]);
          if (p != kNone) ++children_[p];
        }
        shape_[i] = h;
      }
    }
  }

  // The call whose result this one continues: same function, used here alone.
  uint32_t ChainParent(size_t i) const {
    const auto parents = g_.Parents(nodes_[i]);
    uint32_t found = kNone;
    for (NodeId parent : parents) {
      const uint32_t p = place_[parent];
      if (p == kNone || p == found || roles_[p] != NodeRole::kIntermediate || children_[p] != 1) continue;
      const bool same = g_.FunctionName(parent).data() == g_.FunctionName(nodes_[i]).data() &&
                        g_.Parents(parent).size() == parents.size();
      if (!same) continue;
      if (found != kNone) return kNone;  // two of them meet here: a tree, no chain
      found = p;
    }
    return found;
  }

  void Chains() {
    std::vector<uint32_t> next(nodes_.size(), kNone);
    std::vector<bool> continues(nodes_.size(), false);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!IsCall(i)) continue;
      if (const uint32_t p = ChainParent(i); p != kNone) next[p] = static_cast<uint32_t>(i), continues[i] = true;
    }
    std::vector<uint32_t> chain;
    for (size_t head = 0; head < nodes_.size(); ++head) {
      if (continues[head] || next[head] == kNone) continue;
      chain.clear();
      for (uint32_t at = static_cast<uint32_t>(head); at != kNone; at = next[at]) chain.push_back(at);
      if (chain.size() <= kLongChain) continue;
      for (size_t k = kChainHead; k + 1 < chain.size(); ++k) out_.left_out[chain[k]] = true;
      Note(chain[kChainHead - 1], chain.size() - kChainHead - 1, nodes_[chain[kChainHead]],
           nodes_[chain[chain.size() - 2]], ", each on the result of the one before");
    }
  }

  void Repeats() {
    absl::flat_hash_map<uint64_t, uint32_t> count, seen;
    absl::flat_hash_map<uint64_t, uint32_t> last;
    const auto counts = [&](size_t i) { return roles_[i] == NodeRole::kIntermediate && !out_.left_out[i]; };
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!counts(i)) continue;
      ++count[shape_[i]];
      last[shape_[i]] = static_cast<uint32_t>(i);
    }
    absl::flat_hash_map<uint64_t, uint32_t> keeper;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!counts(i) || count[shape_[i]] <= kManyRepeats) continue;
      const uint32_t number = ++seen[shape_[i]];
      if (number == kRepeatsKept) keeper[shape_[i]] = static_cast<uint32_t>(i);
      if (number <= kRepeatsKept) continue;
      if (number == kRepeatsKept + 1) {
        Note(keeper[shape_[i]], count[shape_[i]] - kRepeatsKept, nodes_[i], nodes_[last[shape_[i]]],
             ", of the same form");
      }
      out_.left_out[i] = true;
    }
  }

  void Note(uint32_t behind, size_t number, NodeId first, NodeId last, std::string_view how) {
    std::string names = g_.PyName(first);
    if (number == 2) names += " and " + g_.PyName(last);
    if (number > 2) names += " ... " + g_.PyName(last);
    out_.notes.emplace_back(nodes_[behind],
                            Cat("...[", number, " more calls of ", g_.FunctionName(first), how, ": ", names, "]"));
  }

  // Inputs that only calls left out take.
  void UnusedInputs() {
    std::vector<bool> used(nodes_.size(), false);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!IsCall(i) || out_.left_out[i]) continue;
      for (NodeId parent : g_.Parents(nodes_[i])) {
        if (const uint32_t p = place_[parent]; p != kNone) used[p] = true;
      }
    }
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (roles_[i] == NodeRole::kInput && children_[i] > 0 && !used[i]) out_.left_out[i] = true;
    }
  }

  const Graph& g_;
  const std::vector<NodeId>& nodes_;
  const std::vector<NodeRole>& roles_;
  std::vector<uint32_t> place_;
  std::vector<uint64_t> shape_;
  std::vector<uint32_t> children_;
  Collapsed out_;
};

}  // namespace

Collapsed CollapseSubgraph(const Graph& graph, const Subgraph& subgraph, const std::vector<NodeRole>& roles) {
  return Collapser(graph, subgraph, roles).Run();
}

}  // namespace optod::trace
