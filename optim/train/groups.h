#pragma once
/// Groups of tensors that block-wise zeroth order perturbs alone (ZO-Bench, section "block-wise"). No LibTorch.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/tier/block_list.h"

namespace optod::train {

/// Tensor numbers of each group, groups in the order of the forward pass. `block_of[i]`: the block that uses tensor i
/// first; blocks 0 and `blocks` - 1 (embeddings, head) are divided into modules at every level.
///   transformer-block  a layer
///   mlp-attn           all of a layer's attention; every other module alone: a projection of the mlp, a norm
///   linear             every module: weight and bias together, A and B of a low-rank pair together
/// INVALID_ARGUMENT: another level.
absl::StatusOr<std::vector<std::vector<size_t>>> GroupTensors(const std::vector<tier::BlockTensor>& tensors,
                                                              const std::vector<size_t>& block_of, size_t blocks,
                                                              const std::string& level);

}  // namespace optod::train
