#include "optim/rules/model_memory.h"

#include <algorithm>

#include "base/status.h"

namespace optod::optim {
namespace {

struct Shape {
  const char* name;
  enum Kind { kLlama, kGpt2, kVit } kind;
  int64_t hidden, inter, layers, vocabulary;
};
constexpr Shape kShapes[] = {
    {"llama-60m", Shape::kLlama, 512, 1376, 8, 32000},   {"llama-130m", Shape::kLlama, 768, 2048, 12, 32000},
    {"llama-350m", Shape::kLlama, 1024, 2736, 24, 32000}, {"llama-1b", Shape::kLlama, 2048, 5461, 24, 32000},
    {"llama-7b", Shape::kLlama, 4096, 11008, 32, 32000},  {"gpt2", Shape::kGpt2, 768, 3072, 12, 50257},
    {"gpt2-medium", Shape::kGpt2, 1024, 4096, 24, 50257}, {"gpt2-large", Shape::kGpt2, 1280, 5120, 36, 50257},
    {"gpt2-xl", Shape::kGpt2, 1600, 6400, 48, 50257},     {"vit-s", Shape::kVit, 384, 1536, 12, 1000},
    {"vit-b", Shape::kVit, 768, 3072, 12, 1000},          {"vit-l", Shape::kVit, 1024, 4096, 24, 1000},
};

class Builder {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape) { out_.push_back({name, DType::kF32, std::move(shape)}); }
  void Linear(const std::string& name, int64_t out, int64_t in, bool bias) {
    Add(name + ".weight", {out, in});
    if (bias) Add(name + ".bias", {out});
  }
  void Norm(const std::string& name, int64_t width, bool bias) {
    Add(name + ".weight", {width});
    if (bias) Add(name + ".bias", {width});
  }
  std::vector<TensorSpec> Take() { return std::move(out_); }

 private:
  std::vector<TensorSpec> out_;
};

std::vector<TensorSpec> Llama(const Shape& s) {
  Builder b;
  b.Add("model.embed_tokens.weight", {s.vocabulary, s.hidden});
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l);
    for (const char* part : {"q_proj", "k_proj", "v_proj", "o_proj"})
      b.Linear(layer + ".self_attn." + part, s.hidden, s.hidden, false);
    b.Linear(layer + ".mlp.gate_proj", s.inter, s.hidden, false);
    b.Linear(layer + ".mlp.up_proj", s.inter, s.hidden, false);
    b.Linear(layer + ".mlp.down_proj", s.hidden, s.inter, false);
    b.Norm(layer + ".input_layernorm", s.hidden, false);
    b.Norm(layer + ".post_attention_layernorm", s.hidden, false);
  }
  b.Norm("model.norm", s.hidden, false);
  b.Add("lm_head.weight", {s.vocabulary, s.hidden});
  return b.Take();
}

std::vector<TensorSpec> Gpt2(const Shape& s) {
  Builder b;
  b.Add("wte.weight", {s.vocabulary, s.hidden});
  b.Add("wpe.weight", {1024, s.hidden});
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string layer = "h." + std::to_string(l);
    b.Norm(layer + ".ln_1", s.hidden, true);
    b.Linear(layer + ".attn.c_attn", 3 * s.hidden, s.hidden, true);
    b.Linear(layer + ".attn.c_proj", s.hidden, s.hidden, true);
    b.Norm(layer + ".ln_2", s.hidden, true);
    b.Linear(layer + ".mlp.c_fc", s.inter, s.hidden, true);
    b.Linear(layer + ".mlp.c_proj", s.hidden, s.inter, true);
  }
  b.Norm("ln_f", s.hidden, true);
  return b.Take();
}

std::vector<TensorSpec> Vit(const Shape& s) {
  Builder b;
  b.Add("cls_token", {1, 1, s.hidden});
  b.Add("pos_embed", {1, 197, s.hidden});
  b.Add("patch_embed.proj.weight", {s.hidden, 3, 16, 16});
  b.Add("patch_embed.proj.bias", {s.hidden});
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string layer = "blocks." + std::to_string(l);
    b.Norm(layer + ".norm1", s.hidden, true);
    b.Linear(layer + ".attn.qkv", 3 * s.hidden, s.hidden, true);
    b.Linear(layer + ".attn.proj", s.hidden, s.hidden, true);
    b.Norm(layer + ".norm2", s.hidden, true);
    b.Linear(layer + ".mlp.fc1", s.inter, s.hidden, true);
    b.Linear(layer + ".mlp.fc2", s.hidden, s.inter, true);
  }
  b.Norm("norm", s.hidden, true);
  b.Linear("head", s.vocabulary, s.hidden, true);
  return b.Take();
}

