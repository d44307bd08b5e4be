#include "optim/train/tiered_compute.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/views.h"
#include "optim/train/layer_extra.h"
#include "optim/train/tiered_rows.h"

namespace optod::train {
namespace {

/// A layer's own tensors on all lanes at once, adapters on each lane.
class LanesOps final : public nn::BlockOps {
 public:
  LanesOps(const nn::ModelConfig& config, const nn::Weights& layer, std::vector<nn::LayerExtra> extras)
      : config_(config), layer_(layer), extras_(std::move(extras)), plain_(config, layer) {}
  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override { return plain_.Linear(x, weight, bias); }
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override { return plain_.Norm(x, weight, bias); }
  at::Tensor LowRank(const at::Tensor& x, nn::Projection projection) const override {
    if (!extras_[0].q_a.defined()) return {};
    const auto lanes = static_cast<int64_t>(extras_.size()), rows = x.size(0) / lanes;
    std::vector<at::Tensor> parts;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const nn::PlainOps ops(config_, layer_, &extras_[static_cast<size_t>(lane)]);
      parts.push_back(ops.LowRank(x.slice(0, lane * rows, (lane + 1) * rows), projection));
    }
    return lanes == 1 ? parts[0] : at::cat(parts, 0);
  }
  nn::KeyValues Prefix(int lane) const override {
    const nn::LayerExtra& extra = extras_[static_cast<size_t>(lane)];
    return {extra.prefix_k, extra.prefix_v};
  }

 private:
  const nn::ModelConfig& config_;
  const nn::Weights& layer_;
  const std::vector<nn::LayerExtra> extras_;
  const nn::PlainOps plain_;
};

/// Two lanes whose own tensors may differ: slots that do are applied to each half of x.
class DifferingOps final : public nn::BlockOps {
 public:
  DifferingOps(const nn::ModelConfig& config, const nn::Weights& plus, const nn::Weights& minus, std::vector<bool> moved,
               std::vector<nn::LayerExtra> extras)
      : config_(config), lane_{&plus, &minus}, moved_(std::move(moved)), shared_(config, plus, std::move(extras)) {}
  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override {
    if (!Moved(weight) && !Moved(bias)) return shared_.Linear(x, weight, bias);
    return ByHalves(x, [&](const at::Tensor& half, const nn::Weights& w) { return nn::PlainOps(config_, w).Linear(half, weight, bias); });
  }
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override {
    if (!Moved(weight) && !Moved(bias)) return shared_.Norm(x, weight, bias);
    return ByHalves(x, [&](const at::Tensor& half, const nn::Weights& w) { return nn::PlainOps(config_, w).Norm(half, weight, bias); });
  }
  at::Tensor LowRank(const at::Tensor& x, nn::Projection projection) const override { return shared_.LowRank(x, projection); }
  nn::KeyValues Prefix(int lane) const override { return shared_.Prefix(lane); }

 private:
  bool Moved(int slot) const { return slot >= 0 && moved_[static_cast<size_t>(slot)]; }
  template <typename Each>
  at::Tensor ByHalves(const at::Tensor& x, Each each) const {
    const int64_t half = x.size(0) / 2;
    return at::cat({each(x.slice(0, 0, half), *lane_[0]), each(x.slice(0, half), *lane_[1])}, 0);
  }

