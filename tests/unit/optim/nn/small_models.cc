#include "small_models.h"

#include <cmath>
#include <cstdlib>

#include "optim/zo/stream.h"

namespace optod::nn {
namespace {

using Rows = std::vector<std::vector<double>>;

/// Looks tensors up by the end of their name inside a block.
class Reference {
 public:
  explicit Reference(const ModelFiles& model) : m_(model), c_(model.config) {}

  Rows Run(const std::vector<int64_t>& ids) {
    Rows x = Embed(ids);
    for (size_t b = 1; b + 1 < m_.weights.blocks(); ++b) x = Layer(b, x);
    return Head(x);
  }

 private:
  const float* Find(size_t block, const std::string& ending, std::vector<int64_t>* shape = nullptr) const {
    for (size_t uid = m_.weights.first_uid(block); uid < m_.weights.first_uid(block + 1); ++uid) {
      const tier::BlockTensor& tensor = m_.weights.tensor(uid);
      if (!tensor.name.ends_with(ending)) continue;
      if (shape != nullptr) *shape = tensor.shape;
      return m_.weights.values(uid).data();
    }
    return nullptr;
  }

  Rows Linear(size_t block, const std::string& name, const Rows& x) const {
    std::vector<int64_t> shape;
    const float* w = Find(block, name + ".weight", &shape);
    const float* bias = Find(block, name + ".bias");
    const bool in_out = c_.family == Family::kGpt2 && block > 0 && block + 1 < m_.weights.blocks();
    const int64_t in = in_out ? shape[0] : shape[1], out = in_out ? shape[1] : shape[0];
    Rows y(x.size(), std::vector<double>(static_cast<size_t>(out)));
    for (size_t t = 0; t < x.size(); ++t) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = bias == nullptr ? 0 : bias[o];
        for (int64_t i = 0; i < in; ++i) sum += x[t][static_cast<size_t>(i)] * (in_out ? w[i * out + o] : w[o * in + i]);
        y[t][static_cast<size_t>(o)] = sum;
      }
    }
    return y;
  }

  Rows Norm(size_t block, const std::string& name, Rows x) const {
    const float *w = Find(block, name + ".weight"), *bias = Find(block, name + ".bias");
    for (auto& row : x) {
      double mean = 0, square = 0;
      for (double v : row) mean += v / static_cast<double>(row.size());
      if (c_.rms()) mean = 0;
      for (double v : row) square += (v - mean) * (v - mean) / static_cast<double>(row.size());
      for (size_t i = 0; i < row.size(); ++i)
        row[i] = (row[i] - mean) / std::sqrt(square + c_.norm_eps) * w[i] + (bias == nullptr ? 0 : bias[i]);
    }
    return x;
  }

