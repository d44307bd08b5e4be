#pragma once
/// Replays the golden trajectories of tests/golden/zo (schema in its README.md) through the library of optim/zo and
/// compares every figure. Reads files only; thread-safe.

#include <string>
#include <vector>

#include "golden_replay/case_result.h"

namespace optod {

/// Every *.json of `dir`, sorted by name; empty when the folder holds none or does not exist. Each file must pass under
/// both residue modes.
std::vector<CaseResult> ReplayZoGolden(const std::string& dir);
/// One file.
CaseResult ReplayZoFile(const std::string& path);

}  // namespace optod
