#include "optim/train/groups.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/status.h"

namespace optod::train {
namespace {

/// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj".
std::string ModuleOf(std::string name) {
  for (const char* end : {".weight", ".bias", ".lora_A", ".lora_B"}) {
    if (name.ends_with(end)) name.erase(name.rfind(end));
  }
  return name;
}

bool Contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

std::string KeyOf(const std::string& name, bool layer, const std::string& level) {
  if (layer && level == "transformer-block") return "";
  const std::string module = ModuleOf(name);
  const bool norm = Contains(module, "norm") || Contains(module, "Norm") || Contains(module, "ln_");
  const bool attention = Contains(module, "attn") || Contains(module, "attention") || Contains(module, "prefix.");
  return layer && level == "mlp-attn" && attention && !norm ? "attention" : module;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<size_t>>> GroupTensors(const std::vector<tier::BlockTensor>& tensors,
                                                              const std::vector<size_t>& block_of, size_t blocks,
                                                              const std::string& level) {
  if (level != "transformer-block" && level != "mlp-attn" && level != "linear")
    return InvalidArgument("blockwise.level: \"", level, "\" is not one of transformer-block, mlp-attn, linear");
  std::map<std::pair<size_t, std::string>, size_t> places;
  std::vector<std::vector<size_t>> groups;
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return block_of[a] < block_of[b]; });
  for (size_t i : order) {
    const bool layer = block_of[i] > 0 && block_of[i] + 1 < blocks;
    const auto [place, fresh] = places.try_emplace({block_of[i], KeyOf(tensors[i].name, layer, level)}, groups.size());
    if (fresh) groups.emplace_back();
    groups[place->second].push_back(i);
  }
  return groups;
}

}  // namespace optod::train
