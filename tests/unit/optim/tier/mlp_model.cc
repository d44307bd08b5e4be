#include "mlp_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "optim/zo/stream.h"

namespace optod::tier {

MlpModel::MlpModel(const MlpShape& shape) : shape_(shape) {
  const auto& s = shape_;
  blocks_.push_back({"embed", {{"embed", {s.vocab, s.hidden}}}});
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string name = "layers." + std::to_string(i);
    blocks_.push_back({name, {{name + ".w1", {s.inner, s.hidden}}, {name + ".bias", {s.inner}, false}, {name + ".w2", {s.hidden, s.inner}}}});
  }
  blocks_.push_back({"head", {{"gain", {s.hidden}, false}}});
  if (!s.tied) blocks_.back().tensors.push_back({"lm_head", {s.vocab, s.hidden}});
  const size_t last = layout().tensors() - 1;
  units_ = CutIntoUnits(blocks_, s.tied ? std::vector<size_t>{0} : std::vector<size_t>{0, last}, s.piece_rows);
  const auto is_piece = [&](const Unit& unit) { return unit.parts[0].uid == (s.tied ? 0 : last); };
  std::stable_partition(units_.begin(), units_.end(), [&](const Unit& unit) { return !is_piece(unit); });
}

zo::ZoLayout MlpModel::layout() const {
  std::vector<zo::ZoTensor> tensors;
  for (const BlockSpec& block : blocks_) {
    for (const BlockTensor& tensor : block.tensors)
      tensors.push_back({tensor.name, static_cast<size_t>(tensor.elements()), tensor.decay});
  }
  return zo::ZoLayout(std::move(tensors));
}

std::vector<float> MlpModel::Start() const {
  const zo::ZoLayout layout = this->layout();
  std::vector<float> theta(layout.size());
  for (size_t t = 0; t < layout.tensors(); ++t) {
    const std::span<float> values = std::span(theta).subspan(layout.offset(t), layout.tensor(t).size);
    zo::FillNormal({77, 0, 9}, static_cast<uint32_t>(t), 0, values);
    for (float& x : values) x = 0.2f * x + (layout.tensor(t).name == "gain" ? 1.0f : 0.0f);
  }
  return theta;
}

void MlpModel::CopyUnit(size_t unit, std::span<const float> theta, std::span<float> out) const {
  const zo::ZoLayout layout = this->layout();
  size_t at = 0;
  for (const UnitPart& part : units_[unit].parts) {
    std::copy_n(theta.begin() + static_cast<ptrdiff_t>(layout.offset(part.uid) + part.first), part.count,
                out.begin() + static_cast<ptrdiff_t>(at));
    at += part.count;
  }
}

bool MlpModel::SameBytes(size_t unit, std::span<const float> slot, std::span<const float> theta) const {
  std::vector<float> want(units_[unit].floats());
  CopyUnit(unit, theta, want);
  return std::memcmp(want.data(), slot.data(), want.size() * sizeof(float)) == 0;
}

MlpCompute::MlpCompute(const MlpModel& model, uint32_t batch, size_t tokens) : model_(model) {
  std::vector<uint32_t> bits(2 * tokens);
  zo::FillBits({5, batch, 0}, 0, 0, bits);
  for (size_t i = 0; i < tokens; ++i) {
    ids_.push_back(bits[i] % static_cast<uint32_t>(model.shape().vocab));
    targets_.push_back(bits[tokens + i] % static_cast<uint32_t>(model.shape().vocab));
  }
}

absl::Status MlpCompute::Begin(int copies) {
  copies_.assign(static_cast<size_t>(copies), {});
  for (Copy& copy : copies_) {
    copy.x.assign(ids_.size() * static_cast<size_t>(model_.shape().hidden), 0);
    copy.best.assign(ids_.size(), -INFINITY);
    copy.sum.assign(ids_.size(), 0);
    copy.asked.assign(ids_.size(), 0);
  }
  return absl::OkStatus();
}

std::vector<Slice> MlpCompute::Wanted() {
  std::vector<Slice> slices;
  if (!model_.shape().tied) return slices;
  const auto h = static_cast<size_t>(model_.shape().hidden);
  for (int64_t id : ids_) slices.push_back({0, static_cast<uint64_t>(id) * h, h});
  return slices;
}

void MlpCompute::SetRow(Copy& copy, size_t token, std::span<const float> row) {
  std::copy(row.begin(), row.end(), copy.x.begin() + static_cast<ptrdiff_t>(token * row.size()));
}

