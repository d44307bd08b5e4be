#include "trace/workflow/workflow.h"

#include <re2/re2.h>

#include <algorithm>

#include "base/status.h"
#include "trace/llm/json_parse.h"
#include "trace/optimizers/json_schema.h"
#include "trace/workflow/operators.h"

namespace optod::trace {
namespace {

constexpr size_t kMaxSteps = 256, kMaxRows = 100'000;
constexpr int kMaxMaps = 4;
const std::vector<std::string> kKinds = {"template", "llm", "command", "python", "http", "op", "map"};

bool IsName(const std::string& name) {
  if (name.empty() || name.size() > 63 || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return c == '_' || (c < 0x80 && std::isalnum(c)); });
}

/// Reads expressions and keeps the names that they use.
class Reader {
 public:
  explicit Reader(std::set<std::string>* uses) : uses_(uses) {}

  absl::Status Read(const DocMap& map, const std::string& field, Expression* out) const {
    const DocNode* node = map.Find(field);
    return node == nullptr ? absl::OkStatus() : Parse(map, field, *node, out);
  }
  absl::Status Require(const DocMap& map, const std::string& field, Expression* out) const {
    return map.Has(field) ? Read(map, field, out) : map.Error(field, "missing");
  }
  absl::Status ReadList(const DocMap& map, const std::string& field, std::vector<Expression>* out) const {
    const DocNode* node = map.Find(field);
    if (node == nullptr) return absl::OkStatus();
    if (node->kind != DocNode::Kind::kList) return map.Error(field, "must be a list");
    for (const DocNode& item : node->list) RETURN_IF_ERROR(Parse(map, field, item, &out->emplace_back()));
    return absl::OkStatus();
  }
  absl::Status ReadMap(const DocMap& map, const std::string& field,
                       std::vector<std::pair<std::string, Expression>>* out) const {
    if (!map.Has(field)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const DocMap inner, map.Map(field));
    for (const auto& [key, value] : inner.node().map) {
      out->emplace_back(key, Expression());
      RETURN_IF_ERROR(Parse(inner, key, value, &out->back().second));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Parse(const DocMap& map, const std::string& field, const DocNode& node, Expression* out) const {
    auto parsed = Expression::Parse(DocToJson(node));
    if (!parsed.ok()) return map.Error(field, std::string(parsed.status().message()));
    uses_->insert(parsed->names().begin(), parsed->names().end());
    *out = *std::move(parsed);
    return absl::OkStatus();
  }
  std::set<std::string>* uses_;
};

absl::Status ReadSchema(const DocMap& map, const std::string& field, std::string* out) {
  const DocNode* node = map.Find(field);
  if (node == nullptr) return absl::OkStatus();
  *out = DocToJson(*node);
  const absl::Status checked = ValidateJsonSchema(*out, "schema");
  return checked.ok() ? checked : map.Error(field, std::string(checked.message()));
}

absl::StatusOr<LlmStep> ReadLlm(const DocMap& map, const Reader& reader) {
  RETURN_IF_ERROR(
      map.CheckFields({"prompt", "system", "endpoint", "temperature", "max_tokens", "seed", "schema", "json", "stop"}));
  LlmStep step;
  RETURN_IF_ERROR(reader.Require(map, "prompt", &step.prompt));
  RETURN_IF_ERROR(reader.Read(map, "system", &step.system));
  RETURN_IF_ERROR(map.Read("endpoint", &step.endpoint));
  RETURN_IF_ERROR(map.Read("max_tokens", &step.max_tokens, 1, 1'000'000));
  if (map.Has("temperature")) {
    double value = 0;
    RETURN_IF_ERROR(map.Read("temperature", &value));
    if (!(value >= 0 && value <= 2)) return map.Error("temperature", "must be 0 to 2");
    step.temperature = value;
  }
  if (map.Has("seed")) {
    int64_t value = 0;
    RETURN_IF_ERROR(map.Read("seed", &value, 0, int64_t{1} << 53));
    step.seed = value;
  }
  RETURN_IF_ERROR(ReadSchema(map, "schema", &step.schema));
  RETURN_IF_ERROR(map.Read("json", &step.json));
  RETURN_IF_ERROR(map.Read("stop", &step.stop));
  if (step.stop.size() > 4) return map.Error("stop", "at most 4 texts");
  return step;
}

absl::Status ReadCommandFields(const DocMap& map, const Reader& reader, CommandStep* step) {
  RETURN_IF_ERROR(map.Read("run", &step->shell));
  if (step->shell.find_first_not_of(" \t\n") == std::string::npos) return map.Error("run", "missing or empty");
  if (step->shell.find("{{") != std::string::npos) {
    return map.Error(
        "run",
        "holds {{...}}, and a value must not become shell; give it by `arguments` (\"$1\"), `environment` or `input`");
  }
  RETURN_IF_ERROR(reader.ReadList(map, "arguments", &step->arguments));
  RETURN_IF_ERROR(reader.Read(map, "input", &step->input));
  RETURN_IF_ERROR(reader.ReadMap(map, "environment", &step->environment));
  for (const auto& [name, value] : step->environment)
    if (!IsName(name)) return map.Error("environment", "\"" + name + "\" is not a name of letters, digits and _");
  return map.Read("sandbox", &step->sandbox);
}

absl::StatusOr<CommandStep> ReadCommand(const DocMap& map, const Reader& reader) {
  RETURN_IF_ERROR(map.CheckFields({"run", "arguments", "input", "environment", "result", "sandbox"}));
  CommandStep step;
  RETURN_IF_ERROR(ReadCommandFields(map, reader, &step));
  std::string result = "text";
  RETURN_IF_ERROR(map.Read("result", &result));
  const std::vector<std::string> names = {"text", "json", "number", "exit_code", "all"};
  const auto found = std::find(names.begin(), names.end(), result);
  if (found == names.end())
    return map.Error("result", "must be text, json, number, exit_code or all" + DidYouMeanOf(result, names));
  step.result = static_cast<CommandResult>(found - names.begin());
  return step;
}

absl::StatusOr<PythonStep> ReadPython(const DocMap& map, const Reader& reader) {
  RETURN_IF_ERROR(map.CheckFields({"source", "function", "arguments", "keywords"}));
  PythonStep step;
  RETURN_IF_ERROR(reader.Require(map, "source", &step.source));
  RETURN_IF_ERROR(map.Read("function", &step.function));
  if (!IsName(step.function)) return map.Error("function", "must be the name of a function");
  RETURN_IF_ERROR(reader.Read(map, "arguments", &step.arguments));
  RETURN_IF_ERROR(reader.Read(map, "keywords", &step.keywords));
  if (map.Has("arguments") && map.Find("arguments")->kind == DocNode::Kind::kMap)
    return map.Error("arguments", "must be a list; named ones go into `keywords`");
  if (map.Has("keywords") && map.Find("keywords")->kind != DocNode::Kind::kMap)
    return map.Error("keywords", "must be a mapping");
  return step;
}

absl::StatusOr<HttpStep> ReadHttp(const DocMap& map, const Reader& reader) {
  RETURN_IF_ERROR(map.CheckFields({"url", "method", "headers", "body", "json"}));
  HttpStep step;
  RETURN_IF_ERROR(reader.Require(map, "url", &step.url));
  RETURN_IF_ERROR(reader.Read(map, "body", &step.body));
  step.method = map.Has("body") ? "POST" : "GET";
  RETURN_IF_ERROR(map.Read("method", &step.method));
  const std::vector<std::string> methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"};
  if (std::find(methods.begin(), methods.end(), step.method) == methods.end())
    return map.Error("method", "must be GET, POST, PUT, PATCH, DELETE or HEAD");
  RETURN_IF_ERROR(reader.ReadMap(map, "headers", &step.headers));
  RETURN_IF_ERROR(map.Read("json", &step.json));
  return step;
}

absl::StatusOr<OpStep> ReadOp(const DocMap& map, const Reader& reader) {
  OpStep step;
  RETURN_IF_ERROR(map.Read("op", &step.op));
  RETURN_IF_ERROR(reader.ReadList(map, "arguments", &step.arguments));
  const absl::Status good = CheckOperator(step.op, step.arguments.size());
  if (!good.ok()) return map.Error("op", std::string(good.message()));
  return step;
}

absl::StatusOr<Step> ReadStep(const DocMap& steps, const std::string& name, int64_t default_timeout_ms,
                              int maps_around);

absl::StatusOr<MapStep> ReadMapStep(const DocMap& map, const Reader& reader, int64_t timeout_ms, int maps_around,
                                    std::set<std::string>* uses) {
  RETURN_IF_ERROR(map.CheckFields({"over", "as", "step"}));
  MapStep step;
  RETURN_IF_ERROR(reader.Require(map, "over", &step.over));
  step.as = "each";
  RETURN_IF_ERROR(map.Read("as", &step.as));
  if (!IsName(step.as)) return map.Error("as", "must be a name of letters, digits and _");
  if (!map.Has("step")) return map.Error("step", "missing");
  ASSIGN_OR_RETURN(Step inner, ReadStep(map, "step", timeout_ms, maps_around + 1));
  std::set<std::string> outer = inner.uses;
  outer.erase(step.as);
  uses->insert(outer.begin(), outer.end());
  step.step = std::make_shared<const Step>(std::move(inner));
  return step;
}

template <typename T>
absl::Status Store(absl::StatusOr<T> parsed, Step* step) {
  if (!parsed.ok()) return parsed.status();
  step->work = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status ReadWork(const DocMap& map, const std::string& kind, const Reader& reader, int maps_around, Step* step) {
  if (kind == "template") {
    TemplateStep work;
    RETURN_IF_ERROR(reader.Read(map, "template", &work.value));
    step->work = std::move(work);
    return absl::OkStatus();
  }
  if (kind == "op") return Store(ReadOp(map, reader), step);
  // `command: TEXT` is short for `command: {run: TEXT}`.
  if (kind == "command" && map.Find("command")->kind == DocNode::Kind::kScalar) {
    CommandStep work;
    work.shell = map.Find("command")->scalar;
    if (work.shell.empty() || work.shell.find("{{") != std::string::npos)
      return map.Error("command", "is empty or holds {{...}}; give values by `command: {run: ..., arguments: [...]}`");
    step->work = std::move(work);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const DocMap inner, map.Map(kind));
  if (kind == "llm") return Store(ReadLlm(inner, reader), step);
  if (kind == "command") return Store(ReadCommand(inner, reader), step);
  if (kind == "python") return Store(ReadPython(inner, reader), step);
  if (kind == "http") return Store(ReadHttp(inner, reader), step);
  if (maps_around == kMaxMaps) return map.Error(kind, Cat("maps nest at most ", kMaxMaps, " deep"));
  return Store(ReadMapStep(inner, reader, step->timeout_ms, maps_around, &step->uses), step);
}

absl::StatusOr<Step> ReadStep(const DocMap& steps, const std::string& name, int64_t default_timeout_ms,
                              int maps_around) {
  ASSIGN_OR_RETURN(const DocMap map, steps.Map(name));
  std::vector<std::string> known = {"when", "after", "retries", "timeout", "description", "arguments"};
  known.insert(known.end(), kKinds.begin(), kKinds.end());
  RETURN_IF_ERROR(map.CheckFields(known));
  Step step;
  step.name = name;
  step.line = map.node().line;
  step.timeout_ms = default_timeout_ms;
  const Reader reader(&step.uses);
  RETURN_IF_ERROR(map.Read("description", &step.description));
  RETURN_IF_ERROR(map.Read("retries", &step.retries, 0, 10));
  RETURN_IF_ERROR(map.ReadDuration("timeout", &step.timeout_ms));
  RETURN_IF_ERROR(map.Read("after", &step.after));
  step.uses.insert(step.after.begin(), step.after.end());
  std::string kind;
  for (const std::string& one : kKinds) {
    if (!map.Has(one)) continue;
    if (!kind.empty()) return map.Error(one, "a step does one thing, and this one has `" + kind + "` too");
    kind = one;
  }
  if (kind.empty()) return steps.Error(name, "needs one of template, llm, command, python, http, op, map");
  if (map.Has("arguments") && kind != "op") return map.Error("arguments", "belongs into `" + kind + "`, or to an `op`");
  RETURN_IF_ERROR(ReadWork(map, kind, reader, maps_around, &step));
  if (map.Has("when")) RETURN_IF_ERROR(reader.Read(map, "when", &step.when.emplace()));
  return step;
}

absl::Status ReadGuideKind(const DocMap& map, const std::string& kind, const Reader& reader, Guide* guide) {
  if (kind == "score") return reader.Read(map, "score", &guide->got);
  ASSIGN_OR_RETURN(const DocMap inner, map.Map(kind));
  std::vector<std::string> known = {"got"};
  if (kind == "exact") known.insert(known.end(), {"want", "ignore_case"});
  if (kind == "regex") known.push_back("pattern");
  if (kind == "numeric") known.insert(known.end(), {"want", "tolerance"});
  if (kind == "schema") known.push_back("schema");
  if (kind == "judge") known.insert(known.end(), {"want", "rubric", "endpoint", "max_tokens"});
  if (kind == "command") known = {"run", "arguments", "input", "environment", "sandbox"};
  RETURN_IF_ERROR(inner.CheckFields(known));
  if (kind == "command") return ReadCommandFields(inner, reader, &guide->command);
  RETURN_IF_ERROR(reader.Require(inner, "got", &guide->got));
  if (kind == "exact" || kind == "numeric") RETURN_IF_ERROR(reader.Require(inner, "want", &guide->want));
  if (kind == "judge") RETURN_IF_ERROR(reader.Read(inner, "want", &guide->want));
  RETURN_IF_ERROR(inner.Read("ignore_case", &guide->ignore_case));
  RETURN_IF_ERROR(inner.Read("tolerance", &guide->tolerance));
  if (guide->tolerance < 0) return inner.Error("tolerance", "must be >= 0");
  RETURN_IF_ERROR(inner.Read("endpoint", &guide->endpoint));
  RETURN_IF_ERROR(inner.Read("max_tokens", &guide->max_tokens, 1, 100'000));
  RETURN_IF_ERROR(inner.Read("rubric", &guide->rubric));
  if (kind == "judge" && guide->rubric.empty()) return inner.Error("rubric", "missing: what makes an answer good");
  if (kind == "regex") {
    RETURN_IF_ERROR(inner.Read("pattern", &guide->pattern));
    const RE2 pattern(guide->pattern, RE2::Quiet);
    if (guide->pattern.empty() || !pattern.ok())
      return inner.Error("pattern",
                         guide->pattern.empty() ? "missing" : "not a regular expression: " + pattern.error());
  }
  if (kind == "schema" && !inner.Has("schema")) return inner.Error("schema", "missing");
  return ReadSchema(inner, "schema", &guide->schema);
}

absl::Status ReadGuide(const DocMap& root, Guide* guide) {
  if (!root.Has("guide")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const DocMap map, root.Map("guide"));
  const std::vector<std::string> kinds = {"score", "exact", "regex", "numeric", "schema", "command", "judge"};
  std::vector<std::string> known = kinds;
  known.push_back("feedback");
  RETURN_IF_ERROR(map.CheckFields(known));
  guide->line = map.node().line;
  const Reader reader(&guide->uses);
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (!map.Has(kinds[i])) continue;
    if (guide->kind != Guide::Kind::kNone)
      return map.Error(kinds[i], "a guide is one of score, exact, regex, numeric, schema, command, judge");
    guide->kind = static_cast<Guide::Kind>(i + 1);
    RETURN_IF_ERROR(ReadGuideKind(map, kinds[i], reader, guide));
  }
  if (guide->kind == Guide::Kind::kNone)
    return root.Error("guide", "needs one of score, exact, regex, numeric, schema, command, judge");
  return reader.Read(map, "feedback", &guide->feedback);
}

absl::Status ReadData(const DocMap& root, Workflow* out) {
  if (!root.Has("data")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const DocMap map, root.Map("data"));
  RETURN_IF_ERROR(map.CheckFields({"file", "rows", "limit"}));
  if (map.Has("file") == map.Has("rows")) return root.Error("data", "needs either `file` or `rows`");
  RETURN_IF_ERROR(map.Read("file", &out->data_file));
  RETURN_IF_ERROR(map.Read("limit", &out->limit, 1, static_cast<int64_t>(kMaxRows)));
  out->has_data = true;
  const DocNode* rows = map.Find("rows");
  if (rows == nullptr) return out->data_file.empty() ? map.Error("file", "is empty") : absl::OkStatus();
  if (rows->kind != DocNode::Kind::kList || rows->list.empty())
    return map.Error("rows", "must be a list with at least one row");
  for (const DocNode& row : rows->list) out->rows.push_back(DocToJson(row));
  if (out->limit > 0 && out->rows.size() > static_cast<size_t>(out->limit))
    out->rows.resize(static_cast<size_t>(out->limit));
  return absl::OkStatus();
}

/// Every name must be somebody's. Fills workflow->parameters.
absl::Status CheckNames(const DocMap& steps, const std::set<std::string>& parameters, const std::set<std::string>& uses,
                        const std::string& who, Workflow* workflow) {
  for (const std::string& name : uses) {
    if (parameters.count(name)) {
      workflow->parameters.insert(name);
      continue;
    }
    if (steps.Has(name)) continue;
    if (workflow->has_data && (name == "item" || name == "index")) continue;
    std::vector<std::string> known(parameters.begin(), parameters.end());
    for (const auto& [step, node] : steps.node().map) known.push_back(step);
    const std::string hint =
        name == "item" || name == "index" ? "; without `data` there are no rows" : DidYouMeanOf(name, known);
    return steps.Error(who, Cat("{{", name, "}}: nothing has that name", hint));
  }
  return absl::OkStatus();
}

/// Kahn's order; steps that come free at once keep the file's order.
absl::Status Sort(const DocMap& steps, Workflow* workflow) {
  std::vector<Step> sorted;
  std::set<std::string> open;
  for (const Step& step : workflow->steps) open.insert(step.name);
  while (!open.empty()) {
    const size_t before = sorted.size();
    for (const Step& step : workflow->steps) {
      const auto waits = [&](const std::string& name) { return open.count(name) > 0; };
      if (!open.count(step.name) || std::any_of(step.uses.begin(), step.uses.end(), waits)) continue;
      sorted.push_back(step);
      open.erase(step.name);
    }
    if (sorted.size() > before) continue;
    std::string circle;
    for (const std::string& name : open) circle += (circle.empty() ? "" : ", ") + name;
    return steps.Error(*open.begin(),
                       "waits for itself: these steps use each other in a circle (or use one that does): " + circle);
  }
  workflow->steps = std::move(sorted);
  return absl::OkStatus();
}

bool StepUsesModel(const Step& step) {
  if (const auto* map = std::get_if<MapStep>(&step.work)) return StepUsesModel(*map->step);
  return std::holds_alternative<LlmStep>(step.work);
}

}  // namespace

bool Workflow::UsesModel() const {
  return guide.kind == Guide::Kind::kJudge || std::any_of(steps.begin(), steps.end(), StepUsesModel);
}

absl::StatusOr<Workflow> ParseWorkflow(const DocMap& map, const std::set<std::string>& parameters) {
  RETURN_IF_ERROR(map.CheckFields({"data", "parallel", "timeout", "trace_rows", "steps", "guide"}));
  Workflow workflow;
  int64_t timeout_ms = 60'000;
  RETURN_IF_ERROR(map.Read("parallel", &workflow.parallel, 1, 64));
  RETURN_IF_ERROR(map.Read("trace_rows", &workflow.trace_rows, 1, 100));
  RETURN_IF_ERROR(map.ReadDuration("timeout", &timeout_ms));
  RETURN_IF_ERROR(ReadData(map, &workflow));
  ASSIGN_OR_RETURN(const DocMap steps, map.Map("steps"));
  if (steps.node().map.empty()) return map.Error("steps", "must hold at least one step");
  if (steps.node().map.size() > kMaxSteps) return map.Error("steps", Cat("at most ", kMaxSteps, " steps"));
  for (const auto& [name, node] : steps.node().map) {
    if (!IsName(name))
      return steps.Error(name, "a step's name consists of letters, digits and _, and begins with no digit");
    if (name == "item" || name == "index")
      return steps.Error(name, "is the name of the data set's row; choose another");
    if (parameters.count(name)) return steps.Error(name, "is the name of a parameter; choose another");
    ASSIGN_OR_RETURN(Step step, ReadStep(steps, name, timeout_ms, /*maps_around=*/0));
    RETURN_IF_ERROR(CheckNames(steps, parameters, step.uses, name, &workflow));
    workflow.steps.push_back(std::move(step));
  }
  RETURN_IF_ERROR(ReadGuide(map, &workflow.guide));
  // Errors of the guide are told at the guide.
  if (absl::Status named = CheckNames(steps, parameters, workflow.guide.uses, "guide", &workflow); !named.ok()) {
    const std::string text(named.message());
    return map.Error("guide", text.substr(text.find("{{")));
  }
  RETURN_IF_ERROR(Sort(steps, &workflow));
  return workflow;
}

absl::StatusOr<Workflow> ParseWorkflowText(const std::string& text, const std::string& file,
                                           const std::set<std::string>& parameters) {
  ASSIGN_OR_RETURN(const DocNode document, ParseDocument(text, file));
  ASSIGN_OR_RETURN(const DocMap map, DocMap::Of(document, file, ""));
  return ParseWorkflow(map, parameters);
}

absl::StatusOr<std::vector<std::string>> ParseRows(const std::string& text, const std::string& name) {
  std::vector<std::string> rows;
  const bool lines = name.size() > 6 && name.compare(name.size() - 6, 6, ".jsonl") == 0;
  if (!lines) {
    const Json json = ReadJson(text);
    if (!json.is_array() || json.empty())
      return InvalidArgument(name, ": must be a JSON list with at least one row (or a .jsonl file)");
    for (const Json& row : json) rows.push_back(Dump(row));
  }
  int number = 1;
  for (size_t at = 0; lines && at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json row = ReadJson(line);
    if (row.is_discarded()) return InvalidArgument(name, ":", number, ": is not JSON");
    rows.push_back(Dump(row));
  }
  if (rows.empty()) return InvalidArgument(name, ": holds no row");
  if (rows.size() > kMaxRows) return InvalidArgument(name, ": more than ", kMaxRows, " rows");
  return rows;
}

}  // namespace optod::trace
