#include "optim/nn/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::nn {
namespace {

using nlohmann::json;

constexpr int64_t kMaxExtent = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;

/// Reads fields of one JSON object; the first complaint stays.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  bool Has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  int64_t Int(const char* key, int64_t fallback, int64_t min, int64_t max) {
    if (!Has(key)) {
      if (fallback < min) Complain(Cat(key, ": missing"));
      return fallback;
    }
    const json& value = object_[key];
    if (!value.is_number_integer()) return Complain(Cat(key, ": not an integer")), min;
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(max))
      return Complain(Cat(key, ": ", value.dump(), " must lie in ", min, " to ", max)), min;
    const int64_t number = value.get<int64_t>();
    if (number < min || number > max) return Complain(Cat(key, ": ", number, " must lie in ", min, " to ", max)), min;
    return number;
  }
  double Number(const char* key, double fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_number()) return Complain(Cat(key, ": not a number")), fallback;
    const double value = object_[key].get<double>();
    if (!(value > 0) || !std::isfinite(value)) return Complain(Cat(key, ": ", value, " must be > 0")), fallback;
    return value;
  }
  bool Bool(const char* key, bool fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_boolean()) return Complain(Cat(key, ": not true or false")), fallback;
    return object_[key].get<bool>();
  }
  std::string Text(const char* key, const std::string& fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_string()) return Complain(Cat(key, ": not text")), fallback;
    return object_[key].get<std::string>();
  }
  /// Token id: a number, or the first of a list; -1 = none.
  int64_t Token(const char* key) {
    if (!Has(key)) return -1;
    const json& value = object_[key].is_array() && !object_[key].empty() ? object_[key][0] : object_[key];
    if (!value.is_number_integer()) return Complain(Cat(key, ": not a token id")), -1;
    return value.get<int64_t>();
  }
  void Complain(std::string text) {
    if (status_.ok()) status_ = InvalidArgument("config.json: ", text);
  }
  void Unsupported(std::string text) {
    if (status_.ok()) status_ = Unimplemented("config.json: ", text);
  }
  const json& object() const { return object_; }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

Activation ReadActivation(Fields& f, const char* key, const std::string& fallback) {
  const std::string name = f.Text(key, fallback);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  f.Unsupported(Cat(key, ": \"", name, "\" is not one of silu, relu, gelu_new, gelu_pytorch_tanh, gelu"));
  return Activation::kSilu;
}

void SplitHeads(Fields& f, ModelConfig& c, const char* heads_key) {
  if (!f.status().ok()) return;
  if (c.head_dim == 0) {
    if (c.hidden % c.heads != 0)
      return f.Complain(Cat(heads_key, ": ", c.heads, " does not divide hidden_size ", c.hidden));
    c.head_dim = c.hidden / c.heads;
  }
  if (c.heads % c.kv_heads != 0)
    f.Complain(Cat("num_key_value_heads: ", c.kv_heads, " does not divide ", heads_key, " ", c.heads));
  if (c.rotary() && c.head_dim % 2 != 0)
    f.Complain(Cat("head_dim: ", c.head_dim, " is odd; rotary positions need pairs"));
}

void ReadRope(Fields& f, ModelConfig& c) {
  c.rope_theta = f.Number("rope_theta", 10000);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!f.Has(key)) continue;
    if (!f.object()[key].is_object()) return f.Complain(Cat(key, ": not an object"));
    Fields rope(f.object()[key]);
    const std::string type = rope.Text("rope_type", rope.Text("type", "default"));
    if (type == "linear") {
      c.rope_scale = rope.Number("factor", 1);
    } else if (type != "default") {
      f.Unsupported(Cat(key, ".rope_type: \"", type, "\" is not computed here (default, linear)"));
    }
    c.rope_theta = rope.Number("rope_theta", c.rope_theta);
    if (!rope.status().ok()) f.Complain(std::string(rope.status().message()));
  }
}

