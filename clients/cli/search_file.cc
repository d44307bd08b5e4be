#include "clients/cli/search_file.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/status.h"
#include "clients/cli/nearest.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/session_file.h"
#include "clients/cli/strict_yaml.h"
#include "trace/workflow/workflow.h"

namespace optod::cli {
namespace {

std::string Upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

/// A value of an enum by its lower-case name.
template <typename Enum>
absl::Status ReadEnum(const YamlMap& map, const std::string& key, const std::vector<std::string>& names,
                      bool (*parse)(const std::string&, Enum*), Enum* out) {
  std::string text;
  RETURN_IF_ERROR(map.Read(key, &text));
  if (!map.Has(key)) return absl::OkStatus();
  if (std::find(names.begin(), names.end(), text) == names.end() || !parse(Upper(text), out))
    return map.Error(key, "\"" + text + "\" is unknown" + DidYouMean(text, names));
  return absl::OkStatus();
}

absl::Status ReadCounts(const YamlMap& map, v1::SearchSpec* spec) {
  struct Count {
    const char* key;
    void (v1::SearchSpec::*set)(int32_t);
  };
  constexpr Count kCounts[] = {
      {"tasks", &v1::SearchSpec::set_tasks},         {"validation_tasks", &v1::SearchSpec::set_validation_tasks},
      {"batch", &v1::SearchSpec::set_batch},         {"candidates", &v1::SearchSpec::set_candidates},
      {"proposals", &v1::SearchSpec::set_proposals}, {"memory", &v1::SearchSpec::set_memory},
      {"max_steps", &v1::SearchSpec::set_max_steps}};
  for (const auto& [key, set] : kCounts) {
    int64_t number = 0;
    RETURN_IF_ERROR(map.Read(key, &number));
    if (number < 0 || number > INT32_MAX) return map.Error(key, "must be >= 0");
    if (map.Has(key)) (spec->*set)(static_cast<int32_t>(number));
  }
  int64_t evaluations = 0, seed = 0;
  RETURN_IF_ERROR(map.Read("max_evaluations", &evaluations));
  RETURN_IF_ERROR(map.Read("seed", &seed));
  if (seed < 0) return map.Error("seed", "must be >= 0");
  spec->set_max_evaluations(evaluations);
  spec->set_seed(static_cast<uint64_t>(seed));
  return absl::OkStatus();
}

absl::Status ReadNumbers(const YamlMap& map, v1::SearchSpec* spec) {
  double exploration = 0, low = 0, high = 0, target = 0;
  RETURN_IF_ERROR(map.Read("exploration", &exploration));
  RETURN_IF_ERROR(map.Read("min_score", &low));
  RETURN_IF_ERROR(map.Read("max_score", &high));
  RETURN_IF_ERROR(map.Read("target", &target));
  spec->set_exploration(exploration);
  spec->set_min_score(low);
  spec->set_max_score(high);
  if (map.Has("target")) spec->set_target(target);
  bool improvement = false, keep_head = false;
  std::string data_set;
  RETURN_IF_ERROR(map.Read("ensure_improvement", &improvement));
  RETURN_IF_ERROR(map.Read("keep_head", &keep_head));
  RETURN_IF_ERROR(map.Read("data_set", &data_set));
  spec->set_ensure_improvement(improvement);
  spec->set_keep_head(keep_head);
  spec->set_data_set(data_set);
  return absl::OkStatus();
}

absl::Status ReadSearch(const YamlMap& root, v1::SearchSpec* spec) {
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("search"));
  RETURN_IF_ERROR(map.CheckKeys(
      {"algorithm",          "tasks",           "validation_tasks", "batch",     "candidates", "proposals", "memory",
       "ensure_improvement", "priority",        "exploration",      "min_score", "max_score",  "seed",      "data_set",
       "max_steps",          "max_evaluations", "target",           "keep_head", "parallel",   "timeout"}));
  if (!map.Has("algorithm")) return map.Error("algorithm", "missing; minibatch, beam, ucb, priority or pareto");
  v1::SearchSpec::Algorithm algorithm = v1::SearchSpec::ALGORITHM_UNSPECIFIED;
  v1::SearchSpec::Priority priority = v1::SearchSpec::PRIORITY_UNSPECIFIED;
  RETURN_IF_ERROR(ReadEnum(map, "algorithm", {"minibatch", "beam", "ucb", "priority", "pareto"},
                           &v1::SearchSpec::Algorithm_Parse, &algorithm));
  RETURN_IF_ERROR(ReadEnum(map, "priority", {"mean", "upper", "lower"}, &v1::SearchSpec::Priority_Parse, &priority));
  spec->set_algorithm(algorithm);
  spec->set_priority(priority);
  RETURN_IF_ERROR(ReadCounts(map, spec));
  RETURN_IF_ERROR(ReadNumbers(map, spec));
  for (const char* key : {"parallel", "timeout"})
    if (map.Has(key) && !spec->has_workflow()) return map.Error(key, "only together with `workflow`");
  if (!spec->has_workflow()) return absl::OkStatus();
  int64_t parallel = 0;
  RETURN_IF_ERROR(map.Read("parallel", &parallel));
  if (map.Has("parallel") && (parallel < 1 || parallel > 64)) return map.Error("parallel", "must be 1 to 64");
  spec->mutable_workflow()->set_parallel(static_cast<int32_t>(parallel));
  if (!map.Has("timeout")) return absl::OkStatus();
  std::string timeout;
  RETURN_IF_ERROR(map.Read("timeout", &timeout));
  const auto duration = ParseDuration(timeout);
  if (!duration.ok()) return map.Error("timeout", std::string(duration.status().message()));
  spec->mutable_workflow()->set_wall_ms(duration->count());
  return absl::OkStatus();
}

/// Checked here, so that a mistake has its line; parameters of a session that exists are known to the server alone.
absl::Status ReadWorkflow(const YamlMap& root, const std::string& text, const std::string& file_name, SearchFile* out) {
  ASSIGN_OR_RETURN(const std::string json, root.ReadJson("workflow"));
  auto document = nlohmann::json::parse(json, nullptr, false);
  if (!document.is_object()) return root.Error("workflow", "must be a map");
  if (out->session.empty()) {
    std::set<std::string> names;
    for (const auto& parameter : out->create.parameters()) names.insert(parameter.name());
    ASSIGN_OR_RETURN(const trace::DocNode whole, trace::ParseDocument(text, file_name));
    ASSIGN_OR_RETURN(const trace::DocMap map, trace::DocMap::Of(whole, file_name, ""));
    ASSIGN_OR_RETURN(const trace::DocMap workflow, map.Map("workflow"));
    RETURN_IF_ERROR(trace::ParseWorkflow(workflow, names).status());
  }
  if (!document.contains("guide")) return root.Error("workflow", "guide: missing: how a task is scored");
  if (!document.contains("data")) return root.Error("workflow", "data: missing: the tasks, one a row");
  const auto& data = document["data"];
  if (data.contains("limit")) out->limit = data["limit"].get<int64_t>();
  if (data.contains("rows")) {
    for (const auto& row : data["rows"]) out->spec.mutable_workflow()->add_rows(row.dump());
  } else {
    out->data_file = data.value("file", "");
    const auto path = std::filesystem::path(out->data_file).lexically_normal();
    if (path.empty() || path.is_absolute() || *path.begin() == "..")
      return root.Error("workflow", "data.file: must be a relative path inside the folder of this file");
  }
  document["data"] = {{"file", "rows"}};  // they travel beside the text
  out->spec.mutable_workflow()->set_text(document.dump());
  return absl::OkStatus();
}

}  // namespace

