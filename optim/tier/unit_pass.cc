// Compiled without contraction: a product and a sum are two roundings, everywhere.
#include "optim/tier/unit_pass.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "optim/tier/pass_program.h"
#include "optim/zo/replay.h"
#include "optim/zo/stream.h"
#include "optim/zo/stream_pair.h"

namespace optod::tier {
namespace {

constexpr size_t kTile = zo::kChunk;

void AddScaledPair(std::span<const float> z, float scale, std::span<const float> theta, std::span<float> plus,
                   std::span<float> minus) {
  for (size_t i = 0; i < z.size(); ++i) {
    const float step = scale * z[i];
    plus[i] = theta[i] + step;
    minus[i] = theta[i] - step;
  }
}

/// What moves these values: all directions' scalars, or their group's; none when that is not finite.
std::span<const double> ScalarsOf(const Values& values, const StepRecord& record) {
  if (values.group < 0) return record.g;
  const double& g = record.g[static_cast<size_t>(values.group)];
  return std::isfinite(g) ? std::span(&g, 1) : std::span<const double>();
}

}  // namespace

struct UnitPass::Tile {
  explicit Tile(const Values& v) : values(v) {}
  const Values& values;
  size_t at = 0, n = 0;
  std::array<float, kTile> z, gradient;
  zo::ZoState<float> state;  // m and v of the tile, for the base optimizer

