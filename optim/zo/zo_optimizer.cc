#include "optim/zo/zo_optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace optod::zo {
namespace {

// First value that is not finite, in words; empty when all are finite.
std::string NotFinite(const char* field, std::span<const double> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return Cat(field, "[", i, "] is ", values[i]);
  }
  return "";
}

void Append(std::span<const double> from, std::vector<double>* to) { to->insert(to->end(), from.begin(), from.end()); }

}  // namespace

template <class T>
bool ZoOptimizer<T>::Record(const Estimate& estimate, StepResult* result) const {
  if (result->loss_plus.empty()) result->loss = estimate.loss_plus[0];
  Append(estimate.loss_plus, &result->loss_plus);
  Append(estimate.loss_minus, &result->loss_minus);
  Append(estimate.g, &result->projected_grad);
  result->reason = NotFinite("loss_plus", estimate.loss_plus);
  if (result->reason.empty()) result->reason = NotFinite("loss_minus", estimate.loss_minus);
  if (result->reason.empty()) result->reason = NotFinite("projected_gradient", estimate.g);
  result->skipped = !result->reason.empty();
  return !result->skipped;
}

template <class T>
StepResult ZoOptimizer<T>::Step(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss) {
  StepResult result;
  const std::vector<size_t> all = update_.layout().All();
  const Estimate estimate = estimator_.Run(theta, z, loss, all);
  if (Record(estimate, &result)) update_.Apply(theta, z, estimate.g, all);
  return result;
}

template <class T>
double ZoOptimizer<T>::LossOfCandidate(std::span<const T> theta, const DirectionSource<T>& z, std::span<const double> g,
                                       double factor, const LossFn<T>& loss) {
  scratch_.assign(theta.begin(), theta.end());
  update_.ApplyPlain(scratch_, z, g, factor, update_.layout().All());
  return loss(scratch_);
}

template <class T>
StepResult ZoOptimizer<T>::StepConservative(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss) {
  StepResult result;
  const std::vector<size_t> all = update_.layout().All();
  const double stay = loss(theta);
  const Estimate estimate = estimator_.Run(theta, z, loss, all);
  result.loss_stay = stay;
  if (!Record(estimate, &result)) return result;
  result.loss_descent = LossOfCandidate(theta, z, estimate.g, 1, loss);
  result.loss_ascent = LossOfCandidate(theta, z, estimate.g, -1, loss);
  result.loss = result.loss_descent;
  result.chosen = ChooseCandidate(stay, result.loss_descent, result.loss_ascent);
  if (result.chosen != Candidate::kStay) {
    update_.ApplyPlain(theta, z, estimate.g, result.chosen == Candidate::kDescent ? 1 : -1, all);
  }
  return result;
}

template <class T>
StepResult ZoOptimizer<T>::StepForwardGrad(std::span<T> theta, const DirectionSource<T>& z, const JvpFn<T>& jvp) {
  StepResult result;
  scratch_.resize(theta.size());
  for (int query = 0; query < update_.hyper().queries; ++query) {
    z.Fill(query, 0, scratch_);
    const Jvp value = jvp(theta, scratch_);
    result.loss = value.loss;
    result.jvp.push_back(value.value);
  }
  result.projected_grad = result.jvp;
  result.reason = NotFinite("jvp", result.jvp);
  result.skipped = !result.reason.empty();
  if (!result.skipped) update_.Apply(theta, z, result.jvp, update_.layout().All());
  return result;
}

template <class T>
StepResult ZoOptimizer<T>::StepBlockwise(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss,
                                         std::span<const std::vector<size_t>> blocks, BlockSchedule schedule) {
  StepResult result;
  std::vector<std::vector<double>> g_of_blocks;
  for (const std::vector<size_t>& block : blocks) {
    const Estimate estimate = estimator_.Run(theta, z, loss, block);
    if (!Record(estimate, &result)) return result;
    if (schedule == BlockSchedule::kCoordinate) update_.Apply(theta, z, estimate.g, block);
    g_of_blocks.push_back(estimate.g);
  }
  if (schedule == BlockSchedule::kJoint) {
    for (size_t b = 0; b < blocks.size(); ++b) update_.Apply(theta, z, g_of_blocks[b], blocks[b]);
  }
  return result;
}

template <class T>
StepResult ZoOptimizer<T>::StepHybrid(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss,
                                      const GradientFn<T>& gradient, std::span<const size_t> zo_tensors) {
  StepResult result;
  std::vector<T> grad(theta.size());
  gradient(theta, grad);
  std::vector<size_t> first_order;
  for (size_t tensor : update_.layout().All()) {
    if (std::find(zo_tensors.begin(), zo_tensors.end(), tensor) == zo_tensors.end()) first_order.push_back(tensor);
  }
  const Estimate estimate = estimator_.Run(theta, z, loss, zo_tensors);
  if (!Record(estimate, &result)) return result;
  for (size_t tensor : first_order) {
    const std::span<const T> part =
        std::span<const T>(grad).subspan(update_.layout().offset(tensor), update_.layout().tensor(tensor).size);
    if (std::all_of(part.begin(), part.end(), [](T x) { return std::isfinite(x); })) continue;
    result.skipped = true;
    result.reason = Cat("gradient of ", update_.layout().tensor(tensor).name, " is not finite");
    return result;
  }
  update_.Apply(theta, z, estimate.g, zo_tensors);
  update_.ApplyGradient(theta, grad, first_order);
  return result;
}

template <class T>
StepResult ZoOptimizer<T>::StepDataParallel(std::span<T> theta, const DirectionSource<T>& z,
                                            std::span<const LossFn<T>> losses) {
  StepResult result;
  const std::vector<size_t> all = update_.layout().All();
  std::vector<std::vector<double>> g_of_workers;
  double sum = 0;
  for (const LossFn<T>& loss : losses) {
    const Estimate estimate = estimator_.Run(theta, z, loss, all);
    if (!Record(estimate, &result)) return result;
    g_of_workers.push_back(estimate.g);
    sum += estimate.loss_plus[0];
  }
  const auto mean = MeanOverWorkers(g_of_workers);
  if (!mean.ok()) {
    result.skipped = true;
    result.reason = std::string(mean.status().message());
    return result;
  }
  result.mean_g = *mean;
  result.loss = sum / static_cast<double>(losses.size());
  update_.Apply(theta, z, result.mean_g, all);
  return result;
}

template <class T>
StepResult ZoOptimizer<T>::StepByRule(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss) {
  return update_.hyper().rule == Rule::kConservative ? StepConservative(theta, z, loss) : Step(theta, z, loss);
}

template class ZoOptimizer<float>;
template class ZoOptimizer<double>;

}  // namespace optod::zo