  const nn::ModelConfig& config_;
  const nn::Weights* const lane_[2];
  const std::vector<bool> moved_;
  const LanesOps shared_;
};

/// Two lanes of a layer whose tensors are formed as they are used.
class FormedOps final : public nn::BlockOps {
 public:
  /// `form`: both copies of the tensor in a slot, from float `at` of the room on.
  using Form = std::function<std::pair<at::Tensor, at::Tensor>(int slot, size_t at)>;
  FormedOps(const nn::ModelConfig& config, Form form) : config_(config), form_(std::move(form)) {}
  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override {
    const auto [w, b] = Both(weight, bias);
    return at::cat({nn::PlainOps::ApplyLinear(config_, Half(x, 0), w.first, b.first),
                    nn::PlainOps::ApplyLinear(config_, Half(x, 1), w.second, b.second)}, 0);
  }
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override {
    const auto [w, b] = Both(weight, bias);
    return at::cat({nn::PlainOps::ApplyNorm(config_, Half(x, 0), w.first, b.first),
                    nn::PlainOps::ApplyNorm(config_, Half(x, 1), w.second, b.second)}, 0);
  }
  at::Tensor LowRank(const at::Tensor&, nn::Projection) const override { return {}; }
  nn::KeyValues Prefix(int) const override { return {}; }

 private:
  using Two = std::pair<at::Tensor, at::Tensor>;
  static at::Tensor Half(const at::Tensor& x, int lane) {
    const int64_t half = x.size(0) / 2;
    return x.slice(0, lane * half, (lane + 1) * half);
  }
  std::pair<Two, Two> Both(int weight, int bias) const {
    Two w, b;
    if (weight >= 0) w = form_(weight, 0);
    if (bias >= 0) b = form_(bias, weight >= 0 ? static_cast<size_t>(w.first.numel()) : 0);
    return {w, b};
  }

  const nn::ModelConfig& config_;
  const Form form_;
};

}  // namespace

TieredCompute::TieredCompute(const nn::ModelConfig& config, const TieredUnits& streamed, const SchemeSpec& scheme,
                             bool pairs, const std::function<bool()>& stop, const at::Device& device,
                             bool enqueues)
    : model_(config),
      streamed_(streamed),
      blocks_(streamed.blocks),
      units_(streamed.units),
      scheme_(scheme),
      pairs_(pairs),
      stop_(stop),
      device_(device),
      enqueues_(enqueues) {
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t slot = 0; slot < blocks_[b].tensors.size(); ++slot) place_.emplace_back(b, static_cast<int>(slot));
  }
  for (const tier::Unit& unit : units_) roles_.push_back(RoleOf(unit));
}

TieredCompute::Role TieredCompute::RoleOf(const tier::Unit& unit) const {
  const tier::UnitPart& part = unit.parts[0];
  const auto [block, slot] = place_[part.uid];
  Role role{Kind::kLayer, block, slot, static_cast<int64_t>(part.first / part.columns)};
  const nn::EmbedSlots& embed = model_.embed_slots();
  if (block == 0) {
    const bool table = slot == embed.tokens || slot == embed.positions || slot == embed.types;
    role.kind = !table ? Kind::kEmbed : slot == embed.tokens && Tied() ? Kind::kVocabulary : Kind::kTable;
  } else if (part.uid >= streamed_.model_tensors) {
    role.kind = Kind::kAdapters;
  } else if (block == static_cast<size_t>(model_.config().layers) + 1) {
    role.kind = slot == model_.head_slots().lm_head ? Kind::kVocabulary : Kind::kHead;
  }
  return role;
}

void TieredCompute::SetExamples(std::span<const Example* const> examples, bool classify, const std::string& objective) {
  examples_.assign(examples.begin(), examples.end());
  classify_ = classify;
  objective_ = objective;
  copies_.clear();  // they look at what goes now
  level_.reset();
  packed_ = std::make_unique<Packed>(Pack(examples, scheme_.name == "prompt" ? scheme_.tokens : 0));
  batch_.reset();
  twice_.reset();
}

const nn::Batch& TieredCompute::BatchOf(size_t lanes) {
  std::unique_ptr<nn::Batch>& batch = lanes == 1 ? batch_ : twice_;
  const int64_t shift = scheme_.name == "prefix" ? scheme_.tokens : 0;
  if (batch == nullptr) {
    batch = std::make_unique<nn::Batch>(model_.config(), packed_->ids, packed_->lengths, 0, shift, static_cast<int>(lanes));
    if (lanes == 1) ids_ = batch->ids, positions_ = batch->positions;
    if (!device_.is_cpu()) batch->MoveTo(device_);
  }
  return *batch;
}

