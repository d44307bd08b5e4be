#include "optim/nn/import.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::nn {
namespace {

/// "model.layers.3.mlp.up_proj.weight" -> ("mlp.up_proj.weight", 3); layer -1 for the others.
std::pair<std::string, int> SplitLayer(const std::string& name) {
  static const std::string kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return {name, -1};
  const size_t dot = name.find('.', kPrefix.size());
  return {name.substr(dot + 1), std::stoi(name.substr(kPrefix.size(), dot - kPrefix.size()))};
}

struct NameRow {
  const char *ours, *gguf, *llama2c;
};
constexpr NameRow kWhole[] = {{"model.embed_tokens.weight", "token_embd.weight", "tok_embeddings.weight"},
                              {"model.norm.weight", "output_norm.weight", "norm.weight"},
                              {"lm_head.weight", "output.weight", "output.weight"}};
constexpr NameRow kLayer[] = {
    {"input_layernorm.weight", "attn_norm.weight", "attention_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight", "attention.wq.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight", "attention.wk.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight", "attention.wv.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight", "attention.wo.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight", "feed_forward.w1.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight", "feed_forward.w3.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight", "feed_forward.w2.weight"},
};

std::string ForeignName(const std::string& ours, bool gguf) {
  const auto [rest, layer] = SplitLayer(ours);
  for (const NameRow& row : layer < 0 ? std::span<const NameRow>(kWhole) : std::span<const NameRow>(kLayer)) {
    if (rest != row.ours) continue;
    const char* name = gguf ? row.gguf : row.llama2c;
    return layer < 0 ? name : Cat(gguf ? "blk." : "layers.", layer, ".", name);
  }
  return "";
}

/// Files of other tensor names: knows shapes and raw values by foreign name; the names and the order of rows are ours.
class ForeignReader : public WeightReader {
 public:
  absl::Status Read(size_t uid, uint64_t first, std::span<float> out) override {
    const Entry& entry = entries_[uid];
    RETURN_IF_ERROR(ReadRaw(entry.name, first, out));
    RETURN_IF_ERROR(CheckFinite(entry.name, out));
    if (entry.heads == 0) return absl::OkStatus();
    if (out.size() != entry.elements) return Internal(entry.name, ": its rows are reordered, so it is read whole");
    NeighboursToHalves(entry.heads, config_.head_dim, config_.hidden, out);
    return absl::OkStatus();
  }

 protected:
  /// nullptr: there is no such tensor.
  virtual const std::vector<int64_t>* ShapeOf(const std::string& name) const = 0;
  virtual absl::Status ReadRaw(const std::string& name, uint64_t first, std::span<float> out) = 0;

