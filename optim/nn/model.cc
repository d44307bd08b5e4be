#include "optim/nn/model.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace optod::nn {
namespace {

const at::Tensor kNone;

/// LibTorch's inline code has one thread-local byte. Where it alone is .tbss, GNU ld (binutils 2.40) may let the segment
/// that is read-only after relocation begin with it at the end of a page that is not mapped, and the program does not
/// start ("cannot apply additional memory protection after relocation"). With this alignment it begins a page with the rest.
alignas(64) [[gnu::used]] thread_local char tls_alignment = 0;

const at::Tensor& At(const Weights& w, int slot) { return slot < 0 ? kNone : w[static_cast<size_t>(slot)]; }

at::Tensor Ints(const std::vector<int64_t>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

/// What a token of a sequence of `length` new tokens after `past` may not see; undefined when it sees all.
at::Tensor MaskOf(const ModelConfig& config, int64_t length, int64_t past) {
  const bool window = config.sliding_window > 0 && past + length > config.sliding_window;
  if (!config.causal() || (length == 1 && !window)) return {};
  at::Tensor mask = at::zeros({length, past + length}, at::kFloat);
  auto* m = mask.data_ptr<float>();
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t j = 0; j < past + length; ++j) {
      const int64_t distance = past + i - j;
      if (distance < 0 || (window && distance >= config.sliding_window))
        m[i * (past + length) + j] = -std::numeric_limits<float>::infinity();
    }
  }
  return mask;
}

/// cos and sin of position * theta^(-2i/d), the second half of the columns repeating the first (Su et al., 2021).
void RotaryTables(const ModelConfig& config, const std::vector<int64_t>& positions, at::Tensor* cos, at::Tensor* sin) {
  const int64_t t = static_cast<int64_t>(positions.size()), d = config.head_dim;
  *cos = at::empty({t, 1, d}, at::kFloat);
  *sin = at::empty({t, 1, d}, at::kFloat);
  std::vector<float> frequency(static_cast<size_t>(d / 2));
  for (int64_t i = 0; i < d / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(d);
    frequency[static_cast<size_t>(i)] =
        1.0f / std::pow(static_cast<float>(config.rope_theta), exponent) / static_cast<float>(config.rope_scale);
  }
  float *c = cos->data_ptr<float>(), *s = sin->data_ptr<float>();
  for (int64_t p = 0; p < t; ++p) {
    for (int64_t i = 0; i < d / 2; ++i) {
      const float angle = static_cast<float>(positions[static_cast<size_t>(p)]) * frequency[static_cast<size_t>(i)];
      c[p * d + i] = c[p * d + i + d / 2] = std::cos(angle);
      s[p * d + i] = s[p * d + i + d / 2] = std::sin(angle);
    }
  }
}

/// x [T, heads, d] turned by its position: x cos + (-second half, first half) sin.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor turned = at::cat({x.slice(-1, half).neg(), x.slice(-1, 0, half)}, -1);
  return at::add(at::mul(x, cos), at::mul(turned, sin));
}

/// Whether a graph or tangents depend on x: then nothing is written into parts of a tensor.
bool Differentiated(const at::Tensor& x) { return at::GradMode::is_enabled() || x._fw_grad(/*level=*/0).defined(); }

/// A function of single elements whose value does not depend on where in x they stand. LibTorch computes two vectors at a
/// time and what is left at the end with scalar code, whose exp has other last bits; so rows are made whole vectors here,
/// and threads take whole rows (where nothing is differentiated; else LibTorch divides them).
template <typename Function>
at::Tensor ByWholeVectors(const at::Tensor& x, Function function) {
  if (!x.is_cpu()) return function(x);  // a GPU's threads take elements one by one
  constexpr int64_t kTwoVectors = 32, kGrain = 32768;
  const int64_t rows = x.size(0), width = x.size(1), left = (kTwoVectors - width % kTwoVectors) % kTwoVectors;
  const at::Tensor in = left == 0 ? x.contiguous() : at::cat({x, at::zeros({rows, left}, x.options())}, 1);
  const auto cut = [&](const at::Tensor& y) { return left == 0 ? y : y.slice(1, 0, width).contiguous(); };
  if (Differentiated(x)) return cut(function(in));
  const at::Tensor out = at::empty_like(in);
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;  // is a thread's own
    out.slice(0, begin, end).copy_(function(in.slice(0, begin, end)));
  });
  return cut(out);
}

}  // namespace