at::Tensor TieredCompute::View(std::span<const float> values, const std::vector<int64_t>& shape) const {
  return nn::View(values, shape, device_);
}

at::Tensor TieredCompute::Asked(const at::Tensor& x) const { return at::index_select(x, 0, Indices(packed_->rows).to(device_)); }

absl::Status TieredCompute::Begin(int copies) {
  branched_ = false;
  copies_.clear();
  level_.reset();
  copies_.resize(static_cast<size_t>(copies));
  for (Copy& copy : copies_) copy.embed.resize(blocks_[0].tensors.size());
  (void)BatchOf(1);
  return absl::OkStatus();
}

std::vector<tier::Slice> TieredCompute::Wanted() {
  std::vector<tier::Slice> slices;
  if (!Tied()) return slices;
  const auto width = static_cast<size_t>(model_.config().hidden);
  for (int64_t id : packed_->ids)
    slices.push_back({static_cast<uint32_t>(model_.embed_slots().tokens), static_cast<uint64_t>(id) * width, width});
  return slices;
}

absl::Status TieredCompute::Gathered(int copy, std::span<const float> values) {
  at::Tensor& rows = copies_[static_cast<size_t>(copy)].tokens;
  const at::Tensor here = nn::View(values, {static_cast<int64_t>(packed_->ids.size()), model_.config().hidden});
  rows = device_.is_cpu() ? here.clone() : here.to(device_);
  return absl::OkStatus();
}

nn::Weights TieredCompute::ViewsOf(size_t unit, std::span<const float> weights) const {
  nn::Weights views(blocks_[roles_[unit].block].tensors.size());
  for (const tier::UnitPart& part : units_[unit].parts) {
    const auto [block, slot] = place_[part.uid];
    views[static_cast<size_t>(slot)] =
        View(weights.first(part.count), blocks_[block].tensors[static_cast<size_t>(slot)].shape);
    weights = weights.subspan(part.count);
  }
  return views;
}

absl::Status TieredCompute::Forward(size_t unit, int copy_number, std::span<const float> weights) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           One(unit, copies_[static_cast<size_t>(copy_number)], weights);
           return true;
         })
      .status();
}

absl::Status TieredCompute::FormedPair(size_t unit, int copy, const tier::FormPart& form) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           Copy& plus = copies_[static_cast<size_t>(copy)];
           Copy& minus = copies_[static_cast<size_t>(copy) + 1];
           if (roles_[unit].kind == Kind::kLayer)
             FormedLayer(unit, plus, minus, form);
           else
             FormedPieces(unit, plus, minus, form);
           return true;
         })
      .status();
}

void TieredCompute::FormedLayer(size_t unit, Copy& plus, Copy& minus, const tier::FormPart& form) {
  for (Copy* copy : {&plus, &minus}) {
    if (!copy->x.defined()) FinishEmbedding(*copy);
  }
  const std::vector<tier::BlockTensor>& tensors = blocks_[roles_[unit].block].tensors;
  std::vector<size_t> part_of(tensors.size());
  for (size_t part = 0; part < units_[unit].parts.size(); ++part)
    part_of[static_cast<size_t>(place_[units_[unit].parts[part].uid].second)] = part;
  const FormedOps ops(model_.config(), [&](int slot, size_t at) {
    const tier::BlockTensor& tensor = tensors[static_cast<size_t>(slot)];
    const auto [up, down] = form(part_of[static_cast<size_t>(slot)], 0, static_cast<size_t>(tensor.elements()), at);
    return std::pair(nn::View(up, tensor.shape), nn::View(down, tensor.shape));
  });
  const at::Tensor both = model_.Layer(ops, at::cat({plus.x, minus.x}, 0), BatchOf(2));
  plus.x = both.slice(0, 0, both.size(0) / 2);
  minus.x = both.slice(0, both.size(0) / 2);
}

