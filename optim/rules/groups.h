#pragma once
/// Parameter groups: tensors chosen by globs that have hyperparameters of their own. One rule a group steps on its
/// tensors; outside it looks like one rule over the whole layout.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/registry.h"

namespace optod::optim {

struct ParameterGroup {
  std::vector<std::string> tensors;  ///< globs (glob.h)
  Hyper hyper;                       ///< in place of the base values
};

/// Group number of each tensor: the first that matches; groups.size() for a tensor in none. INVALID_ARGUMENT
/// `groups[1].tensors: nothing in the layout matches "*.biass"` for a group that matches no tensor by any pattern.
absl::StatusOr<std::vector<size_t>> AssignGroups(std::span<const ParameterGroup> groups,
                                                 std::span<const TensorSpec> layout);

/// As MakeRule, with groups; without any it is MakeRule. A group's rule draws its random numbers by the tensor's place
/// within the group. StepInput.lr is the base rate of the step; a group takes it times (its lr / the base lr). State
/// keeps the names that it has without groups; a name that two groups would share is preceded by "group<k>/" (k the
/// group's number, the number of groups for the rest). Layers of mkor and kfac must lie within one group.
/// INVALID_ARGUMENT: as MakeRule, with "groups[k]." before hyperparameter names of a group.
absl::StatusOr<std::unique_ptr<Rule>> MakeGroupedRule(const std::string& name, const Hyper& base,
                                                      std::span<const ParameterGroup> groups,
                                                      std::span<const TensorSpec> layout, uint64_t seed);

}  // namespace optod::optim