bool Contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

/// What the counting needs to know of a layout.
struct Counts {
  uint64_t all = 0, vectors = 0, embedding = 0, head = 0, tensors = 0;
  std::vector<std::pair<int64_t, int64_t>> hidden;  ///< [a, b], a <= b, of the matrices inside blocks
  uint64_t hidden_entries = 0;
};

Counts Count(const std::vector<TensorSpec>& layout) {
  Counts c;
  for (const TensorSpec& spec : layout) {
    const auto n = static_cast<uint64_t>(spec.elements());
    c.all += n;
    ++c.tensors;
    const bool embedding = Contains(spec.name, "embed") || spec.name == "wte.weight" || spec.name == "wpe.weight";
    if (spec.shape.size() < 2 || spec.name == "cls_token") {
      c.vectors += n;
    } else if (embedding) {
      c.embedding += n;
    } else if (Contains(spec.name, "head")) {
      c.head += n;
    } else {
      const int64_t rows = spec.shape[0], cols = spec.elements() / std::max<int64_t>(1, rows);
      c.hidden.emplace_back(std::min(rows, cols), std::max(rows, cols));
      c.hidden_entries += n;
    }
  }
  return c;
}

uint64_t LowRankState(const Counts& c, int64_t rank, bool stored_projection) {
  uint64_t state = 0;
  for (const auto& [a, b] : c.hidden) {
    const auto r = static_cast<uint64_t>(std::min(rank, a));
    state += 2 * r * static_cast<uint64_t>(b) + (stored_projection ? r * static_cast<uint64_t>(a) : 0);
  }
  return state;
}

}  // namespace

std::vector<std::string> KnownModels() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

absl::StatusOr<std::vector<TensorSpec>> ModelLayout(const std::string& model) {
  std::string known;
  for (const Shape& shape : kShapes) {
    if (model == shape.name)
      return shape.kind == Shape::kLlama ? Llama(shape) : shape.kind == Shape::kGpt2 ? Gpt2(shape) : Vit(shape);
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
  }
  return NotFound("model: \"", model, "\" is unknown; known are ", known);
}

int64_t PrintedRank(const std::vector<TensorSpec>& layout) {
  for (const TensorSpec& spec : layout) {
    if (!Contains(spec.name, "self_attn")) continue;
    switch (spec.shape[0]) {
      case 512: return 128;
      case 1024: return 384;
      case 2048: return 512;
      default: return 256;
    }
  }
  return 256;
}

std::vector<MemoryRow> MemoryTable(const std::vector<TensorSpec>& layout, const MemoryOptions& options) {
  const Counts c = Count(layout);
  const int64_t rank = options.rank > 0 ? options.rank : PrintedRank(layout);
  const std::string at_rank = Cat("rank ", rank);
  const uint64_t swan = 2 * (c.embedding + c.head), outside = c.embedding + c.head + c.vectors;
  std::vector<MemoryRow> rows = {
      {"sgd", c.all, 0, "no state"},
      {"scale", c.all, c.head + 2 * c.vectors, "momentum of the head; Adam on 1-D tensors"},
      {"swan", c.all, swan, "Adam on embedding and head"},
      {"apollo-mini", c.all, swan + LowRankState(c, 1, options.count_projection), "swan, and Adam at rank 1"},
      {"apollo", c.all, swan + LowRankState(c, rank, options.count_projection),
       Cat("swan, and Adam at ", at_rank, options.count_projection ? ", projection counted" : ", projection from a seed")},
      {"galore, fira", c.all, swan + LowRankState(c, rank, true), Cat("swan, Adam at ", at_rank, ", projection")},
      {"sgd momentum, muon", c.all, c.all, "one buffer"},
      {"sgd-sai", c.all, c.all + c.tensors, "one buffer and a number a tensor"},
      {"muon (optod)", c.all, c.hidden_entries + 2 * outside, "momentum of hidden matrices, AdamW elsewhere"},
      {"adam, adamw, lamb, stable-spam", c.all, 2 * c.all, "two moments"},
  };
  std::stable_sort(rows.begin(), rows.end(), [](const MemoryRow& a, const MemoryRow& b) { return a.state < b.state; });
  return rows;
}

}  // namespace optod::optim