void TieredCompute::FormedPieces(size_t unit, Copy& plus, Copy& minus, const tier::FormPart& form) const {
  const tier::UnitPart& part = units_[unit].parts[0];
  const size_t step = static_cast<size_t>(VocabularyRows(static_cast<int64_t>(part.columns))) * part.columns;
  for (size_t first = 0; first < part.count; first += step) {
    const auto [up, down] = form(0, first, std::min(step, part.count - first), 0);
    Role role = roles_[unit];
    role.first_row += static_cast<int64_t>(first / part.columns);
    Piece(role, units_[unit], plus, up);
    Piece(role, units_[unit], minus, down);
  }
}

absl::Status TieredCompute::Shared(size_t unit, int copies, std::span<const float> weights) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           if (norms_ != nullptr) {
             One(unit, copies_[0], weights);
           } else if (roles_[unit].kind == Kind::kLayer) {
             SharedLayer(unit, Distinct(), weights);
           } else if (roles_[unit].kind == Kind::kHead) {
             SharedHead(unit, weights);
           } else {
             const size_t distinct = roles_[unit].kind == Kind::kVocabulary ? static_cast<size_t>(copies) : Distinct();
             for (size_t copy = 0; copy < distinct; ++copy) One(unit, copies_[copy], weights);
           }
           return true;
         })
      .status();
}

void TieredCompute::One(size_t unit, Copy& copy, std::span<const float> weights) const {
  const Role& role = roles_[unit];
  const auto owned = [&] {
    nn::Weights tensors = ViewsOf(unit, weights);
    for (at::Tensor& tensor : tensors) {
      if (tensor.defined()) tensor = tensor.clone();
    }
    return tensors;
  };
  switch (role.kind) {
    case Kind::kAdapters:
      copy.adapters = owned();
      break;
    case Kind::kTable:
      Table(role, units_[unit], copy, weights);
      break;
    case Kind::kEmbed:
      copy.embed = owned();
      break;
    case Kind::kLayer:
      Layer(unit, copy, ViewsOf(unit, weights));
      break;
    case Kind::kHead:
      Head(unit, copy, ViewsOf(unit, weights));
      break;
    case Kind::kVocabulary:
      Piece(role, units_[unit], copy, weights);
      break;
  }
}

void TieredCompute::ByLanes(size_t copies,
                            const std::function<at::Tensor(const at::Tensor& x, size_t first, size_t lanes)>& apply) {
  const size_t lanes = pairs_ && copies > 1 ? 2 : 1;
  for (size_t first = 0; first < copies; first += lanes) {
    at::Tensor& x = copies_[first].x;
    if (lanes == 1) {
      x = apply(x, first, 1);
      continue;
    }
    const at::Tensor both = apply(at::cat({x, copies_[first + 1].x}, 0), first, 2);
    const int64_t rows = both.size(0) / 2;
    x = both.slice(0, 0, rows);
    copies_[first + 1].x = both.slice(0, rows);
  }
}

void TieredCompute::SharedLayer(size_t unit, size_t copies, std::span<const float> weights) {
  const nn::Weights layer = ViewsOf(unit, weights);
  const auto layers = static_cast<size_t>(model_.config().layers);
  for (size_t copy = 0; copy < copies; ++copy) {
    if (!copies_[copy].x.defined()) FinishEmbedding(copies_[copy]);
  }
  ByLanes(copies, [&](const at::Tensor& x, size_t first, size_t lanes) {
    std::vector<nn::LayerExtra> extras;
    for (size_t lane = 0; lane < lanes; ++lane)
      extras.push_back(ExtraOf(scheme_, copies_[first + lane].adapters, roles_[unit].block - 1, layers));
    return model_.Layer(LanesOps(model_.config(), layer, std::move(extras)), x, BatchOf(lanes));
  });
}

