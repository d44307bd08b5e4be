#include "optim/zo/replay.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/status.h"

namespace optod::zo {
namespace {

void ApplyPlainTensor(uint64_t seed, uint32_t tensor, bool decay, const UpdateScalars& update, std::span<float> theta) {
  if (decay && update.decay_rate != 0) DecayInPlace(update.decay_rate, theta);
  for (const Term& term : update.terms)
    AddScaledNormal({seed, term.step, term.query}, tensor, 0, -term.coefficient, theta);
}

void ApplyRuleTensor(const ZoLayout& layout, const ZoHyper& hyper, uint64_t seed, size_t tensor,
                     const UpdateScalars& update, std::span<float> theta, ZoState<float>* state) {
  std::array<float, kChunk> gradient, direction;
  const float decay = layout.tensor(tensor).decay ? update.rule->weight_decay : 0.0f;
  for (size_t at = layout.offset(tensor); at < layout.offset(tensor + 1); at += kChunk) {
    const size_t n = std::min(kChunk, layout.offset(tensor + 1) - at);
    const std::span<float> g(gradient.data(), n), z(direction.data(), n), x = theta.subspan(at, n);
    std::fill(g.begin(), g.end(), 0.0f);
    for (const Term& term : update.terms) {
      FillNormal({seed, term.step, term.query}, static_cast<uint32_t>(tensor), at - layout.offset(tensor), z);
      AddProduct(hyper.sign == Sign::kElement, term.coefficient, std::span<const float>(z), g);
    }
    Average(update.terms.size(), decay, std::span<const float>(x), g);
    BaseStep(hyper, *update.rule, std::span<const float>(g), at, x, state);
  }
}

}  // namespace

bool NeedsRule(const ZoHyper& hyper) {
  return hyper.base == Base::kAdam || hyper.momentum > 0 || hyper.sign == Sign::kElement;
}

template <class T>
RuleScalars<T> RuleScalarsFor(const ZoHyper& hyper, double lr, int64_t t) {
  RuleScalars<T> rule;
  rule.t = t;
  rule.lr = static_cast<T>(lr);
  rule.weight_decay = static_cast<T>(hyper.weight_decay);
  if (hyper.base != Base::kAdam) return rule;
  rule.bias1 = static_cast<T>(1 - std::pow(hyper.beta1, static_cast<double>(t)));
  rule.bias2 = static_cast<T>(1 - std::pow(hyper.beta2, static_cast<double>(t)));
  return rule;
}

absl::Status ApplyUpdate(const ZoLayout& layout, const ZoHyper& hyper, uint64_t seed, const UpdateScalars& update,
                         std::span<float> theta, ZoState<float>* state) {
  if (update.rule.has_value() != NeedsRule(hyper) && (update.rule || !update.terms.empty()))
    return InvalidArgument("rule: ", update.rule ? "given for an optimizer that has none" : "missing");
  for (size_t tensor = 0; tensor < layout.tensors(); ++tensor) {
    if (update.rule) {
      ApplyRuleTensor(layout, hyper, seed, tensor, update, theta, state);
    } else {
      ApplyPlainTensor(seed, static_cast<uint32_t>(tensor), layout.tensor(tensor).decay, update,
                       theta.subspan(layout.offset(tensor), layout.tensor(tensor).size));
    }
  }
  if (state != nullptr && update.rule) state->counts.assign(layout.tensors(), update.rule->t);
  return absl::OkStatus();
}

ZoState<float> InitialState(const ZoLayout& layout, const ZoHyper& hyper) {
  ZoState<float> state;
  state.counts.assign(layout.tensors(), 0);
  if (hyper.base == Base::kAdam || hyper.momentum > 0) state.m.assign(layout.size(), 0.0f);
  if (hyper.base == Base::kAdam) state.v.assign(layout.size(), 0.0f);
  return state;
}

template RuleScalars<float> RuleScalarsFor(const ZoHyper&, double, int64_t);
template RuleScalars<double> RuleScalarsFor(const ZoHyper&, double, int64_t);

}  // namespace optod::zo