Batch::Batch(const ModelConfig& config, std::vector<int64_t> token_ids, std::vector<int64_t> lengths,
             int64_t past, int64_t shift, int lanes) {
  std::vector<int64_t> place;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) place.push_back(past + shift + i);
      if (length == 0) continue;
      if (runs.empty() || runs.back().length != length || runs.back().lane != lane) {
        runs.push_back({static_cast<int64_t>(place.size()) - length, 0, length, lane, MaskOf(config, length, past)});
      }
      ++runs.back().sequences;
    }
  }
  const size_t once = token_ids.size();
  token_ids.reserve(once * static_cast<size_t>(lanes));
  for (size_t i = once; i < once * static_cast<size_t>(lanes); ++i) token_ids.push_back(token_ids[i - once]);
  Place(config, std::move(token_ids), std::move(place));
}

Batch Batch::Next(const ModelConfig& config, std::vector<int64_t> token_ids, const std::vector<int64_t>& past,
                  int64_t shift) {
  Batch batch;
  std::vector<int64_t> place;
  for (size_t i = 0; i < past.size(); ++i) {
    place.push_back(past[i] + shift);
    batch.runs.push_back({static_cast<int64_t>(i), 1, 1, 0, MaskOf(config, 1, past[i])});
  }
  batch.Place(config, std::move(token_ids), std::move(place));
  return batch;
}

void Batch::Place(const ModelConfig& config, std::vector<int64_t> token_ids, std::vector<int64_t> places) {
  tokens = static_cast<int64_t>(token_ids.size());
  if (config.rotary()) {
    RotaryTables(config, places, &cos, &sin);
  } else {
    for (int64_t& p : places) p += config.position_offset;
    positions = Ints(places);
  }
  ids = Ints(token_ids);
}

void Batch::MoveTo(const at::Device& device) {
  const auto move = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.to(device);
  };
  for (at::Tensor* tensor : {&ids, &positions, &cos, &sin}) move(*tensor);
  for (Run& run : runs) move(run.mask);
}

Model::Model(const ModelConfig& config)
    : config_(config), layer_(LayerSlotsOf(config)), embed_(EmbedSlotsOf(config)), head_(HeadSlotsOf(config)) {}

at::Tensor PlainOps::ApplyLinear(const ModelConfig& config, const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias) {
  if (config.fused_qkv()) return at::addmm(bias, x, weight);  // GPT-2 stores [in, out]
  return at::linear(x, weight, bias);
}

at::Tensor PlainOps::ApplyNorm(const ModelConfig& config, const at::Tensor& x, const at::Tensor& gain,
                               const at::Tensor& bias) {
  if (!config.rms()) return at::layer_norm(x, {x.size(-1)}, gain, bias, config.norm_eps);
  return at::mul(RmsScaled(config, x), gain);
}

at::Tensor PlainOps::RmsScaled(const ModelConfig& config, const at::Tensor& x) {
  const at::Tensor scale = at::rsqrt(x.mul(x).mean(at::IntArrayRef{-1}, /*keepdim=*/true).add(config.norm_eps));
  return at::mul(x, scale);
}

at::Tensor PlainOps::Linear(const at::Tensor& x, int weight, int bias) const {
  return ApplyLinear(config_, x, At(w_, weight), At(w_, bias));
}

at::Tensor PlainOps::Norm(const at::Tensor& x, int weight, int bias) const {
  return ApplyNorm(config_, x, At(w_, weight), At(w_, bias));
}

at::Tensor PlainOps::LowRank(const at::Tensor& x, Projection projection) const {
  if (extra_ == nullptr || !extra_->q_a.defined()) return {};
  const bool query = projection == Projection::kQuery;
  return at::linear(at::linear(x, query ? extra_->q_a : extra_->v_a), query ? extra_->q_b : extra_->v_b)
      .mul(extra_->scale);
}

