#include "clients/cli/optimize/optimize_file.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "base/status.h"
#include "clients/cli/nearest.h"
#include "clients/cli/optimize/sections.h"
#include "clients/cli/strict_yaml.h"

namespace optod::cli {
namespace {

bool IsIdentifier(const std::string& name) {
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return c == '_' || (c < 0x80 && std::isalnum(c)); });
}

// Relative, inside the folder, normal form.
absl::StatusOr<std::string> InnerPath(const YamlMap& map, const std::string& key) {
  std::string text;
  RETURN_IF_ERROR(map.Read(key, &text));
  const auto path = std::filesystem::path(text).lexically_normal();
  if (text.empty() || path.is_absolute() || *path.begin() == "..")
    return map.Error(key, "\"" + text + "\" must be a relative path inside the folder of this file");
  return path.string();
}

absl::StatusOr<ValueType> TypeNamed(const YamlMap& map, const std::string& name) {
  if (name == "int") return ValueType::kInt;
  if (name == "float") return ValueType::kFloat;
  if (name == "bool") return ValueType::kBool;
  if (name == "text" || name == "enum") return ValueType::kText;
  if (name == "json") return ValueType::kJson;
  return map.Error(
      "type", "\"" + name + "\" is not a type" + DidYouMean(name, {"int", "float", "bool", "enum", "text", "json"}));
}

absl::Status ReadRange(const YamlMap& map, ParameterEntry* entry) {
  if (!map.Has("range")) return absl::OkStatus();
  if (entry->type != ValueType::kInt && entry->type != ValueType::kFloat)
    return map.Error("range", "only for types int and float");
  std::vector<std::string> ends;
  RETURN_IF_ERROR(map.Read("range", &ends));
  double low = 0, high = 0;
  char rest = 0;
  if (ends.size() != 2 || std::sscanf(ends[0].c_str(), "%lf%c", &low, &rest) != 1 ||
      std::sscanf(ends[1].c_str(), "%lf%c", &high, &rest) != 1 || !(low <= high))
    return map.Error("range", "must be [lowest, highest]");
  entry->min = low;
  entry->max = high;
  return absl::OkStatus();
}

// The type when `type` is absent: what the plain scalar looks like.
std::string GuessType(const YAML::Node& node, bool has_choices) {
  if (has_choices) return "enum";
  if (!node.IsScalar()) return "json";
  if (node.Tag() == "!") return "text";
  const std::string& text = node.Scalar();
  if (text == "true" || text == "false") return "bool";
  double number = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%lf%c", &number, &rest) != 1) return "text";
  return text.find_first_not_of("+-0123456789") == std::string::npos ? "int" : "float";
}

absl::Status ReadInlineValue(const YamlMap& map, ParameterEntry* entry) {
  entry->kind = ParameterEntry::Kind::kValue;
  const YAML::Node node = map.At("value");
  RETURN_IF_ERROR(map.Read("choices", &entry->choices));
  std::string type = GuessType(node, map.Has("choices"));
  RETURN_IF_ERROR(map.Read("type", &type));
  ASSIGN_OR_RETURN(entry->type, TypeNamed(map, type));
  if (type == "enum" && entry->choices.empty()) return map.Error("type", "enum needs `choices: [...]`");
  if (type != "enum" && map.Has("choices") && type != "text") return map.Error("choices", "only for type enum");
  RETURN_IF_ERROR(ReadRange(map, entry));
  if (entry->type == ValueType::kJson) {
    ASSIGN_OR_RETURN(entry->value, map.ReadJson("value"));
  } else {
    RETURN_IF_ERROR(map.Read("value", &entry->value));
  }
  // A block scalar or a collection has no single place where a new value can be written.
  const bool one_line = node.IsScalar() && entry->value.find('\n') == std::string::npos;
  entry->value_line = one_line ? node.Mark().line : -1;
  entry->value_column = one_line ? node.Mark().column : -1;
  auto checked = CheckValue(*entry, entry->value);
  if (!checked.ok()) return map.Error("value", std::string(checked.status().message()));
  entry->value = *checked;
  return absl::OkStatus();
}

