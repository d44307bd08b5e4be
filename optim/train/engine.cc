#include "optim/train/engine.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/train/adapters.h"
#include "optim/train/perturb.h"

namespace optod::train {
namespace {

using nn::Weights;

constexpr int64_t kVocabularyPiece = 4096;  // rows of the vocabulary matrix handled at a time

struct Stopped {};  // thrown between blocks, caught at the surface

/// Where a tensor of the model gets its values from.
struct Slot {
  int index = -1;     ///< in the layout; -1 = frozen
  size_t offset = 0;  ///< in theta
};

/// Examples, packed: sequences by length so that equal ones are neighbours.
struct Packed {
  std::vector<int64_t> ids, lengths;
  std::vector<int64_t> rows;  ///< rows of the hidden states that are asked, each once
  struct Ask {
    int64_t row, target;  ///< index into rows; token
  };
  std::vector<Ask> asks;  ///< one a pick, in the order of Judge
};

Packed Pack(std::span<const Example* const> examples) {
  struct Place {
    const Sequence* sequence;
    size_t first_pick;
  };
  std::vector<Place> places;
  size_t picks = 0;
  for (const Example* example : examples) {
    for (const Sequence& sequence : example->sequences) {
      places.push_back({&sequence, picks});
      picks += sequence.picks.size();
    }
  }
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.sequence->ids.size() < b.sequence->ids.size(); });
  Packed packed;
  packed.asks.resize(picks);
  for (const Place& place : places) {
    const auto begin = static_cast<int64_t>(packed.ids.size());
    for (size_t i = 0; i < place.sequence->picks.size(); ++i) {
      const Pick& pick = place.sequence->picks[i];
      if (packed.rows.empty() || packed.rows.back() != begin + pick.row) packed.rows.push_back(begin + pick.row);
      packed.asks[place.first_pick + i] = {static_cast<int64_t>(packed.rows.size()) - 1, pick.target};
    }
    packed.ids.insert(packed.ids.end(), place.sequence->ids.begin(), place.sequence->ids.end());
    packed.lengths.push_back(static_cast<int64_t>(place.sequence->ids.size()));
  }
  return packed;
}

at::Tensor Indices(const std::vector<int64_t>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

/// log-probabilities from hidden rows, the vocabulary matrix seen piece by piece: a running maximum and sum a row.
class Vocabulary {
 public:
  Vocabulary(at::Tensor hidden, const Packed& packed)
      : hidden_(std::move(hidden)),
        packed_(packed),
        best_(packed.rows.size(), -INFINITY),
        sum_(packed.rows.size(), 0),
        asked_(packed.asks.size(), NAN) {}

  /// Rows first .. first + matrix.size(0) - 1 of the vocabulary.
  void Piece(int64_t first, const at::Tensor& matrix, const at::Tensor& bias) {
    const at::Tensor logits = nn::Model::Logits(hidden_, matrix, bias).contiguous();
    const float* l = logits.data_ptr<float>();
    const int64_t n = logits.size(1);
    at::parallel_for(0, static_cast<int64_t>(best_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* row = l + r * n;
        double best = best_[static_cast<size_t>(r)];
        const float top = *std::max_element(row, row + n);
        if (!(top <= best)) {  // NaN comes through too
          sum_[static_cast<size_t>(r)] *= std::exp(best - top);
          best = top;
        }
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += std::exp(row[i] - static_cast<float>(best));
        sum_[static_cast<size_t>(r)] += sum;
        best_[static_cast<size_t>(r)] = best;
      }
    });
    for (size_t i = 0; i < asked_.size(); ++i) {
      const int64_t at = packed_.asks[i].target - first;
      if (at >= 0 && at < n) asked_[i] = l[packed_.asks[i].row * n + at];
    }
  }
  std::vector<double> LogProbabilities() const {
    std::vector<double> result(asked_.size());
    for (size_t i = 0; i < result.size(); ++i) {
      const auto row = static_cast<size_t>(packed_.asks[i].row);
      result[i] = asked_[i] - best_[row] - std::log(sum_[row]);
    }
    return result;
  }

 private:
  at::Tensor hidden_;
  const Packed& packed_;
  std::vector<double> best_, sum_, asked_;
};

