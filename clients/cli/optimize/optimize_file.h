#pragma once
/// The file that `optoctl optimize` reads (YAML): what may change, how a candidate is scored, by which optimizer,
/// within which budget, and what counts as passed. Plain data and one strict parser: an unknown or doubled key, a wrong
/// type or a value out of range is an error that names file, line and key. Pure functions.
///
///   name: classify
///   parameters:
///     prompt: {file: prompt.txt, description: "system prompt", constraint: "mentions every label"}   # the whole file
///     is the value solve:  {file: solver.py, function: solve}                                                    # one
///     function of a Python file k:      {value: 5, type: int, range: [1, 20]} # also float, bool, enum, text, json
///   evaluate:
///     command: python3 eval.py            # /bin/sh -c, in a copy of the file's folder
///     score: {json: score}                # last JSON object of stdout; {regex: 'acc=([0-9.]+)'} (last match);
///     exit-code (1 when it is 0) direction: maximize                 # or minimize timeout: 60s # ms, s, m, h; default
///     60s exclude: [data, "*.bin"]            # entries that are not copied (file names or paths, * and ?); .git never
///     is
///   optimizer: {name: optoprime, candidates: 2, memory: 5, llm: default, seed: 1}                   # others: the
///   optimizer's hyperparameters budget: {steps: 5, evaluations: 40, llm_tokens: 200000, wall: 10m} # absent = no
///   limit, but steps: 10 gate: {min_score: 0.9, min_gain: 0.0}
///
/// Instead of `evaluate.command` a `workflow:` may be given (trace/workflow/workflow.h) with a guide, whose mean over
/// the rows is the score; `evaluate` then holds at most direction, timeout (of the whole workflow; default 10m) and
/// exclude. Parameters are names in it.

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/workflow/workflow.h"

namespace optod::cli {

/// A parameter's value as it is handed about: its type decides how the text reads.
enum class ValueType { kText, kCode, kInt, kFloat, kBool, kJson };

struct ParameterEntry {
  enum class Kind { kFile, kFunction, kValue };
  std::string name;
  Kind kind = Kind::kValue;
  ValueType type = ValueType::kText;
  std::string path;      ///< kFile, kFunction: relative to the folder of the YAML file, inside it
  std::string function;  ///< kFunction
  std::string value;     ///< kValue: text form ("5", "true", "0.25", JSON)
  std::string description, constraint;
  std::optional<double> min, max;    ///< `range`, for int and float
  std::vector<std::string> choices;  ///< enum
  int line = 0;                      ///< of the entry in the YAML file
  int value_line = 0,
      value_column = 0;  ///< kValue: where the scalar begins, 0-based; -1 when it cannot be replaced in place
};

struct ScoreRule {
  enum class Kind { kJson, kRegex, kExitCode };
  Kind kind = Kind::kExitCode;
  std::string expression;  ///< field (a.b for nested) or regular expression (ECMAScript)
};

struct EvaluateSection {
  std::string command;
  ScoreRule score;
  bool maximize = true;
  std::chrono::milliseconds timeout{60'000};
  std::vector<std::string> exclude;
};

struct Hyper {
  enum class Kind { kNumber, kFlag, kText } kind = Kind::kText;
  double number = 0;
  bool flag = false;
  std::string text;
};

struct OptimizerSection {
  std::string name = "optoprime";
  std::string llm;
  uint64_t seed = 0;
  std::optional<int> candidates;  ///< absent: the optimizer's default
  std::map<std::string, Hyper> hyperparameters;
};

struct BudgetSection {
  int64_t steps = 10;
  int64_t evaluations = 0, llm_tokens = 0;  ///< 0 = no limit
  std::chrono::milliseconds wall{0};        ///< 0 = no limit
};

struct GateSection {
  std::optional<double> min_score, min_gain;
};

struct OptimizeFile {
  std::string name;
  std::vector<ParameterEntry> parameters;  ///< in the order of the file
  EvaluateSection evaluate;
  std::optional<trace::Workflow> workflow;  ///< instead of evaluate.command
  OptimizerSection optimizer;
  BudgetSection budget;
  GateSection gate;
};

/// INVALID_ARGUMENT: "FILE:LINE: key: what is wrong; did you mean ...?". `file_name` is only for messages.
absl::StatusOr<OptimizeFile> ParseOptimizeFile(const std::string& text, const std::string& file_name);

/// "90s", "1.5m", "2h", "250ms", "30" (seconds). INVALID_ARGUMENT when it is none of these or not > 0.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text);

/// Checks `text` against the entry's type, range and choices; returns its canonical form. INVALID_ARGUMENT says the
/// rule.
absl::StatusOr<std::string> CheckValue(const ParameterEntry& entry, const std::string& text);

}  // namespace optod::cli
