#include "clients/cli/session_file.h"

#include <cmath>
#include <cstdlib>

#include "base/status.h"
#include "clients/cli/nearest.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/optimize/sections.h"
#include "clients/cli/optimize/wire_values.h"
#include "clients/cli/strict_yaml.h"

namespace optod::cli {
namespace {

struct DTypeName {
  const char* name;
  v1::DType dtype;
};
constexpr DTypeName kDTypes[] = {{"f32", v1::DTYPE_F32},        {"f64", v1::DTYPE_F64}, {"f16", v1::DTYPE_F16},
                                 {"bf16", v1::DTYPE_BF16},      {"i8", v1::DTYPE_I8},   {"i32", v1::DTYPE_I32},
                                 {"i64", v1::DTYPE_I64},        {"u8", v1::DTYPE_U8},   {"bool", v1::DTYPE_BOOL},
                                 {"f8-e4m3", v1::DTYPE_F8_E4M3}};

absl::StatusOr<v1::DType> ParseDType(const std::string& text) {
  std::vector<std::string> names;
  for (const DTypeName& row : kDTypes) {
    if (text == row.name) return row.dtype;
    names.push_back(row.name);
  }
  return InvalidArgument("\"", text, "\" is no dtype", DidYouMean(text, names));
}

absl::StatusOr<int64_t> ParseSize(const std::string& text) {
  if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos)
    return InvalidArgument("\"", text, "\" is no size");
  return std::atoll(text.c_str());
}

bool ParseNumber(const std::string& text, double* out) {
  char* end = nullptr;
  *out = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && std::isfinite(*out);
}

absl::StatusOr<std::pair<std::string, std::string>> SplitAssignment(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) return InvalidArgument("\"", text, "\" must be NAME=VALUE");
  return std::pair(text.substr(0, equals), text.substr(equals + 1));
}

