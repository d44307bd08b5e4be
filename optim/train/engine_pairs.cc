// Two perturbed points in one sweep over the blocks, and the update that waits for it.
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "optim/train/torch_engine.h"

namespace optod::train {
namespace {

/// One block on two lanes: rows of the first half of x see theta + scale z, the others theta - scale z.
class PairOps final : public nn::BlockOps {
 public:
  PairOps(TorchEngine& engine, size_t block, const Perturbation& p, const nn::LayerExtra* plus,
          const nn::LayerExtra* minus)
      : engine_(engine), block_(block), p_(p), extra_{plus, minus} {}

  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override {
    const int w = engine_.TrainableAt(block_, weight), c = engine_.TrainableAt(block_, bias);
    if (!Moves(p_, w) && !Moves(p_, c)) return nn::PlainOps::ApplyLinear(engine_.config(), x, Base(weight), Base(bias));
    const auto [weights, biases] = Formed(weight, w, bias, c);
    const bool in_out = engine_.config().fused_qkv();
    at::Tensor y = at::empty({x.size(0), Base(weight).size(in_out ? 1 : 0)}, x.options());
    for (int lane : {0, 1}) {
      at::Tensor out = Half(y, lane);
      const at::Tensor in = Half(x, lane);
      const at::Tensor matrix = in_out ? weights[lane] : weights[lane].t();
      if (biases[lane].defined())
        at::addmm_out(out, biases[lane], in, matrix);
      else
        at::mm_out(out, in, matrix);
    }
    return y;
  }

  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override {
    const int w = engine_.TrainableAt(block_, weight), c = engine_.TrainableAt(block_, bias);
    if (!Moves(p_, w) && !Moves(p_, c)) return nn::PlainOps::ApplyNorm(engine_.config(), x, Base(weight), Base(bias));
    const auto [gains, biases] = Formed(weight, w, bias, c);
    if (engine_.config().rms()) {
      const at::Tensor y = nn::PlainOps::RmsScaled(engine_.config(), x);
      for (int lane : {0, 1}) Half(y, lane).mul_(gains[lane]);
      return y;
    }
    return ByHalves(x, [&, &gains = gains, &biases = biases](const at::Tensor& half, int lane) {
      return nn::PlainOps::ApplyNorm(engine_.config(), half, gains[lane], biases[lane]);
    });
  }

  at::Tensor LowRank(const at::Tensor& x, nn::Projection projection) const override {
    if (extra_[0] == nullptr || !extra_[0]->q_a.defined()) return {};
    return ByHalves(x, [&](const at::Tensor& half, int lane) {
      return nn::PlainOps(engine_.config(), engine_.base(block_), extra_[static_cast<size_t>(lane)])
          .LowRank(half, projection);
    });
  }

  nn::KeyValues Prefix(int lane) const override {
    const nn::LayerExtra* extra = extra_[static_cast<size_t>(lane)];
    return extra == nullptr ? nn::KeyValues() : nn::KeyValues{extra->prefix_k, extra->prefix_v};
  }

 private:
  struct Two {
    at::Tensor lane[2];
    const at::Tensor& operator[](int i) const { return lane[i]; }
  };
  at::Tensor Base(int slot) const { return slot < 0 ? at::Tensor() : engine_.base(block_)[static_cast<size_t>(slot)]; }
  std::pair<Two, Two> Formed(int weight, int w, int bias, int c) const {
    const auto size = static_cast<size_t>(Base(weight).numel());
    engine_.Reserve(size + (bias < 0 ? 0 : static_cast<size_t>(Base(bias).numel())));
    return {Of(weight, w, 0), Of(bias, c, size)};
  }
  Two Of(int slot, int tensor, size_t at) const {
    if (!Moves(p_, tensor)) return {{Base(slot), Base(slot)}};
    const TorchEngine::Both both = engine_.FormBoth(tensor, at, p_);
    return {{both.plus, both.minus}};
  }
  /// Rows of a lane.
  static at::Tensor Half(const at::Tensor& x, int64_t lane) {
    const int64_t half = x.size(0) / 2;
    return x.slice(0, lane * half, (lane + 1) * half);
  }
  template <typename Each>
  static at::Tensor ByHalves(const at::Tensor& x, Each each) {
    return at::cat({each(Half(x, 0), 0), each(Half(x, 1), 1)}, 0);
  }

