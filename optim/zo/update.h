#pragma once
/// The second half of a step: given directions and projected gradients, change theta. Holds the optimizer state. No
/// gradient is ever stored: every chunk of the estimate is formed, used and forgotten, so q directions cost q
/// regenerations and no memory (zo-sgd: no state at all). T (float or double) is the type of theta, of the state and of
/// the arithmetic. Calls on one object must not overlap.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "optim/zo/direction.h"
#include "optim/zo/hyper.h"

namespace optod::zo {

/// State per parameter: none for SGD without momentum; m for SGD with momentum; m, v for Adam. Plus one step count a
/// tensor.
template <class T>
struct ZoState {
  std::vector<T> m, v;          ///< empty, or the layout's size
  std::vector<int64_t> counts;  ///< updates a tensor has had; one a tensor
};

/// The numbers of one update through a base optimizer. `t`: updates of the tensor with this one.
template <class T>
struct RuleScalars {
  int64_t t = 1;
  T lr = 0, weight_decay = 0;
  T bias1 = 1, bias2 = 1;  ///< Adam: 1 - beta^t
};

/// grad += scalar * direction, or the sign of that product.
template <class T>
void AddProduct(bool sign, T scalar, std::span<const T> direction, std::span<T> grad);
/// grad /= queries (when more than one), then grad += decay * theta (when not 0).
template <class T>
void Average(size_t queries, T decay, std::span<const T> theta, std::span<T> grad);
/// The base optimizer on one chunk that starts at flat position `first` of the state.
template <class T>
void BaseStep(const ZoHyper& hyper, const RuleScalars<T>& rule, std::span<const T> grad, size_t first,
              std::span<T> theta, ZoState<T>* state);

template <class T>
class ZoUpdate {
 public:
  ZoUpdate(ZoLayout layout, ZoHyper hyper);

  /// theta <- base optimizer's step along ghat = (1/q) sum_i c_i, c_i = g_i z_i (or its signs), plus weight decay, on
  /// `tensors` only. g.size() = q. Plain SGD without element signs and momentum runs as seeds and scalars: theta -=
  /// fl(lr * wd) * theta on decayed tensors, then theta -= c_i * z_i for i = 0..q-1 with c_i = fl(lr * g_i / q): bit
  /// for bit what a replay of the coefficients gives.
  void Apply(std::span<T> theta, const DirectionSource<T>& z, std::span<const double> g,
             std::span<const size_t> tensors);
  /// The same step along a gradient that is given: grad has the layout's size.
  void ApplyGradient(std::span<T> theta, std::span<const T> grad, std::span<const size_t> tensors);
  /// theta -= factor * (lr * ghat + lr * wd * theta), without touching the state: candidates of zo-sgd-cons (factor 1
  /// or -1) and pending updates.
  void ApplyPlain(std::span<T> theta, const DirectionSource<T>& z, std::span<const double> g, double factor,
                  std::span<const size_t> tensors) const;

  const ZoLayout& layout() const { return layout_; }
  const ZoHyper& hyper() const { return hyper_; }
  /// Learning rate from now on (schedules).
  void set_lr(double lr) { hyper_.lr = lr; }

  const ZoState<T>& state() const { return state_; }
  /// INVALID_ARGUMENT naming the vector whose size differs from what this optimizer keeps; then nothing changes.
  absl::Status set_state(ZoState<T> state);
  size_t StateBytes() const {
    return (state_.m.size() + state_.v.size()) * sizeof(T) + state_.counts.size() * sizeof(int64_t);
  }

 private:
  // grad(first, chunk): fills the gradient of flat positions [first, first + chunk.size()).
  using GradFn = std::function<void(size_t first, std::span<T> chunk)>;
  void StepAlong(std::span<T> theta, std::span<const size_t> tensors, size_t queries, const GradFn& grad);
  void Combine(const DirectionSource<T>& z, std::span<const double> g, size_t first, std::span<T> grad) const;
  bool IsPlain() const;

  ZoLayout layout_;
  ZoHyper hyper_;
  ZoState<T> state_;
};

/// theta[i] -= fl(rate * theta[i]): decoupled form of weight decay, rate = fl(lr * weight_decay). Not (1 - rate) * theta:
/// near 1 a float32 factor is off by up to half of 6e-8, which is all of a usual rate.
template <class T>
void DecayInPlace(T rate, std::span<T> theta);

}  // namespace optod::zo
