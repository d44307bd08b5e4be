#pragma once
/// Computes the terms of a study: at every reference point theta_t, for every batch l, the gradient and what the
/// curvature asks for. Curvature diagonals (paper: finite differences; ours also Hutchinson):
///
///   diag      h = mean over probes z of z * (H(theta_t, B_l) z), z in {-1, +1}^n from Philox (seed, batch, probe): the
///             same probes at every t, so that differences along t are not of the draws
///   secant    h = (g_t - g_{t-1}) / (theta_t - theta_{t-1}) elementwise; 0 where |theta_t - theta_{t-1}| is below the
///             guard; h_0 = h_1
///   third     q = (h_t - h_{t-1}) / (theta_t - theta_{t-1}), same guard; q_0 = 0 (no deviation there)
/// |h| is clipped to the cap.

#include "optim/order/parallel.h"
#include "optim/order/reference_run.h"
#include "optim/order/term_store.h"

namespace optod::order {

/// Records a term has: 1 (gradient), 2 (curvature) or 3 (second order).
int RecordsOf(const StudyOptions& options);

/// Fills the segments that are missing, `threads` at a time (at most model.concurrency()). Progress in terms, those
/// that were there already counted. CANCELLED keeps what is finished. `cap` > 0.
absl::Status FillTerms(const Model& model, const Trajectory& trajectory, const StudyOptions& options, double cap,
                       TermStore& store, const Control& control);

}  // namespace optod::order
