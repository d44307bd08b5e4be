#include "optim/train/tiered_compute.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/views.h"

namespace optod::train {
namespace {

/// Rows of a table that are one unit: whole pieces of the vocabulary, about 4096 rows.
int64_t UnitRows(int64_t columns) {
  const int64_t piece = VocabularyRows(columns);
  return piece * std::max<int64_t>(1, 4096 / piece);
}

at::Tensor Indices(const std::vector<int64_t>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
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

}  // namespace

std::vector<tier::Unit> UnitsOf(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& blocks) {
  const nn::EmbedSlots embed = nn::EmbedSlotsOf(config);
  const nn::HeadSlots head = nn::HeadSlotsOf(config);
  std::vector<size_t> tables;
  for (int slot : {embed.tokens, embed.positions, embed.types}) {
    if (slot >= 0) tables.push_back(static_cast<size_t>(slot));
  }
  size_t last = 0;
  for (const tier::BlockSpec& block : blocks) last += block.tensors.size();
  last -= blocks.back().tensors.size();
  if (head.lm_head >= 0) tables.push_back(last + static_cast<size_t>(head.lm_head));
  std::vector<tier::Unit> units = tier::CutIntoUnits(blocks, tables, static_cast<size_t>(UnitRows(config.hidden)));
  const size_t vocabulary = head.lm_head >= 0 ? tables.back() : static_cast<size_t>(embed.tokens);
  std::stable_partition(units.begin(), units.end(),
                        [&](const tier::Unit& unit) { return unit.parts[0].uid != vocabulary; });
  return units;
}

TieredCompute::TieredCompute(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& blocks,
                             const std::vector<tier::Unit>& units, const std::function<bool()>& stop)
    : model_(config), blocks_(blocks), units_(units), stop_(stop) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t slot = 0; slot < blocks[b].tensors.size(); ++slot) place_.emplace_back(b, static_cast<int>(slot));
  }
  for (const tier::Unit& unit : units) roles_.push_back(RoleOf(unit));
}

TieredCompute::Role TieredCompute::RoleOf(const tier::Unit& unit) const {
  const tier::UnitPart& part = unit.parts[0];
  const auto [block, slot] = place_[part.uid];
  Role role{Kind::kLayer, block, slot, static_cast<int64_t>(part.first / part.columns)};
  const nn::EmbedSlots& embed = model_.embed_slots();
  if (block == 0) {
    const bool table = slot == embed.tokens || slot == embed.positions || slot == embed.types;
    role.kind = !table ? Kind::kEmbed : slot == embed.tokens && Tied() ? Kind::kVocabulary : Kind::kTable;
  } else if (block + 1 == blocks_.size()) {
    role.kind = slot == model_.head_slots().lm_head ? Kind::kVocabulary : Kind::kHead;
  }
  return role;
}

void TieredCompute::SetExamples(std::span<const Example* const> examples, bool classify) {
  examples_.assign(examples.begin(), examples.end());
  classify_ = classify;
  copies_.clear();  // they look at what goes now
  packed_ = std::make_unique<Packed>(Pack(examples));
  batch_ = std::make_unique<nn::Batch>(model_.config(), packed_->ids, packed_->lengths);
}

absl::Status TieredCompute::Begin(int copies) {
  copies_.clear();
  copies_.resize(static_cast<size_t>(copies));
  for (Copy& copy : copies_) copy.embed.resize(blocks_[0].tensors.size());
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
  rows = nn::View(values, {static_cast<int64_t>(packed_->ids.size()), model_.config().hidden}).clone();
  return absl::OkStatus();
}

nn::Weights TieredCompute::ViewsOf(size_t unit, std::span<const float> weights) const {
  nn::Weights views(blocks_[roles_[unit].block].tensors.size());
  for (const tier::UnitPart& part : units_[unit].parts) {
    const auto [block, slot] = place_[part.uid];
    views[static_cast<size_t>(slot)] =
        nn::View(weights.first(part.count), blocks_[block].tensors[static_cast<size_t>(slot)].shape);
    weights = weights.subspan(part.count);
  }
  return views;
}

absl::Status TieredCompute::Forward(size_t unit, int copy_number, std::span<const float> weights) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           Copy& copy = copies_[static_cast<size_t>(copy_number)];
           const Role& role = roles_[unit];
           switch (role.kind) {
             case Kind::kTable:
               Table(role, units_[unit], copy, weights);
               break;
             case Kind::kEmbed:
               copy.embed = ViewsOf(unit, weights);
               for (at::Tensor& tensor : copy.embed) {
                 if (tensor.defined()) tensor = tensor.clone();
               }
               break;
             case Kind::kLayer:
               if (!copy.x.defined()) FinishEmbedding(copy);
               Layer(copy, ViewsOf(unit, weights));
               break;
             case Kind::kHead:
               Head(copy, ViewsOf(unit, weights));
               break;
             case Kind::kVocabulary:
               Piece(role, units_[unit], copy, weights);
               break;
           }
           return true;
         })
      .status();
}

void TieredCompute::Table(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const {
  const size_t width = unit.parts[0].columns;
  const nn::EmbedSlots& embed = model_.embed_slots();
  if (role.slot == embed.tokens) {
    CopyRows(batch_->ids, role.first_row, width, weights, copy.tokens);
  } else if (role.slot == embed.positions) {
    CopyRows(batch_->positions, role.first_row, width, weights, copy.positions);
  } else if (role.first_row == 0) {
    copy.types = nn::View(weights.first(width), {1, static_cast<int64_t>(width)}).clone();
  }
}

void TieredCompute::FinishEmbedding(Copy& copy) const {
  copy.x = model_.Embed(copy.tokens, copy.positions, copy.types, nn::PlainOps(model_.config(), copy.embed));
  copy.tokens = copy.positions = copy.types = at::Tensor();
}

void TieredCompute::Layer(Copy& copy, const nn::Weights& layer) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  copy.x = model_.Layer(nn::PlainOps(model_.config(), layer), copy.x, *batch_);
}

void TieredCompute::Head(Copy& copy, const nn::Weights& head) const {
  if (!copy.x.defined()) FinishEmbedding(copy);
  copy.x = model_.Final(nn::PlainOps(model_.config(), head), at::index_select(copy.x, 0, Indices(packed_->rows)));
  if (const int bias = model_.head_slots().lm_bias; bias >= 0) copy.bias = head[static_cast<size_t>(bias)].clone();
}

void TieredCompute::Piece(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const {
  if (!copy.vocabulary) copy.vocabulary.emplace(*packed_);
  const auto width = static_cast<int64_t>(unit.parts[0].columns);
  const auto rows = static_cast<int64_t>(weights.size()) / width;
  const at::Tensor matrix = nn::View(weights, {rows, width});
  const int64_t step = VocabularyRows(width);  // as the resident engine
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
    losses.push_back(Judge(examples_, copy.vocabulary->LogProbabilities(), classify_).loss);
  }
  return losses;
}

}  // namespace optod::train