  TorchEngine& engine_;
  const size_t block_;
  const Perturbation& p_;
  const nn::LayerExtra* const extra_[2];
};

}  // namespace

bool Moves(const Perturbation& p, int tensor) {
  if (tensor < 0) return false;
  return p.tensors.empty() || std::binary_search(p.tensors.begin(), p.tensors.end(), static_cast<size_t>(tensor));
}

// ---- the update that waits

void TorchEngine::Defer(PendingUpdate update) {
  Flush();
  pending_ = std::move(update);
  applied_.assign(layout_.tensors(), false);
}

/// What a tensor still has to be given; the caller applies it.
const PendingUpdate* TorchEngine::Take(int tensor) {
  if (!Waits(tensor)) return nullptr;
  applied_[Number(tensor)] = true;
  return &*pending_;
}

void TorchEngine::Flush() {
  for (size_t i = 0; pending_ && i < layout_.tensors(); ++i) {
    if (const PendingUpdate* update = Take(static_cast<int>(i)); update != nullptr)
      UpdateAndPerturb(update, {}, Whole(static_cast<int>(i)), {}, {});
  }
  pending_.reset();
}

// ---- pieces of parameters

Piece TorchEngine::PieceOf(int tensor, int64_t first, int64_t count) {
  const size_t flat = layout_.offset(Number(tensor)) + static_cast<size_t>(first);
  return {static_cast<uint32_t>(tensor), layout_.tensor(Number(tensor)).decay, static_cast<uint64_t>(first), flat,
          theta_.subspan(flat, static_cast<size_t>(count))};
}

void TorchEngine::Reserve(size_t floats) {
  if (scratch_plus_.size() >= floats) return;
  scratch_plus_.resize(floats);
  scratch_minus_.resize(floats);
}

TorchEngine::Both TorchEngine::FormBoth(int tensor, size_t at, const Perturbation& p) {
  const Piece piece = Whole(tensor);
  const std::vector<int64_t>& shape = trainable_[Number(tensor)].shape;
  const std::span<float> plus(scratch_plus_.data() + at, piece.theta.size()),
      minus(scratch_minus_.data() + at, piece.theta.size());
  UpdateAndPerturb(Take(tensor), p, piece, plus, minus);
  return {nn::View(plus, shape), nn::View(minus, shape)};
}

// ---- the sweep

size_t TorchEngine::FirstBlock(const Perturbation& p) const {
  if (p.tensors.empty()) return *std::min_element(block_of_.begin(), block_of_.end());
  size_t first = base_.size();
  for (size_t tensor : p.tensors) first = std::min(first, block_of_[tensor]);
  return first;
}

absl::StatusOr<std::unique_ptr<Walk>> TorchEngine::StartWalk(std::span<const Example* const> examples) {
  return Run([&]() -> std::unique_ptr<Walk> {
    return std::make_unique<TorchWalk>(files_.config, Pack(examples, VirtualTokens()), Shift());
  });
}

absl::StatusOr<ScoredPair> TorchEngine::ScorePair(const Perturbation& perturbation, Walk& walk) {
  auto& w = static_cast<TorchWalk&>(walk);
  if (w.at > FirstBlock(perturbation)) return FailedPrecondition("walk: the perturbation begins before its place");
  return Run([&] {
    at::NoGradGuard no_grad;
    // A pass that sees every tensor applies what waits as it goes; any other finds it applied.
    if (!perturbation.tensors.empty() || w.at > 0) Flush();
    return Sweep(perturbation, w);
  });
}

void TorchEngine::Advance(TorchWalk& walk, size_t to) {
  const nn::Weights adapters = AdapterViews(theta_);
  const std::vector<nn::LayerExtra> extras = Extras(adapters);
  for (; walk.at < to; ++walk.at) {
    Breathe();
    walk.x = walk.at == 0
                 ? EmbedPlain(base_.front(), walk.packed, walk.once, Scheme("prompt") ? adapters[0] : at::Tensor())
                 : model_.Layer(nn::PlainOps(files_.config, base_[walk.at], &extras[walk.at - 1]), walk.x, walk.once);
  }
}

/// Both copies of all adapters; those that do not move are twice what they are.
void TorchEngine::FormAdapters(const Perturbation& p) {
  if (adapters_.empty()) return;
  adapters_plus_.resize(adapters_.size());
  adapters_minus_.resize(adapters_.size());
  for (size_t i = 0; i < layout_.tensors(); ++i) {
    const Piece piece = Whole(static_cast<int>(i));
    const std::span<float> plus(adapters_plus_.data() + piece.flat, piece.theta.size()),
        minus(adapters_minus_.data() + piece.flat, piece.theta.size());
    if (Moves(p, static_cast<int>(i))) {
      UpdateAndPerturb(Take(static_cast<int>(i)), p, piece, plus, minus);
    } else {
      std::copy(piece.theta.begin(), piece.theta.end(), plus.begin());
      std::copy(piece.theta.begin(), piece.theta.end(), minus.begin());
    }
  }
}

ScoredPair TorchEngine::Sweep(const Perturbation& p, TorchWalk& walk) {
  const size_t first = FirstBlock(p), last = base_.size() - 1;
  FormAdapters(p);
  const nn::Weights plus = AdapterViews(adapters_plus_), minus = AdapterViews(adapters_minus_);
  const std::vector<nn::LayerExtra> extra_plus = Extras(plus), extra_minus = Extras(minus);
  at::Tensor both;
  size_t b = first;
  if (first == 0) {
    both = EmbedBoth(p, walk);
    b = 1;
  } else {
    Advance(walk, first);
    if (first < last) both = at::cat({walk.x, walk.x}, 0);
  }
  for (; b < last; ++b) {
    Breathe();
    both = model_.Layer(PairOps(*this, b, p, &extra_plus[b - 1], &extra_minus[b - 1]), both, walk.twice());
  }
  if (first < last) {
    std::vector<int64_t> rows = walk.packed.rows;
    for (int64_t row : walk.packed.rows) rows.push_back(row + walk.once.tokens);
    both = at::index_select(both, 0, Indices(rows));
  } else {
    const at::Tensor asked = at::index_select(walk.x, 0, Indices(walk.packed.rows));
    both = at::cat({asked, asked}, 0);
  }
  ScoredPair scores = SweepVocabulary(p, walk.packed, model_.Final(PairOps(*this, last, p, nullptr, nullptr), both));
  Flush();  // a token table that is not the head's was only looked up
  return scores;
}

/// Rows `ids` of a table, both copies one after the other; false, and nothing, when it does not move.
bool TorchEngine::GatherBoth(int slot, const at::Tensor& ids, const Perturbation& p, at::Tensor* both) {
  const int tensor = TrainableAt(0, slot);
  if (!Moves(p, tensor)) return false;
  const at::Tensor rows = at::embedding(base_.front()[static_cast<size_t>(slot)], ids).contiguous();
  *both = at::empty({2 * rows.size(0), rows.size(1)}, at::kFloat);
  const int64_t width = rows.size(1), n = rows.size(0);
  const int64_t* id = ids.data_ptr<int64_t>();
  float *from = rows.data_ptr<float>(), *plus = both->data_ptr<float>(), *minus = plus + n * width;
  const PendingUpdate* pending = Waits(tensor) ? &*pending_ : nullptr;  // on the copy; the table itself comes later
  at::parallel_for(0, n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Piece row = PieceOf(tensor, id[t] * width, width);
      row.theta = {from + t * width, static_cast<size_t>(width)};
      UpdateAndPerturbHere(pending, p, row, {plus + t * width, row.theta.size()},
                           {minus + t * width, row.theta.size()});
    }
  });
  return true;
}

