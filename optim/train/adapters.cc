#include "optim/train/adapters.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/safetensors.h"
#include "optim/zo/stream.h"

namespace optod::train {
namespace {

/// "model.layers.3.self_attn." and the names of its query and value projections.
struct Names {
  std::string layers, attention, q, v;
};
Names NamesOf(nn::Family family) {
  switch (family) {
    case nn::Family::kOpt:
      return {"model.decoder.layers.", ".self_attn.", "q_proj", "v_proj"};
    case nn::Family::kRoberta:
      return {"roberta.encoder.layer.", ".attention.self.", "query", "value"};
    default:
      return {"model.layers.", ".self_attn.", "q_proj", "v_proj"};
  }
}

}  // namespace

absl::StatusOr<std::vector<tier::BlockTensor>> AdapterTensors(const nn::ModelConfig& config, const SchemeSpec& scheme) {
  std::vector<tier::BlockTensor> tensors;
  if (scheme.name == "prompt") {
    tensors.push_back({"prompt_embeddings", {scheme.tokens, config.hidden}, true});
    return tensors;
  }
  if (scheme.name == "prefix") {
    for (int64_t i = 0; i < config.layers; ++i) {
      for (const char* part : {"key", "value"})
        tensors.push_back({Cat("prefix.", i, ".", part), {scheme.tokens, config.kv_width()}, true});
    }
    return tensors;
  }
  if (config.fused_qkv())
    return Unimplemented("scheme.name: lora: gpt2 keeps query, key and value in one matrix; not done here");
  const int64_t smallest = std::min(config.hidden, config.kv_width());
  if (scheme.rank > smallest)
    return InvalidArgument("scheme.rank: ", scheme.rank, " is over the smallest projection's ", smallest);
  const Names names = NamesOf(config.family);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string base = Cat("base_model.model.", names.layers, i, names.attention);
    tensors.push_back({base + names.q + ".lora_A.weight", {scheme.rank, config.hidden}, true});
    tensors.push_back({base + names.q + ".lora_B.weight", {config.q_width(), scheme.rank}, true});
    tensors.push_back({base + names.v + ".lora_A.weight", {scheme.rank, config.hidden}, true});
    tensors.push_back({base + names.v + ".lora_B.weight", {config.kv_width(), scheme.rank}, true});
  }
  return tensors;
}

void InitLora(const std::vector<tier::BlockTensor>& tensors, uint64_t seed, std::span<float> values) {
  size_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto size = static_cast<size_t>(tensors[i].elements());
    std::span<float> tensor = values.subspan(offset, size);
    offset += size;
    if (tensors[i].name.find("lora_A") == std::string::npos) {
      std::fill(tensor.begin(), tensor.end(), 0.0f);
      continue;
    }
    std::vector<uint32_t> bits(size);
    zo::FillBits({seed, 0, 0xffffffffu}, static_cast<uint32_t>(i), 0, bits);  // query 2^32 - 1: no step uses it
    const double bound = 1 / std::sqrt(static_cast<double>(tensors[i].shape[1]));
    for (size_t e = 0; e < size; ++e) tensor[e] = static_cast<float>((bits[e] / 2147483648.0 - 1) * bound);
  }
}

std::vector<int64_t> VirtualTokenIds(uint64_t seed, int64_t tokens, int64_t vocab) {
  std::vector<uint32_t> bits(static_cast<size_t>(tokens));
  zo::FillBits({seed, 0, 0xffffffffu}, 0, 0, bits);
  std::vector<int64_t> ids;
  for (uint32_t word : bits) ids.push_back(word % vocab);
  return ids;
}

absl::Status SaveAdapter(const std::string& folder, const nn::ModelConfig& config, const SchemeSpec& scheme,
                         const std::vector<tier::BlockTensor>& tensors, std::span<const float> values) {
  RETURN_IF_ERROR(PosixFs().CreateDirectories(folder));
  const bool masked = config.family == nn::Family::kRoberta;
  nlohmann::ordered_json described;
  std::vector<nn::TensorToWrite> files;
  std::vector<float> prompt;
  if (scheme.name == "lora") {
    const Names names = NamesOf(config.family);
    described = {{"peft_type", "LORA"}, {"r", scheme.rank}, {"lora_alpha", scheme.alpha},
                 {"lora_dropout", 0.0}, {"bias", "none"},   {"target_modules", {names.q, names.v}}};
    size_t offset = 0;
    for (const tier::BlockTensor& tensor : tensors) {
      const auto size = static_cast<size_t>(tensor.elements());
      files.push_back({tensor.name, nn::FileType::kF32, tensor.shape, std::as_bytes(values.subspan(offset, size))});
      offset += size;
    }
  } else if (scheme.name == "prompt") {
    described = {{"peft_type", "PROMPT_TUNING"},        {"num_virtual_tokens", scheme.tokens},
                 {"token_dim", config.hidden},          {"num_transformer_submodules", 1},
                 {"num_attention_heads", config.heads}, {"num_layers", config.layers},
                 {"prompt_tuning_init", "RANDOM"}};
    files.push_back({tensors[0].name, nn::FileType::kF32, tensors[0].shape, std::as_bytes(values)});
  } else {  // peft keeps one matrix [tokens, layers * 2 * width], layer by layer, keys before values
    described = {{"peft_type", "PREFIX_TUNING"},
                 {"num_virtual_tokens", scheme.tokens},
                 {"num_layers", config.layers},
                 {"token_dim", config.kv_width()},
                 {"num_attention_heads", config.kv_heads},
                 {"num_transformer_submodules", 1},
                 {"encoder_hidden_size", config.kv_width()},
                 {"prefix_projection", false}};
    const int64_t width = config.kv_width(), parts = 2 * config.layers;
    prompt.resize(values.size());
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t t = 0; t < scheme.tokens; ++t)
        std::copy_n(values.begin() + (part * scheme.tokens + t) * width, width,
                    prompt.begin() + (t * parts + part) * width);
    }
    files.push_back(
        {"prompt_embeddings", nn::FileType::kF32, {scheme.tokens, parts * width}, std::as_bytes(std::span(prompt))});
  }
  // A masked model has no task of its own in peft: LoRA needs none, virtual tokens reach the model by the forward pass of
  // feature extraction (without a task, peft leaves them out and says nothing).
  if (!masked)
    described["task_type"] = "CAUSAL_LM";
  else if (scheme.name == "lora")
    described["task_type"] = nullptr;
  else
    described["task_type"] = "FEATURE_EXTRACTION";
  described["inference_mode"] = true;
  RETURN_IF_ERROR(nn::WriteSafetensors(folder + "/adapter_model.safetensors", files, {{"format", "pt"}}));
  return PosixFs().WriteFileAtomic(folder + "/adapter_config.json", BytesOf(described.dump(2) + "\n"));
}

}  // namespace optod::train
