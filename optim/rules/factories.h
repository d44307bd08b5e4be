#pragma once
/// One factory a first-order rule, each in its own file; registry.cc points its rows at them.

#include <memory>

#include "absl/status/statusor.h"
#include "optim/rules/rule_base.h"

namespace optod::optim {

using RuleFactory = absl::StatusOr<std::unique_ptr<Rule>> (*)(RuleArgs args);

absl::StatusOr<std::unique_ptr<Rule>> MakeAdafactor(RuleArgs args);   // adafactor.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeAdam(RuleArgs args);        // adam.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeAdamW(RuleArgs args);       // adam.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeAdamW8bit(RuleArgs args);   // adamw_8bit.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeAdaHessian(RuleArgs args);  // adahessian.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeApollo(RuleArgs args);      // low_rank.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeFira(RuleArgs args);        // low_rank.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeGalore(RuleArgs args);      // low_rank.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeKfac(RuleArgs args);        // kfac.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeLamb(RuleArgs args);        // lamb.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeMkor(RuleArgs args);        // mkor.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeMkorH(RuleArgs args);       // mkor.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeMuon(RuleArgs args);        // muon.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeScale(RuleArgs args);       // scale.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeSgd(RuleArgs args);         // sgd.cc
absl::StatusOr<std::unique_ptr<Rule>> MakeSgdSai(RuleArgs args);      // sgd_sai.cc

}  // namespace optod::optim