at::Tensor TorchEngine::EmbedBoth(const Perturbation& p, TorchWalk& walk) {
  const nn::EmbedSlots& e = model_.embed_slots();
  const nn::Weights& embed = base_.front();
  at::Tensor tokens, positions, types;
  if (Scheme("prompt")) {
    const at::Tensor& table = embed[static_cast<size_t>(e.tokens)];
    tokens = at::cat({TokenRows(table, walk.packed, AdapterViews(adapters_plus_)[0]),
                      TokenRows(table, walk.packed, AdapterViews(adapters_minus_)[0])},
                     0);
  } else if (!GatherBoth(e.tokens, walk.once.ids, p, &tokens)) {
    tokens = at::embedding(embed[static_cast<size_t>(e.tokens)], walk.twice().ids);
  }
  if (e.positions >= 0 && !GatherBoth(e.positions, walk.once.positions, p, &positions))
    positions = at::embedding(embed[static_cast<size_t>(e.positions)], walk.twice().positions);
  if (e.types >= 0) {
    if (GatherBoth(e.types, at::zeros({1}, at::kLong), p, &types)) {
      const int64_t n = walk.once.tokens, width = types.size(1);
      types = at::cat({types.slice(0, 0, 1).expand({n, width}), types.slice(0, 1).expand({n, width})}, 0);
    } else {
      types = embed[static_cast<size_t>(e.types)].slice(0, 0, 1);
    }
  }
  return model_.Embed(tokens, positions, types, PairOps(*this, 0, p, nullptr, nullptr));
}

