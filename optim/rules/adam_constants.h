#pragma once
/// The per-step constants of Adam's formula (formulas.h), shared by every rule that has Adam inside. Pure.

#include <cmath>

#include "optim/rules/formulas.h"

namespace optod::optim {

struct AdamSettings {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  enum class Decay {
    kFirst,  ///< AdamW: p is multiplied by 1 - eta lambda before the update
    kL2,     ///< Adam: lambda p is added to the gradient
    kLast,   ///< the low-rank family: p is multiplied by 1 - eta lambda after the update
  } decay = Decay::kFirst;
  /// False: eps is added to sqrt(v / (1 - beta2^t)). True: eps is added to sqrt(v), and the step takes both
  /// corrections.
  bool eps_in_uncorrected_root = false;

  /// The same with another lambda: tensors differ in nothing else.
  AdamSettings WithDecay(double lambda) const {
    AdamSettings other = *this;
    other.weight_decay = lambda;
    return other;
  }
};

/// Constants of a tensor's step number t (1, 2, ...) at learning rate eta.
template <typename T>
formula::Adam<T> AdamConstants(const AdamSettings& s, double eta, double t) {
  const double bias1 = 1 - std::pow(s.beta1, t), root_bias2 = std::sqrt(1 - std::pow(s.beta2, t));
  const double shrink = 1 - eta * s.weight_decay;
  formula::Adam<T> c;
  c.first = {static_cast<T>(s.beta1), static_cast<T>(1 - s.beta1)};
  c.second = {static_cast<T>(s.beta2), static_cast<T>(1 - s.beta2)};
  c.step = static_cast<T>(s.eps_in_uncorrected_root ? eta * root_bias2 / bias1 : eta / bias1);
  c.root_scale = static_cast<T>(s.eps_in_uncorrected_root ? 1 : 1 / root_bias2);
  c.eps = static_cast<T>(s.eps);
  c.decay = static_cast<T>(s.decay == AdamSettings::Decay::kFirst ? shrink : 1);
  c.l2 = static_cast<T>(s.decay == AdamSettings::Decay::kL2 ? s.weight_decay : 0);
  c.decay_after = static_cast<T>(s.decay == AdamSettings::Decay::kLast ? shrink : 1);
  return c;
}

}  // namespace optod::optim
