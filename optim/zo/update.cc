#include "optim/zo/update.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/status.h"

namespace optod::zo {
namespace {

template <class T>
T SignOf(T x) {
  return static_cast<T>((x > 0) - (x < 0));
}

}  // namespace

template <class T>
void DecayInPlace(T rate, std::span<T> theta) {
  for (T& x : theta) x -= rate * x;
}

template <class T>
ZoUpdate<T>::ZoUpdate(ZoLayout layout, ZoHyper hyper) : layout_(std::move(layout)), hyper_(hyper) {
  state_.counts.assign(layout_.tensors(), 0);
  if (hyper_.base == Base::kAdam || hyper_.momentum > 0) state_.m.assign(layout_.size(), T{0});
  if (hyper_.base == Base::kAdam) state_.v.assign(layout_.size(), T{0});
}

template <class T>
bool ZoUpdate<T>::IsPlain() const {
  return hyper_.base == Base::kSgd && hyper_.momentum == 0 && hyper_.sign != Sign::kElement;
}

template <class T>
void ZoUpdate<T>::Apply(std::span<T> theta, const DirectionSource<T>& z, std::span<const double> g,
                        std::span<const size_t> tensors) {
  if (IsPlain()) {
    for (size_t tensor : tensors) ++state_.counts[tensor];
    return ApplyPlain(theta, z, g, 1.0, tensors);
  }
  StepAlong(theta, tensors, [&](size_t first, std::span<T> chunk) { Combine(z, g, first, chunk); });
}

template <class T>
void ZoUpdate<T>::ApplyGradient(std::span<T> theta, std::span<const T> grad, std::span<const size_t> tensors) {
  StepAlong(theta, tensors,
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

// grad = (1/q) sum_i c_i over one chunk.
template <class T>
void ZoUpdate<T>::Combine(const DirectionSource<T>& z, std::span<const double> g, size_t first,
                          std::span<T> grad) const {
  std::array<T, kChunk> direction;
  std::fill(grad.begin(), grad.end(), T{0});
  for (size_t k = 0; k < g.size(); ++k) {
    z.Fill(static_cast<int>(k), first, {direction.data(), grad.size()});
    const T scalar = static_cast<T>(hyper_.sign == Sign::kScalar ? SignOf(g[k]) : g[k]);
    for (size_t i = 0; i < grad.size(); ++i) {
      const T product = scalar * direction[i];
      grad[i] += hyper_.sign == Sign::kElement ? SignOf(product) : product;
    }
  }
  if (g.size() > 1) {
    for (T& x : grad) x /= static_cast<T>(g.size());
  }
}

template <class T>
void ZoUpdate<T>::StepAlong(std::span<T> theta, std::span<const size_t> tensors, const GradFn& grad) {
  std::array<T, kChunk> buffer;
  for (size_t tensor : tensors) {
    const int64_t count = ++state_.counts[tensor];
    const T decay = layout_.tensor(tensor).decay ? static_cast<T>(hyper_.weight_decay) : T{0};
    const size_t end = layout_.offset(tensor + 1);
    for (size_t first = layout_.offset(tensor); first < end; first += kChunk) {
      const std::span<T> chunk(buffer.data(), std::min(kChunk, end - first));
      const std::span<T> values = theta.subspan(first, chunk.size());
      grad(first, chunk);
      if (decay != 0) {
        for (size_t i = 0; i < chunk.size(); ++i) chunk[i] += decay * values[i];
      }
      StepChunk(first, count, values, chunk);
    }
  }
}

// The base optimizer on one chunk; `count` is the tensor's number of updates with this one.
template <class T>
void ZoUpdate<T>::StepChunk(size_t first, int64_t count, std::span<T> theta, std::span<const T> grad) {
  const T lr = static_cast<T>(hyper_.lr);
  if (hyper_.base == Base::kAdam) {
    const T beta1 = static_cast<T>(hyper_.beta1), beta2 = static_cast<T>(hyper_.beta2),
            eps = static_cast<T>(hyper_.adam_eps);
    const T correction1 = static_cast<T>(1 - std::pow(hyper_.beta1, static_cast<double>(count)));
    const T correction2 = static_cast<T>(1 - std::pow(hyper_.beta2, static_cast<double>(count)));
    for (size_t i = 0; i < theta.size(); ++i) {
      T& m = state_.m[first + i];
      T& v = state_.v[first + i];
      m = beta1 * m + (1 - beta1) * grad[i];
      v = beta2 * v + (1 - beta2) * grad[i] * grad[i];
      theta[i] -= lr * (m / correction1) / (std::sqrt(v / correction2) + eps);
    }
    return;
  }
  const T momentum = static_cast<T>(hyper_.momentum);
  for (size_t i = 0; i < theta.size(); ++i) {
    T step = grad[i];
    if (momentum > 0) {  // no dampening, no bias correction: the first step takes the gradient as it is
      if (count > 1) step += momentum * state_.m[first + i];
      state_.m[first + i] = step;
    }
    theta[i] -= lr * step;
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
template void DecayInPlace<float>(float, std::span<float>);
template void DecayInPlace<double>(double, std::span<double>);

}  // namespace optod::zo
