#pragma once
/// Weights that come under other names or in another order than Hugging Face's. Private to optim/nn.

#include "optim/nn/checkpoint.h"
#include "optim/nn/gguf.h"
#include "optim/nn/safetensors.h"

namespace optod::nn {

/// Rotary positions pair neighbours (2i, 2i+1) in GGUF's llama and in llama2.c, halves (i, i + d/2) in Hugging Face's
/// files. Reorders the rows [heads * head_dim, columns] of a query or key matrix from the former to the latter.
void NeighboursToHalves(int64_t heads, int64_t head_dim, int64_t columns, std::span<float> matrix);

absl::StatusOr<ModelConfig> GgufConfig(const GgufHeader& header);
absl::StatusOr<std::unique_ptr<WeightReader>> OpenGguf(const std::string& path);
/// A safetensors file of llama2.c's tensor names whose metadata holds the sizes as JSON under "config".
absl::StatusOr<ModelConfig> Llama2cConfig(const SafetensorsHeader& header);
absl::StatusOr<std::unique_ptr<WeightReader>> OpenLlama2c(const std::string& path);

/// INVALID_ARGUMENT naming tensor and position of the first NaN or infinity.
absl::Status CheckFinite(const std::string& name, std::span<const float> values);

}  // namespace optod::nn