ScoredPair TorchEngine::SweepVocabulary(const Perturbation& p, const Packed& packed, const at::Tensor& both) {
  const int bias_slot = model_.head_slots().lm_bias;
  const int tensor = slots_[VocabularyUid()], bias_tensor = TrainableAt(base_.size() - 1, bias_slot);
  const at::Tensor matrix = Matrix(base_), bias = Bias(base_);
  const int64_t rows = matrix.size(0), width = matrix.size(1), n = both.size(0) / 2;
  const int64_t step = VocabularyRows(width);
  const PendingUpdate* pending = Moves(p, tensor) ? Take(tensor) : nullptr;
  Reserve(static_cast<size_t>(step * width + (bias.defined() ? bias.numel() : 0)));
  Both biases{bias, bias};
  if (Moves(p, bias_tensor)) biases = FormBoth(bias_tensor, static_cast<size_t>(step * width), p);
  const at::Tensor at_plus = both.slice(0, 0, n), at_minus = both.slice(0, n);
  Vocabulary plus(packed), minus(packed);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t end = std::min(first + step, rows), count = end - first;
    Both piece{matrix.slice(0, first, end), matrix.slice(0, first, end)};
    if (Moves(p, tensor)) {
      const std::span<float> up(scratch_plus_.data(), static_cast<size_t>(count * width)),
          down(scratch_minus_.data(), up.size());
      UpdateAndPerturb(pending, p, PieceOf(tensor, first * width, count * width), up, down);
      piece = {nn::View(up, {count, width}), nn::View(down, {count, width})};
    }
    const auto part = [&](const at::Tensor& b) { return b.defined() ? b.slice(0, first, end) : b; };
    plus.Piece(first, nn::Model::Logits(at_plus, piece.plus, part(biases.plus)));
    minus.Piece(first, nn::Model::Logits(at_minus, piece.minus, part(biases.minus)));
  }
  return {plus.LogProbabilities(), minus.LogProbabilities()};
}

}  // namespace optod::train
