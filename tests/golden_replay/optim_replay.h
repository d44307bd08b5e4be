#pragma once
/// Replays tests/golden/optim (its README gives the schema): every recorded step goes through MakeRule and Rule::Step,
/// the code that serves; sample-order cases through optim/order.

#include <string>
#include <vector>

#include "golden_replay/case_result.h"

namespace optod {

/// One result a *.json of `dir`, sorted by name. A folder that cannot be read gives one failed result that says so.
std::vector<CaseResult> ReplayOptimGolden(const std::string& dir);
/// One file.
CaseResult ReplayOptimFile(const std::string& path);

}  // namespace optod
