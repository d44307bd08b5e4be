// The tensors of each family, block by block, under the names Hugging Face's files use. One list serves the names, the
// shapes and the slots, so they cannot disagree.
#include "base/status.h"
#include "optim/nn/model_config.h"

namespace optod::nn {
namespace {

/// Builds one block; Add returns the tensor's position in it.
class Block {
 public:
  Block(std::string name, std::string prefix) : prefix_(std::move(prefix)) { spec_.name = std::move(name); }
  int Add(const std::string& name, std::vector<int64_t> shape, bool decay) {
    spec_.tensors.push_back({prefix_ + name, std::move(shape), decay});
    return static_cast<int>(spec_.tensors.size()) - 1;
  }
  int Matrix(const std::string& name, int64_t rows, int64_t columns) {
    return Add(name + ".weight", {rows, columns}, true);
  }
  int Vector(const std::string& name, int64_t size) { return Add(name, {size}, false); }
  tier::BlockSpec Take() { return std::move(spec_); }

 private:
  std::string prefix_;
  tier::BlockSpec spec_;
};

LayerSlots RotaryLayer(const ModelConfig& c, Block& b) {
  LayerSlots s;
  s.norm1 = b.Vector("input_layernorm.weight", c.hidden);
  auto projection = [&](const std::string& name, int64_t rows, int64_t columns, bool bias, int* weight,
                        int* bias_slot) {
    *weight = b.Matrix(name, rows, columns);
    if (bias) *bias_slot = b.Vector(name + ".bias", rows);
  };
  projection("self_attn.q_proj", c.q_width(), c.hidden, c.attention_bias, &s.q, &s.q_bias);
  projection("self_attn.k_proj", c.kv_width(), c.hidden, c.attention_bias, &s.k, &s.k_bias);
  projection("self_attn.v_proj", c.kv_width(), c.hidden, c.attention_bias, &s.v, &s.v_bias);
  projection("self_attn.o_proj", c.hidden, c.q_width(), c.attention_bias, &s.o, &s.o_bias);
  s.norm2 = b.Vector("post_attention_layernorm.weight", c.hidden);
  projection("mlp.gate_proj", c.inter, c.hidden, c.mlp_bias, &s.gate, &s.gate_bias);
  projection("mlp.up_proj", c.inter, c.hidden, c.mlp_bias, &s.up, &s.up_bias);
  projection("mlp.down_proj", c.hidden, c.inter, c.mlp_bias, &s.down, &s.down_bias);
  return s;
}

/// OPT and RoBERTa: the same parts under different names, in a different order of norms.
struct ClassicNames {
  const char *norm1, *q, *k, *v, *o, *norm2, *up, *down;
};
constexpr ClassicNames kOpt = {"self_attn_layer_norm",
                               "self_attn.q_proj",
                               "self_attn.k_proj",
                               "self_attn.v_proj",
                               "self_attn.out_proj",
                               "final_layer_norm",
                               "fc1",
                               "fc2"};
constexpr ClassicNames kRoberta = {
    "attention.output.LayerNorm", "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense",     "output.LayerNorm",     "intermediate.dense", "output.dense"};

LayerSlots ClassicLayer(const ModelConfig& c, const ClassicNames& n, Block& b) {
  LayerSlots s;
  auto norm = [&](const std::string& name, int* weight, int* bias) {
    if (!c.norm_affine) return;
    *weight = b.Vector(name + ".weight", c.hidden);
    *bias = b.Vector(name + ".bias", c.hidden);
  };
  auto linear = [&](const std::string& name, int64_t rows, int64_t columns, bool has_bias, int* weight, int* bias) {
    *weight = b.Matrix(name, rows, columns);
    if (has_bias) *bias = b.Vector(name + ".bias", rows);
  };
  norm(n.norm1, &s.norm1, &s.norm1_bias);
  linear(n.q, c.hidden, c.hidden, c.attention_bias, &s.q, &s.q_bias);
  linear(n.k, c.hidden, c.hidden, c.attention_bias, &s.k, &s.k_bias);
  linear(n.v, c.hidden, c.hidden, c.attention_bias, &s.v, &s.v_bias);
  linear(n.o, c.hidden, c.hidden, c.attention_bias, &s.o, &s.o_bias);
  norm(n.norm2, &s.norm2, &s.norm2_bias);
  linear(n.up, c.inter, c.hidden, c.mlp_bias, &s.up, &s.up_bias);
  linear(n.down, c.hidden, c.inter, c.mlp_bias, &s.down, &s.down_bias);
  return s;
}

LayerSlots Gpt2Layer(const ModelConfig& c, Block& b) {
  LayerSlots s;
  s.norm1 = b.Vector("ln_1.weight", c.hidden);
  s.norm1_bias = b.Vector("ln_1.bias", c.hidden);
  s.q = b.Matrix("attn.c_attn", c.hidden, 3 * c.hidden);
  s.q_bias = b.Vector("attn.c_attn.bias", 3 * c.hidden);
  s.o = b.Matrix("attn.c_proj", c.hidden, c.hidden);
  s.o_bias = b.Vector("attn.c_proj.bias", c.hidden);
  s.norm2 = b.Vector("ln_2.weight", c.hidden);
  s.norm2_bias = b.Vector("ln_2.bias", c.hidden);
  s.up = b.Matrix("mlp.c_fc", c.hidden, c.inter);
  s.up_bias = b.Vector("mlp.c_fc.bias", c.inter);
  s.down = b.Matrix("mlp.c_proj", c.inter, c.hidden);
  s.down_bias = b.Vector("mlp.c_proj.bias", c.hidden);
  return s;
}

const char* LayerPrefix(Family family) {
  switch (family) {
    case Family::kOpt:
      return "model.decoder.layers.";
    case Family::kGpt2:
      return "transformer.h.";
    case Family::kRoberta:
      return "roberta.encoder.layer.";
    default:
      return "model.layers.";
  }
}

LayerSlots BuildLayer(const ModelConfig& c, Block& b) {
  switch (c.family) {
    case Family::kOpt:
      return ClassicLayer(c, kOpt, b);
    case Family::kRoberta:
      return ClassicLayer(c, kRoberta, b);
    case Family::kGpt2:
      return Gpt2Layer(c, b);
    default:
      return RotaryLayer(c, b);
  }
}

EmbedSlots BuildEmbed(const ModelConfig& c, Block& b) {
  EmbedSlots s;
  switch (c.family) {
    case Family::kOpt:
      s.tokens = b.Matrix("model.decoder.embed_tokens", c.vocab, c.hidden);
      s.positions = b.Matrix("model.decoder.embed_positions", c.max_positions + c.position_offset, c.hidden);
      break;
    case Family::kGpt2:
      s.tokens = b.Matrix("transformer.wte", c.vocab, c.hidden);
      s.positions = b.Matrix("transformer.wpe", c.max_positions, c.hidden);
      break;
    case Family::kRoberta:
      s.tokens = b.Matrix("roberta.embeddings.word_embeddings", c.vocab, c.hidden);
      s.positions = b.Matrix("roberta.embeddings.position_embeddings", c.max_positions + c.position_offset, c.hidden);
      s.types = b.Matrix("roberta.embeddings.token_type_embeddings", c.type_vocab, c.hidden);
      s.norm = b.Vector("roberta.embeddings.LayerNorm.weight", c.hidden);
      s.norm_bias = b.Vector("roberta.embeddings.LayerNorm.bias", c.hidden);
      break;
    default:
      s.tokens = b.Matrix("model.embed_tokens", c.vocab, c.hidden);
  }
  return s;
}

HeadSlots BuildHead(const ModelConfig& c, Block& b) {
  HeadSlots s;
  auto norm = [&](const std::string& name) {
    if (!c.norm_affine) return;
    s.norm = b.Vector(name + ".weight", c.hidden);
    if (!c.rms()) s.norm_bias = b.Vector(name + ".bias", c.hidden);
  };
  if (c.family == Family::kRoberta) {
    s.dense = b.Matrix("lm_head.dense", c.hidden, c.hidden);
    s.dense_bias = b.Vector("lm_head.dense.bias", c.hidden);
    s.lm_norm = b.Vector("lm_head.layer_norm.weight", c.hidden);
    s.lm_norm_bias = b.Vector("lm_head.layer_norm.bias", c.hidden);
    s.lm_bias = b.Vector("lm_head.bias", c.vocab);
    if (!c.tied) s.lm_head = b.Matrix("lm_head.decoder", c.vocab, c.hidden);
    return s;
  }
  norm(c.family == Family::kOpt    ? "model.decoder.final_layer_norm"
       : c.family == Family::kGpt2 ? "transformer.ln_f"
                                   : "model.norm");
  if (!c.tied) s.lm_head = b.Matrix("lm_head", c.vocab, c.hidden);
  return s;
}

}  // namespace

std::vector<tier::BlockSpec> DescribeBlocks(const ModelConfig& config) {
  std::vector<tier::BlockSpec> blocks;
  Block embed("embed", "");
  BuildEmbed(config, embed);
  blocks.push_back(embed.Take());
  for (int64_t i = 0; i < config.layers; ++i) {
    Block layer(Cat("layers.", i), Cat(LayerPrefix(config.family), i, "."));
    BuildLayer(config, layer);
    blocks.push_back(layer.Take());
  }
  Block head("head", "");
  BuildHead(config, head);
  blocks.push_back(head.Take());
  return blocks;
}

LayerSlots LayerSlotsOf(const ModelConfig& config) {
  Block unused("", "");
  return BuildLayer(config, unused);
}
EmbedSlots EmbedSlotsOf(const ModelConfig& config) {
  Block unused("", "");
  return BuildEmbed(config, unused);
}
HeadSlots HeadSlotsOf(const ModelConfig& config) {
  Block unused("", "");
  return BuildHead(config, unused);
}

}  // namespace optod::nn
