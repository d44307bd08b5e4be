#pragma once
/// Replays tests/golden/trace through a running server: nodes by RecordNodes, feedback by Backward, the problem by
/// GetProblem, the recorded reply by a canned model behind the server's endpoint `default` and Propose, each compared
/// with what the file records (trace_compare.h).

#include <string>
#include <vector>

#include "golden_replay/canned_model.h"
#include "golden_replay/case_result.h"

namespace optod {

/// One result a *.json of `dir`, sorted by name. `address`: HOST:PORT or unix:PATH of a server whose endpoint `default`
/// is `model.url()`.
std::vector<CaseResult> ReplayTraceThroughServer(const std::string& dir, const std::string& address,
                                                 CannedModel& model);

/// The same on an `optod` of its own, started with a temporary data directory and stopped at the end.
std::vector<CaseResult> ReplayTraceThroughOwnServer(const std::string& dir);

}  // namespace optod
