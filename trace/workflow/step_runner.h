#pragma once
/// One attempt of one step or guide. Internal to trace/workflow; thread-safe.

#include <atomic>
#include <mutex>
#include <string>

#include "trace/workflow/executor.h"

namespace optod::trace {

/// What an attempt came to: a value, or an error with a type as Python names one.
struct StepOutcome {
  bool ok = false;
  std::string value;       ///< JSON text
  std::string error_type;  ///< "CommandError", "TimeoutError", "ValueError", ...
  std::string error;
  bool retryable = true;  ///< false: it would fail again in the same way
  bool cancelled = false;
};

StepOutcome Good(std::string json);
StepOutcome Bad(std::string type, std::string error, bool retryable = true);
/// A status as an outcome; the code gives the type.
StepOutcome BadStatus(const absl::Status& status);

/// A guide's word on one row.
struct Verdict {
  bool ok = false;
  double score = 0;
  std::string feedback;
  StepOutcome failure;  ///< when not ok
};

struct UsageMeter {
  std::mutex mutex;
  int64_t calls = 0;
  ChatUsage usage;
};

class StepRunner {
 public:
  /// `stop` becomes true when the run is cancelled or out of time.
  StepRunner(const WorkflowServices& services, const std::atomic<bool>* stop) : services_(services), stop_(stop) {}

  /// Any step but a map.
  StepOutcome Run(const Step& step, const Expression::Lookup& lookup);
  Verdict Judge(const Guide& guide, const Expression::Lookup& lookup);

  UsageMeter meter;

 private:
  StepOutcome Llm(const LlmStep& step, int64_t timeout_ms, const Expression::Lookup& lookup);
  StepOutcome Command(const CommandStep& step, int64_t timeout_ms, const Expression::Lookup& lookup);
  StepOutcome Python(const PythonStep& step, int64_t timeout_ms, const Expression::Lookup& lookup);
  StepOutcome Http(const HttpStep& step, int64_t timeout_ms, const Expression::Lookup& lookup);
  StepOutcome Op(const OpStep& step, const Expression::Lookup& lookup);
  StepOutcome Complete(const std::string& endpoint, const ChatRequest& request, int64_t timeout_ms);
  Verdict JudgeByModel(const Guide& guide, const std::string& got, const std::string& want);
  Verdict JudgeByCommand(const Guide& guide, const Expression::Lookup& lookup);
  SandboxLimits Limits(int64_t timeout_ms) const;

  const WorkflowServices& services_;
  const std::atomic<bool>* stop_;
};

}  // namespace optod::trace
