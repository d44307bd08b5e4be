#pragma once
/// Tensors that look at a BlockList's memory. Private, as model.h.

#include "optim/nn/model.h"
#include "optim/tier/block_list.h"

namespace optod::nn {

/// A tensor over `values`, which are in the memory of `device`; nothing is copied or owned.
inline at::Tensor View(std::span<const float> values, const std::vector<int64_t>& shape,
                       const at::Device& device = at::kCPU) {
  return at::from_blob(const_cast<float*>(values.data()), shape, at::TensorOptions(at::kFloat).device(device));
}

/// One tensor a parameter, block by block.
inline std::vector<Weights> ViewsOf(const tier::BlockList& list) {
  std::vector<Weights> blocks(list.blocks());
  for (size_t b = 0; b < list.blocks(); ++b) {
    for (size_t uid = list.first_uid(b); uid < list.first_uid(b + 1); ++uid)
      blocks[b].push_back(View(list.values(uid), list.tensor(uid).shape));
  }
  return blocks;
}

}  // namespace optod::nn
