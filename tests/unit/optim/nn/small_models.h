#pragma once
/// Small models of every family with random weights, and the forward pass in plain double loops: the reference.

#include <string>
#include <vector>

#include "optim/nn/checkpoint.h"

namespace optod::nn {

struct SmallModel {
  const char* name;
  const char* config;
};
inline constexpr SmallModel kSmallModels[] = {
    {"llama", R"({"model_type": "llama", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
      "num_attention_heads": 4, "max_position_embeddings": 32, "attention_bias": true, "mlp_bias": true})"},
    {"llama_grouped_tied", R"({"model_type": "llama", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 36,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
      "max_position_embeddings": 32, "rope_theta": 500})"},
    {"mistral", R"({"model_type": "mistral", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
      "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 5, "max_position_embeddings": 32})"},
    {"opt", R"({"model_type": "opt", "vocab_size": 40, "hidden_size": 24, "ffn_dim": 36, "num_hidden_layers": 2,
      "num_attention_heads": 4, "max_position_embeddings": 32})"},
    {"gpt2", R"({"model_type": "gpt2", "vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32})"},
    {"roberta", R"({"model_type": "roberta", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
      "num_attention_heads": 4, "max_position_embeddings": 34, "type_vocab_size": 2})"},
};

/// Weights 0.3 z; norm gains near 1.
ModelFiles RandomModel(const char* config_json, uint64_t seed = 1);

/// Logits [ids.size()][vocab] of one sequence.
std::vector<std::vector<double>> ReferenceLogits(const ModelFiles& model, const std::vector<int64_t>& ids);

}  // namespace optod::nn