void ReadLlama(Fields& f, ModelConfig& c) {
  c.hidden = f.Int("hidden_size", 0, 1, kMaxExtent);
  c.inter = f.Int("intermediate_size", 0, 1, kMaxExtent);
  c.layers = f.Int("num_hidden_layers", 0, 1, kMaxLayers);
  c.heads = f.Int("num_attention_heads", 0, 1, kMaxExtent);
  c.kv_heads = f.Int("num_key_value_heads", c.heads, 1, kMaxExtent);
  c.head_dim = f.Has("head_dim") ? f.Int("head_dim", 0, 1, kMaxExtent) : 0;
  c.max_positions = f.Int("max_position_embeddings", 2048, 1, int64_t{1} << 30);
  c.norm_eps = f.Number("rms_norm_eps", 1e-6);
  c.attention_bias = f.Bool("attention_bias", false);
  c.mlp_bias = f.Bool("mlp_bias", false);
  c.tied = f.Bool("tie_word_embeddings", false);
  c.activation = ReadActivation(f, "hidden_act", "silu");
  if (c.family == Family::kMistral && f.Has("sliding_window"))
    c.sliding_window = f.Int("sliding_window", 0, 1, int64_t{1} << 30);
  ReadRope(f, c);
  SplitHeads(f, c, "num_attention_heads");
}

void ReadOpt(Fields& f, ModelConfig& c) {
  c.hidden = f.Int("hidden_size", 768, 1, kMaxExtent);
  c.inter = f.Int("ffn_dim", 3072, 1, kMaxExtent);
  c.layers = f.Int("num_hidden_layers", 12, 1, kMaxLayers);
  c.heads = c.kv_heads = f.Int("num_attention_heads", 12, 1, kMaxExtent);
  c.max_positions = f.Int("max_position_embeddings", 2048, 1, kMaxExtent);
  c.position_offset = 2;
  c.activation = ReadActivation(f, "activation_function", "relu");
  c.attention_bias = c.mlp_bias = f.Bool("enable_bias", true);
  c.norm_affine = f.Bool("layer_norm_elementwise_affine", true);
  c.tied = f.Bool("tie_word_embeddings", true);
  if (!f.Bool("do_layer_norm_before", true)) f.Unsupported("do_layer_norm_before: false is not computed here");
  if (f.Int("word_embed_proj_dim", c.hidden, 1, kMaxExtent) != c.hidden)
    f.Unsupported("word_embed_proj_dim: a projection of the embeddings is not computed here");
  if (f.Bool("_remove_final_layer_norm", false)) f.Unsupported("_remove_final_layer_norm: true is not computed here");
  SplitHeads(f, c, "num_attention_heads");
}

void ReadGpt2(Fields& f, ModelConfig& c) {
  c.hidden = f.Int("n_embd", 768, 1, kMaxExtent);
  c.inter = f.Has("n_inner") ? f.Int("n_inner", 0, 1, kMaxExtent) : 4 * c.hidden;
  c.layers = f.Int("n_layer", 12, 1, kMaxLayers);
  c.heads = c.kv_heads = f.Int("n_head", 12, 1, kMaxExtent);
  c.max_positions = f.Int("n_positions", 1024, 1, kMaxExtent);
  c.norm_eps = f.Number("layer_norm_epsilon", 1e-5);
  c.activation = ReadActivation(f, "activation_function", "gelu_new");
  c.attention_bias = c.mlp_bias = true;
  c.tied = f.Bool("tie_word_embeddings", true);
  if (f.Bool("scale_attn_by_inverse_layer_idx", false))
    f.Unsupported("scale_attn_by_inverse_layer_idx: true is not computed here");
  if (!f.Bool("scale_attn_weights", true)) f.Unsupported("scale_attn_weights: false is not computed here");
  SplitHeads(f, c, "n_head");
}

