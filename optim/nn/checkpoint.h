#pragma once
/// Models on disk: Hugging Face folders (config.json with model.safetensors or its shards), GGUF files, and llama2.c
/// checkpoints in safetensors form. Weights are widened to float32 and laid out as DescribeBlocks says; saving writes a
/// Hugging Face folder again.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/model_config.h"
#include "optim/tier/block_list.h"

namespace optod::nn {

struct ModelFiles {
  ModelConfig config;
  tier::BlockList weights;
  std::string source;                ///< "huggingface", "gguf" or "llama2.c"
  std::vector<std::string> ignored;  ///< tensors of the files that the model has no place for
};

/// `path`: a folder, or a .gguf file. Errors name file, tensor and reason, never the folder: NOT_FOUND (no config.json
/// or weights), INVALID_ARGUMENT (`model.safetensors: model.norm.weight: shape [64] is not [32]`, `...: element 7 is
/// NaN`), UNIMPLEMENTED (architecture).
absl::StatusOr<ModelFiles> LoadModel(const std::string& path);

/// Only the description: what LoadModel would find, without reading weights.
absl::StatusOr<ModelConfig> LoadConfig(const std::string& path);

/// Writes config.json (its dtype set to float32) and model.safetensors into `folder`, made when absent, so that
/// `transformers` opens it. RESOURCE_EXHAUSTED when the disk is full; an older model there stays whole.
absl::Status SaveModel(const std::string& folder, const ModelConfig& config, const tier::BlockList& weights);

}  // namespace optod::nn
