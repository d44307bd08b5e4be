#pragma once
/// The loop of `optoctl optimize`: evaluate, tell the server what happened, let the model propose, evaluate the
/// proposals, keep the best.
///
///   start -> evaluate -> [ record nodes, backward(feedback), propose -> candidates -> evaluate each -> tell scores ->
///   head := best ] ... -> best
///
/// Never worse than the start: the head is always the best version seen. It ends on a budget, an interrupt, when the
/// model says stop, or when `kMaxIdleSteps` steps in a row brought no new values. For one thread.

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/evaluator.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/optimize/progress.h"
#include "clients/cli/optimize/run_record.h"
#include "clients/cpp/client.h"

namespace optod::cli {

inline constexpr int kMaxIdleSteps = 3;

struct RunOptions {
  int jobs = 1;        ///< evaluations at once
  std::string resume;  ///< session to go on with; "" = a new one
  const std::atomic<bool>* interrupted = nullptr;
};

/// Everything the run did, and how it ended.
struct RunOutcome {
  RunRecord record;
  bool no_proposal = false;  ///< the model was asked and could not answer even once (and no budget was the reason)
  absl::Status fatal;        ///< not OK: the server refused or went away; `record` holds what was reached before
};

RunOutcome RunOptimization(client::Client& client, const OptimizeFile& file, const CandidateTree& tree,
                           Evaluator& evaluator, Progress& progress, const RunOptions& options);

}  // namespace optod::cli
