#pragma once
/// Runs the evaluation command for one set of values in a copy of the folder, and says what came out. A command that
/// hangs, floods, dies or prints no score is a failed evaluation with a text that says so, never an error of the run.
/// Thread-safe.

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/optimize_file.h"
#include "trace/workflow/executor.h"

namespace optod::cli {

struct Evaluation {
  std::optional<double> score;  ///< absent: failed
  std::string failure;          ///< why there is no score; "" when there is one
  std::string out, err;         ///< ends of the command's outputs, bounded, with the copy's path written as "."
  std::chrono::milliseconds wall{0};
  bool cached = false;  ///< the same values were evaluated before
  bool cancelled = false;
  std::shared_ptr<const trace::WorkflowTrace> trace;  ///< of a workflow: what happened, as nodes
};

class WorkflowRunner;

struct EvaluatorOptions {
  size_t max_output_bytes = 1u << 20;  ///< of each stream; a command that writes more has failed
  size_t kept_bytes = 4'000;           ///< of each stream, its end
  std::string temporary_root;          ///< where copies are made; "" = the system's
  const std::atomic<bool>* cancelled = nullptr;
  WorkflowRunner* workflow = nullptr;  ///< runs candidates when the file has a workflow
};

class Evaluator {
 public:
  Evaluator(const CandidateTree& tree, const OptimizeFile& file, EvaluatorOptions options);

  /// Errors: only what is no candidate's fault (the folder cannot be copied).
  absl::StatusOr<Evaluation> Evaluate(const Values& values);
  /// All of them, at most `jobs` at once; results in the order given. Equal values run once.
  absl::StatusOr<std::vector<Evaluation>> EvaluateAll(const std::vector<Values>& candidates, int jobs);

  bool IsCached(const Values& values) const;
  /// What model calls of a workflow count to.
  void SetSession(const std::string& session);

 private:
  absl::StatusOr<Evaluation> Run(const Values& values);

  const CandidateTree& tree_;
  const OptimizeFile& file_;
  EvaluatorOptions options_;
  mutable std::mutex mutex_;
  std::map<std::string, Evaluation> cache_;  // by hash of the values
};

/// SHA-256 of names and values: equal for equal values.
std::string ValuesHash(const Values& values);

}  // namespace optod::cli
