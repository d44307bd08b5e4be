#include "optim/order/sample_order.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace optod::optim {
namespace {

using Vector = std::vector<double>;

/// First and second Adam moments along one run; SGD leaves them empty of meaning.
class Moments {
 public:
  Moments(const OrderReference& reference, size_t n) : reference_(reference), m_(n, 0.0), v_(n, 0.0) {}

  /// Takes one gradient in and gives the direction, and in `slope` (unless null) the direction's derivative with
  /// respect to that gradient.
  Vector Advance(const Vector& gradient, Vector* slope = nullptr) {
    ++step_;
    if (slope != nullptr) slope->assign(gradient.size(), 1.0);
    if (reference_.rule == OrderRule::kSgd) return AdvanceSgd(gradient, slope);
    const double beta1 = reference_.beta1, beta2 = reference_.beta2, eps = reference_.eps;
    const double correction1 = 1.0 - std::pow(beta1, step_), correction2 = 1.0 - std::pow(beta2, step_);
    Vector direction(gradient.size());
    for (size_t i = 0; i < gradient.size(); ++i) {
      const double g = gradient[i];
      m_[i] = beta1 * m_[i] + (1.0 - beta1) * g;
      v_[i] = beta2 * v_[i] + (1.0 - beta2) * g * g;
      const double m_hat = m_[i] / correction1, s = std::sqrt(v_[i] / correction2), denominator = s + eps;
      direction[i] = m_hat / denominator;
      if (slope == nullptr) continue;
      (*slope)[i] = (1.0 - beta1) / correction1 / denominator;
      // s = 0 only when every gradient so far was 0; the second part then has the limit 0.
      if (s > 0.0) (*slope)[i] -= m_hat * (1.0 - beta2) * g / (correction2 * s * denominator * denominator);
    }
    return direction;
  }

 private:
  Vector AdvanceSgd(const Vector& gradient, Vector* slope) {
    const double momentum = reference_.momentum;
    if (slope != nullptr && reference_.nesterov) slope->assign(gradient.size(), 1.0 + momentum);
    Vector direction(gradient.size());
    for (size_t i = 0; i < gradient.size(); ++i) {
      m_[i] = momentum * m_[i] + gradient[i];
      direction[i] = reference_.nesterov ? gradient[i] + momentum * m_[i] : m_[i];
    }
    return direction;
  }

