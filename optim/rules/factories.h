#pragma once
/// One factory a first-order rule, each in its own file; registry.cc points its rows at them.

#include <memory>

#include "absl/status/statusor.h"
#include "optim/rules/rule_base.h"

namespace optod::optim {

using RuleFactory = absl::StatusOr<std::unique_ptr<Rule>> (*)(RuleArgs args);

absl::StatusOr<std::unique_ptr<Rule>> MakeAdam(RuleArgs args);   // adam.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeAdamW(RuleArgs args);  // adam.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeSgd(RuleArgs args);    // sgd.cc

}  // namespace optod::optim