absl::Status ReadLayout(const YamlMap& root, const std::string& file_name, v1::TensorIndex* out) {
  const YAML::Node list = root.At("layout");
  if (!list.IsDefined()) return absl::OkStatus();
  if (!list.IsSequence()) return root.Error("layout", "must be a list of {name, shape, dtype}");
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(const YamlMap map, YamlMap::Of(list[i], file_name, Cat("layout[", i, "].")));
    RETURN_IF_ERROR(map.CheckKeys({"name", "shape", "dtype", "no_decay"}));
    std::string name, dtype = "f32";
    std::vector<std::string> shape;
    bool no_decay = false;
    RETURN_IF_ERROR(map.Read("name", &name));
    RETURN_IF_ERROR(map.Read("dtype", &dtype));
    RETURN_IF_ERROR(map.Read("shape", &shape));
    RETURN_IF_ERROR(map.Read("no_decay", &no_decay));
    v1::TensorSpec* spec = out->add_tensors();
    spec->set_name(name);
    spec->set_no_decay(no_decay);
    const auto parsed = ParseDType(dtype);
    if (!parsed.ok()) return map.Error("dtype", std::string(parsed.status().message()));
    spec->set_dtype(*parsed);
    for (const std::string& text : shape) {
      const auto size = ParseSize(text);
      if (!size.ok()) return map.Error("shape", std::string(size.status().message()));
      spec->add_shape(*size);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSchedule(const YamlMap& optimizer, v1::Schedule* out) {
  if (!optimizer.Has("schedule")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, optimizer.Map("schedule"));
  RETURN_IF_ERROR(map.CheckKeys({"kind", "warmup_steps", "total_steps", "floor"}));
  std::string kind = "constant";
  int64_t warmup = 0, total = 0;
  double floor = 0;
  RETURN_IF_ERROR(map.Read("kind", &kind));
  RETURN_IF_ERROR(map.Read("warmup_steps", &warmup));
  RETURN_IF_ERROR(map.Read("total_steps", &total));
  RETURN_IF_ERROR(map.Read("floor", &floor));
  const std::pair<const char*, v1::Schedule::Kind> kinds[] = {{"constant", v1::Schedule::CONSTANT},
                                                              {"linear", v1::Schedule::LINEAR},
                                                              {"cosine", v1::Schedule::COSINE},
                                                              {"inverse-sqrt", v1::Schedule::INVERSE_SQRT}};
  for (const auto& [name, value] : kinds)
    if (kind == name) out->set_kind(value);
  if (out->kind() == v1::Schedule::KIND_UNSPECIFIED)
    return map.Error(
        "kind", "\"" + kind + "\" is no schedule" + DidYouMean(kind, {"constant", "linear", "cosine", "inverse-sqrt"}));
  out->set_warmup_steps(warmup);
  out->set_total_steps(total);
  out->set_floor(floor);
  return absl::OkStatus();
}

absl::Status ReadBudget(const YamlMap& root, v1::Budget* out) {
  if (!root.Has("budget")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("budget"));
  RETURN_IF_ERROR(map.CheckKeys({"steps", "evaluations", "llm_tokens", "llm_usd", "wall"}));
  int64_t steps = 0, evaluations = 0, tokens = 0;
  double usd = 0;
  RETURN_IF_ERROR(map.Read("steps", &steps));
  RETURN_IF_ERROR(map.Read("evaluations", &evaluations));
  RETURN_IF_ERROR(map.Read("llm_tokens", &tokens));
  RETURN_IF_ERROR(map.Read("llm_usd", &usd));
  out->set_max_steps(steps);
  out->set_max_evaluations(evaluations);
  out->set_max_llm_tokens(tokens);
  out->set_max_llm_usd(usd);
  if (!map.Has("wall")) return absl::OkStatus();
  std::string wall;
  RETURN_IF_ERROR(map.Read("wall", &wall));
  const auto duration = ParseDuration(wall);
  if (!duration.ok()) return map.Error("wall", std::string(duration.status().message()));
  out->mutable_max_wall()->set_seconds(duration->count() / 1000);
  out->mutable_max_wall()->set_nanos(static_cast<int32_t>(duration->count() % 1000) * 1'000'000);
  return absl::OkStatus();
}

absl::Status ReadDurability(const YamlMap& root, v1::Durability* out) {
  if (!root.Has("durability")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("durability"));
  RETURN_IF_ERROR(map.CheckKeys({"mode", "n", "snapshot_every"}));
  std::string mode = "every-step";
  int64_t n = 0, snapshot_every = 0;
  RETURN_IF_ERROR(map.Read("mode", &mode));
  RETURN_IF_ERROR(map.Read("n", &n));
  RETURN_IF_ERROR(map.Read("snapshot_every", &snapshot_every));
  if (mode == "every-step")
    out->set_mode(v1::Durability::EVERY_STEP);
  else if (mode == "every-n")
    out->set_mode(v1::Durability::EVERY_N);
  else if (mode == "on-checkpoint")
    out->set_mode(v1::Durability::ON_CHECKPOINT);
  else
    return map.Error("mode", "\"" + mode + "\" must be every-step, every-n or on-checkpoint");
  out->set_n(static_cast<int32_t>(n));
  out->set_snapshot_every(static_cast<int32_t>(snapshot_every));
  return absl::OkStatus();
}

absl::Status ReadOptimizerSpec(const YamlMap& root, v1::OptimizerSpec* out) {
  OptimizerSection section;
  section.name.clear();
  RETURN_IF_ERROR(ReadOptimizer(root, {"schedule", "clip_norm"}, &section));
  if (section.name.empty()) return root.Error("", "optimizer.name: missing");
  *out = ToOptimizerSpec(section);
  ASSIGN_OR_RETURN(const YamlMap map, root.Map("optimizer"));
  double clip = 0;
  RETURN_IF_ERROR(map.Read("clip_norm", &clip));
  out->set_clip_norm(clip);
  v1::Schedule schedule;
  RETURN_IF_ERROR(ReadSchedule(map, &schedule));
  if (map.Has("schedule")) *out->mutable_schedule() = schedule;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::TensorSpec> ParseTensorFlag(const std::string& text) {
  const size_t first = text.find(':'), second = first == std::string::npos ? first : text.find(':', first + 1);
  if (second == std::string::npos)
    return InvalidArgument("--tensor ", text, ": must be NAME:DTYPE:ROWSxCOLUMNS, for example w:f32:64x10");
  v1::TensorSpec spec;
  spec.set_name(text.substr(0, first));
  ASSIGN_OR_RETURN(const v1::DType dtype, ParseDType(text.substr(first + 1, second - first - 1)));
  spec.set_dtype(dtype);
  std::string shape = text.substr(second + 1);
  if (const size_t flag = shape.find(':'); flag != std::string::npos) {
    if (shape.substr(flag + 1) != "no-decay")
      return InvalidArgument("--tensor ", text, ": after the shape only no-decay may follow");
    spec.set_no_decay(true);
    shape.resize(flag);
  }
  for (size_t begin = 0; !shape.empty() && begin <= shape.size();) {
    const size_t end = std::min(shape.find('x', begin), shape.size());
    ASSIGN_OR_RETURN(const int64_t size, ParseSize(shape.substr(begin, end - begin)));
    spec.add_shape(size);
    begin = end + 1;
  }
  return spec;
}

absl::Status ApplyHyperFlag(const std::string& text, v1::OptimizerSpec* spec) {
  ASSIGN_OR_RETURN(const auto assignment, SplitAssignment(text));
  const auto& [name, value] = assignment;
  v1::HyperValue& hyper = (*spec->mutable_hyperparameters())[name];
  double number = 0;
  if (value == "true" || value == "false")
    hyper.set_flag(value == "true");
  else if (ParseNumber(value, &number))
    hyper.set_number(number);
  else
    hyper.set_text(value);
  return absl::OkStatus();
}

absl::StatusOr<v1::ParameterSpec> ParseParameterFlag(const std::string& text) {
  ASSIGN_OR_RETURN(const auto assignment, SplitAssignment(text));
  ParameterEntry entry;
  entry.name = assignment.first;
  const std::string& value = assignment.second;
  double number = 0;
  if (value == "true" || value == "false")
    entry.type = ValueType::kBool;
  else if (ParseNumber(value, &number))
    entry.type = value.find_first_not_of("+-0123456789") == std::string::npos ? ValueType::kInt : ValueType::kFloat;
  return ToParameterSpec(entry, value);
}

absl::StatusOr<v1::Direction> ParseDirection(const std::string& text) {
  if (text == "maximize") return v1::MAXIMIZE;
  if (text == "minimize") return v1::MINIMIZE;
  return InvalidArgument("\"", text, "\" must be maximize or minimize", DidYouMean(text, {"maximize", "minimize"}));
}

absl::StatusOr<v1::CreateSessionRequest> ParseSessionFile(const std::string& text, const std::string& file_name) {
  ASSIGN_OR_RETURN(const YamlMap root, YamlMap::Parse(text, file_name));
  RETURN_IF_ERROR(root.CheckKeys(SessionKeys()));
  return ReadSession(root, file_name);
}

const std::vector<std::string>& SessionKeys() {
  static const std::vector<std::string> keys = {"id",     "optimizer",  "layout", "parameters",  "direction",
                                                "budget", "durability", "labels", "display_name"};
  return keys;
}

absl::StatusOr<v1::CreateSessionRequest> ReadSession(const YamlMap& root, const std::string& file_name) {
  v1::CreateSessionRequest request;
  std::string id, display_name, direction = "maximize";
  RETURN_IF_ERROR(root.Read("id", &id));
  RETURN_IF_ERROR(root.Read("display_name", &display_name));
  RETURN_IF_ERROR(root.Read("direction", &direction));
  request.set_session_id(id);
  request.set_display_name(display_name);
  const auto parsed = ParseDirection(direction);
  if (!parsed.ok()) return root.Error("direction", std::string(parsed.status().message()));
  request.set_direction(*parsed);
  RETURN_IF_ERROR(ReadOptimizerSpec(root, request.mutable_optimizer()));
  if (root.Has("layout")) RETURN_IF_ERROR(ReadLayout(root, file_name, request.mutable_layout()));
  RETURN_IF_ERROR(ReadBudget(root, request.mutable_budget()));
  RETURN_IF_ERROR(ReadDurability(root, request.mutable_durability()));
  if (root.Has("parameters")) {
    std::vector<ParameterEntry> entries;
    RETURN_IF_ERROR(ReadParameters(root, &entries));
    for (const ParameterEntry& entry : entries) {
      if (entry.kind != ParameterEntry::Kind::kValue)
        return root.Error("parameters", Cat(entry.name, ": files are for `optoctl optimize`; give `value`"));
      *request.add_parameters() = ToParameterSpec(entry, entry.value);
    }
  }
  if (root.Has("labels")) {
    ASSIGN_OR_RETURN(const YamlMap labels, root.Map("labels"));
    RETURN_IF_ERROR(labels.CheckKeys({}));
    for (const std::string& key : labels.Keys()) RETURN_IF_ERROR(labels.Read(key, &(*request.mutable_labels())[key]));
  }
  return request;
}

}  // namespace optod::cli