  Rows Embed(const std::vector<int64_t>& ids) const {
    const std::string tokens = c_.family == Family::kGpt2 ? "wte.weight" : c_.family == Family::kRoberta ? "word_embeddings.weight" : "embed_tokens.weight";
    const std::string places = c_.family == Family::kGpt2 ? "wpe.weight" : c_.family == Family::kRoberta ? "position_embeddings.weight" : "embed_positions.weight";
    const float *w = Find(0, tokens), *p = Find(0, places), *types = Find(0, "token_type_embeddings.weight");
    Rows x(ids.size(), std::vector<double>(static_cast<size_t>(c_.hidden)));
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t i = 0; i < c_.hidden; ++i) {
        double v = w[ids[t] * c_.hidden + i];
        if (p != nullptr) v += p[(static_cast<int64_t>(t) + c_.position_offset) * c_.hidden + i];
        if (types != nullptr) v += types[i];
        x[t][static_cast<size_t>(i)] = v;
      }
    }
    return c_.family == Family::kRoberta ? Norm(0, "LayerNorm", std::move(x)) : x;
  }

  void Rotate(Rows& rows, int64_t heads) const {
    const int64_t d = c_.head_dim;
    for (size_t t = 0; t < rows.size(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < d / 2; ++i) {
          const double angle = static_cast<double>(t) * std::pow(c_.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
          double &a = rows[t][static_cast<size_t>(h * d + i)], &b = rows[t][static_cast<size_t>(h * d + i + d / 2)];
          const double left = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = left;
        }
      }
    }
  }

  Rows Attend(const Rows& q, const Rows& k, const Rows& v) const {
    const int64_t d = c_.head_dim, share = c_.heads / c_.kv_heads;
    const auto n = static_cast<int64_t>(q.size());
    Rows out(q.size(), std::vector<double>(static_cast<size_t>(c_.heads * d)));
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t h = 0; h < c_.heads; ++h) {
        std::vector<double> weight(static_cast<size_t>(n));
        double sum = 0;
        for (int64_t s = 0; s < n; ++s) {
          if (c_.causal() && s > t) continue;
          if (c_.sliding_window > 0 && t - s >= c_.sliding_window) continue;
          double dot = 0;
          for (int64_t i = 0; i < d; ++i) dot += q[static_cast<size_t>(t)][static_cast<size_t>(h * d + i)] * k[static_cast<size_t>(s)][static_cast<size_t>(h / share * d + i)];
          sum += weight[static_cast<size_t>(s)] = std::exp(dot / std::sqrt(static_cast<double>(d)));
        }
        for (int64_t s = 0; s < n; ++s) {
          for (int64_t i = 0; i < d; ++i)
            out[static_cast<size_t>(t)][static_cast<size_t>(h * d + i)] += weight[static_cast<size_t>(s)] / sum * v[static_cast<size_t>(s)][static_cast<size_t>(h / share * d + i)];
        }
      }
    }
    return out;
  }

  static Rows Add(Rows a, const Rows& b) {
    for (size_t t = 0; t < a.size(); ++t) {
      for (size_t i = 0; i < a[t].size(); ++i) a[t][i] += b[t][i];
    }
    return a;
  }

  double Activate(double x) const {
    switch (c_.activation) {
      case Activation::kSilu: return x / (1 + std::exp(-x));
      case Activation::kRelu: return x > 0 ? x : 0;
      case Activation::kGelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
      default: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    }
  }

  Rows SelfAttention(size_t b, const Rows& x) const {
    if (c_.family == Family::kGpt2) {
      const Rows all = Linear(b, "attn.c_attn", x);
      Rows q, k, v;
      for (const auto& row : all) {
        const auto h = static_cast<ptrdiff_t>(c_.hidden);
        q.emplace_back(row.begin(), row.begin() + h);
        k.emplace_back(row.begin() + h, row.begin() + 2 * h);
        v.emplace_back(row.begin() + 2 * h, row.end());
      }
      return Linear(b, "attn.c_proj", Attend(q, k, v));
    }
    const bool roberta = c_.family == Family::kRoberta;
    Rows q = Linear(b, roberta ? "self.query" : "q_proj", x), k = Linear(b, roberta ? "self.key" : "k_proj", x);
    const Rows v = Linear(b, roberta ? "self.value" : "v_proj", x);
    if (c_.rotary()) {
      Rotate(q, c_.heads);
      Rotate(k, c_.kv_heads);
    }
    return Linear(b, roberta ? "attention.output.dense" : c_.rotary() ? "o_proj" : "out_proj", Attend(q, k, v));
  }

  Rows Mlp(size_t b, const Rows& x) const {
    const char *up = "up_proj", *down = "down_proj";
    if (c_.family == Family::kOpt) up = "fc1", down = "fc2";
    if (c_.family == Family::kGpt2) up = "mlp.c_fc", down = "mlp.c_proj";
    if (c_.family == Family::kRoberta) up = "intermediate.dense", down = ".output.dense";
    Rows h = Linear(b, up, x);
    const Rows gate = c_.gated() ? Linear(b, "gate_proj", x) : Rows();
    for (size_t t = 0; t < h.size(); ++t) {
      for (size_t i = 0; i < h[t].size(); ++i) h[t][i] = c_.gated() ? Activate(gate[t][i]) * h[t][i] : Activate(h[t][i]);
    }
    if (c_.family != Family::kRoberta) return Linear(b, down, h);
    // ".output.dense" also ends the attention's; the second one is the layer's own.
    return Linear(b, std::to_string(b - 1) + ".output.dense", h);
  }

  Rows Layer(size_t b, const Rows& x) const {
    if (c_.family == Family::kRoberta) {
      const Rows h = Norm(b, "attention.output.LayerNorm", Add(SelfAttention(b, x), x));
      return Norm(b, std::to_string(b - 1) + ".output.LayerNorm", Add(Mlp(b, h), h));
    }
    const char *first = "input_layernorm", *second = "post_attention_layernorm";
    if (c_.family == Family::kOpt) first = "self_attn_layer_norm", second = "final_layer_norm";
    if (c_.family == Family::kGpt2) first = "ln_1", second = "ln_2";
    const Rows h = Add(x, SelfAttention(b, Norm(b, first, x)));
    return Add(h, Mlp(b, Norm(b, second, h)));
  }

  Rows Head(Rows x) const {
    const size_t b = m_.weights.blocks() - 1;
    if (c_.family == Family::kRoberta) {
      x = Linear(b, "dense", x);
      for (auto& row : x) {
        for (double& v : row) v = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
      }
      x = Norm(b, "layer_norm", std::move(x));
    } else {
      x = Norm(b, c_.family == Family::kOpt ? "final_layer_norm" : c_.family == Family::kGpt2 ? "ln_f" : "norm", std::move(x));
    }
    const float* w = Find(b, "lm_head.weight");
    if (w == nullptr) w = m_.weights.values(0).data();
    const float* bias = Find(b, "lm_head.bias");
    Rows logits(x.size(), std::vector<double>(static_cast<size_t>(c_.vocab)));
    for (size_t t = 0; t < x.size(); ++t) {
      for (int64_t o = 0; o < c_.vocab; ++o) {
        double sum = bias == nullptr ? 0 : bias[o];
        for (int64_t i = 0; i < c_.hidden; ++i) sum += x[t][static_cast<size_t>(i)] * w[o * c_.hidden + i];
        logits[t][static_cast<size_t>(o)] = sum;
      }
    }
    return logits;
  }

  const ModelFiles& m_;
  const ModelConfig& c_;
};

}  // namespace

ModelFiles RandomModel(const char* config_json, uint64_t seed) {
  ModelFiles model;
  auto config = ParseConfig(config_json);
  if (!config.ok()) std::abort();
  model.config = *config;
  model.weights = *tier::BlockList::Create(DescribeBlocks(model.config));
  for (size_t uid = 0; uid < model.weights.tensors(); ++uid) {
    const std::string& name = model.weights.tensor(uid).name;
    const bool gain = name.ends_with("weight") && model.weights.tensor(uid).shape.size() == 1;
    zo::FillNormal({seed, 0, 0}, static_cast<uint32_t>(uid), 0, model.weights.values(uid));
    for (float& v : model.weights.values(uid)) v = (gain ? 1.0f : 0.0f) + 0.3f * v;
  }
  return model;
}

std::vector<std::vector<double>> ReferenceLogits(const ModelFiles& model, const std::vector<int64_t>& ids) { return Reference(model).Run(ids); }

}  // namespace optod::nn
