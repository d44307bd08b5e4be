#pragma once
/// What training would have given had the batches come in another order, estimated without training again (FUT, arXiv
/// 2505.22042). One reference run theta_{t+1} = theta_t - lr_t Gamma_t saw batch t at position t. For a permutation l
/// the run gamma_{t+1} = gamma_t - lr_t Gamma(gamma_t, B_{l_t}), gamma_0 = theta_0, is estimated from gradients and
/// curvature taken at the reference points alone: grad L(gamma_t, B_l) ~ g(theta_t, B_l) + H(theta_t, B_l) (gamma_t -
/// theta_t).
///
/// What is carried is the deviation d_t = gamma_t - theta_t: d_{t+1} = d_t - lr_t (Gamma_estimated - Gamma_reference +
/// decoupled weight decay d_t).
/// Where both directions agree nothing is added, so the identity order gives the reference to the bit, also when the
/// reference was trained in another precision.
///
/// Plain data and pure functions: safe to call from any number of threads on one `Reference`.
/// Cost of an estimate: T n multiplications with diagonal curvature, T n^2 with matrices; memory (T+1) n doubles.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::optim {

/// This is the slow, obvious reference: whole vectors, one order, everything in plain double loops. Studies use the
/// fast path (estimator.h), which tests hold to this one.

/// How the reference run turned a gradient into a direction Gamma.
enum class OrderRule {
  kSgd,   // b <- momentum b + g; Gamma = b, or g + momentum b with nesterov
  kAdam,  // Gamma = m_hat / (sqrt(v_hat) + eps), bias-corrected, the first position is step 1
};

/// Whose Adam moments the estimate uses. The two agree for SGD.
enum class OrderMoments {
  kReference,  // those of the reference run before position t, held fixed: Gamma + (dGamma/dg) H d, the paper read
               // literally
  kReplay,     // accumulated anew along the estimated run from the corrected gradients g + H d; much closer with Adam
};

/// Loss derivatives of one batch at one reference point.
struct OrderTerm {
  std::vector<double> gradient;   // [n]; empty: not computed
  std::vector<double> curvature;  // Hessian [n, n] row-major, or its diagonal [n]; empty: not computed
  std::vector<double> third{};    // slope of the diagonal [n] (second order); empty: first order
};

/// One training run over T batches of n parameters, and what was measured along it.
struct OrderReference {
  std::vector<std::vector<double>> trajectory;  // [T+1][n]: parameters before position 0, 1, ..., and after the last
  std::vector<std::vector<OrderTerm>> terms;    // [T][T]: terms[t][l] at trajectory[t] for batch l; all that an order
                                              // uses. With `batches` any number of columns
  std::vector<double> lr;  // [T]: learning rate of a position (a schedule follows positions), >= 0
  OrderRule rule = OrderRule::kAdam;
  double beta1 = 0.9, beta2 = 0.999;  // [0, 1); Adam only
  double eps = 1e-8;                  // > 0; Adam only
  double momentum = 0.0;              // [0, 1); SGD only
  bool nesterov = false;              // SGD only
  double weight_decay = 0.0;          // >= 0; part of g, or beside Gamma when decoupled (AdamW)
  bool decoupled = false;
  std::vector<int> batches;  // [T]: the batch of each position of the reference run (epochs repeat them); empty: 0..T-1
  double curvature_cap = 0.0;  // > 0: |h + third d / 2| is clipped to it; second order only
};

struct EstimateOptions {
  bool first_order = true;  // false: no curvature (H d left out), the zeroth-order estimate
  OrderMoments moments = OrderMoments::kReplay;
};

struct OrderEstimate {
  std::vector<std::vector<double>> parameters;  // [T+1][n]: gamma_0 .. gamma_T
};

/// Estimates the run in which position t sees batch order[t]. `order`: [T], each of 0..T-1 once.
/// Needs terms[t][order[t]] (with curvature when first_order) and the gradient of terms[t][t], for every t.
/// Errors: INVALID_ARGUMENT for an order that is no permutation ("order[3]: 7 stands twice"), sizes that differ,
/// numbers that are not finite, hyperparameters out of range; FAILED_PRECONDITION for a term that was not computed.
absl::StatusOr<OrderEstimate> EstimateOrder(const OrderReference& reference, std::span<const int> order,
                                            const EstimateOptions& options = {});

/// Gamma(theta_t, B_batch) with the reference run's moments before position t, and its slope: dGamma/dtheta =
/// diag(slope) H(theta_t, B_batch).
struct UpdateTerm {
  std::vector<double> direction;  // [n]
  std::vector<double> slope;      // [n]; 1 for SGD
};

/// Needs the gradients of terms[t][batch] and of terms[s][s] for s < t. Errors as EstimateOrder; t or batch outside
/// 0..T-1: INVALID_ARGUMENT.
absl::StatusOr<UpdateTerm> ReferenceUpdate(const OrderReference& reference, int t, int batch);

}  // namespace optod::optim