class TorchEngine final : public Engine {
 public:
  TorchEngine(nn::ModelFiles* model, const SchemeSpec& scheme)
      : files_(*model), scheme_(scheme), model_(model->config), base_(nn::ViewsOf(model->weights)) {}

  absl::Status Init(uint64_t seed) {
    slots_.resize(files_.weights.tensors());
    if (scheme_.name == "full" || scheme_.name == "head") {
      size_t only = files_.weights.tensors();
      if (scheme_.name == "head") {
        const size_t head = files_.weights.blocks() - 1;
        const int slot = model_.head_slots().lm_head;
        only = slot < 0 ? static_cast<size_t>(model_.embed_slots().tokens)
                        : files_.weights.first_uid(head) + static_cast<size_t>(slot);
      }
      size_t offset = 0;
      for (size_t uid = 0; uid < slots_.size(); ++uid) {
        if (only < slots_.size() && uid != only) continue;
        slots_[uid] = {static_cast<int>(trainable_.size()), offset};
        trainable_.push_back(files_.weights.tensor(uid));
        offset += files_.weights.values(uid).size();
      }
      theta_ = only < slots_.size() ? files_.weights.values(only) : files_.weights.arena();
    } else {
      ASSIGN_OR_RETURN(trainable_, AdapterTensors(files_.config, scheme_));
      size_t size = 0;
      for (const tier::BlockTensor& tensor : trainable_) size += static_cast<size_t>(tensor.elements());
      adapters_.resize(size);
      theta_ = adapters_;
      if (scheme_.name == "lora")
        InitLora(trainable_, seed, theta_);
      else
        RETURN_IF_ERROR(InitPrefix(seed));
    }
    std::vector<zo::ZoTensor> tensors;
    for (const tier::BlockTensor& tensor : trainable_)
      tensors.push_back({tensor.name, static_cast<size_t>(tensor.elements()), tensor.decay});
    layout_ = zo::ZoLayout(std::move(tensors));
    return absl::OkStatus();
  }

  const zo::ZoLayout& layout() const override { return layout_; }
  std::span<float> theta() override { return theta_; }
  const std::vector<tier::BlockTensor>& trainable() const override { return trainable_; }
  bool pairs() const override { return adapters_.empty(); }

  absl::StatusOr<std::vector<double>> Score(std::span<const float> theta,
                                            std::span<const Example* const> examples) override {
    return Run([&] {
      at::NoGradGuard no_grad;
      const Packed packed = Pack(examples);
      const std::vector<Weights> blocks = BlocksAt(theta);
      const at::Tensor hidden = Hidden(blocks, ExtrasAt(theta), packed);
      return WholeVocabulary(hidden, packed, blocks);
    });
  }

  absl::StatusOr<ScoredPair> ScorePair(const zo::Direction& direction, float scale,
                                       std::span<const Example* const> examples) override {
    if (!pairs()) return FailedPrecondition("adapters are evaluated one point at a time");
    return Run([&] {
      at::NoGradGuard no_grad;
      return Sweep(direction, scale, Pack(examples));
    });
  }

  absl::StatusOr<Objective> Gradient(std::span<const Example* const> examples, bool classify,
                                     std::span<float> grad) override {
    return Run([&] { return Backward(examples, classify, grad); });
  }

  absl::Status Save(const std::string& folder) override {
    if (adapters_.empty()) return nn::SaveModel(folder, files_.config, files_.weights);
    return SaveAdapter(folder, files_.config, scheme_, trainable_, theta_);
  }

 private:
  template <typename Work>
  auto Run(Work work) -> absl::StatusOr<decltype(work())> {
    try {
      return nn::Guarded(std::move(work));
    } catch (const Stopped&) {
      return absl::CancelledError("stopped");
    }
  }
  void Breathe() const {
    if (stop && stop()) throw Stopped();
  }

  int64_t PrefixTokens() const { return scheme_.name == "prefix" && !adapters_.empty() ? scheme_.tokens : 0; }

