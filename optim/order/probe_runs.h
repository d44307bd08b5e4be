#pragma once
/// Probe runs: trainings of other orders than the reference's, kept for what they say about curvature where estimates
/// go. Run k has batch base[(places[t] + k T / K) mod T] at position t, base and places random permutations: every
/// batch stands first, second, ... about equally often (with K = T a Latin square, every batch at every position once),
/// and no run is another one shifted in time. At position t, with its batch l and its parameters gamma:
///
///   deviation   s = gamma - theta_t                                 [n]
///   change      y = g(gamma, B_l) - g(theta_t, B_l), about H s      [n]; 0 after the last position, t = P
///
/// The gradients at gamma are the training's own, so K runs cost K trainings; with lossy storage the gradients at
/// theta_t are taken again (the stored ones err by more than s changes them). Kept in a term store of its own, in the
/// folder `runs` of the study: records s and y, exact or in 16 bits (sketches are stored as fp16).

#include <span>
#include <vector>

#include "optim/order/parallel.h"
#include "optim/order/reference_run.h"
#include "optim/order/term_store.h"

namespace optod::order {

inline constexpr Record kDeviation = kGradient, kChange = kCurvature;  // of the store of probe runs

/// The order of every run, spelled out over the epochs: [runs][epochs * batches]. A function of its arguments.
std::vector<Order> ProbeOrders(int runs, int batches, int epochs, uint64_t seed);

/// `terms`: the layout of the study's terms; this one has a position more, t = P. As few files a run as segment_bytes
/// allows.
TermLayout ProbeLayout(const TermLayout& terms, int runs);

/// Fills the runs that are missing, up to model.concurrency() at a time. Progress in positions of runs, those that were
/// there already counted. CANCELLED keeps what is finished. `terms`: complete when its codec is lossless.
absl::Status FillProbeRuns(const Model& model, const Trajectory& trajectory, const StudyOptions& options,
                           std::span<const double> lr, std::span<const Order> orders, const TermStore& terms,
                           TermStore& store, const Control& control);

}  // namespace optod::order
