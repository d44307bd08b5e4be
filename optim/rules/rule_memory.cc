#include "optim/rules/rule_memory.h"

#include <string>
#include <unordered_map>

namespace optod::optim {
namespace {

/// The tensor that a state belongs to, or -1: "m/<tensor>", "backend/m/<tensor>": the longest rest that is a name.
int64_t OwnerOf(const std::string& state, const std::unordered_map<std::string, int64_t>& tensors) {
  for (size_t slash = state.find('/'); slash != std::string::npos; slash = state.find('/', slash + 1)) {
    const auto it = tensors.find(state.substr(slash + 1));
    if (it != tensors.end()) return it->second;
  }
  return -1;
}

}  // namespace

RuleMemory MemoryOf(const Rule& rule, std::span<const TensorSpec> layout) {
  std::unordered_map<std::string, int64_t> by_name;
  for (size_t i = 0; i < layout.size(); ++i) by_name.emplace(layout[i].name, static_cast<int64_t>(i));
  RuleMemory out;
  out.tensors.resize(layout.size());
  for (const TensorSpec& spec : rule.StateSpecs()) {
    const int64_t owner = OwnerOf(spec.name, by_name);
    (owner < 0 ? out.shared_state : out.tensors[static_cast<size_t>(owner)].state) += spec.bytes();
  }
  const std::vector<size_t> transient = rule.TransientBytesOfTensors();
  for (size_t i = 0; i < layout.size(); ++i) out.tensors[i].transient = transient[i];
  out.state = rule.StateBytes();
  out.transient = rule.TransientBytes();
  out.shared_transient = rule.SharedTransientBytes();
  return out;
}

}  // namespace optod::optim
