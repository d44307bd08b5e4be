#include "optim/train/engine.h"

#include <algorithm>
#include <numeric>

#include "base/status.h"
#include "optim/train/adapters.h"
#include "optim/train/torch_engine.h"

namespace optod::train {
namespace {

using nn::Weights;

}  // namespace

TorchEngine::TorchEngine(nn::ModelFiles* model, const SchemeSpec& scheme)
    : files_(*model), scheme_(scheme), model_(model->config), base_(nn::ViewsOf(model->weights)) {}

absl::Status TorchEngine::Init(uint64_t seed) {
  slots_.assign(files_.weights.tensors(), -1);
  RETURN_IF_ERROR(Scheme("full") || Scheme("head") ? InitWeights() : InitAdapters(seed));
  std::vector<zo::ZoTensor> tensors;
  for (const tier::BlockTensor& tensor : trainable_)
    tensors.push_back({tensor.name, static_cast<size_t>(tensor.elements()), tensor.decay});
  layout_ = zo::ZoLayout(std::move(tensors));
  applied_.assign(layout_.tensors(), true);
  ready_ = true;
  return absl::OkStatus();
}

absl::Status TorchEngine::InitWeights() {
  const bool only_head = Scheme("head");
  for (size_t b = 0; b < base_.size(); ++b) {
    for (size_t uid = files_.weights.first_uid(b); uid < files_.weights.first_uid(b + 1); ++uid) {
      if (only_head && uid != VocabularyUid()) continue;
      slots_[uid] = static_cast<int>(trainable_.size());
      trainable_.push_back(files_.weights.tensor(uid));
      block_of_.push_back(b);
    }
  }
  theta_ = only_head ? files_.weights.values(VocabularyUid()) : files_.weights.arena();
  return absl::OkStatus();
}

absl::Status TorchEngine::InitAdapters(uint64_t seed) {
  ASSIGN_OR_RETURN(trainable_, AdapterTensors(files_.config, scheme_));
  size_t size = 0;
  for (const tier::BlockTensor& tensor : trainable_) size += static_cast<size_t>(tensor.elements());
  const size_t each = std::max<size_t>(1, trainable_.size() / static_cast<size_t>(files_.config.layers));
  for (size_t i = 0; i < trainable_.size(); ++i) block_of_.push_back(Scheme("prompt") ? 0 : 1 + i / each);
  adapters_.resize(size);
  theta_ = adapters_;
  if (Scheme("prefix")) return InitPrefix(seed);
  if (Scheme("prompt"))
    InitPrompt(seed);
  else
    InitLora(trainable_, seed, theta_);
  return absl::OkStatus();
}

/// Keys and values of random tokens, as the model sees them.
absl::Status TorchEngine::InitPrefix(uint64_t seed) {
  Packed packed;
  packed.ids = VirtualTokenIds(seed, scheme_.tokens, files_.config.vocab);
  packed.lengths = {scheme_.tokens};
  return Run([&] {
           at::NoGradGuard no_grad;
           const nn::Batch batch(files_.config, packed.ids, packed.lengths);
           at::Tensor x = EmbedPlain(base_.front(), packed, batch, {});
           float* to = adapters_.data();
           for (size_t b = 1; b + 1 < base_.size(); ++b) {
             nn::KeyValues cache;
             x = model_.Layer(nn::PlainOps(files_.config, base_[b]), x, batch, &cache);
             for (const at::Tensor& part : {cache.k.contiguous(), cache.v.contiguous()})
               to = std::copy_n(part.data_ptr<float>(), part.numel(), to);
           }
           return true;
         })
      .status();
}

/// Embeddings of random tokens.
void TorchEngine::InitPrompt(uint64_t seed) {
  const std::vector<int64_t> ids = VirtualTokenIds(seed, scheme_.tokens, files_.config.vocab);
  const std::span<const float> table = files_.weights.values(static_cast<size_t>(model_.embed_slots().tokens));
  const auto width = static_cast<size_t>(files_.config.hidden);
  for (size_t v = 0; v < ids.size(); ++v) {
    std::copy_n(table.begin() + ids[v] * static_cast<ptrdiff_t>(width), width,
                adapters_.begin() + static_cast<ptrdiff_t>(v * width));
  }
}

absl::StatusOr<std::vector<double>> TorchEngine::Score(std::span<const float> theta,
                                                       std::span<const Example* const> examples) {
  return Run([&] {
    at::NoGradGuard no_grad;
    Flush();
    const Packed packed = Pack(examples, VirtualTokens());
    const std::vector<Weights> blocks = BlocksAt(theta);
    const Weights adapters = AdapterViews(theta);
    const std::vector<nn::LayerExtra> extras = Extras(adapters);
    const nn::Batch batch(files_.config, packed.ids, packed.lengths, 0, Shift());
    at::Tensor x = EmbedPlain(blocks.front(), packed, batch, Scheme("prompt") ? adapters[0] : at::Tensor());
    for (size_t b = 1; b + 1 < blocks.size(); ++b) {
      Breathe();
      x = model_.Layer(nn::PlainOps(files_.config, blocks[b], &extras[b - 1]), x, batch);
    }
    x = model_.Final(nn::PlainOps(files_.config, blocks.back()), at::index_select(x, 0, Indices(packed.rows)));
    Vocabulary vocabulary(packed);
    const at::Tensor matrix = Matrix(blocks), bias = Bias(blocks);
    const int64_t step = VocabularyRows(matrix.size(1));
    for (int64_t first = 0; first < matrix.size(0); first += step) {
      const int64_t end = std::min(first + step, matrix.size(0));
      vocabulary.Piece(
          first, nn::Model::Logits(x, matrix.slice(0, first, end), bias.defined() ? bias.slice(0, first, end) : bias));
    }
    return vocabulary.LogProbabilities();
  });
}

absl::StatusOr<ScoredPair> Engine::ScorePair(const Perturbation& perturbation,
                                             std::span<const Example* const> examples) {
  ASSIGN_OR_RETURN(const auto walk, StartWalk(examples));
  return ScorePair(perturbation, *walk);
}

absl::Status TorchEngine::Save(const std::string& folder) {
  Flush();
  if (adapters_.empty()) return nn::SaveModel(folder, files_.config, files_.weights);
  return SaveAdapter(folder, files_.config, scheme_, trainable_, theta_);
}

// ---- the model at a point

/// The model's tensors with the trainable ones looking at `theta`.
std::vector<Weights> TorchEngine::BlocksAt(std::span<const float> theta) const {
  if (theta.data() == theta_.data() || !adapters_.empty()) return base_;
  std::vector<Weights> blocks = base_;
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t i = 0; i < blocks[b].size(); ++i) {
      const int tensor = TrainableAt(b, static_cast<int>(i));
      if (tensor < 0) continue;
      blocks[b][i] = nn::View(theta.subspan(layout_.offset(Number(tensor)), layout_.tensor(Number(tensor)).size),
                              trainable_[Number(tensor)].shape);
    }
  }
  return blocks;
}

