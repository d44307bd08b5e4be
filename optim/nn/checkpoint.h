#pragma once
/// Models on disk: Hugging Face folders (config.json with model.safetensors or its shards), GGUF files, and llama2.c
/// checkpoints in safetensors form. Weights are widened to float32 and laid out as DescribeBlocks says; saving writes a
/// Hugging Face folder again.

#include <memory>
#include <span>
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

/// A model's files, opened: the description, and any rows of any tensor without the others in memory.
class WeightReader {
 public:
  virtual ~WeightReader() = default;
  const ModelConfig& config() const { return config_; }
  /// As DescribeBlocks says; tensor numbers count over all blocks.
  const std::vector<tier::BlockSpec>& blocks() const { return blocks_; }
  const std::string& source() const { return source_; }               ///< as ModelFiles::source
  const std::vector<std::string>& ignored() const { return ignored_; }
  /// Elements first .. first + out.size() - 1 of tensor `uid`, widened: whole rows, and all of a query or key matrix.
  /// INVALID_ARGUMENT: `model.safetensors: w: element 7 is NaN`.
  virtual absl::Status Read(size_t uid, uint64_t first, std::span<float> out) = 0;

 protected:
  ModelConfig config_;
  std::vector<tier::BlockSpec> blocks_;
  std::string source_;
  std::vector<std::string> ignored_;
};

/// Finds and checks everything but values. Errors as LoadModel's.
absl::StatusOr<std::unique_ptr<WeightReader>> OpenModel(const std::string& path);

/// `path`: a folder, or a .gguf file. Errors name file, tensor and reason, never the folder: NOT_FOUND (no config.json
/// or weights), INVALID_ARGUMENT (`model.safetensors: model.norm.weight: shape [64] is not [32]`, `...: element 7 is
/// NaN`), UNIMPLEMENTED (architecture).
absl::StatusOr<ModelFiles> LoadModel(const std::string& path);

/// Only the description: what LoadModel would find, without reading weights.
absl::StatusOr<ModelConfig> LoadConfig(const std::string& path);

/// Writes only config.json, its dtype set to float32.
absl::Status SaveConfig(const std::string& folder, const ModelConfig& config);

/// Writes config.json (its dtype set to float32) and model.safetensors into `folder`, made when absent, so that
/// `transformers` opens it. RESOURCE_EXHAUSTED when the disk is full; an older model there stays whole.
absl::Status SaveModel(const std::string& folder, const ModelConfig& config, const tier::BlockList& weights);

}  // namespace optod::nn
