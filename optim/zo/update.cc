#include "optim/zo/update.h"

#include <algorithm>
#include <array>

#include "base/status.h"
#include "optim/zo/replay.h"
#include "optim/zo/update_formulas.h"

namespace optod::zo {

using formula::SignOf;

template <class T>
void DecayInPlace(T rate, std::span<T> theta) {
  for (T& x : theta) x = formula::Decayed(rate, x);
}

template <class T>
ZoUpdate<T>::ZoUpdate(ZoLayout layout, ZoHyper hyper) : layout_(std::move(layout)), hyper_(hyper) {
  state_.counts.assign(layout_.tensors(), 0);
  if (hyper_.base == Base::kAdam || hyper_.momentum > 0) state_.m.assign(layout_.size(), T{0});
  if (hyper_.base == Base::kAdam) state_.v.assign(layout_.size(), T{0});
}

template <class T>
bool ZoUpdate<T>::IsPlain() const {
  return !NeedsRule(hyper_);
}

template <class T>
void ZoUpdate<T>::Apply(std::span<T> theta, const DirectionSource<T>& z, std::span<const double> g,
                        std::span<const size_t> tensors) {
  if (IsPlain()) {
    for (size_t tensor : tensors) ++state_.counts[tensor];
    return ApplyPlain(theta, z, g, 1.0, tensors);
  }
  StepAlong(theta, tensors, g.size(), [&](size_t first, std::span<T> chunk) { Combine(z, g, first, chunk); });
}

template <class T>
void ZoUpdate<T>::ApplyGradient(std::span<T> theta, std::span<const T> grad, std::span<const size_t> tensors) {
  StepAlong(theta, tensors, 1,
            [&](size_t first, std::span<T> chunk) { std::copy_n(grad.begin() + first, chunk.size(), chunk.begin()); });
}

template <class T>
void ZoUpdate<T>::ApplyPlain(std::span<T> theta, const DirectionSource<T>& z, std::span<const double> g, double factor,
                             std::span<const size_t> tensors) const {
  for (size_t tensor : tensors) {
    const size_t first = layout_.offset(tensor);
    const std::span<T> part = theta.subspan(first, layout_.tensor(tensor).size);
    if (hyper_.weight_decay > 0 && layout_.tensor(tensor).decay) {
      DecayInPlace(static_cast<T>(factor * (hyper_.lr * hyper_.weight_decay)), part);
    }
    if (hyper_.sign == Sign::kElement) {
      std::array<T, kChunk> grad;
      for (size_t begin = 0; begin < part.size(); begin += kChunk) {
        const size_t n = std::min(kChunk, part.size() - begin);
        Combine(z, g, first + begin, {grad.data(), n});
        Average(g.size(), T{0}, std::span<const T>(part.subspan(begin, n)), std::span<T>(grad.data(), n));
        for (size_t i = 0; i < n; ++i) part[begin + i] -= static_cast<T>(factor * hyper_.lr) * grad[i];
      }
      continue;
    }
    for (size_t i = 0; i < g.size(); ++i) {
      const double direction = hyper_.sign == Sign::kScalar ? SignOf(g[i]) : g[i];
      const T coefficient = static_cast<T>(hyper_.lr * direction / static_cast<double>(g.size()));
      z.AddScaled(static_cast<int>(i), first, static_cast<T>(-factor) * coefficient, part, part);
    }
  }
}

template <class T>
void AddProduct(bool sign, T scalar, std::span<const T> direction, std::span<T> grad) {
  for (size_t i = 0; i < grad.size(); ++i) grad[i] += formula::Product(sign, scalar, direction[i]);
}

template <class T>
void Average(size_t queries, T decay, std::span<const T> theta, std::span<T> grad) {
  for (size_t i = 0; i < grad.size(); ++i)
    grad[i] = formula::Averaged(static_cast<T>(queries), decay, theta[i], grad[i]);
}

template <class T>
void BaseStep(const ZoHyper& hyper, const RuleScalars<T>& rule, std::span<const T> grad, size_t first,
              std::span<T> theta, ZoState<T>* state) {
  if (hyper.base == Base::kAdam) {
    const formula::AdamConstants<T> adam{static_cast<T>(hyper.beta1), static_cast<T>(hyper.beta2),
                                         static_cast<T>(hyper.adam_eps), rule.lr, rule.bias1, rule.bias2};
    for (size_t i = 0; i < theta.size(); ++i)
      formula::Adam(adam, grad[i], theta[i], state->m[first + i], state->v[first + i]);
    return;
  }
  const T momentum = static_cast<T>(hyper.momentum);
  for (size_t i = 0; i < theta.size(); ++i) {
    if (momentum > 0)
      formula::Momentum(momentum, rule.lr, rule.t == 1, grad[i], theta[i], state->m[first + i]);
    else
      theta[i] -= rule.lr * grad[i];
  }
}

// grad = sum_i c_i over one chunk.
template <class T>
void ZoUpdate<T>::Combine(const DirectionSource<T>& z, std::span<const double> g, size_t first,
                          std::span<T> grad) const {
  std::array<T, kChunk> direction;
  std::fill(grad.begin(), grad.end(), T{0});
  for (size_t k = 0; k < g.size(); ++k) {
    z.Fill(static_cast<int>(k), first, {direction.data(), grad.size()});
    const T scalar = static_cast<T>(hyper_.sign == Sign::kScalar ? SignOf(g[k]) : g[k]);
    AddProduct(hyper_.sign == Sign::kElement, scalar, std::span<const T>(direction.data(), grad.size()), grad);
  }
}

template <class T>
void ZoUpdate<T>::StepAlong(std::span<T> theta, std::span<const size_t> tensors, size_t queries, const GradFn& grad) {
  std::array<T, kChunk> buffer;
  for (size_t tensor : tensors) {
    const RuleScalars<T> rule = RuleScalarsFor<T>(hyper_, hyper_.lr, ++state_.counts[tensor]);
    const T decay = layout_.tensor(tensor).decay ? rule.weight_decay : T{0};
    const size_t end = layout_.offset(tensor + 1);
    for (size_t first = layout_.offset(tensor); first < end; first += kChunk) {
      const std::span<T> chunk(buffer.data(), std::min(kChunk, end - first));
      const std::span<T> values = theta.subspan(first, chunk.size());
      grad(first, chunk);
      Average(queries, decay, std::span<const T>(values), chunk);
      BaseStep(hyper_, rule, std::span<const T>(chunk), first, values, &state_);
    }
  }
}

template <class T>
absl::Status ZoUpdate<T>::set_state(ZoState<T> state) {
  if (state.m.size() != state_.m.size())
    return InvalidArgument("state.m: ", state.m.size(), " elements; must be ", state_.m.size());
  if (state.v.size() != state_.v.size())
    return InvalidArgument("state.v: ", state.v.size(), " elements; must be ", state_.v.size());
  if (state.counts.size() != state_.counts.size()) {
    return InvalidArgument("state.t: ", state.counts.size(), " counts; must be ", state_.counts.size(),
                           ", one a tensor");
  }
  state_ = std::move(state);
  return absl::OkStatus();
}

template class ZoUpdate<float>;
template class ZoUpdate<double>;
template void AddProduct<float>(bool, float, std::span<const float>, std::span<float>);
template void AddProduct<double>(bool, double, std::span<const double>, std::span<double>);
template void Average<float>(size_t, float, std::span<const float>, std::span<float>);
template void Average<double>(size_t, double, std::span<const double>, std::span<double>);
template void BaseStep<float>(const ZoHyper&, const RuleScalars<float>&, std::span<const float>, size_t,
                              std::span<float>, ZoState<float>*);
template void BaseStep<double>(const ZoHyper&, const RuleScalars<double>&, std::span<const double>, size_t,
                               std::span<double>, ZoState<double>*);
template void DecayInPlace<float>(float, std::span<float>);
template void DecayInPlace<double>(double, std::span<double>);

}  // namespace optod::zo