absl::Status SetRows(const std::vector<std::string>& rows, SearchFile* file) {
  v1::SearchWorkflow& workflow = *file->spec.mutable_workflow();
  for (const std::string& row : rows) workflow.add_rows(row);
  if (file->limit > 0 && workflow.rows_size() > file->limit)
    workflow.mutable_rows()->DeleteSubrange(static_cast<int>(file->limit),
                                            workflow.rows_size() - static_cast<int>(file->limit));
  if (workflow.rows_size() == 0) return InvalidArgument("workflow.data: holds no rows");
  return absl::OkStatus();
}

absl::StatusOr<SearchFile> ParseSearchFile(const std::string& text, const std::string& file_name) {
  ASSIGN_OR_RETURN(const YamlMap root, YamlMap::Parse(text, file_name));
  std::vector<std::string> keys = SessionKeys();
  keys.insert(keys.end(), {"session", "workflow", "search"});
  RETURN_IF_ERROR(root.CheckKeys(keys));
  SearchFile file;
  RETURN_IF_ERROR(root.Read("session", &file.session));
  if (root.Has("session") == root.Has("parameters"))
    return root.Error(root.Has("session") ? "session" : "parameters", "give either `parameters` or `session`");
  for (const std::string& key : SessionKeys())
    if (root.Has("session") && root.Has(key)) return root.Error(key, "the session has its own; only with `parameters`");
  if (!root.Has("session")) {
    ASSIGN_OR_RETURN(file.create, ReadSession(root, file_name));
  }
  if (root.Has("workflow")) RETURN_IF_ERROR(ReadWorkflow(root, text, file_name, &file));
  RETURN_IF_ERROR(ReadSearch(root, &file.spec));
  return file;
}

}  // namespace optod::cli
