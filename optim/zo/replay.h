#pragma once
/// One zeroth-order update as it travels: a few scalars, applied in float32 by the server, by every worker and by a
/// late joiner with the same bytes. This is where the arithmetic of a step is defined; ZoUpdate<float> runs the same
/// code.
///
///   plain (zo-sgd, zo-sgd-sign "code", zo-sgd-cons, forward-grad):
///     theta -= rate * theta on decayed tensors, then theta -= coefficient_i * z_i, i in order
///   rule (zo-sgd-mmt, zo-adam, zo-sgd-sign "paper"):
///     g = sum_i coefficient_i * z_i / q (or the signs of the products); g += weight_decay * theta; then the base
///     optimizer. coefficient_i is the projected gradient.
/// A term moves the tensors of its block only (support.h), and a tensor that no term moves is left alone: no decay, no
/// change of its moments. A masked element is moved by decay alone.
/// Functions on different theta may run at once.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "optim/zo/hyper.h"
#include "optim/zo/stream.h"
#include "optim/zo/update.h"

namespace optod::zo {

struct Term {
  uint32_t step = 0, query = 0;  ///< of the direction z, see stream.h
  float coefficient = 0;
};

/// One update. `rule` is set exactly when NeedsRule(hyper).
struct UpdateScalars {
  std::vector<Term> terms;  ///< with no rule, none at all (and rate 0) leaves theta as it is
  float decay_rate = 0;     ///< plain: fl32(lr * weight_decay); negative when zo-sgd-cons went up
  std::optional<RuleScalars<float>> rule;
};

/// The numbers of update `t` (1 for a tensor's first) at learning rate `lr`.
template <class T>
RuleScalars<T> RuleScalarsFor(const ZoHyper& hyper, double lr, int64_t t);

/// Whether updates go through a base optimizer: momentum, Adam, or signs element by element.
bool NeedsRule(const ZoHyper& hyper);

/// theta + shift * z(step, query), as a worker evaluates it: the update with the one coefficient -shift, without decay.
void ShiftAlong(const ZoLayout& layout, const ZoHyper& hyper, const Direction& direction, float shift,
                std::span<float> theta);

/// theta and, for rules with state, `state` after the update. theta and state have the layout's sizes; `state` is not
/// read by plain updates. INVALID_ARGUMENT when the update has a rule where the optimizer needs none, or none where it
/// needs one; nothing changes then.
absl::Status ApplyUpdate(const ZoLayout& layout, const ZoHyper& hyper, uint64_t seed, const UpdateScalars& update,
                         std::span<float> theta, ZoState<float>* state);

/// Zero state of the sizes that the optimizer needs; counts 0.
ZoState<float> InitialState(const ZoLayout& layout, const ZoHyper& hyper);

}  // namespace optod::zo
