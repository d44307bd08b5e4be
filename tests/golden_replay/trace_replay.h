#pragma once
/// Replays tests/golden/trace (its README gives the schema) through the library: nodes into a Graph, feedback, the
/// problem instance and the recorded reply, each compared with what the file records (trace_compare.h).

#include <string>
#include <vector>

#include "golden_replay/case_result.h"

namespace optod {

/// One result a *.json of `dir`, sorted by name. A folder that cannot be read gives one failed result that says so.
std::vector<CaseResult> ReplayTraceGolden(const std::string& dir);
/// One file.
CaseResult ReplayTraceFile(const std::string& path);

}  // namespace optod