absl::Status MlpCompute::Gathered(int copy, std::span<const float> values) {
  const auto h = static_cast<size_t>(model_.shape().hidden);
  for (size_t t = 0; t < ids_.size(); ++t) SetRow(copies_[static_cast<size_t>(copy)], t, values.subspan(t * h, h));
  return absl::OkStatus();
}

absl::Status MlpCompute::Forward(size_t unit, int copy, std::span<const float> weights) {
  const Unit& u = model_.units()[unit];
  Copy& c = copies_[static_cast<size_t>(copy)];
  const auto h = static_cast<size_t>(model_.shape().hidden);
  if (u.name.starts_with("layers.")) {
    Layer(c, weights);
  } else if (u.name == "head") {
    for (size_t i = 0; i < c.x.size(); ++i) c.x[i] *= weights[i % h];
  } else if (u.parts[0].uid == 0 && !model_.shape().tied) {
    Embed(c, u.parts[0], weights);
  } else {
    Vocabulary(c, u.parts[0], weights);
  }
  return absl::OkStatus();
}

void MlpCompute::Embed(Copy& copy, const UnitPart& part, std::span<const float> rows) {
  for (size_t t = 0; t < ids_.size(); ++t) {
    const uint64_t first = static_cast<uint64_t>(ids_[t]) * part.columns;
    if (first >= part.first && first < part.first + part.count)
      SetRow(copy, t, rows.subspan(first - part.first, part.columns));
  }
}

void MlpCompute::Layer(Copy& copy, std::span<const float> w) {
  const auto h = static_cast<size_t>(model_.shape().hidden), f = static_cast<size_t>(model_.shape().inner);
  const float *w1 = w.data(), *bias = w1 + f * h, *w2 = bias + f;
  std::vector<float> inner(f);
  for (size_t t = 0; t < ids_.size(); ++t) {
    float* x = copy.x.data() + t * h;
    for (size_t i = 0; i < f; ++i) {
      float sum = bias[i];
      for (size_t j = 0; j < h; ++j) sum += w1[i * h + j] * x[j];
      inner[i] = std::max(sum, 0.0f);
    }
    for (size_t j = 0; j < h; ++j) {
      float sum = 0;
      for (size_t i = 0; i < f; ++i) sum += w2[j * f + i] * inner[i];
      x[j] += sum;
    }
  }
}

void MlpCompute::Vocabulary(Copy& copy, const UnitPart& part, std::span<const float> rows) {
  const size_t h = part.columns;
  const int64_t first = static_cast<int64_t>(part.first / h);
  for (size_t t = 0; t < ids_.size(); ++t) {
    for (size_t r = 0; r < part.count / h; ++r) {
      float logit = 0;
      for (size_t j = 0; j < h; ++j) logit += rows[r * h + j] * copy.x[t * h + j];
      if (logit > copy.best[t]) {
        copy.sum[t] *= std::exp(copy.best[t] - logit);
        copy.best[t] = logit;
      }
      copy.sum[t] += std::exp(logit - copy.best[t]);
      if (first + static_cast<int64_t>(r) == targets_[t]) copy.asked[t] = logit;
    }
  }
}

absl::StatusOr<std::vector<double>> MlpCompute::Losses() {
  std::vector<double> losses;
  for (const Copy& copy : copies_) {
    double loss = 0;
    for (size_t t = 0; t < ids_.size(); ++t) loss += copy.best[t] + std::log(copy.sum[t]) - copy.asked[t];
    losses.push_back(factor * loss / static_cast<double>(ids_.size()));
  }
  return losses;
}

double MlpCompute::LossAt(std::span<const float> theta) {
  (void)Begin(1);
  const auto h = static_cast<size_t>(model_.shape().hidden);
  if (model_.shape().tied) {
    for (size_t t = 0; t < ids_.size(); ++t) SetRow(copies_[0], t, theta.subspan(static_cast<size_t>(ids_[t]) * h, h));
  }
  std::vector<float> weights(LargestUnit(model_.units()));
  for (size_t u = 0; u < model_.units().size(); ++u) {
    const std::span<float> part = std::span(weights).first(model_.units()[u].floats());
    model_.CopyUnit(u, theta, part);
    (void)Forward(u, 0, part);
  }
  return (*Losses())[0];
}

}  // namespace optod::tier
