// Forward mode while the parameters stream: what engine_slopes.cc does with all of them at hand, operation for operation.
// Activations that are carried from unit to unit are dual numbers; a unit's weights are duals while it is there.
#include <algorithm>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/views.h"
#include "optim/train/layer_extra.h"
#include "optim/train/tiered_compute.h"
#include "optim/train/tiered_rows.h"

namespace optod::train {

absl::Status TieredCompute::GatheredTangent(int copy, std::span<const float> values, std::span<const float> z) {
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           if (level_ == nullptr) level_ = std::make_unique<DualLevel>();
           const std::vector<int64_t> shape = {static_cast<int64_t>(packed_->ids.size()), model_.config().hidden};
           at::Tensor& rows = copies_[static_cast<size_t>(copy)].tokens;
           rows = nn::View(values, shape).clone();
           if (!z.empty()) rows = Dual(rows, nn::View(z, shape).clone(), level_->index());
           return true;
         })
      .status();
}

absl::Status TieredCompute::Tangent(size_t unit, int copy, std::span<const float> weights, std::span<const float> z) {
  if (stop_ && stop_()) return absl::CancelledError("stopped");
  return nn::Guarded([&] {
           at::NoGradGuard no_grad;
           if (level_ == nullptr) level_ = std::make_unique<DualLevel>();
           OneTangent(unit, copies_[static_cast<size_t>(copy)], weights, z);
           return true;
         })
      .status();
}

nn::Weights TieredCompute::DualsOf(size_t unit, std::span<const float> weights, std::span<const float> z, bool owned) const {
  nn::Weights values = ViewsOf(unit, weights);
  const nn::Weights tangents = z.empty() ? nn::Weights(values.size()) : ViewsOf(unit, z);
  for (size_t slot = 0; slot < values.size(); ++slot) {
    if (!values[slot].defined()) continue;
    if (owned) values[slot] = values[slot].clone();
    if (tangents[slot].defined()) values[slot] = Dual(values[slot], owned ? tangents[slot].clone() : tangents[slot], level_->index());
  }
  return values;
}

void TieredCompute::OneTangent(size_t unit, Copy& copy, std::span<const float> weights, std::span<const float> z) {
  const Role& role = roles_[unit];
  const auto layers = static_cast<size_t>(model_.config().layers);
  if ((role.kind == Kind::kLayer || role.kind == Kind::kHead) && !copy.x.defined()) FinishEmbeddingTangent(copy);
  switch (role.kind) {
    case Kind::kAdapters:
      copy.adapters = DualsOf(unit, weights, z, true);
      break;
    case Kind::kTable:
      TableTangent(role, units_[unit], copy, weights, z);
      break;
    case Kind::kEmbed:
      copy.embed = DualsOf(unit, weights, z, true);
      break;
    case Kind::kLayer: {
      const nn::Weights layer = DualsOf(unit, weights, z, false);
      const nn::LayerExtra extra = ExtraOf(scheme_, copy.adapters, role.block - 1, layers);
      copy.x = model_.Layer(nn::PlainOps(model_.config(), layer, &extra), copy.x, *batch_);
      break;
    }
    case Kind::kHead: {
      const nn::Weights head = DualsOf(unit, weights, z, false);
      copy.x = model_.Final(nn::PlainOps(model_.config(), head), at::index_select(copy.x, 0, Indices(packed_->rows)));
      if (const int bias = model_.head_slots().lm_bias; bias >= 0) {
        copy.bias = ViewsOf(unit, weights)[static_cast<size_t>(bias)].clone();
        if (!z.empty()) copy.bias_z = ViewsOf(unit, z)[static_cast<size_t>(bias)].clone();
      }
      break;
    }
    case Kind::kVocabulary:
      PieceTangent(role, units_[unit], copy, weights, z);
      break;
  }
}

