#include "optim/train/tiered_compute.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/views.h"
#include "optim/train/layer_extra.h"

namespace optod::train {
namespace {

at::Tensor Indices(const std::vector<int64_t>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

/// As CopyRows, of a piece that is on another device.
void CopyRowsThere(const at::Tensor& ids, int64_t first_row, const at::Tensor& piece, at::Tensor& rows) {
  if (!rows.defined()) rows = at::empty({ids.numel(), piece.size(1)}, piece.options());
  std::vector<int64_t> to, from;
  const int64_t* id = ids.data_ptr<int64_t>();
  for (int64_t t = 0; t < ids.numel(); ++t) {
    const int64_t row = id[t] - first_row;
    if (row < 0 || row >= piece.size(0)) continue;
    to.push_back(t);
    from.push_back(row);
  }
  if (to.empty()) return;
  const at::Device device = piece.device();
  rows.index_copy_(0, Indices(to).to(device), at::index_select(piece, 0, Indices(from).to(device)));
}

/// The rows of `ids` that lie in a piece of a table go to their places in `rows` [ids, width].
void CopyRows(const at::Tensor& ids, int64_t first_row, size_t width, std::span<const float> piece, at::Tensor& rows) {
  if (!rows.defined()) rows = at::empty({ids.numel(), static_cast<int64_t>(width)}, at::kFloat);
  const auto count = static_cast<int64_t>(piece.size() / width);
  const int64_t* id = ids.data_ptr<int64_t>();
  float* out = rows.data_ptr<float>();
  for (int64_t t = 0; t < ids.numel(); ++t) {
    const int64_t row = id[t] - first_row;
    if (row >= 0 && row < count)
      std::copy_n(piece.data() + static_cast<size_t>(row) * width, width, out + t * static_cast<int64_t>(width));
  }
}

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
  copies_.clear();
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

absl::Status TieredCompute::Shared(size_t unit, int copies, std::span<const float> weights) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           if (roles_[unit].kind == Kind::kLayer) {
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
      Layer(copy, ViewsOf(unit, weights));
      break;
    case Kind::kHead:
      Head(copy, ViewsOf(unit, weights));
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

void TieredCompute::Layer(Copy& copy, const nn::Weights& layer) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  copy.x = model_.Layer(nn::PlainOps(model_.config(), layer), copy.x, *batch_);
}

void TieredCompute::Head(Copy& copy, const nn::Weights& head) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  copy.x = model_.Final(nn::PlainOps(model_.config(), head), Asked(copy.x));
  if (const int bias = model_.head_slots().lm_bias; bias >= 0) copy.bias = head[static_cast<size_t>(bias)].clone();
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

absl::StatusOr<std::vector<double>> TieredCompute::Losses() {
  std::vector<double> losses;
  for (const Copy& copy : copies_) {
    if (!copy.vocabulary) return Internal("tier: no unit of the vocabulary came by");
    losses.push_back(ValueOf(Judge(examples_, copy.vocabulary->LogProbabilities(), classify_), examples_.size(), objective_));
  }
  return losses;
}

}  // namespace optod::train