  uint64_t first() const { return values.first + at; }
  std::span<float> theta() const { return values.theta.subspan(at, n); }
  std::span<float> Z() { return {z.data(), n}; }
};

int UnitPass::StatesOf(const zo::ZoHyper& hyper) {
  if (hyper.base == zo::Base::kAdam) return 2;
  return hyper.momentum > 0 ? 1 : 0;
}

template <class Body>
void UnitPass::ForTiles(const Values& values, Body body) const {
  const size_t tiles = (values.theta.size() + kTile - 1) / kTile;
  parallel_(tiles, [&](size_t begin, size_t end) {
    Tile tile(values);
    for (size_t t = begin; t < end; ++t) {
      tile.at = t * kTile;
      tile.n = std::min(kTile, values.theta.size() - tile.at);
      body(tile);
    }
  });
}

void UnitPass::CatchUp(const Values& values, Progress from, uint32_t steps) const {
  if (from.updates >= steps && from.groups >= history_.groups()) return;
  if (accelerator_ != nullptr)
    return accelerator_->Pass(seed_, values, ProgramOf(hyper_, history_, from, steps, values.decay), RuleOf(hyper_), {}, {}, {});
  ForTiles(values, [&](Tile& tile) { UpdateTile(tile, from, steps); });
}

void UnitPass::Perturb(const Values& values, Progress from, uint32_t steps, int query, Copies copies,
                       std::span<float> plus, std::span<float> minus) const {
  if (accelerator_ != nullptr)
    return accelerator_->Pass(seed_, values, ProgramOf(hyper_, history_, from, steps, values.decay), RuleOf(hyper_),
                              CopiesOf(hyper_, steps, query, copies), plus, minus);
  const auto eps = static_cast<float>(hyper_.eps);
  const bool mezo = hyper_.residue == zo::Residue::kMezo;
  const zo::Direction direction{seed_, steps, static_cast<uint32_t>(query)};
  ForTiles(values, [&](Tile& tile) {
    UpdateTile(tile, from, steps);
    const auto part = [&](std::span<float> copy) { return copy.subspan(tile.at, tile.n); };
    const std::span<float> theta = tile.theta();
    if (!mezo && copies == Copies::kBoth && mask_ == nullptr) {
      zo::AddScaledNormalPair(direction, values.uid, tile.first(), eps, theta, part(plus), part(minus));
    } else if (!mezo && copies == Copies::kBoth) {
      DirectionTile(tile, steps, query);
      AddScaledPair(tile.Z(), eps, theta, part(plus), part(minus));
    } else if (!mezo) {
      const bool up = copies == Copies::kPlus;
      AddTile(tile, steps, query, up ? eps : -eps, theta, part(up ? plus : minus));
    } else {
      zo::FillNormal(direction, values.uid, tile.first(), tile.Z());
      MezoTile(tile, copies, part(plus), part(minus));
    }
  });
}

void UnitPass::Direction(const Values& values, uint32_t step, int query, std::span<float> z) const {
  ForTiles(values, [&](Tile& tile) {
    DirectionTile(tile, step, query);
    std::copy(tile.Z().begin(), tile.Z().end(), z.begin() + static_cast<ptrdiff_t>(tile.at));
  });
}

void UnitPass::Candidates(const Values& values, Progress from, uint32_t steps, std::span<float> descent,
                          std::span<float> ascent) const {
  ForTiles(values, [&](Tile& tile) {
    UpdateTile(tile, from, steps);
    for (const auto& [copies, factor] : {std::pair(descent, 1.0), {ascent, -1.0}}) {
      if (copies.empty()) continue;
      const std::span<float> copy = copies.subspan(tile.at, tile.n);
      std::copy(tile.theta().begin(), tile.theta().end(), copy.begin());
      PlainTile(tile, steps, history_.open(), factor, copy);
    }
  });
}

// MeZO's passes on the way, in place: +1, -2, +1.
void UnitPass::MezoTile(Tile& tile, Copies copies, std::span<float> up, std::span<float> down) const {
  const auto eps = static_cast<float>(hyper_.eps), twice = -2.0f * eps;
  float* theta = tile.theta().data();
  for (size_t i = 0; i < tile.n && copies != Copies::kMinus; ++i) up[i] = theta[i] + eps * tile.z[i];
  for (size_t i = 0; i < tile.n && copies != Copies::kPlus; ++i) {
    down[i] = up[i] + twice * tile.z[i];
    theta[i] = down[i] + eps * tile.z[i];
  }
}

void UnitPass::UpdateTile(Tile& tile, Progress from, uint32_t steps) const {
  const int group = tile.values.group;
  const auto has = [&](uint32_t step) { return step == from.updates && group >= 0 && static_cast<uint32_t>(group) < from.groups; };
  for (uint32_t step = from.updates; step < steps; ++step) {
    if (hyper_.residue == zo::Residue::kMezo && from.passes <= step) PassesTile(tile, step);
    if (!history_[step].skipped && !has(step)) ApplyTile(tile, step, history_[step]);
  }
  if (group >= 0 && static_cast<uint32_t>(group) < history_.groups() && !has(steps)) ApplyTile(tile, steps, history_.open());
}

// The rounding that the perturbations of a past step left.
void UnitPass::PassesTile(Tile& tile, uint32_t step) const {
  const auto eps = static_cast<float>(hyper_.eps);
  const float scales[] = {eps, -2.0f * eps, eps};
  float* theta = tile.theta().data();
  for (int query = 0; query < hyper_.queries; ++query) {
    zo::FillNormal({seed_, step, static_cast<uint32_t>(query)}, tile.values.uid, tile.first(), tile.Z());
    for (float scale : scales) {
      for (size_t i = 0; i < tile.n; ++i) theta[i] += scale * tile.z[i];
    }
  }
}

void UnitPass::DirectionTile(Tile& tile, uint32_t step, int query) const {
  zo::FillNormal({seed_, step, static_cast<uint32_t>(query)}, tile.values.uid, tile.first(), tile.Z());
  if (mask_ != nullptr) mask_->Zero(tile.values.uid, tile.first(), step, tile.Z());
}

/// out = in + scale * z; both may be the same.
void UnitPass::AddTile(Tile& tile, uint32_t step, int query, float scale, std::span<const float> in,
                       std::span<float> out) const {
  const zo::Direction direction{seed_, step, static_cast<uint32_t>(query)};
  if (mask_ == nullptr) return zo::AddScaledNormalTo(direction, tile.values.uid, tile.first(), scale, in, out);
  DirectionTile(tile, step, query);
  for (size_t i = 0; i < tile.n; ++i) out[i] = in[i] + scale * tile.z[i];
}

void UnitPass::ApplyTile(Tile& tile, uint32_t step, const StepRecord& record) const {
  if (ScalarsOf(tile.values, record).empty()) return;
  if (zo::NeedsRule(hyper_))
    RuleTile(tile, step, record);
  else
    PlainTile(tile, step, record, record.factor, tile.theta());
}

// As ZoUpdate::ApplyPlain.
void UnitPass::PlainTile(Tile& tile, uint32_t step, const StepRecord& record, double factor,
                         std::span<float> theta) const {
  const std::span<const double> g = ScalarsOf(tile.values, record);
  if (hyper_.weight_decay > 0 && tile.values.decay)
    zo::DecayInPlace(static_cast<float>(factor * (record.lr * hyper_.weight_decay)), theta);
  for (size_t k = 0; k < g.size(); ++k) {
    const float coefficient = static_cast<float>(factor) * PlainCoefficient(hyper_, record.lr, g, k);
    AddTile(tile, step, static_cast<int>(k), coefficient, theta, theta);
  }
}

// As ZoUpdate::Apply with a base optimizer.
void UnitPass::RuleTile(Tile& tile, uint32_t step, const StepRecord& record) const {
  const std::span<const double> g = ScalarsOf(tile.values, record);
  const std::span<float> gradient(tile.gradient.data(), tile.n);
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  for (size_t k = 0; k < g.size(); ++k) {
    DirectionTile(tile, step, static_cast<int>(k));
    zo::AddProduct(hyper_.sign == zo::Sign::kElement, GradientCoefficient(hyper_, g[k]),
                   std::span<const float>(tile.Z()), gradient);
  }
  const auto rule = zo::RuleScalarsFor<float>(hyper_, record.lr, history_.UpdateNumber(step, tile.values.group));
  const float decay = tile.values.decay ? rule.weight_decay : 0.0f;
  zo::Average(g.size(), decay, std::span<const float>(tile.theta()), gradient);
  const auto slice = [&](std::span<float> state) { return state.empty() ? state : state.subspan(tile.at, tile.n); };
  const std::span<float> m = slice(tile.values.m), v = slice(tile.values.v);
  tile.state.m.assign(m.begin(), m.end());
  tile.state.v.assign(v.begin(), v.end());
  zo::BaseStep(hyper_, rule, std::span<const float>(gradient), 0, tile.theta(), &tile.state);
  std::copy(tile.state.m.begin(), tile.state.m.end(), m.begin());
  std::copy(tile.state.v.begin(), tile.state.v.end(), v.begin());
}

}  // namespace optod::tier
