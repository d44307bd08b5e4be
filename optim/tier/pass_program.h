#pragma once
/// The history as operations on elements (pass_ops.h): what UnitPass does itself on the CPU, for a device that is told.
/// Pure functions.

#include <span>
#include <vector>

#include "optim/tier/pass_ops.h"
#include "optim/tier/unit_pass.h"

namespace optod::tier {

/// From `from` to step `steps`, in the order of UnitPass::CatchUp. `decay`: the tensor's.
std::vector<PassOp> ProgramOf(const zo::ZoHyper& hyper, const History& history, Progress from, uint32_t steps,
                              bool decay);
PassRule RuleOf(const zo::ZoHyper& hyper);
PassCopies CopiesOf(const zo::ZoHyper& hyper, uint32_t step, int query, Copies copies);

/// What direction k of a step is multiplied by: of a plain update (theta += coefficient z), of a rule's gradient.
float PlainCoefficient(const zo::ZoHyper& hyper, double lr, std::span<const double> g, size_t k);
float GradientCoefficient(const zo::ZoHyper& hyper, double g);

}  // namespace optod::tier