void TieredCompute::SharedHead(size_t unit, std::span<const float> weights) {
  const nn::Weights head = ViewsOf(unit, weights);
  for (size_t copy = 0; copy < copies_.size(); ++copy) {
    Copy& c = copies_[copy];
    if (copy >= Distinct()) {
      c.x = copies_[0].x;
    } else {
      if (!c.x.defined()) FinishEmbedding(c);
      c.x = Asked(c.x);
    }
    if (const int bias = model_.head_slots().lm_bias; bias >= 0) c.bias = head[static_cast<size_t>(bias)].clone();
  }
  ByLanes(copies_.size(), [&](const at::Tensor& x, size_t, size_t) {
    return model_.Final(nn::PlainOps(model_.config(), head), x);
  });
}

void TieredCompute::Table(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const {
  const size_t width = unit.parts[0].columns;
  const nn::EmbedSlots& embed = model_.embed_slots();
  const auto rows = [&](const at::Tensor& ids, at::Tensor& to) {
    if (!enqueues_) return CopyRows(ids, role.first_row, width, weights, to);
    CopyRowsThere(ids, role.first_row, View(weights, {static_cast<int64_t>(weights.size() / width), static_cast<int64_t>(width)}), to);
  };
  if (role.slot == embed.tokens) {
    rows(ids_, copy.tokens);
  } else if (role.slot == embed.positions) {
    rows(positions_, copy.positions);
  } else if (role.first_row == 0) {
    copy.types = View(weights.first(width), {1, static_cast<int64_t>(width)}).clone();
  }
}

void TieredCompute::FinishEmbedding(Copy& copy) const {
  for (size_t i = 0; i < packed_->sources.size(); ++i) {  // virtual tokens
    const int64_t source = packed_->sources[i];
    if (source < 0) copy.tokens.slice(0, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1).copy_(copy.adapters[0].slice(0, -1 - source, -source));
  }
  copy.x = model_.Embed(copy.tokens, copy.positions, copy.types, nn::PlainOps(model_.config(), copy.embed));
  copy.tokens = copy.positions = copy.types = at::Tensor();
}

void TieredCompute::Layer(size_t unit, Copy& copy, const nn::Weights& layer) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  const nn::LayerExtra extra = ExtraOf(scheme_, copy.adapters, roles_[unit].block - 1, static_cast<size_t>(model_.config().layers));
  copy.x = norms_ == nullptr ? model_.Layer(nn::PlainOps(model_.config(), layer, &extra), copy.x, *batch_)
                             : model_.Layer(Observed(unit, layer, &extra), copy.x, *batch_);
}

void TieredCompute::Head(size_t unit, Copy& copy, const nn::Weights& head) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  const at::Tensor asked = Asked(copy.x);
  copy.x = norms_ == nullptr ? model_.Final(nn::PlainOps(model_.config(), head), asked)
                             : model_.Final(Observed(unit, head, nullptr), asked);
  if (const int bias = model_.head_slots().lm_bias; bias >= 0) copy.bias = head[static_cast<size_t>(bias)].clone();
}

ObservedOps TieredCompute::Observed(size_t unit, const nn::Weights& w, const nn::LayerExtra* extra) const {
  const auto trainable = [this, unit](int slot) {
    for (const tier::UnitPart& part : units_[unit].parts) {
      if (units_[unit].trainable && place_[part.uid].second == slot) return static_cast<int>(part.number());
    }
    return -1;
  };
  const auto seen = [norms = norms_](int tensor, const at::Tensor& x, const at::Tensor&) {
    (*norms)[static_cast<size_t>(tensor)] = ColumnNorms(x);
  };
  return {model_.config(), roles_[unit].block, trainable, w, extra, seen};
}