/// The rows that lie in this piece; duals are made of whole tensors, when the last piece of a table has come.
void TieredCompute::TableTangent(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights,
                                 std::span<const float> z) {
  const size_t width = unit.parts[0].columns;
  const nn::EmbedSlots& embed = model_.embed_slots();
  if (role.slot == embed.tokens || role.slot == embed.positions) {
    const bool tokens = role.slot == embed.tokens;
    const at::Tensor& ids = tokens ? batch_->ids : batch_->positions;
    CopyRows(ids, role.first_row, width, weights, tokens ? copy.tokens : copy.positions);
    if (!z.empty()) CopyRows(ids, role.first_row, width, z, tokens ? copy.tokens_z : copy.positions_z);
  } else if (role.first_row == 0) {
    const std::vector<int64_t> shape = {1, static_cast<int64_t>(width)};
    copy.types = nn::View(weights.first(width), shape).clone();
    if (!z.empty()) copy.types_z = nn::View(z.first(width), shape).clone();
  }
}

void TieredCompute::FinishEmbeddingTangent(Copy& copy) {
  const auto dual = [&](at::Tensor& rows, at::Tensor& z) {
    if (rows.defined() && z.defined()) rows = Dual(rows, z, level_->index());
    z = at::Tensor();
  };
  dual(copy.tokens, copy.tokens_z);
  dual(copy.positions, copy.positions_z);
  dual(copy.types, copy.types_z);
  if (!packed_->sources.empty()) {  // virtual tokens
    const at::Tensor& prompt = copy.adapters[0];
    std::vector<int64_t> from;
    for (size_t i = 0; i < packed_->sources.size(); ++i)
      from.push_back(packed_->sources[i] >= 0 ? prompt.size(0) + static_cast<int64_t>(i) : -1 - packed_->sources[i]);
    copy.tokens = at::index_select(at::cat({prompt, copy.tokens}, 0), 0, Indices(from));
  }
  copy.x = model_.Embed(copy.tokens, copy.positions, copy.types, nn::PlainOps(model_.config(), copy.embed));
  copy.tokens = copy.positions = copy.types = at::Tensor();
}

void TieredCompute::PieceTangent(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights,
                                 std::span<const float> z) {
  if (!copy.vocabulary) copy.vocabulary.emplace(*packed_);
  const auto width = static_cast<int64_t>(unit.parts[0].columns);
  const auto rows = static_cast<int64_t>(weights.size()) / width;
  const at::Tensor matrix = nn::View(weights, {rows, width}), directions = z.empty() ? at::Tensor() : nn::View(z, {rows, width});
  const auto [hidden, tangent] = at::_unpack_dual(copy.x, static_cast<int64_t>(level_->index()));
  const int64_t step = VocabularyRows(width);  // as the resident engine
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t end = std::min(first + step, rows), row = role.first_row + first;
    const auto part = [&](const at::Tensor& bias) { return bias.defined() ? bias.slice(0, row, role.first_row + end) : bias; };
    const at::Tensor w = matrix.slice(0, first, end);
    const at::Tensor logits = nn::Model::Logits(hidden, w, part(copy.bias));
    at::Tensor slopes = tangent.defined() ? at::linear(tangent, w) : at::zeros({hidden.size(0), end - first}, at::kFloat);
    if (directions.defined()) slopes = at::add(slopes, at::linear(hidden, directions.slice(0, first, end)));
    if (copy.bias_z.defined()) slopes = at::add(slopes, part(copy.bias_z));
    copy.vocabulary->Piece(row, logits, slopes);
  }
}

absl::StatusOr<tier::LossSlopes> TieredCompute::Slopes() {
  tier::LossSlopes found;
  for (const Copy& copy : copies_) {
    if (!copy.vocabulary) return Internal("tier: no unit of the vocabulary came by");
    const Objective objective = Judge(examples_, copy.vocabulary->LogProbabilities(), classify_);
    const std::vector<double> slopes = copy.vocabulary->Slopes();
    double derivative = 0;
    for (size_t i = 0; i < slopes.size(); ++i) derivative += objective.gradient[i] * slopes[i];
    found.losses.push_back(objective.loss);
    found.slopes.push_back(derivative);
  }
  copies_.clear();
  level_.reset();
  return found;
}

}  // namespace optod::train
