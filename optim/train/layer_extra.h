#pragma once
/// What adapters add to a layer. Private: LibTorch types.

#include "optim/nn/model.h"
#include "optim/train/spec.h"

namespace optod::train {

/// Of layer `layer` of `layers`; `adapters`: in the order of AdapterTensors, or none.
inline nn::LayerExtra ExtraOf(const SchemeSpec& scheme, const nn::Weights& adapters, size_t layer, size_t layers) {
  if (adapters.empty() || scheme.name == "prompt") return {};
  const at::Tensor* v = &adapters[layer * (adapters.size() / layers)];
  if (scheme.name == "lora") return {v[0], v[1], v[2], v[3], scheme.alpha / static_cast<double>(scheme.rank), {}, {}};
  return {{}, {}, {}, {}, 0, v[0], v[1]};
}

}  // namespace optod::train
