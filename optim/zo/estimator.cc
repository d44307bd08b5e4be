#include "optim/zo/estimator.h"

#include <algorithm>

#include "optim/zo/projected_gradient.h"

namespace optod::zo {

template <class T>
void Estimator<T>::Perturb(std::span<const T> from, std::span<T> to, const DirectionSource<T>& z, int query,
                           double scale, std::span<const size_t> tensors) const {
  // MeZO computes (scale * z) * eps; scale is 1, -1 or -2, so (scale * eps) * z rounds the same.
  const T factor = static_cast<T>(scale) * static_cast<T>(hyper_.eps);
  for (size_t tensor : tensors) {
    const size_t first = layout_.offset(tensor), n = layout_.tensor(tensor).size;
    z.AddScaled(query, first, factor, from.subspan(first, n), to.subspan(first, n));
  }
}

template <class T>
double Estimator<T>::LossAt(std::span<const T> theta, const DirectionSource<T>& z, int query, double scale,
                            const LossFn<T>& loss, std::span<const size_t> tensors) {
  Perturb(theta, scratch_, z, query, scale, tensors);
  return loss(scratch_);
}

template <class T>
Estimate Estimator<T>::Run(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss,
                           std::span<const size_t> tensors) {
  const bool two = hyper_.sides == Sides::kTwo;
  const bool in_place = hyper_.residue == Residue::kMezo;
  if (!in_place) scratch_.assign(theta.begin(), theta.end());
  Estimate result;
  for (int query = 0; query < hyper_.queries; ++query) {
    double plus, minus;
    if (in_place) {
      Perturb(theta, theta, z, query, 1, tensors);
      plus = loss(theta);
      Perturb(theta, theta, z, query, two ? -2 : -1, tensors);
      minus = loss(theta);
      if (two) Perturb(theta, theta, z, query, 1, tensors);
    } else {
      plus = LossAt(theta, z, query, 1, loss, tensors);
      minus = two ? LossAt(theta, z, query, -1, loss, tensors) : query > 0 ? result.loss_minus[0] : loss(theta);
    }
    result.loss_plus.push_back(plus);
    result.loss_minus.push_back(minus);
    result.g.push_back(ProjectedGradient(plus, minus, hyper_.eps, hyper_.sides));
  }
  return result;
}

template class Estimator<float>;
template class Estimator<double>;

}  // namespace optod::zo
