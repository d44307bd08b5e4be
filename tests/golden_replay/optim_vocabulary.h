#pragma once
/// The golden files speak as the recorded programs do ("exp_avg", "betas"); this turns their words into the registry's.

#include <string>

#include "nlohmann/json.hpp"
#include "optim/rules/rule.h"

namespace optod {

struct RuleChoice {
  std::string name;
  optim::Hyper hyper;
};

/// Rule and hyperparameters of a golden file (all but `fut`, which order_replay.h serves).
absl::StatusOr<RuleChoice> ChooseRule(const nlohmann::ordered_json& golden);
/// Our state tensor, or step figure, for entry `key` of the golden state of `owner` (a tensor, or a layer "l.0"):
/// "m/w". "" = not compared.
std::string StateName(const std::string& rule, const std::string& owner, const std::string& key, bool factored);

}  // namespace optod
