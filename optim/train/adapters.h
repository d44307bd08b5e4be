#pragma once
/// Adapters: their tensors, names and files. No LibTorch.

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/model_config.h"
#include "optim/train/spec.h"

namespace optod::train {

/// lora: q_proj A, q_proj B, v_proj A, v_proj B of every layer, under PEFT's names; prefix: key and value rows of every
/// layer; prompt: one matrix [tokens, hidden] of virtual token embeddings in front of every sequence (Lester et al.,
/// 2021). INVALID_ARGUMENT when the family has no separate projections (gpt2 with lora) or the rank is too large.
absl::StatusOr<std::vector<tier::BlockTensor>> AdapterTensors(const nn::ModelConfig& config, const SchemeSpec& scheme);

/// LoRA's start (Hu et al., 2021): A uniform in +-1/sqrt(in) (kaiming with a = sqrt 5), B zero; from the random stream.
void InitLora(const std::vector<tier::BlockTensor>& tensors, uint64_t seed, std::span<float> values);

/// The tokens that virtual ones begin as: keys and values (MeZO, prefix_tuning.py) or embeddings (ZO-Bench,
/// prompt_tuning.py) of random tokens.
std::vector<int64_t> VirtualTokenIds(uint64_t seed, int64_t tokens, int64_t vocab);

/// adapter_config.json and adapter_model.safetensors, as peft writes them.
absl::Status SaveAdapter(const std::string& folder, const nn::ModelConfig& config, const SchemeSpec& scheme,
                         const std::vector<tier::BlockTensor>& tensors, std::span<const float> values);

}  // namespace optod::train
