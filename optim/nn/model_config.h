#pragma once
/// What a model's config.json says, reduced to what computing needs. One description serves every family: a decoder or
/// encoder of equal layers that differ in norm, positions, activation and how projections are stored. Plain data.
///
///   family   norm       positions          attention            mlp                   head
///   llama    RMS, pre   rotary (halves)    grouped, causal      down(silu(gate) * up)  linear, perhaps tied
///   mistral  as llama, with a sliding window
///   opt      layer, pre learned, offset 2  causal               fc2(relu(fc1))         tied
///   gpt2     layer, pre learned            causal, fused, [in,out] weights  gelu (tanh)  tied
///   roberta  layer, post learned, offset 2 both ways            gelu (erf)             dense, gelu, norm, tied, bias

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/tier/block_list.h"

namespace optod::nn {

enum class Family { kLlama, kMistral, kOpt, kGpt2, kRoberta };
enum class Activation { kSilu, kRelu, kGeluTanh, kGelu };

struct ModelConfig {
  Family family = Family::kLlama;
  int64_t vocab = 0, hidden = 0, inter = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;    ///< longest sequence
  int64_t position_offset = 0;  ///< learned positions: row of token 0 (OPT 2, RoBERTa padding id + 1)
  int64_t type_vocab = 0;       ///< RoBERTa's token types
  int64_t sliding_window = 0;   ///< a token sees itself and the sliding_window - 1 before it; 0 = all
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  double rope_scale = 1;  ///< positions are divided by it ("linear" scaling)
  Activation activation = Activation::kSilu;
  bool tied = false;  ///< the head is the embedding matrix
  bool attention_bias = false, mlp_bias = false;
  bool norm_affine = true;
  int64_t bos = -1, eos = -1, pad = -1, mask_token = -1;
  std::string json;  ///< the config.json it came from, for export

  bool rotary() const { return family == Family::kLlama || family == Family::kMistral; }
  bool gated() const { return rotary(); }
  bool rms() const { return rotary(); }
  bool post_norm() const { return family == Family::kRoberta; }
  bool causal() const { return family != Family::kRoberta; }
  /// Projections are stored [in, out] and query, key, value are one matrix.
  bool fused_qkv() const { return family == Family::kGpt2; }
  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
};

/// INVALID_ARGUMENT names the field: `config.json: num_attention_heads: 3 does not divide hidden_size 64`;
/// UNIMPLEMENTED for an unknown `model_type` or an option that changes the mathematics and is not computed here.
absl::StatusOr<ModelConfig> ParseConfig(const std::string& json_text);

/// The config.json of `config` when it has none of its own (imports from other formats); else its own.
std::string ConfigJson(const ModelConfig& config);

/// The blocks of a model: "embed", "layers.0" .. "layers.L-1", "head", with the names Hugging Face gives the tensors.
std::vector<tier::BlockSpec> DescribeBlocks(const ModelConfig& config);

/// Positions of a layer's tensors inside its block; -1 = this family has none. The order is the one of DescribeBlocks.
struct LayerSlots {
  int norm1 = -1, norm1_bias = -1, norm2 = -1, norm2_bias = -1;
  int q = -1, q_bias = -1, k = -1, k_bias = -1, v = -1, v_bias = -1;  ///< fused: q holds all three
  int o = -1, o_bias = -1, gate = -1, up = -1, up_bias = -1, down = -1, down_bias = -1, gate_bias = -1;
};
struct EmbedSlots {
  int tokens = -1, positions = -1, types = -1, norm = -1, norm_bias = -1;
};
struct HeadSlots {
  int norm = -1, norm_bias = -1;    ///< final norm (decoders)
  int dense = -1, dense_bias = -1;  ///< RoBERTa's transform
  int lm_norm = -1, lm_norm_bias = -1, lm_bias = -1;
  int lm_head = -1;  ///< -1: tied to the token embedding
};
LayerSlots LayerSlotsOf(const ModelConfig& config);
EmbedSlots EmbedSlotsOf(const ModelConfig& config);
HeadSlots HeadSlotsOf(const ModelConfig& config);

}  // namespace optod::nn