absl::Status ReadParameter(const YamlMap& parameters, const std::string& name, ParameterEntry* entry) {
  entry->name = name;
  entry->line = parameters.Line(name);
  if (!IsIdentifier(name))
    return parameters.Error(name, "a parameter's name consists of letters, digits and _, and begins with no digit");
  ASSIGN_OR_RETURN(const YamlMap map, parameters.Map(name));
  RETURN_IF_ERROR(
      map.CheckKeys({"file", "function", "value", "type", "range", "choices", "description", "constraint"}));
  RETURN_IF_ERROR(map.Read("description", &entry->description));
  RETURN_IF_ERROR(map.Read("constraint", &entry->constraint));
  if (map.Has("file") == map.Has("value")) return parameters.Error(name, "needs either `file` or `value`");
  if (map.Has("value")) {
    if (map.Has("function")) return map.Error("function", "only together with `file`");
    return ReadInlineValue(map, entry);
  }
  for (const char* key : {"type", "range", "choices"})
    if (map.Has(key)) return map.Error(key, "only together with `value`");
  ASSIGN_OR_RETURN(entry->path, InnerPath(map, "file"));
  RETURN_IF_ERROR(map.Read("function", &entry->function));
  if (map.Has("function") && entry->function.empty()) return map.Error("function", "must be a name");
  entry->kind = entry->function.empty() ? ParameterEntry::Kind::kFile : ParameterEntry::Kind::kFunction;
  entry->type = entry->function.empty() ? ValueType::kText : ValueType::kCode;
  return absl::OkStatus();
}

absl::Status ReadScore(const YamlMap& map, ScoreRule* rule) {
  const YAML::Node node = map.At("score");
  if (!node.IsDefined()) return map.Error("", "score: missing; one of {json: FIELD}, {regex: 'EXPRESSION'}, exit-code");
  if (node.IsScalar()) {
    if (node.Scalar() != "exit-code")
      return map.Error("score", "must be {json: FIELD}, {regex: 'EXPRESSION'} or exit-code");
    rule->kind = ScoreRule::Kind::kExitCode;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const YamlMap score, map.Map("score"));
  RETURN_IF_ERROR(score.CheckKeys({"json", "regex"}));
  if (score.Has("json") == score.Has("regex")) return map.Error("score", "must hold one of `json` and `regex`");
  const std::string key = score.Has("json") ? "json" : "regex";
  rule->kind = key == "json" ? ScoreRule::Kind::kJson : ScoreRule::Kind::kRegex;
  RETURN_IF_ERROR(score.Read(key, &rule->expression));
  if (rule->expression.empty()) return score.Error(key, "must not be empty");
  if (rule->kind == ScoreRule::Kind::kRegex) {
    try {
      std::regex check(rule->expression, std::regex::ECMAScript);
    } catch (const std::regex_error& e) {
      return score.Error(key, std::string("not a regular expression: ") + e.what());
    }
  }
  return absl::OkStatus();
}

absl::Status ReadDuration(const YamlMap& map, const std::string& key, std::chrono::milliseconds* out) {
  if (!map.Has(key)) return absl::OkStatus();
  std::string text;
  RETURN_IF_ERROR(map.Read(key, &text));
  auto duration = ParseDuration(text);
  if (!duration.ok()) return map.Error(key, std::string(duration.status().message()));
  *out = *duration;
  return absl::OkStatus();
}

absl::Status ReadDirection(const YamlMap& map, bool* maximize) {
  std::string direction = "maximize";
  RETURN_IF_ERROR(map.Read("direction", &direction));
  if (direction != "maximize" && direction != "minimize")
    return map.Error("direction", "\"" + direction + "\" must be maximize or minimize" +
                                      DidYouMean(direction, {"maximize", "minimize"}));
  *maximize = direction == "maximize";
  return absl::OkStatus();
}

absl::Status ReadEvaluate(const YamlMap& root, EvaluateSection* out) {
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("evaluate"));
  RETURN_IF_ERROR(map.CheckKeys({"command", "score", "direction", "timeout", "exclude"}));
  RETURN_IF_ERROR(map.Read("command", &out->command));
  if (out->command.find_first_not_of(" \t\n") == std::string::npos) return map.Error("command", "missing or empty");
  RETURN_IF_ERROR(ReadScore(map, &out->score));
  RETURN_IF_ERROR(ReadDirection(map, &out->maximize));
  if (out->score.kind == ScoreRule::Kind::kExitCode && !out->maximize)
    return map.Error("direction", "with score exit-code (1 = success, 0 = failure) it must be maximize");
  RETURN_IF_ERROR(map.Read("exclude", &out->exclude));
  return ReadDuration(map, "timeout", &out->timeout);
}