void TieredCompute::Piece(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const {
  if (!copy.vocabulary) copy.vocabulary.emplace(*packed_, enqueues_);
  const auto width = static_cast<int64_t>(unit.parts[0].columns);
  const auto rows = static_cast<int64_t>(weights.size()) / width;
  const at::Tensor matrix = View(weights, {rows, width});
  const int64_t step = !enqueues_ ? VocabularyRows(width) : rows;  // as the resident engine; or all that is there
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t end = std::min(first + step, rows), row = role.first_row + first;
    const at::Tensor bias = copy.bias.defined() ? copy.bias.slice(0, row, role.first_row + end) : at::Tensor();
    copy.vocabulary->Piece(row, nn::Model::Logits(copy.x, matrix.slice(0, first, end), bias));
  }
}

std::vector<double> TieredCompute::LogProbabilities(int copy) const {
  return copies_[static_cast<size_t>(copy)].vocabulary->LogProbabilities();
}

absl::Status TieredCompute::Branch() {
  const Copy& walk = copies_[2];
  for (size_t lane : {0, 1}) {  // of adapters each has its own
    Copy& copy = copies_[lane];
    copy.tokens = walk.tokens;
    copy.positions = walk.positions;
    copy.types = walk.types;
    copy.embed = walk.embed;
    copy.x = walk.x;
    copy.vocabulary.reset();
  }
  branched_ = true;
  return absl::OkStatus();
}

absl::Status TieredCompute::Pair(size_t unit, std::span<const float> plus, std::span<const float> minus,
                                 std::span<const uint8_t> moved) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           if (roles_[unit].kind == Kind::kLayer || roles_[unit].kind == Kind::kHead) {
             PairUnit(unit, plus, minus, moved);
           } else {
             One(unit, copies_[0], plus);
             One(unit, copies_[1], minus);
           }
           return true;
         })
      .status();
}

void TieredCompute::PairUnit(size_t unit, std::span<const float> plus, std::span<const float> minus,
                             std::span<const uint8_t> moved) {
  const Role& role = roles_[unit];
  const nn::Weights up = ViewsOf(unit, plus), down = ViewsOf(unit, minus);
  std::vector<bool> differs(up.size());
  for (size_t part = 0; part < moved.size(); ++part)
    differs[static_cast<size_t>(place_[units_[unit].parts[part].uid].second)] = moved[part] != 0;
  const bool layer = role.kind == Kind::kLayer;
  std::vector<nn::LayerExtra> extras;
  std::vector<at::Tensor> x;
  for (size_t lane : {0, 1}) {
    Copy& copy = copies_[lane];
    if (!copy.x.defined()) FinishEmbedding(copy);
    x.push_back(layer ? copy.x : at::index_select(copy.x, 0, Indices(packed_->rows)));
    extras.push_back(layer ? ExtraOf(scheme_, copy.adapters, role.block - 1, static_cast<size_t>(model_.config().layers)) : nn::LayerExtra());
    const int bias = layer ? -1 : model_.head_slots().lm_bias;
    if (bias >= 0) copy.bias = (lane == 0 ? up : down)[static_cast<size_t>(bias)].clone();
  }
  const DifferingOps ops(model_.config(), up, down, std::move(differs), std::move(extras));
  const at::Tensor both = layer ? model_.Layer(ops, at::cat(x, 0), BatchOf(2)) : model_.Final(ops, at::cat(x, 0));
  copies_[0].x = both.slice(0, 0, both.size(0) / 2);
  copies_[1].x = both.slice(0, both.size(0) / 2);
}

absl::StatusOr<std::vector<double>> TieredCompute::Losses() {
  std::vector<double> losses;
  for (const Copy& copy : std::span(copies_).first(branched_ ? 2 : copies_.size())) {
    if (!copy.vocabulary) return Internal("tier: no unit of the vocabulary came by");
    losses.push_back(ValueOf(Judge(examples_, copy.vocabulary->LogProbabilities(), classify_), examples_.size(), objective_));
  }
  return losses;
}

}  // namespace optod::train
