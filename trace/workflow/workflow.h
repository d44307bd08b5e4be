#pragma once
/// A declared workflow: steps that form a graph by the names they use, run for each row of a data set, and a guide that
/// scores what came out. Plain data and one strict parser for YAML and JSON. Pure functions.
///
///   data: {file: cases.jsonl, limit: 50}            # or {rows: [...]}; each row is {{item}}, its number {{index}};
///   absent: one run without a row parallel: 4                                     # steps at once, over all rows [4]
///   timeout: 60s                                    # default of each attempt of a step [60s]
///   trace_rows: 3                                   # rows whose nodes the optimizer sees, the worst first [3]
///   steps:
///     ask:    {template: "{{prompt}}\n{{item.question}}"}
///     answer: {llm: {prompt: "{{ask}}", system: "...", endpoint: default, temperature: 0, max_tokens: 64}, retries: 2}
///     code:   {python: {source: "{{solve}}", function: solve, arguments: ["{{item.x}}"]}}   # always in the sandbox
///     check:  {command: {run: "grep -c yes", input: "{{answer}}", result: number}}   # there too unless `sandbox: false`
///     page:   {http: {url: "https://.../{{item.id}}", json: true}}
///     short:  {op: lower, arguments: ["{{answer}}"], when: "{{item.lower}}"}   # null when `when` is false
///     all:    {map: {over: "{{item.parts}}", as: part, step: {template: "<{{part}}>", when: "{{part}}"}}}   # a list, an
///             # entry null when its `when` is false; the step may be a map too, at most 4 deep
///   guide: {exact: {got: "{{answer}}", want: "{{item.label}}"}}
///
/// Names in {{...}} are parameters, steps, `item`, `index` and a map's `as`. A step runs when what it uses is there;
/// steps that do not use each other run at once. Every step may have when, after, retries, timeout, description.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/workflow/document.h"
#include "trace/workflow/expression.h"

namespace optod::trace {

struct TemplateStep {
  Expression value;
};

struct LlmStep {
  Expression prompt, system;  ///< system: null = none
  std::string endpoint = "default";
  std::optional<double> temperature;
  int64_t max_tokens = 1024;
  std::optional<int64_t> seed;
  std::string schema;  ///< JSON schema of the reply; "" = none. With one, the value is the parsed and checked reply
  bool json = false;   ///< the value is the reply parsed as JSON
  std::vector<std::string> stop;
};

enum class CommandResult {
  kText,      ///< stdout without the last line break
  kJson,      ///< the last line of stdout that is a JSON value
  kNumber,    ///< the last line of stdout as a number
  kExitCode,  ///< the number; then no exit code is a failure
  kAll,       ///< {"exit_code":..,"out":..,"err":..}; then no exit code is a failure
};

struct CommandStep {
  std::string shell;  ///< for /bin/sh -c, taken as it is: values come by arguments, environment and input, so that none
                      ///< is read as shell
  std::vector<Expression> arguments;  ///< $1, $2, ...
  Expression input;                   ///< stdin; null = empty
  std::vector<std::pair<std::string, Expression>> environment;
  CommandResult result = CommandResult::kText;
  bool sandbox = true;
};

struct PythonStep {
  Expression source;
  std::string function;
  Expression arguments, keywords;  ///< a list; a map
};

struct HttpStep {
  std::string method = "GET";
  Expression url, body;  ///< body: null = none; a text as it is, anything else as JSON
  std::vector<std::pair<std::string, Expression>> headers;
  bool json = false;  ///< the value is the body parsed as JSON
};

struct OpStep {
  std::string op;
  std::vector<Expression> arguments;
};

struct Step;
struct MapStep {
  Expression over;
  std::string as;
  std::shared_ptr<const Step> step;  ///< for each entry; no llm budget of its own
};

struct Step {
  std::string name;
  int line = 0;
  std::string description;
  std::variant<TemplateStep, LlmStep, CommandStep, PythonStep, HttpStep, OpStep, MapStep> work;
  std::optional<Expression> when;
  std::vector<std::string> after;
  int64_t retries = 0;          ///< further attempts after a failure
  int64_t timeout_ms = 60'000;  ///< of one attempt
  std::set<std::string> uses;   ///< every name in it, `after` included
};

struct Guide {
  enum class Kind { kNone, kScore, kExact, kRegex, kNumeric, kSchema, kCommand, kJudge };
  Kind kind = Kind::kNone;
  Expression got, want;
  Expression feedback;       ///< null = the guide's own words
  bool ignore_case = false;  ///< exact
  std::string pattern;       ///< regex (RE2): found anywhere in `got`
  double tolerance = 0;      ///< numeric: |got - want| <= tolerance * max(1, |want|)
  std::string schema;        ///< JSON schema
  CommandStep command;       ///< exit code 0 = 1, else 0
  std::string rubric;        ///< judge
  std::string endpoint = "default";
  int64_t max_tokens = 512;  ///< of the judge
  int line = 0;
  std::set<std::string> uses;
};

struct Workflow {
  std::vector<Step> steps;  ///< in an order in which each comes after what it uses
  Guide guide;
  std::string data_file;          ///< "" = none
  std::vector<std::string> rows;  ///< JSON texts, of `data: {rows: [...]}`
  bool has_data = false;
  int64_t limit = 0;  ///< 0 = all rows
  int64_t parallel = 4;
  int64_t trace_rows = 3;
  std::set<std::string> parameters;  ///< names of parameters that it uses
  bool UsesModel() const;
};

/// `path` is where the map stands in the file ("workflow"). `parameters` are the names of values from outside.
/// INVALID_ARGUMENT `FILE:LINE: path.field: ...`: unknown fields, wrong types, names that nothing has, steps that use
/// each other in a circle.
absl::StatusOr<Workflow> ParseWorkflow(const DocMap& map, const std::set<std::string>& parameters);

/// A whole file (or JSON text) that is a workflow.
absl::StatusOr<Workflow> ParseWorkflowText(const std::string& text, const std::string& file,
                                           const std::set<std::string>& parameters);

/// A data set: JSON Lines (name ends in .jsonl) or one JSON list. INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<std::string>> ParseRows(const std::string& text, const std::string& name);

}  // namespace optod::trace