  /// The model's tensors with the trainable ones looking at `theta`.
  std::vector<Weights> BlocksAt(std::span<const float> theta) const {
    if (theta.data() == theta_.data() || !adapters_.empty()) return base_;
    std::vector<Weights> blocks = base_;
    for (size_t b = 0; b < blocks.size(); ++b) {
      for (size_t i = 0; i < blocks[b].size(); ++i) {
        const size_t uid = files_.weights.first_uid(b) + i;
        if (slots_[uid].index < 0) continue;
        const tier::BlockTensor& tensor = files_.weights.tensor(uid);
        blocks[b][i] =
            nn::View(theta.subspan(slots_[uid].offset, static_cast<size_t>(tensor.elements())), tensor.shape);
      }
    }
    return blocks;
  }

  /// Views of theta, one an adapter tensor; empty for the other schemes.
  Weights AdapterViews(std::span<const float> theta) const {
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
  std::vector<nn::LayerExtra> Extras(const Weights& views) const {
    std::vector<nn::LayerExtra> extras(static_cast<size_t>(files_.config.layers));
    if (views.empty()) return extras;
    const size_t each = views.size() / extras.size();
    for (size_t i = 0; i < extras.size(); ++i) {
      const at::Tensor* v = &views[i * each];
      if (scheme_.name == "lora")
        extras[i] = {v[0], v[1], v[2], v[3], scheme_.alpha / static_cast<double>(scheme_.rank), {}, {}};
      else
        extras[i] = {{}, {}, {}, {}, 0, v[0], v[1]};
    }
    return extras;
  }
  std::vector<nn::LayerExtra> ExtrasAt(std::span<const float> theta) const { return Extras(AdapterViews(theta)); }

  nn::Batch BatchOf(const Packed& packed) const {
    return nn::Batch(files_.config, packed.ids, packed.lengths, 0, PrefixTokens());
  }

  at::Tensor EmbedPlain(const Weights& embed, const nn::Batch& batch) const {
    const nn::EmbedSlots& e = model_.embed_slots();
    at::Tensor positions, types;
    if (e.positions >= 0) positions = at::embedding(embed[static_cast<size_t>(e.positions)], batch.positions);
    if (e.types >= 0) types = embed[static_cast<size_t>(e.types)].slice(0, 0, 1);
    return model_.Embed(at::embedding(embed[static_cast<size_t>(e.tokens)], batch.ids), positions, types, embed);
  }

  /// Hidden rows that are asked.
  at::Tensor Hidden(const std::vector<Weights>& blocks, const std::vector<nn::LayerExtra>& extras,
                    const Packed& packed) const {
    const nn::Batch batch = BatchOf(packed);
    at::Tensor x = EmbedPlain(blocks.front(), batch);
    for (size_t b = 1; b + 1 < blocks.size(); ++b) {
      Breathe();
      x = model_.Layer(blocks[b], x, batch, extras[b - 1]);
    }
    return model_.Final(blocks.back(), at::index_select(x, 0, Indices(packed.rows)));
  }

  at::Tensor Matrix(const std::vector<Weights>& blocks) const {
    const int head = model_.head_slots().lm_head;
    return head < 0 ? blocks.front()[static_cast<size_t>(model_.embed_slots().tokens)]
                    : blocks.back()[static_cast<size_t>(head)];
  }
  at::Tensor Bias(const std::vector<Weights>& blocks) const {
    const int bias = model_.head_slots().lm_bias;
    return bias < 0 ? at::Tensor() : blocks.back()[static_cast<size_t>(bias)];
  }

  std::vector<double> WholeVocabulary(const at::Tensor& hidden, const Packed& packed,
                                      const std::vector<Weights>& blocks) const {
    Vocabulary vocabulary(hidden, packed);
    const at::Tensor matrix = Matrix(blocks), bias = Bias(blocks);
    for (int64_t first = 0; first < matrix.size(0); first += kVocabularyPiece) {
      const int64_t end = std::min(first + kVocabularyPiece, matrix.size(0));
      vocabulary.Piece(first, matrix.slice(0, first, end), bias.defined() ? bias.slice(0, first, end) : bias);
    }
    return vocabulary.LogProbabilities();
  }

  // ---- two perturbed points in one sweep

  struct Two {
    Weights plus, minus;
    bool differ = false;
  };

  /// Both perturbed copies of a block's small tensors; tensors of `skip` stay as they are (they are never used whole).
  Two Perturbed(size_t b, const zo::Direction& direction, float scale, int skip_first = -1, int skip_second = -1,
                int skip_third = -1) {
    Two two{base_[b], base_[b], false};
    size_t at = 0;
    const size_t begin = files_.weights.first_uid(b);
    for (size_t i = 0; i < two.plus.size(); ++i) {
      const Slot& slot = slots_[begin + i];
      const int number = static_cast<int>(i);
      if (slot.index < 0 || number == skip_first || number == skip_second || number == skip_third) continue;
      const std::span<const float> values = files_.weights.values(begin + i);
      if (scratch_plus_.size() < at + values.size()) GrowScratch();
      const std::span<float> plus(scratch_plus_.data() + at, values.size()),
          minus(scratch_minus_.data() + at, values.size());
      PerturbBoth(direction, static_cast<uint32_t>(slot.index), 0, scale, values, plus, minus);
      two.plus[i] = nn::View(plus, files_.weights.tensor(begin + i).shape);
      two.minus[i] = nn::View(minus, files_.weights.tensor(begin + i).shape);
      two.differ = true;
      at += values.size();
    }
    return two;
  }
  /// Enough for any layer and for a piece of the vocabulary matrix. Once.
  void GrowScratch() {
    size_t most = static_cast<size_t>(kVocabularyPiece * (files_.config.hidden + 1));
    for (size_t b = 0; b < files_.weights.blocks(); ++b) {
      size_t floats = 0;
      for (size_t uid = files_.weights.first_uid(b); uid < files_.weights.first_uid(b + 1); ++uid) {
        if (!IsTable(b, static_cast<int>(uid - files_.weights.first_uid(b))))
          floats += files_.weights.values(uid).size();
      }
      most = std::max(most, floats);
    }
    scratch_plus_.resize(most);
    scratch_minus_.resize(most);
  }
  /// Tables of which single rows or pieces are used.
  bool IsTable(size_t b, int slot) const {
    const nn::EmbedSlots& e = model_.embed_slots();
    if (b == 0) return slot == e.tokens || slot == e.positions || slot == e.types;
    return b + 1 == files_.weights.blocks() && slot == model_.head_slots().lm_head;
  }

  /// Rows `ids` of a table, perturbed both ways as they are gathered; true when it is trainable.
  bool GatherBoth(int slot, const at::Tensor& ids, const zo::Direction& direction, float scale, at::Tensor* plus,
                  at::Tensor* minus) const {
    if (slot < 0) return false;
    const at::Tensor& table = base_.front()[static_cast<size_t>(slot)];
    *plus = *minus = at::embedding(table, ids);
    const Slot& where = slots_[static_cast<size_t>(slot)];  // block 0 begins at uid 0
    if (where.index < 0) return false;
    const at::Tensor plain = plus->contiguous();
    *plus = at::empty(plain.sizes(), at::kFloat);
    *minus = at::empty(plain.sizes(), at::kFloat);
    const int64_t width = table.size(1);
    const int64_t* id = ids.data_ptr<int64_t>();
    const float* from = plain.data_ptr<float>();
    float *to_plus = plus->data_ptr<float>(), *to_minus = minus->data_ptr<float>();
    at::parallel_for(0, ids.numel(), 8, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const auto size = static_cast<size_t>(width);
        PerturbBothHere(direction, static_cast<uint32_t>(where.index), static_cast<uint64_t>(id[t] * width), scale,
                        {from + t * width, size}, {to_plus + t * width, size}, {to_minus + t * width, size});
      }
    });
    return true;
  }

  ScoredPair Sweep(const zo::Direction& direction, float scale, const Packed& packed) {
    const nn::Batch batch = BatchOf(packed);
    const nn::EmbedSlots& e = model_.embed_slots();
    const nn::LayerExtra none;
    at::Tensor plus, minus;
    bool differ;
    {
      const Two w = Perturbed(0, direction, scale, e.tokens, e.positions, e.types);
      at::Tensor tokens[2], positions[2], types[2];
      differ = GatherBoth(e.tokens, batch.ids, direction, scale, &tokens[0], &tokens[1]);
      if (e.positions >= 0)
        differ |= GatherBoth(e.positions, batch.positions, direction, scale, &positions[0], &positions[1]);
      if (e.types >= 0)
        differ |= GatherBoth(e.types, at::zeros({1}, at::kLong), direction, scale, &types[0], &types[1]);
      differ |= w.differ;
      plus = model_.Embed(tokens[0], positions[0], types[0], w.plus);
      if (differ) minus = model_.Embed(tokens[1], positions[1], types[1], w.minus);
    }
    for (size_t b = 1; b + 1 < base_.size(); ++b) {
      Breathe();
      const Two w = Perturbed(b, direction, scale);
      if (w.differ && !differ) {
        minus = plus;
        differ = true;
      }
      plus = model_.Layer(w.plus, plus, batch, none);
      if (differ) minus = model_.Layer(w.minus, minus, batch, none);
    }
    const at::Tensor rows = Indices(packed.rows);
    plus = at::index_select(plus, 0, rows);
    minus = differ ? at::index_select(minus, 0, rows) : plus;
    {
      const Two w =
          Perturbed(base_.size() - 1, direction, scale, model_.head_slots().lm_head, model_.head_slots().lm_bias);
      plus = model_.Final(w.plus, plus);
      minus = model_.Final(w.minus, minus);
    }
    return SweepVocabulary(direction, scale, packed, plus, minus);
  }

  ScoredPair SweepVocabulary(const zo::Direction& direction, float scale, const Packed& packed, const at::Tensor& plus,
                             const at::Tensor& minus) {
    const int head = model_.head_slots().lm_head, bias_slot = model_.head_slots().lm_bias;
    const size_t last = files_.weights.first_uid(base_.size() - 1);
    const size_t uid = head < 0 ? static_cast<size_t>(model_.embed_slots().tokens) : last + static_cast<size_t>(head);
    const int64_t rows = files_.config.vocab, width = files_.config.hidden;
    Vocabulary at_plus(plus, packed), at_minus(minus, packed);
    if (scratch_plus_.empty()) GrowScratch();
    for (int64_t first = 0; first < rows; first += kVocabularyPiece) {
      Breathe();
      const int64_t count = std::min(kVocabularyPiece, rows - first);
      const Both matrix = PieceBoth(uid, first * width, count * width, 0, direction, scale);
      Both bias;
      if (bias_slot >= 0)
        bias =
            PieceBoth(last + static_cast<size_t>(bias_slot), first, count, kVocabularyPiece * width, direction, scale);
      at_plus.Piece(first, nn::View(matrix.plus, {count, width}),
                    bias_slot < 0 ? at::Tensor() : nn::View(bias.plus, {count}));
      at_minus.Piece(first, nn::View(matrix.minus, {count, width}),
                     bias_slot < 0 ? at::Tensor() : nn::View(bias.minus, {count}));
    }
    return {at_plus.LogProbabilities(), at_minus.LogProbabilities()};
  }

  struct Both {
    std::span<const float> plus, minus;
  };
  /// Elements first .. first + count - 1 of a tensor, perturbed both ways into the scratch at `at` when it is
  /// trainable.
  Both PieceBoth(size_t uid, int64_t first, int64_t count, int64_t at, const zo::Direction& direction, float scale) {
    const std::span<const float> values =
        files_.weights.values(uid).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    if (slots_[uid].index < 0) return {values, values};
    const std::span<float> plus(scratch_plus_.data() + at, values.size()),
        minus(scratch_minus_.data() + at, values.size());
    PerturbBoth(direction, static_cast<uint32_t>(slots_[uid].index), static_cast<uint64_t>(first), scale, values, plus,
                minus);
    return {plus, minus};
  }

  // ---- gradients

  Objective Backward(std::span<const Example* const> examples, bool classify, std::span<float> grad) {
    const Packed packed = Pack(examples);
    std::vector<Weights> blocks = base_;
    Weights leaves;
    if (adapters_.empty()) {
      for (size_t b = 0; b < blocks.size(); ++b) {
        for (size_t i = 0; i < blocks[b].size(); ++i) {
          if (slots_[files_.weights.first_uid(b) + i].index < 0) continue;
          blocks[b][i] = blocks[b][i].detach().set_requires_grad(true);
          leaves.push_back(blocks[b][i]);
        }
      }
    } else {
      leaves = AdapterViews(theta_);
      for (at::Tensor& leaf : leaves) leaf.set_requires_grad(true);
    }
    const at::Tensor hidden = Hidden(blocks, adapters_.empty() ? ExtrasAt({}) : Extras(leaves), packed);
    const at::Tensor logits = nn::Model::Logits(hidden, Matrix(blocks), Bias(blocks));
    std::vector<int64_t> flat;
    for (const Packed::Ask& ask : packed.asks) flat.push_back(ask.row * files_.config.vocab + ask.target);
    const at::Tensor picks = at::index_select(at::log_softmax(logits, -1).reshape({-1}), 0, Indices(flat));
    std::vector<double> log_probs(static_cast<size_t>(picks.numel()));
    const at::Tensor detached = picks.detach().contiguous();
    for (size_t i = 0; i < log_probs.size(); ++i) log_probs[i] = detached.data_ptr<float>()[i];
    Objective objective = Judge(examples, log_probs, classify);
    at::Tensor slope = at::empty({picks.numel()}, at::kFloat);
    for (size_t i = 0; i < log_probs.size(); ++i)
      slope.data_ptr<float>()[i] = static_cast<float>(objective.gradient[i]);
    Breathe();
    at::sum(at::mul(picks, slope)).backward();  // the objective's own derivative by the chain rule
    size_t offset = 0;
    for (at::Tensor& leaf : leaves) {
      const auto size = static_cast<size_t>(leaf.numel());
      const at::Tensor g = leaf.grad();
      if (g.defined())
        std::copy_n(g.contiguous().data_ptr<float>(), size, grad.begin() + static_cast<ptrdiff_t>(offset));
      else
        std::fill_n(grad.begin() + static_cast<ptrdiff_t>(offset), size, 0.0f);
      offset += size;
    }
    return objective;
  }

  /// Keys and values of random tokens, as the model sees them (MeZO, prefix_tuning.py).
  absl::Status InitPrefix(uint64_t seed) {
    std::vector<uint32_t> bits(static_cast<size_t>(scheme_.tokens));
    zo::FillBits({seed, 0, 0xffffffffu}, 0, 0, bits);
    Packed packed;
    for (uint32_t word : bits) packed.ids.push_back(word % files_.config.vocab);
    packed.lengths = {scheme_.tokens};
    return Run([&] {
             at::NoGradGuard no_grad;
             const nn::Batch batch(files_.config, packed.ids, packed.lengths);
             at::Tensor x = EmbedPlain(base_.front(), batch);
             float* to = adapters_.data();
             for (size_t b = 1; b + 1 < base_.size(); ++b) {
               nn::KeyValues cache;
               x = model_.Layer(base_[b], x, batch, {}, &cache);
               for (const at::Tensor& part : {cache.k.contiguous(), cache.v.contiguous()})
                 to = std::copy_n(part.data_ptr<float>(), part.numel(), to);
             }
             return true;
           })
        .status();
  }

  nn::ModelFiles& files_;
  SchemeSpec scheme_;
  nn::Model model_;
  std::vector<Weights> base_;
  std::vector<Slot> slots_;
  std::vector<tier::BlockTensor> trainable_;
  zo::ZoLayout layout_;
  std::span<float> theta_;
  std::vector<float> adapters_, scratch_plus_, scratch_minus_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(nn::ModelFiles* model, const SchemeSpec& scheme, uint64_t seed) {
  auto engine = std::make_unique<TorchEngine>(model, scheme);
  RETURN_IF_ERROR(engine->Init(seed));
  return engine;
}

}  // namespace optod::train