absl::Status ReadWorkflow(const YamlMap& root, const std::string& text, const std::string& file_name,
                          OptimizeFile* out) {
  out->evaluate.timeout = std::chrono::minutes(10);
  if (root.Has("evaluate")) {
    ASSIGN_OR_RETURN(const YamlMap map, root.Map("evaluate"));
    for (const char* key : {"command", "score"})
      if (map.Has(key)) return map.Error(key, "a `workflow` is evaluated by its guide; give one of the two");
    RETURN_IF_ERROR(map.CheckKeys({"direction", "timeout", "exclude"}));
    RETURN_IF_ERROR(ReadDirection(map, &out->evaluate.maximize));
    RETURN_IF_ERROR(map.Read("exclude", &out->evaluate.exclude));
    RETURN_IF_ERROR(ReadDuration(map, "timeout", &out->evaluate.timeout));
  }
  std::set<std::string> names;
  for (const ParameterEntry& entry : out->parameters) names.insert(entry.name);
  ASSIGN_OR_RETURN(const trace::DocNode document, trace::ParseDocument(text, file_name));
  ASSIGN_OR_RETURN(const trace::DocMap whole, trace::DocMap::Of(document, file_name, ""));
  ASSIGN_OR_RETURN(const trace::DocMap workflow, whole.Map("workflow"));
  ASSIGN_OR_RETURN(out->workflow, trace::ParseWorkflow(workflow, names));
  using Kind = trace::Guide::Kind;
  if (out->workflow->guide.kind == Kind::kNone) return workflow.Error("guide", "missing: how a result is scored");
  if (out->workflow->guide.kind != Kind::kScore && !out->evaluate.maximize)
    return root.Error("evaluate", "direction: this guide gives 1 for good and 0 for bad, so it must be maximize");
  const auto data = std::filesystem::path(out->workflow->data_file).lexically_normal();
  if (!data.empty() && (data.is_absolute() || *data.begin() == ".."))
    return workflow.Error("data", "file: must be a relative path inside the folder of this file");
  return absl::OkStatus();
}

absl::Status ReadBudget(const YamlMap& root, BudgetSection* out) {
  if (!root.Has("budget")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("budget"));
  RETURN_IF_ERROR(map.CheckKeys({"steps", "evaluations", "llm_tokens", "wall"}));
  const std::pair<const char*, int64_t*> numbers[] = {
      {"steps", &out->steps}, {"evaluations", &out->evaluations}, {"llm_tokens", &out->llm_tokens}};
  for (const auto& [key, target] : numbers) {
    RETURN_IF_ERROR(map.Read(key, target));
    if (map.Has(key) && *target < 1) return map.Error(key, "must be at least 1");
  }
  return ReadDuration(map, "wall", &out->wall);
}

absl::Status ReadGate(const YamlMap& root, GateSection* out) {
  if (!root.Has("gate")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("gate"));
  RETURN_IF_ERROR(map.CheckKeys({"min_score", "min_gain"}));
  double number = 0;
  if (map.Has("min_score")) {
    RETURN_IF_ERROR(map.Read("min_score", &number));
    out->min_score = number;
  }
  if (map.Has("min_gain")) {
    RETURN_IF_ERROR(map.Read("min_gain", &number));
    out->min_gain = number;
  }
  return absl::OkStatus();
}

absl::StatusOr<double> NumberIn(const ParameterEntry& entry, const std::string& text) {
  double number = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%lf%c", &number, &rest) != 1 || !std::isfinite(number))
    return InvalidArgument("\"", text, "\" is not a number");
  if (entry.min && number < *entry.min) return InvalidArgument(text, " is below the range's lower end ", *entry.min);
  if (entry.max && number > *entry.max) return InvalidArgument(text, " is above the range's upper end ", *entry.max);
  return number;
}

}  // namespace

absl::Status ReadParameters(const YamlMap& root, std::vector<ParameterEntry>* out) {
  ASSIGN_OR_RETURN(const YamlMap parameters, root.Map("parameters"));
  RETURN_IF_ERROR(parameters.CheckKeys({}));
  for (const std::string& name : parameters.Keys()) {
    ParameterEntry entry;
    RETURN_IF_ERROR(ReadParameter(parameters, name, &entry));
    for (const ParameterEntry& other : *out) {
      const bool same_file = entry.kind != ParameterEntry::Kind::kValue && other.path == entry.path;
      const bool both_functions =
          entry.kind == ParameterEntry::Kind::kFunction && other.kind == ParameterEntry::Kind::kFunction;
      if (same_file && (!both_functions || entry.function == other.function))
        return parameters.Error(name, "overlaps with parameter " + other.name + " in the same file");
    }
    out->push_back(std::move(entry));
  }
  if (out->empty()) return root.Error("parameters", "must hold at least one parameter");
  return absl::OkStatus();
}