KeyValues PlainOps::Prefix(int) const {
  return extra_ == nullptr ? KeyValues() : KeyValues{extra_->prefix_k, extra_->prefix_v};
}

at::Tensor Model::Activate(const at::Tensor& x) const {
  const auto activate = [&](const at::Tensor& in) {
    switch (config_.activation) {
      case Activation::kSilu:
        return at::silu(in);
      case Activation::kRelu:
        return at::relu(in);
      case Activation::kGeluTanh:
        return at::gelu(in, "tanh");
      default:
        return at::gelu(in);
    }
  };
  return ByWholeVectors(x, activate);
}

at::Tensor Model::Embed(const at::Tensor& tokens, const at::Tensor& positions, const at::Tensor& types,
                        const BlockOps& embed) const {
  at::Tensor x = tokens;
  if (types.defined()) x = at::add(x, types);  // the order of additions is that of the reference implementations
  if (positions.defined()) x = at::add(x, positions);
  return embed_.norm < 0 ? x : embed.Norm(x, embed_.norm, embed_.norm_bias);
}

at::Tensor Model::Layer(const BlockOps& ops, const at::Tensor& x, const Batch& batch, KeyValues* cache) const {
  if (config_.post_norm()) {
    const at::Tensor h = ops.Norm(at::add(Attention(ops, x, batch, cache), x), layer_.norm1, layer_.norm1_bias);
    return ops.Norm(at::add(Mlp(ops, h), h), layer_.norm2, layer_.norm2_bias);
  }
  const at::Tensor h = at::add(x, Attention(ops, ops.Norm(x, layer_.norm1, layer_.norm1_bias), batch, cache));
  return at::add(h, Mlp(ops, ops.Norm(h, layer_.norm2, layer_.norm2_bias)));
}

at::Tensor Model::Mlp(const BlockOps& ops, const at::Tensor& x) const {
  at::Tensor h = ops.Linear(x, layer_.up, layer_.up_bias);
  if (config_.gated()) {
    h = at::mul(Activate(ops.Linear(x, layer_.gate, layer_.gate_bias)), h);
  } else {
    h = Activate(h);
  }
  return ops.Linear(h, layer_.down, layer_.down_bias);
}

at::Tensor Model::Attention(const BlockOps& ops, const at::Tensor& x, const Batch& batch, KeyValues* cache) const {
  const int64_t t = x.size(0), d = config_.head_dim;
  at::Tensor q = ops.Linear(x, layer_.q, layer_.q_bias), k, v;
  if (config_.fused_qkv()) {
    k = q.slice(1, config_.hidden, 2 * config_.hidden);
    v = q.slice(1, 2 * config_.hidden);
    q = q.slice(1, 0, config_.hidden);
  } else {
    k = ops.Linear(x, layer_.k, layer_.k_bias);
    v = ops.Linear(x, layer_.v, layer_.v_bias);
  }
  if (const at::Tensor more = ops.LowRank(x, Projection::kQuery); more.defined()) q = at::add(q, more);
  if (const at::Tensor more = ops.LowRank(x, Projection::kValue); more.defined()) v = at::add(v, more);
  q = q.reshape({t, config_.heads, d});
  k = k.reshape({t, config_.kv_heads, d});
  v = v.reshape({t, config_.kv_heads, d});
  if (config_.rotary()) {
    q = Rotate(q, batch.cos.to(q.scalar_type()), batch.sin.to(q.scalar_type()));
    k = Rotate(k, batch.cos.to(q.scalar_type()), batch.sin.to(q.scalar_type()));
  }
  q = q.mul(1.0 / std::sqrt(static_cast<double>(d)));
  return ops.Linear(AttendRuns(ops, q, k, v, batch, cache), layer_.o, layer_.o_bias);
}