  const OrderReference& reference_;
  Vector m_, v_;
  int step_ = 0;
};

absl::Status CheckVector(const std::string& name, const Vector& values, size_t size) {
  if (values.size() != size) return InvalidArgument(name, ": ", values.size(), " numbers; must be ", size);
  for (size_t i = 0; i < size; ++i) {
    if (!std::isfinite(values[i])) return InvalidArgument(name, "[", i, "]: ", values[i], " is not finite");
  }
  return absl::OkStatus();
}

/// Distinct batches.
size_t Columns(const OrderReference& reference) {
  return reference.batches.empty() ? reference.terms.size() : reference.terms[0].size();
}
int BatchAt(const OrderReference& reference, int t) { return reference.batches.empty() ? t : reference.batches[t]; }

absl::Status CheckBatches(const OrderReference& reference) {
  if (reference.batches.empty()) return absl::OkStatus();
  if (reference.batches.size() != reference.terms.size()) {
    return InvalidArgument("batches: ", reference.batches.size(), "; must be ", reference.terms.size());
  }
  for (const int batch : reference.batches) {
    if (batch >= 0 && static_cast<size_t>(batch) < Columns(reference)) continue;
    return InvalidArgument("batches: ", batch, " is no batch; must be in 0..", Columns(reference) - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckReference(const OrderReference& reference) {
  const size_t positions = reference.terms.size();
  if (reference.trajectory.size() != positions + 1) {
    return InvalidArgument("trajectory: ", reference.trajectory.size(), " vectors; must be ", positions + 1,
                           ", one more than terms");
  }
  const size_t n = reference.trajectory[0].size();
  for (size_t t = 0; t <= positions; ++t) {
    RETURN_IF_ERROR(CheckVector(Cat("trajectory[", t, "]"), reference.trajectory[t], n));
  }
  for (size_t t = 0; t < positions; ++t) {
    if (reference.terms[t].size() == Columns(reference)) continue;
    return InvalidArgument("terms[", t, "]: ", reference.terms[t].size(), " batches; must be ", Columns(reference));
  }
  RETURN_IF_ERROR(CheckBatches(reference));
  if (!(reference.momentum >= 0.0 && reference.momentum < 1.0)) {
    return InvalidArgument("momentum: ", reference.momentum, "; must be in [0, 1)");
  }
  if (!(reference.weight_decay >= 0.0 && std::isfinite(reference.weight_decay))) {
    return InvalidArgument("weight_decay: ", reference.weight_decay, "; must be >= 0");
  }
  RETURN_IF_ERROR(CheckVector("lr", reference.lr, positions));
  for (size_t t = 0; t < positions; ++t) {
    if (reference.lr[t] < 0.0) return InvalidArgument("lr[", t, "]: ", reference.lr[t], " is negative; must be >= 0");
  }
  if (reference.rule == OrderRule::kSgd) return absl::OkStatus();
  if (!(reference.beta1 >= 0.0 && reference.beta1 < 1.0)) {
    return InvalidArgument("beta1: ", reference.beta1, "; must be in [0, 1)");
  }
  if (!(reference.beta2 >= 0.0 && reference.beta2 < 1.0)) {
    return InvalidArgument("beta2: ", reference.beta2, "; must be in [0, 1)");
  }
  if (!(reference.eps > 0.0 && std::isfinite(reference.eps))) {
    return InvalidArgument("eps: ", reference.eps, "; must be > 0");
  }
  return absl::OkStatus();
}

absl::Status CheckTerm(const OrderReference& reference, int t, int batch, bool curvature) {
  const OrderTerm& term = reference.terms[t][batch];
  const size_t n = reference.trajectory[t].size();
  const std::string name = Cat("terms[", t, "][", batch, "]");
  if (term.gradient.empty() && n > 0) return FailedPrecondition(name, ".gradient: missing; this order needs it");
  RETURN_IF_ERROR(CheckVector(name + ".gradient", term.gradient, n));
  if (!curvature) return absl::OkStatus();
  if (term.curvature.empty() && n > 0) {
    return FailedPrecondition(name, ".curvature: missing; the first-order estimate needs it");
  }
  if (term.curvature.size() != n && term.curvature.size() != n * n) {
    return InvalidArgument(name, ".curvature: ", term.curvature.size(), " numbers; must be ", n, " (diagonal) or ",
                           n * n, " (matrix)");
  }
  RETURN_IF_ERROR(CheckVector(name + ".curvature", term.curvature, term.curvature.size()));
  if (term.third.empty()) return absl::OkStatus();
  if (term.curvature.size() != n) return InvalidArgument(name, ".third: needs a diagonal curvature");
  return CheckVector(name + ".third", term.third, n);
}

/// With epochs, what an order must be a rearrangement of: the reference's own sequence.
absl::Status CheckRearrangement(const OrderReference& reference, std::span<const int> order) {
  if (order.size() != reference.batches.size()) {
    return InvalidArgument("order: ", order.size(), " batches; must be ", reference.batches.size());
  }
  std::vector<int> left(Columns(reference), 0);
  for (const int batch : reference.batches) ++left[batch];
  for (size_t t = 0; t < order.size(); ++t) {
    if (order[t] < 0 || static_cast<size_t>(order[t]) >= left.size()) {
      return InvalidArgument("order[", t, "]: ", order[t], " is no batch; must be in 0..", left.size() - 1);
    }
    if (--left[order[t]] < 0) return InvalidArgument("order[", t, "]: ", order[t], " stands too often");
  }
  return absl::OkStatus();
}

absl::Status CheckOrder(const OrderReference& reference, std::span<const int> order) {
  if (!reference.batches.empty()) return CheckRearrangement(reference, order);
  const size_t positions = reference.terms.size();
  if (order.size() != positions) {
    return InvalidArgument("order: ", order.size(), " batches; must be ", positions, ", each once");
  }
  std::vector<bool> seen(positions, false);
  for (size_t t = 0; t < positions; ++t) {
    if (order[t] < 0 || static_cast<size_t>(order[t]) >= positions) {
      return InvalidArgument("order[", t, "]: ", order[t], " is no batch; must be in 0..", positions - 1);
    }
    if (seen[order[t]]) return InvalidArgument("order[", t, "]: ", order[t], " stands twice");
    seen[order[t]] = true;
  }
  return absl::OkStatus();
}

/// H d for a Hessian given as matrix or diagonal, with a diagonal also (h + third d / 2) d.
Vector Product(const OrderReference& reference, const OrderTerm& term, const Vector& deviation) {
  const Vector& curvature = term.curvature;
  const size_t n = deviation.size();
  Vector product(n, 0.0);
  if (!term.third.empty()) {
    for (size_t i = 0; i < n; ++i) {
      double slope = curvature[i] + 0.5 * term.third[i] * deviation[i];
      if (reference.curvature_cap > 0.0) {
        slope = std::min(std::max(slope, -reference.curvature_cap), reference.curvature_cap);
      }
      product[i] = slope * deviation[i];
    }
    return product;
  }
  for (size_t i = 0; i < n; ++i) {
    if (curvature.size() == n) {
      product[i] = curvature[i] * deviation[i];
    } else {
      for (size_t j = 0; j < n; ++j) product[i] += curvature[i * n + j] * deviation[j];
    }
  }
  return product;
}

/// The gradient as the rule sees it: with the part of weight decay that is not decoupled.
Vector WithDecay(const OrderReference& reference, int t, Vector gradient) {
  if (reference.decoupled || reference.weight_decay == 0.0) return gradient;
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += reference.weight_decay * reference.trajectory[t][i];
  return gradient;
}

/// Gamma at the estimated point. `reference` holds the reference run's moments before this position, `replayed` those
/// of the estimated run; the latter are advanced.
Vector EstimateDirection(const Vector& at_reference, const Vector& correction, OrderMoments moments, Moments reference,
                         Moments& replayed) {
  const size_t n = correction.size();
  if (moments == OrderMoments::kReplay) {
    Vector gradient = at_reference;
    for (size_t i = 0; i < n; ++i) gradient[i] += correction[i];
    return replayed.Advance(gradient);
  }
  Vector slope;
  Vector direction = reference.Advance(at_reference, &slope);
  for (size_t i = 0; i < n; ++i) direction[i] += slope[i] * correction[i];
  return direction;
}

}  // namespace

absl::StatusOr<OrderEstimate> EstimateOrder(const OrderReference& reference, std::span<const int> order,
                                            const EstimateOptions& options) {
  RETURN_IF_ERROR(CheckReference(reference));
  RETURN_IF_ERROR(CheckOrder(reference, order));
  const int positions = static_cast<int>(reference.terms.size());
  for (int t = 0; t < positions; ++t) {
    RETURN_IF_ERROR(CheckTerm(reference, t, BatchAt(reference, t), false));
    RETURN_IF_ERROR(CheckTerm(reference, t, order[t], options.first_order));
  }
  const size_t n = reference.trajectory[0].size();
  const double coupled = reference.decoupled ? 0.0 : reference.weight_decay;
  const double decoupled = reference.decoupled ? reference.weight_decay : 0.0;
  Moments along_reference(reference, n), replayed(reference, n);
  Vector deviation(n, 0.0);
  OrderEstimate estimate;
  estimate.parameters = {reference.trajectory[0]};
  for (int t = 0; t < positions; ++t) {
    const OrderTerm& term = reference.terms[t][order[t]];
    Vector correction = options.first_order ? Product(reference, term, deviation) : Vector(n, 0.0);
    for (size_t i = 0; i < n; ++i) correction[i] += coupled * deviation[i];
    const Vector direction = EstimateDirection(WithDecay(reference, t, term.gradient), correction, options.moments,
                                               along_reference, replayed);
    const Vector reference_direction =
        along_reference.Advance(WithDecay(reference, t, reference.terms[t][BatchAt(reference, t)].gradient));
    Vector gamma = reference.trajectory[t + 1];
    for (size_t i = 0; i < n; ++i) {
      deviation[i] -= reference.lr[t] * (direction[i] - reference_direction[i] + decoupled * deviation[i]);
      if (deviation[i] != 0.0) gamma[i] += deviation[i];  // adding 0 would turn -0 into +0
    }
    estimate.parameters.push_back(std::move(gamma));
  }
  return estimate;
}

absl::StatusOr<UpdateTerm> ReferenceUpdate(const OrderReference& reference, int t, int batch) {
  RETURN_IF_ERROR(CheckReference(reference));
  const int positions = static_cast<int>(reference.terms.size());
  if (t < 0 || t >= positions) return InvalidArgument("t: ", t, " is no position; there are ", positions);
  if (batch < 0 || static_cast<size_t>(batch) >= Columns(reference)) {
    return InvalidArgument("batch: ", batch, " is no batch; there are ", Columns(reference));
  }
  Moments moments(reference, reference.trajectory[0].size());
  for (int s = 0; s < t; ++s) {
    RETURN_IF_ERROR(CheckTerm(reference, s, BatchAt(reference, s), false));
    moments.Advance(WithDecay(reference, s, reference.terms[s][BatchAt(reference, s)].gradient));
  }
  RETURN_IF_ERROR(CheckTerm(reference, t, batch, false));
  UpdateTerm term;
  term.direction = moments.Advance(WithDecay(reference, t, reference.terms[t][batch].gradient), &term.slope);
  return term;
}

}  // namespace optod::optim
