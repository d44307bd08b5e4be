#include "optim/zo/deferred.h"

#include <algorithm>

#include "base/status.h"

namespace optod::zo {

template <class T>
absl::StatusOr<DeferredUpdate<T>> DeferredUpdate<T>::Create(const ZoLayout& layout, const ZoHyper& hyper) {
  RETURN_IF_ERROR(CheckZoHyper(hyper));
  if (hyper.queries != 1)
    return InvalidArgument("hyperparameters.queries: ", hyper.queries, " with deferred updates; must be 1");
  if (hyper.sides != Sides::kTwo)
    return InvalidArgument("hyperparameters.sides: one-sided with deferred updates; must be two-sided");
  return DeferredUpdate(layout, hyper);
}

template <class T>
void DeferredUpdate<T>::BeginStep(std::shared_ptr<const DirectionSource<T>> z) {
  z_ = std::move(z);
}

template <class T>
void DeferredUpdate<T>::ApplyPending(std::span<T> theta, std::span<const size_t> tensors) {
  if (!pending_) return;
  const double lr_now = update_.hyper().lr;
  update_.set_lr(pending_->lr);
  update_.Apply(theta, *pending_->z, std::span<const double>(&pending_->g, 1), tensors);
  update_.set_lr(lr_now);
}

template <class T>
void DeferredUpdate<T>::Block(std::span<const size_t> tensors, std::span<T> theta, std::span<T> plus,
                              std::span<T> minus) {
  ApplyPending(theta, tensors);
  const T eps = static_cast<T>(update_.hyper().eps);
  for (size_t tensor : tensors) {
    const size_t first = update_.layout().offset(tensor), n = update_.layout().tensor(tensor).size;
    const std::span<T> values = theta.subspan(first, n), up = plus.subspan(first, n), down = minus.subspan(first, n);
    z_->AddScaled(0, first, eps, values, up);
    if (update_.hyper().residue == Residue::kMezo) {  // the same roundings as +1, -2, +1 in place
      z_->AddScaled(0, first, T{-2} * eps, up, down);
      z_->AddScaled(0, first, eps, down, values);
    } else {
      z_->AddScaled(0, first, -eps, values, down);
    }
  }
}

template <class T>
ProjectedGradients DeferredUpdate<T>::EndStep(double loss_plus, double loss_minus) {
  const auto projected = ProjectLosses(update_.hyper(), {&loss_plus, 1}, {&loss_minus, 1});
  pending_.reset();
  if (projected->usable) pending_ = Pending{z_, projected->g[0], update_.hyper().lr};
  z_.reset();
  return *projected;
}

template <class T>
void DeferredUpdate<T>::Flush(std::span<T> theta) {
  ApplyPending(theta, update_.layout().All());
  pending_.reset();
}

template class DeferredUpdate<float>;
template class DeferredUpdate<double>;

}  // namespace optod::zo
