#include "optim/zo/replay.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "base/status.h"
#include "optim/zo/support.h"

namespace optod::zo {
namespace {

/// The terms whose direction moves `tensor`.
std::vector<Term> TermsOf(const ZoLayout& layout, const ZoHyper& hyper, size_t tensor, const std::vector<Term>& terms) {
  std::vector<Term> out;
  std::copy_if(terms.begin(), terms.end(), std::back_inserter(out),
               [&](const Term& term) { return Moves(layout, hyper, term.query, tensor); });
  return out;
}

void AddAlong(const ZoLayout& layout, const ZoHyper& hyper, const Direction& direction, size_t tensor, float scale,
              std::span<float> theta) {
  const double ratio = layout.tensor(tensor).mask_ratio;
  if (ratio > 0) return AddScaledMasked(direction, static_cast<uint32_t>(tensor), 0, hyper, ratio, scale, theta);
  AddScaledNormal(direction, static_cast<uint32_t>(tensor), 0, scale, theta);
}

void ApplyPlainTensor(const ZoLayout& layout, const ZoHyper& hyper, uint64_t seed, size_t tensor, float decay_rate,
                      const std::vector<Term>& terms, std::span<float> theta) {
  if (layout.tensor(tensor).decay && decay_rate != 0) DecayInPlace(decay_rate, theta);
  for (const Term& term : terms) AddAlong(layout, hyper, {seed, term.step, term.query}, tensor, -term.coefficient, theta);
}

void ApplyRuleTensor(const ZoLayout& layout, const ZoHyper& hyper, uint64_t seed, size_t tensor, const RuleScalars<float>& rule,
                     const std::vector<Term>& terms, std::span<float> theta, ZoState<float>* state) {
  std::array<float, kChunk> gradient, direction;
  const float decay = layout.tensor(tensor).decay ? rule.weight_decay : 0.0f;
  for (size_t at = layout.offset(tensor); at < layout.offset(tensor + 1); at += kChunk) {
    const size_t n = std::min(kChunk, layout.offset(tensor + 1) - at);
    const std::span<float> g(gradient.data(), n), z(direction.data(), n), x = theta.subspan(at, n);
    std::fill(g.begin(), g.end(), 0.0f);
    for (const Term& term : terms) {
      FillNormal({seed, term.step, term.query}, static_cast<uint32_t>(tensor), at - layout.offset(tensor), z);
      AddProduct(hyper.sign == Sign::kElement, term.coefficient, std::span<const float>(z), g);
    }
    Average(terms.size(), decay, std::span<const float>(x), g);
    BaseStep(hyper, rule, std::span<const float>(g), at, x, state);
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
    const std::vector<Term> terms = TermsOf(layout, hyper, tensor, update.terms);
    if (terms.empty() && !update.terms.empty()) continue;  // of another block
    if (!update.rule) {
      ApplyPlainTensor(layout, hyper, seed, tensor, update.decay_rate, terms,
                       theta.subspan(layout.offset(tensor), layout.tensor(tensor).size));
      continue;
    }
    ApplyRuleTensor(layout, hyper, seed, tensor, *update.rule, terms, theta, state);
    if (state != nullptr) state->counts[tensor] = update.rule->t;
  }
  return absl::OkStatus();
}

void ShiftAlong(const ZoLayout& layout, const ZoHyper& hyper, const Direction& direction, float shift,
                std::span<float> theta) {
  for (size_t tensor = 0; tensor < layout.tensors(); ++tensor) {
    if (!Moves(layout, hyper, direction.query, tensor)) continue;
    AddAlong(layout, hyper, direction, tensor, shift, theta.subspan(layout.offset(tensor), layout.tensor(tensor).size));
  }
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