  /// After config_ is set.
  absl::Status Resolve(bool gguf) {
    blocks_ = DescribeBlocks(config_);
    for (const tier::BlockSpec& block : blocks_) {
      for (const tier::BlockTensor& tensor : block.tensors) {
        Entry entry{ForeignName(tensor.name, gguf), static_cast<size_t>(tensor.elements()), 0};
        const std::vector<int64_t>* shape = ShapeOf(entry.name);
        if (shape == nullptr) return InvalidArgument("weights: tensor \"", entry.name, "\" is missing");
        if (*shape != tensor.shape)
          return InvalidArgument("weights: tensor \"", entry.name, "\" has another shape than the model's sizes ask for");
        if (tensor.name.ends_with("q_proj.weight")) entry.heads = config_.heads;
        if (tensor.name.ends_with("k_proj.weight")) entry.heads = config_.kv_heads;
        entries_.push_back(std::move(entry));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Entry {
    std::string name;
    size_t elements;
    int64_t heads;  ///< whose rows are reordered; 0 = none
  };
  std::vector<Entry> entries_;  // a tensor
};

/// Reads numbers of GGUF's metadata.
class Metadata {
 public:
  explicit Metadata(const GgufHeader& header) : header_(header) {}
  int64_t Int(const std::string& key, int64_t fallback) {
    const double value = Number(key, static_cast<double>(fallback));
    return static_cast<int64_t>(value);
  }
  double Number(const std::string& key, double fallback) {
    const auto it = header_.metadata.find(key);
    if (it == header_.metadata.end()) return fallback;
    if (const auto* u = std::get_if<uint64_t>(&it->second))
      return *u < (uint64_t{1} << 40) ? static_cast<double>(*u) : -2;
    if (const auto* i = std::get_if<int64_t>(&it->second))
      return std::abs(*i) < (int64_t{1} << 40) ? static_cast<double>(*i) : -2;
    if (const auto* d = std::get_if<double>(&it->second)) return std::isfinite(*d) ? *d : -2;
    return fallback;
  }

 private:
  const GgufHeader& header_;
};

}  // namespace

absl::Status CheckFinite(const std::string& name, std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      return InvalidArgument(name, ": element ", i, " is ", std::isnan(values[i]) ? "NaN" : "infinite");
  }
  return absl::OkStatus();
}

void NeighboursToHalves(int64_t heads, int64_t head_dim, int64_t columns, std::span<float> matrix) {
  std::vector<float> head(static_cast<size_t>(head_dim * columns));
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h) {
    float* rows = matrix.data() + h * head_dim * columns;
    std::copy(rows, rows + head_dim * columns, head.begin());
    for (int64_t i = 0; i < half; ++i) {
      std::copy_n(head.begin() + 2 * i * columns, columns, rows + i * columns);
      std::copy_n(head.begin() + (2 * i + 1) * columns, columns, rows + (i + half) * columns);
    }
  }
}

absl::StatusOr<ModelConfig> GgufConfig(const GgufHeader& header) {
  const auto it = header.metadata.find("general.architecture");
  const std::string* arch = it == header.metadata.end() ? nullptr : std::get_if<std::string>(&it->second);
  if (arch == nullptr) return InvalidArgument("gguf: general.architecture: missing");
  if (*arch != "llama")
    return Unimplemented("gguf: general.architecture: \"", arch->substr(0, 64), "\" is not read here (llama)");
  Metadata m(header);
  const GgufTensor *embed = nullptr, *output = nullptr;
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.name == "token_embd.weight") embed = &tensor;
    if (tensor.name == "output.weight") output = &tensor;
  }
  if (embed == nullptr || embed->shape.size() != 2)
    return InvalidArgument("gguf: tensor \"token_embd.weight\" is missing");
  nlohmann::json json = {
      {"model_type", "llama"},
      {"vocab_size", embed->shape[0]},
      {"hidden_size", m.Int("llama.embedding_length", 0)},
      {"intermediate_size", m.Int("llama.feed_forward_length", 0)},
      {"num_hidden_layers", m.Int("llama.block_count", 0)},
      {"num_attention_heads", m.Int("llama.attention.head_count", 0)},
      {"num_key_value_heads", m.Int("llama.attention.head_count_kv", m.Int("llama.attention.head_count", 0))},
      {"max_position_embeddings", m.Int("llama.context_length", 2048)},
      {"rms_norm_eps", m.Number("llama.attention.layer_norm_rms_epsilon", 1e-5)},
      {"rope_theta", m.Number("llama.rope.freq_base", 10000)},
      {"tie_word_embeddings", output == nullptr}};
  absl::StatusOr<ModelConfig> config = ParseConfig(json.dump());
  if (!config.ok())
    return absl::Status(config.status().code(), "gguf: metadata: " + std::string(config.status().message()));
  config->json.clear();
  config->bos = m.Int("tokenizer.ggml.bos_token_id", -1);
  config->eos = m.Int("tokenizer.ggml.eos_token_id", -1);
  config->pad = m.Int("tokenizer.ggml.padding_token_id", -1);
  return config;
}

