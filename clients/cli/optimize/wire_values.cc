#include "clients/cli/optimize/wire_values.h"

#include <cstdlib>

#include "base/status.h"
#include "clients/cli/optimize/gate.h"

namespace optod::cli {
namespace {

std::string PythonType(const ParameterEntry& entry, const std::string& start) {
  switch (entry.type) {
    case ValueType::kCode:
      return "code";
    case ValueType::kInt:
      return "int";
    case ValueType::kFloat:
      return "float";
    case ValueType::kBool:
      return "bool";
    case ValueType::kJson:
      return start[0] == '{' ? "dict" : start[0] == '[' ? "list" : "";
    case ValueType::kText:
      break;
  }
  return "str";
}

v1::Value ToValue(ValueType type, const std::string& text) {
  v1::Value value;
  if (type == ValueType::kInt)
    value.set_integer(std::atoll(text.c_str()));
  else if (type == ValueType::kFloat)
    value.set_number(std::strtod(text.c_str(), nullptr));
  else if (type == ValueType::kBool)
    value.set_flag(text == "true");
  else if (type == ValueType::kJson)
    value.set_json(text);
  else
    value.set_text(text);
  return value;
}

const v1::Value* Find(const v1::Version& version, const std::string& name) {
  for (const std::string& key : {name, name + ":0"})
    if (const auto found = version.values().find(key); found != version.values().end()) return &found->second;
  return nullptr;
}

}  // namespace

v1::ParameterSpec ToParameterSpec(const ParameterEntry& entry, const std::string& start) {
  v1::ParameterSpec spec;
  spec.set_name(entry.name);
  spec.set_type(PythonType(entry, start));
  *spec.mutable_initial() = ToValue(entry.type, start);
  spec.set_description(entry.description);
  spec.set_constraint(entry.constraint);
  if (entry.min) spec.set_min(*entry.min);
  if (entry.max) spec.set_max(*entry.max);
  for (const std::string& choice : entry.choices) spec.add_choices(choice);
  return spec;
}

std::string ValueText(const v1::Value& value) {
  switch (value.kind_case()) {
    case v1::Value::kText:
      return value.text();
    case v1::Value::kNumber:
      return NumberText(value.number());
    case v1::Value::kInteger:
      return std::to_string(value.integer());
    case v1::Value::kFlag:
      return value.flag() ? "true" : "false";
    case v1::Value::kJson:
      return value.json();
    case v1::Value::KIND_NOT_SET:
      break;
  }
  return "";
}

absl::StatusOr<Values> FromVersion(const v1::Version& version, const OptimizeFile& file, const Values& start) {
  Values values = start;
  for (const ParameterEntry& entry : file.parameters) {
    const v1::Value* value = Find(version, entry.name);
    if (!value) continue;
    std::string text = ValueText(*value);
    // The start's own spelling ("0.50") when the number is the same.
    if (entry.type == ValueType::kFloat && std::strtod(start.at(entry.name).c_str(), nullptr) == value->number())
      text = start.at(entry.name);
    auto checked = CheckValue(entry, text);
    if (!checked.ok()) return InvalidArgument(entry.name, ": ", std::string(checked.status().message()));
    const std::string& before = start.at(entry.name);
    if (entry.kind == ParameterEntry::Kind::kFile && !before.empty() && before.back() == '\n' &&
        (checked->empty() || checked->back() != '\n'))
      *checked += '\n';
    values[entry.name] = *std::move(checked);
  }
  return values;
}

v1::OptimizerSpec ToOptimizerSpec(const OptimizerSection& section) {
  v1::OptimizerSpec spec;
  spec.set_name(section.name);
  spec.set_llm(section.llm);
  spec.set_seed(section.seed);
  auto& hyper = *spec.mutable_hyperparameters();
  for (const auto& [name, value] : section.hyperparameters) {
    if (value.kind == Hyper::Kind::kNumber) hyper[name].set_number(value.number);
    if (value.kind == Hyper::Kind::kFlag) hyper[name].set_flag(value.flag);
    if (value.kind == Hyper::Kind::kText) hyper[name].set_text(value.text);
  }
  if (section.candidates) hyper["candidates"].set_number(*section.candidates);
  return spec;
}

}  // namespace optod::cli