/// Views of theta, one an adapter tensor; empty for the other schemes.
Weights TorchEngine::AdapterViews(std::span<const float> theta) const {
  Weights views;
  if (adapters_.empty()) return views;
  size_t offset = 0;
  for (const tier::BlockTensor& tensor : trainable_) {
    const auto size = static_cast<size_t>(tensor.elements());
    views.push_back(nn::View(theta.subspan(offset, size), tensor.shape));
    offset += size;
  }
  return views;
}

std::vector<nn::LayerExtra> TorchEngine::Extras(const Weights& adapters) const {
  std::vector<nn::LayerExtra> extras(static_cast<size_t>(files_.config.layers));
  for (size_t i = 0; i < extras.size(); ++i) extras[i] = ExtraOf(scheme_, adapters, i, extras.size());
  return extras;
}

at::Tensor TorchEngine::TokenRows(const at::Tensor& table, const Packed& packed, const at::Tensor& prompt) const {
  if (packed.sources.empty()) return at::embedding(table, Indices(packed.ids));
  std::vector<int64_t> real, from;
  const int64_t virtual_tokens = prompt.size(0);
  for (size_t i = 0; i < packed.sources.size(); ++i) {
    const int64_t source = packed.sources[i];
    if (source >= 0) real.push_back(packed.ids[i]);
    from.push_back(source >= 0 ? virtual_tokens + source : -1 - source);
  }
  return at::index_select(at::cat({prompt, at::embedding(table, Indices(real))}, 0), 0, Indices(from));
}

at::Tensor TorchEngine::EmbedPlain(const Weights& embed, const Packed& packed, const nn::Batch& batch,
                                   const at::Tensor& prompt) const {
  const nn::EmbedSlots& e = model_.embed_slots();
  at::Tensor positions, types;
  if (e.positions >= 0) positions = at::embedding(embed[static_cast<size_t>(e.positions)], batch.positions);
  if (e.types >= 0) types = embed[static_cast<size_t>(e.types)].slice(0, 0, 1);
  return model_.Embed(TokenRows(embed[static_cast<size_t>(e.tokens)], packed, prompt), positions, types,
                      nn::PlainOps(files_.config, embed));
}

bool TorchEngine::is_linear(size_t tensor) const {
  if (!adapters_.empty()) return Scheme("lora");
  return block_of_[tensor] > 0 && trainable_[tensor].shape.size() == 2 &&
         slots_[VocabularyUid()] != static_cast<int>(tensor);
}

at::Tensor TorchEngine::Matrix(const std::vector<Weights>& blocks) const {
  const int head = model_.head_slots().lm_head;
  return head < 0 ? blocks.front()[static_cast<size_t>(model_.embed_slots().tokens)]
                  : blocks.back()[static_cast<size_t>(head)];
}
at::Tensor TorchEngine::Bias(const std::vector<Weights>& blocks) const {
  const int bias = model_.head_slots().lm_bias;
  return bias < 0 ? at::Tensor() : blocks.back()[static_cast<size_t>(bias)];
}
size_t TorchEngine::VocabularyUid() const {
  const int head = model_.head_slots().lm_head;
  return head < 0 ? static_cast<size_t>(model_.embed_slots().tokens)
                  : files_.weights.first_uid(base_.size() - 1) + static_cast<size_t>(head);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(nn::ModelFiles* model, const SchemeSpec& scheme, uint64_t seed) {
  auto engine = std::make_unique<TorchEngine>(model, scheme);
  RETURN_IF_ERROR(engine->Init(seed));
  return engine;
}

}  // namespace optod::train
