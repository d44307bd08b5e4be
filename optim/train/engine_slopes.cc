// Forward mode: every tensor of the model is a dual number, value and tangent. LibTorch carries duals through the
// operations of the model; the vocabulary is done here, piece by piece. No graph is kept, and of the direction only one
// tensor is there at a time.
#include <algorithm>

#include "optim/train/duals.h"
#include "optim/train/torch_engine.h"

namespace optod::train {
namespace {

class SlopeOps final : public nn::BlockOps {
 public:
  SlopeOps(TorchEngine& engine, size_t block, const Perturbation& p, uint64_t level, const nn::LayerExtra* extra)
      : engine_(engine), block_(block), p_(p), level_(level), plain_(engine.config(), engine.base(block), extra) {}
  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override {
    return nn::PlainOps::ApplyLinear(engine_.config(), x, Of(weight), Of(bias));
  }
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override {
    return nn::PlainOps::ApplyNorm(engine_.config(), x, Of(weight), Of(bias));
  }
  at::Tensor LowRank(const at::Tensor& x, nn::Projection projection) const override {
    return plain_.LowRank(x, projection);  // its tensors are duals already
  }
  nn::KeyValues Prefix(int lane) const override { return plain_.Prefix(lane); }

 private:
  at::Tensor Of(int slot) const {
    if (slot < 0) return {};
    const at::Tensor& value = engine_.base(block_)[static_cast<size_t>(slot)];
    const int tensor = engine_.TrainableAt(block_, slot);
    return Moves(p_, tensor) ? Dual(value, engine_.FormDirection(tensor, p_), level_) : value;
  }

  TorchEngine& engine_;
  const size_t block_;
  const Perturbation& p_;
  const uint64_t level_;
  const nn::PlainOps plain_;
};

}  // namespace

at::Tensor TorchEngine::FormDirection(int tensor, const Perturbation& p) {
  const Piece piece = Whole(tensor);
  at::Tensor z = at::empty(trainable_[Number(tensor)].shape, at::kFloat);
  FillDirection(p, piece, {z.data_ptr<float>(), piece.theta.size()});
  return z;
}

absl::StatusOr<ScoredSlope> TorchEngine::Slope(const Perturbation& perturbation,
                                               std::span<const Example* const> examples) {
  return Run([&] {
    at::NoGradGuard no_grad;
    Flush();
    return ForwardMode(perturbation, Pack(examples, VirtualTokens()));
  });
}

ScoredSlope TorchEngine::ForwardMode(const Perturbation& p, const Packed& packed) {
  const nn::Batch batch(files_.config, packed.ids, packed.lengths, 0, Shift());
  const DualLevel level;
  nn::Weights adapters = AdapterViews(theta_);
  for (size_t i = 0; i < adapters.size(); ++i) {
    if (Moves(p, static_cast<int>(i)))
      adapters[i] = Dual(adapters[i], FormDirection(static_cast<int>(i), p), level.index());
  }
  const std::vector<nn::LayerExtra> extras = Extras(adapters);
  at::Tensor x = EmbedDual(p, packed, batch, level.index(), Scheme("prompt") ? adapters[0] : at::Tensor());
  for (size_t b = 1; b + 1 < base_.size(); ++b) {
    Breathe();
    x = model_.Layer(SlopeOps(*this, b, p, level.index(), &extras[b - 1]), x, batch);
  }
  x = model_.Final(SlopeOps(*this, base_.size() - 1, p, level.index(), nullptr),
                   at::index_select(x, 0, Indices(packed.rows)));
  const auto [hidden, tangent] = at::_unpack_dual(x, static_cast<int64_t>(level.index()));
  Vocabulary vocabulary(packed);
  SlopeVocabulary(p, hidden, tangent, vocabulary);
  return {vocabulary.LogProbabilities(), vocabulary.Slopes()};
}

/// As EmbedPlain; rows of a table that moves are duals of z's rows.
at::Tensor TorchEngine::EmbedDual(const Perturbation& p, const Packed& packed, const nn::Batch& batch, uint64_t level,
                                  const at::Tensor& prompt) {
  const nn::EmbedSlots& e = model_.embed_slots();
  const auto gather = [&](int slot, const at::Tensor& ids) {
    const at::Tensor rows = at::embedding(base_.front()[static_cast<size_t>(slot)], ids);
    const int tensor = TrainableAt(0, slot);
    if (!Moves(p, tensor)) return rows;
    at::Tensor z = at::empty(rows.sizes(), at::kFloat);
    const int64_t width = rows.size(1);
    for (int64_t t = 0; t < rows.size(0); ++t)
      FillDirection(p, PieceOf(tensor, ids.data_ptr<int64_t>()[t] * width, width),
                    {z.data_ptr<float>() + t * width, static_cast<size_t>(width)});
    return Dual(rows, z, level);
  };
  at::Tensor positions, types;
  if (e.positions >= 0) positions = gather(e.positions, batch.positions);
  if (e.types >= 0) types = gather(e.types, at::zeros({1}, at::kLong));
  const at::Tensor tokens = prompt.defined() ? TokenRows(base_.front()[static_cast<size_t>(e.tokens)], packed, prompt)
                                             : gather(e.tokens, batch.ids);
  return model_.Embed(tokens, positions, types, SlopeOps(*this, 0, p, level, nullptr));
}

/// Logits h W' + b and their tangents dh W' + h dW' + db.
void TorchEngine::SlopeVocabulary(const Perturbation& p, const at::Tensor& hidden, const at::Tensor& tangent,
                                  Vocabulary& vocabulary) {
  const int tensor = slots_[VocabularyUid()], bias_tensor = TrainableAt(base_.size() - 1, model_.head_slots().lm_bias);
  const at::Tensor matrix = Matrix(base_), bias = Bias(base_);
  const int64_t rows = matrix.size(0), width = matrix.size(1);
  const int64_t step = VocabularyRows(width);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t end = std::min(first + step, rows), count = end - first;
    const at::Tensor w = matrix.slice(0, first, end);
    const at::Tensor logits = nn::Model::Logits(hidden, w, bias.defined() ? bias.slice(0, first, end) : bias);
    at::Tensor slopes = tangent.defined() ? at::linear(tangent, w) : at::zeros({hidden.size(0), count}, at::kFloat);
    if (Moves(p, tensor)) {
      at::Tensor z = at::empty({count, width}, at::kFloat);
      FillDirection(p, PieceOf(tensor, first * width, count * width),
                    {z.data_ptr<float>(), static_cast<size_t>(count * width)});
      slopes = at::add(slopes, at::linear(hidden, z));
    }
    if (Moves(p, bias_tensor)) {
      at::Tensor z = at::empty({count}, at::kFloat);
      FillDirection(p, PieceOf(bias_tensor, first, count), {z.data_ptr<float>(), static_cast<size_t>(count)});
      slopes = at::add(slopes, z);
    }
    vocabulary.Piece(first, logits, slopes);
  }
}

}  // namespace optod::train