absl::Status ReadOptimizer(const YamlMap& root, const std::vector<std::string>& not_hyper, OptimizerSection* out) {
  if (!root.Has("optimizer")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("optimizer"));
  RETURN_IF_ERROR(map.CheckKeys({}));
  RETURN_IF_ERROR(map.Read("name", &out->name));
  RETURN_IF_ERROR(map.Read("llm", &out->llm));
  int64_t seed = 0, candidates = 1;
  RETURN_IF_ERROR(map.Read("seed", &seed));
  RETURN_IF_ERROR(map.Read("candidates", &candidates));
  if (seed < 0) return map.Error("seed", "must be >= 0");
  if (candidates < 1 || candidates > 64) return map.Error("candidates", "must be 1 to 64");
  out->seed = static_cast<uint64_t>(seed);
  if (map.Has("candidates")) out->candidates = static_cast<int>(candidates);
  std::vector<std::string> own = {"name", "llm", "seed", "candidates"};
  own.insert(own.end(), not_hyper.begin(), not_hyper.end());
  for (const std::string& key : map.Keys()) {
    if (std::find(own.begin(), own.end(), key) != own.end()) continue;
    const std::string type = GuessType(map.At(key), false);
    Hyper value;
    if (type == "json") return map.Error(key, "must be a number, true, false or a text");
    value.kind = type == "bool" ? Hyper::Kind::kFlag : type == "text" ? Hyper::Kind::kText : Hyper::Kind::kNumber;
    if (value.kind == Hyper::Kind::kNumber) RETURN_IF_ERROR(map.Read(key, &value.number));
    if (value.kind == Hyper::Kind::kFlag) RETURN_IF_ERROR(map.Read(key, &value.flag));
    if (value.kind == Hyper::Kind::kText) RETURN_IF_ERROR(map.Read(key, &value.text));
    out->hyperparameters[key] = value;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text) {
  double amount = 0;
  char unit[4] = "";
  int used = 0;
  const int fields = std::sscanf(text.c_str(), "%lf%3[a-z]%n", &amount, unit, &used);
  const std::string name = fields < 2 ? "s" : unit;
  const double scale = name == "ms" ? 1 : name == "s" ? 1e3 : name == "m" ? 6e4 : name == "h" ? 3.6e6 : 0;
  char rest = 0;
  const bool whole =
      fields == 2 ? static_cast<size_t>(used) == text.size() : std::sscanf(text.c_str(), "%lf%c", &amount, &rest) == 1;
  if (fields < 1 || !whole || scale == 0 || !(amount > 0) || amount * scale > 1e12 || amount * scale < 1)
    return InvalidArgument("\"", text, "\" is not a duration such as 250ms, 60s, 10m, 2h");
  return std::chrono::milliseconds(std::llround(amount * scale));
}

absl::StatusOr<std::string> CheckValue(const ParameterEntry& entry, const std::string& text) {
  if (entry.type == ValueType::kInt) {
    if (text.empty() || text.find_first_not_of("+-0123456789") != std::string::npos)
      return InvalidArgument("\"", text, "\" is not a whole number");
    RETURN_IF_ERROR(NumberIn(entry, text).status());
    return std::to_string(std::atoll(text.c_str()));
  }
  if (entry.type == ValueType::kFloat) {
    RETURN_IF_ERROR(NumberIn(entry, text).status());
    return text;
  }
  if (entry.type == ValueType::kBool && text != "true" && text != "false")
    return InvalidArgument("\"", text, "\" must be true or false");
  if (entry.type == ValueType::kJson && !nlohmann::json::accept(text)) return InvalidArgument("not a JSON document");
  if (!entry.choices.empty() && std::find(entry.choices.begin(), entry.choices.end(), text) == entry.choices.end())
    return InvalidArgument("\"", text, "\" is none of the choices", DidYouMean(text, entry.choices));
  return text;
}

absl::StatusOr<OptimizeFile> ParseOptimizeFile(const std::string& text, const std::string& file_name) {
  ASSIGN_OR_RETURN(const YamlMap root, YamlMap::Parse(text, file_name));
  RETURN_IF_ERROR(root.CheckKeys({"name", "parameters", "evaluate", "workflow", "optimizer", "budget", "gate"}));
  OptimizeFile file;
  RETURN_IF_ERROR(root.Read("name", &file.name));
  if (file.name.empty()) file.name = std::filesystem::path(file_name).stem().string();
  RETURN_IF_ERROR(ReadParameters(root, &file.parameters));
  if (root.Has("workflow"))
    RETURN_IF_ERROR(ReadWorkflow(root, text, file_name, &file));
  else
    RETURN_IF_ERROR(ReadEvaluate(root, &file.evaluate));
  RETURN_IF_ERROR(ReadOptimizer(root, {}, &file.optimizer));
  RETURN_IF_ERROR(ReadBudget(root, &file.budget));
  RETURN_IF_ERROR(ReadGate(root, &file.gate));
  return file;
}

}  // namespace optod::cli