at::Tensor Model::AttendRuns(const BlockOps& ops, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const Batch& batch, KeyValues* cache) const {
  const auto attend = [&](const Batch::Run& run) {
    const int64_t end = run.begin + run.sequences * run.length;
    return AttendRun(q.slice(0, run.begin, end), k.slice(0, run.begin, end), v.slice(0, run.begin, end), run,
                     ops.Prefix(run.lane), cache == nullptr ? nullptr : cache + (&run - batch.runs.data()));
  };
  const int64_t width = config_.heads * config_.head_dim;
  if (batch.runs.size() == 1) return attend(batch.runs[0]).reshape({q.size(0), width});
  if (Differentiated(q)) {
    std::vector<at::Tensor> parts;
    for (const Batch::Run& run : batch.runs) parts.push_back(attend(run).reshape({-1, width}));
    return at::cat(parts, 0);
  }
  const at::Tensor all = at::empty({q.size(0), width}, q.options());
  for (const Batch::Run& run : batch.runs) {
    const at::Tensor part = attend(run);
    all.slice(0, run.begin, run.begin + run.sequences * run.length).view(part.sizes()).copy_(part);
  }
  return all;
}

/// One run of n sequences of equal length: [n, length, kv, share, d], a view. Queries that share a key head are rows of
/// one product: no keys are copied.
at::Tensor Model::AttendRun(const at::Tensor& q, at::Tensor k, at::Tensor v, const Batch::Run& run,
                            const KeyValues& virtual_tokens, KeyValues* cache) const {
  const int64_t n = run.sequences, length = run.length, d = config_.head_dim, kv = config_.kv_heads,
                share = config_.heads / kv;
  k = k.reshape({n, length, kv, d});
  v = v.reshape({n, length, kv, d});
  if (cache != nullptr) {
    if (cache->k.defined()) {
      k = at::cat({cache->k, k}, 1);
      v = at::cat({cache->v, v}, 1);
    }
    cache->k = k;
    cache->v = v;
  }
  const int64_t prefix = virtual_tokens.k.defined() ? virtual_tokens.k.size(0) : 0;
  if (prefix > 0) {
    k = at::cat({virtual_tokens.k.reshape({1, prefix, kv, d}).expand({n, prefix, kv, d}), k}, 1);
    v = at::cat({virtual_tokens.v.reshape({1, prefix, kv, d}).expand({n, prefix, kv, d}), v}, 1);
  }
  const int64_t seen = k.size(1);
  const at::Tensor queries =
      q.reshape({n, length, kv, share, d}).permute({0, 2, 3, 1, 4}).reshape({n * kv, share * length, d});
  const at::Tensor keys = k.permute({0, 2, 3, 1}).reshape({n * kv, d, seen});
  const at::Tensor values = v.permute({0, 2, 1, 3}).reshape({n * kv, seen, d});
  at::Tensor scores = at::bmm(queries, keys).view({n * kv * share, length, seen});
  if (run.mask.defined()) {
    at::Tensor mask = run.mask;
    if (prefix > 0)
      mask = at::cat({at::zeros({length, prefix}, mask.options()), mask}, 1);  // virtual tokens are seen by all
    scores = at::add(scores, mask.to(scores.scalar_type()));
  }
  const at::Tensor weights = at::softmax(scores, -1).view({n * kv, share * length, seen});
  return at::bmm(weights, values)
      .view({n, kv, share, length, d})
      .permute({0, 3, 1, 2, 4});
}

at::Tensor Model::Final(const BlockOps& head, const at::Tensor& x) const {
  if (config_.family != Family::kRoberta) {
    if (config_.norm_affine) return head.Norm(x, head_.norm, head_.norm_bias);
    return at::layer_norm(x, {x.size(-1)}, {}, {}, config_.norm_eps);
  }
  const at::Tensor h = at::gelu(head.Linear(x, head_.dense, head_.dense_bias));
  return head.Norm(h, head_.lm_norm, head_.lm_norm_bias);
}

at::Tensor Model::Logits(const at::Tensor& hidden, const at::Tensor& matrix, const at::Tensor& bias) {
  return at::linear(hidden, matrix, bias);
}

}  // namespace optod::nn
