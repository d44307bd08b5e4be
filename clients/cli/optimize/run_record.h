#pragma once
/// What a run of `optoctl optimize` did, and its reports: the last JSON line, a Markdown summary, a JUnit file. Plain
/// data, pure functions.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/optimize/optimize_file.h"

namespace optod::cli {

struct EvaluatedVersion {
  int step = 0;       ///< 0 = the start
  int candidate = 0;  ///< 1, 2, ... within the step
  int64_t version = 0;
  std::optional<double> score;
  std::string failure;
  double seconds = 0;
  bool cached = false;
};

struct RunUsage {
  int64_t steps = 0, evaluations = 0;
  int64_t llm_calls = 0, llm_prompt_tokens = 0, llm_completion_tokens = 0;
  double llm_usd = 0, wall_seconds = 0;
};

struct RunRecord {
  std::string name, session, stopped;       ///< `stopped`: why it ended, for people
  std::vector<EvaluatedVersion> evaluated;  ///< in order; the start first
  std::optional<double> start_score, best_score;
  int64_t best_version = 0;
  Values start_values, best_values;
  GateResult gate;
  RunUsage usage;
  std::string patch;               ///< unified diff from start to best
  std::vector<std::string> notes;  ///< errors of the model and such, one line each
};

/// {"best_score":…,"start_score":…,"gate":"passed|failed","session":…,"version":…,"usage":{…}}; absent scores are null.
std::string ResultJson(const RunRecord& record);

/// A GitHub-flavoured summary: verdict, table of evaluations, the patch.
std::string SummaryMarkdown(const RunRecord& record, const OptimizeFile& file);

/// One test suite: a case for the gate (failed = <failure>) and one for every evaluation (a failed one = <skipped> with
/// its reason, for it is no failure of the run).
std::string JUnitXml(const RunRecord& record);

/// &, <, >, quotes as entities; control characters that XML 1.0 forbids as '?'.
std::string XmlEscape(const std::string& text);

}  // namespace optod::cli