void ReadRoberta(Fields& f, ModelConfig& c) {
  c.hidden = f.Int("hidden_size", 768, 1, kMaxExtent);
  c.inter = f.Int("intermediate_size", 3072, 1, kMaxExtent);
  c.layers = f.Int("num_hidden_layers", 12, 1, kMaxLayers);
  c.heads = c.kv_heads = f.Int("num_attention_heads", 12, 1, kMaxExtent);
  const int64_t rows = f.Int("max_position_embeddings", 514, 1, kMaxExtent);
  c.pad = f.Int("pad_token_id", 1, 0, kMaxExtent);
  c.position_offset = c.pad + 1;
  c.max_positions = rows - c.position_offset;
  if (c.max_positions <= 0) f.Complain(Cat("max_position_embeddings: ", rows, " leaves no room after the padding id"));
  c.type_vocab = f.Int("type_vocab_size", 1, 1, kMaxExtent);
  c.norm_eps = f.Number("layer_norm_eps", 1e-12);
  c.activation = ReadActivation(f, "hidden_act", "gelu");
  c.attention_bias = c.mlp_bias = true;
  c.tied = f.Bool("tie_word_embeddings", true);
  if (f.Text("position_embedding_type", "absolute") != "absolute")
    f.Unsupported("position_embedding_type: only absolute is computed here");
  SplitHeads(f, c, "num_attention_heads");
}

struct FamilyRow {
  const char* model_type;
  Family family;
  void (*read)(Fields&, ModelConfig&);
};
constexpr FamilyRow kFamilies[] = {{"llama", Family::kLlama, &ReadLlama},
                                   {"mistral", Family::kMistral, &ReadLlama},
                                   {"opt", Family::kOpt, &ReadOpt},
                                   {"gpt2", Family::kGpt2, &ReadGpt2},
                                   {"roberta", Family::kRoberta, &ReadRoberta}};

}  // namespace

absl::StatusOr<ModelConfig> ParseConfig(const std::string& json_text) {
  const json parsed = json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument("config.json: not a JSON object");
  Fields f(parsed);
  const std::string type = f.Text("model_type", "");
  RETURN_IF_ERROR(f.status());
  if (type.empty()) return InvalidArgument("config.json: model_type: missing");
  for (const FamilyRow& row : kFamilies) {
    if (type != row.model_type) continue;
    ModelConfig config;
    config.family = row.family;
    config.vocab = f.Int("vocab_size", 0, 1, kMaxExtent);
    config.bos = f.Token("bos_token_id");
    config.eos = f.Token("eos_token_id");
    config.pad = f.Token("pad_token_id");
    row.read(f, config);
    RETURN_IF_ERROR(f.status());
    config.json = json_text;
    return config;
  }
  return Unimplemented("config.json: model_type: \"", type.substr(0, 64),
                       "\" is not one of llama, mistral, opt, gpt2, roberta");
}

std::string ConfigJson(const ModelConfig& c) {
  if (!c.json.empty()) return c.json;
  // Only imports (GGUF, llama2.c) come without one; they are LLaMA-like.
  nlohmann::ordered_json out = {{"architectures", {"LlamaForCausalLM"}},
                                {"model_type", "llama"},
                                {"vocab_size", c.vocab},
                                {"hidden_size", c.hidden},
                                {"intermediate_size", c.inter},
                                {"num_hidden_layers", c.layers},
                                {"num_attention_heads", c.heads},
                                {"num_key_value_heads", c.kv_heads},
                                {"head_dim", c.head_dim},
                                {"max_position_embeddings", c.max_positions},
                                {"rms_norm_eps", c.norm_eps},
                                {"rope_theta", c.rope_theta},
                                {"hidden_act", "silu"},
                                {"tie_word_embeddings", c.tied},
                                {"torch_dtype", "float32"}};
  if (c.bos >= 0) out["bos_token_id"] = c.bos;
  if (c.eos >= 0) out["eos_token_id"] = c.eos;
  if (c.pad >= 0) out["pad_token_id"] = c.pad;
  return out.dump(2) + "\n";
}

}  // namespace optod::nn
