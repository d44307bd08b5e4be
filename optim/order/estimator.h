#pragma once
/// The fast path of the estimate: many orders at once, over terms that are in memory or on disk. What is computed is
/// EstimateOrder of sample_order.h (the slow, obvious reference; tests hold the two together), with momentum, AdamW,
/// epochs, the second order, and curvature by product (hvp, span).
///
///   curvature none, diag, secant   the deviation moves element by element: a piece of 512 parameters goes through all
///                                  positions of all orders while its terms are in cache
///   hvp                            one H v of the model a position
///   span                           H d = sum_s c_s (g(theta_s, B) - g(theta_t, B)), c = least squares of d over
///                                  theta_s - theta_t with a ridge: P dot products and P sums a position
///   multisecant                    H d = sum_k c_k y_k over the probe runs (multisecant.h)
///   diag, secant, span with        the same for what the probe runs span, and trust times the curvature's own answer
///   probe runs                     for the rest of d
/// Trust, in [0, 1], is the least-squares factor between what the curvature says of the part of a probe run that the
/// other probe runs do not span and what the gradients of that run say: one number a study, measured on up to 4 runs at
/// all positions. Near 0 the curvature is worse than nothing there and is left out.
/// Cost of an order: P n (element-wise), P H v (hvp), 2 P^2 n (span), 2 K P n (K probe runs), P positions.

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/model.h"
#include "optim/order/options.h"
#include "optim/order/parallel.h"
#include "optim/order/reference_run.h"
#include "optim/order/term_store.h"

namespace optod::order {

struct EstimateOptions {
  int expansion = -1;  ///< 0: no curvature; 1: first order; 2: second; -1: the most that is stored
  Moments moments = Moments::kReplay;
  bool calibrate = true;  ///< values of a metric, not parameters; where there are probe runs (Calibration in study.h)
};

/// Everything a study has recorded. All must outlive the estimator.
struct Recorded {
  const StudyOptions* options = nullptr;
  const std::vector<double>* lr = nullptr;  // [P]
  const Order* reference_order = nullptr;   // [P]
  const Trajectory* trajectory = nullptr;
  const TermStore* terms = nullptr;
  const Model* model = nullptr;  // null: no hvp
  double cap = 0.0;
  const TermStore* probes = nullptr;  // of the probe runs, and the orders they saw; null: none
  const std::vector<Order>* probe_orders = nullptr;
};

/// Thread-safe: calls may overlap; they share the decoded terms, of which at most memory_budget bytes are held.
class Estimator {
 public:
  explicit Estimator(const Recorded& recorded);
  ~Estimator();

  /// Receives the final deviation gamma_P - theta_P of orders[order] at parameters [begin, begin + d.size()), from any
  /// thread, each piece once.
  using Sink = std::function<void(size_t order, size_t begin, std::span<const double> d)>;
  /// orders: expanded (P batches each). FAILED_PRECONDITION: a term is missing, second order or the model is not there;
  /// RESOURCE_EXHAUSTED: the memory budget does not hold one page of the terms needed (or one order's vectors).
  /// Progress in orders for hvp, span and probe runs, else in pieces.
  absl::Status Deviations(std::span<const Order> orders, const EstimateOptions& options, const Sink& sink,
                          const Control& control = {});

  /// gamma_0 .. gamma_P of one order: [P + 1][n].
  absl::StatusOr<std::vector<std::vector<double>>> Path(const Order& order, const EstimateOptions& options);

  /// Share of the deviation's squared norm that the span of the trajectory holds, mean over positions of an order: how
  /// much of H d curvature `span` can see. 0 .. 1.
  absl::StatusOr<double> SpanCoverage(const Order& order, const EstimateOptions& options);

  /// See above; needs probe runs and curvature diag, secant or span. Measured once.
  absl::StatusOr<double> Trust();

  /// The final deviation of the order of probe run k, estimated as if that run had not been made: [n].
  absl::StatusOr<std::vector<double>> OfProbe(int k, const EstimateOptions& options);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::order