namespace {

class GgufReader final : public ForeignReader {
 public:
  explicit GgufReader(Gguf file) : file_(std::move(file)) {}
  absl::Status Init() {
    source_ = "gguf";
    ASSIGN_OR_RETURN(config_, GgufConfig(file_.header()));
    return Resolve(/*gguf=*/true);
  }

 protected:
  const std::vector<int64_t>* ShapeOf(const std::string& name) const override {
    const GgufTensor* tensor = file_.Find(name);
    return tensor == nullptr ? nullptr : &tensor->shape;
  }
  absl::Status ReadRaw(const std::string& name, uint64_t first, std::span<float> out) override {
    file_.ReadRows(*file_.Find(name), first, out);
    file_.Drop();  // at once: the peak is one model, not two
    return absl::OkStatus();
  }

 private:
  Gguf file_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightReader>> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(Gguf file, Gguf::Open(path));
  auto reader = std::make_unique<GgufReader>(std::move(file));
  RETURN_IF_ERROR(reader->Init());
  return reader;
}

absl::StatusOr<ModelConfig> Llama2cConfig(const SafetensorsHeader& header) {
  const auto it = header.metadata.find("config");
  if (it == header.metadata.end())
    return NotFound("config.json: missing, and the weights carry no description of the model");
  const auto sizes = nlohmann::json::parse(it->second, nullptr, false);
  if (!sizes.is_object()) return InvalidArgument("safetensors: __metadata__.config: not a JSON object");
  const auto at = [&](const char* key) { return sizes.contains(key) ? sizes[key] : nlohmann::json(); };
  nlohmann::json json = {{"model_type", "llama"},
                         {"vocab_size", at("vocab_size")},
                         {"hidden_size", at("dim")},
                         {"intermediate_size", at("hidden_dim")},
                         {"num_hidden_layers", at("n_layers")},
                         {"num_attention_heads", at("n_heads")},
                         {"num_key_value_heads", at("n_kv_heads")},
                         {"max_position_embeddings", at("max_seq_len")},
                         {"rms_norm_eps", at("norm_eps")},
                         {"rope_theta", at("rope_theta")},
                         {"tie_word_embeddings", at("tied_embeddings")}};
  ASSIGN_OR_RETURN(ModelConfig config, ParseConfig(json.dump()));
  config.json.clear();
  config.bos = 1;  // llama2.c's tokenizers
  config.eos = 2;
  return config;
}

namespace {

class Llama2cReader final : public ForeignReader {
 public:
  explicit Llama2cReader(Safetensors file) : file_(std::move(file)) {}
  absl::Status Init() {
    source_ = "llama2.c";
    ASSIGN_OR_RETURN(config_, Llama2cConfig(file_.header()));
    for (const FileTensor& tensor : file_.header().tensors) by_name_[tensor.name] = &tensor;
    return Resolve(/*gguf=*/false);
  }

 protected:
  const std::vector<int64_t>* ShapeOf(const std::string& name) const override {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : &it->second->shape;
  }
  absl::Status ReadRaw(const std::string& name, uint64_t first, std::span<float> out) override {
    const FileTensor& tensor = *by_name_[name];
    const size_t element = ElementBytes(tensor.type);
    if (!ToFloat32(tensor.type, file_.bytes(tensor).subspan(first * element, out.size() * element), out))
      return InvalidArgument(name, ": dtype ", FileTypeName(tensor.type), " is not a weight's");
    return absl::OkStatus();
  }

 private:
  Safetensors file_;
  std::map<std::string, const FileTensor*> by_name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightReader>> OpenLlama2c(const std::string& path) {
  ASSIGN_OR_RETURN(Safetensors file, Safetensors::Open(path));
  auto reader = std::make_unique<Llama2cReader>(std::move(file));
  RETURN_IF_ERROR(reader->Init());
  return reader;
}

}  // namespace optod::nn
