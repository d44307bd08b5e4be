#include "clients/cli/strict_yaml.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "clients/cli/nearest.h"

namespace optod::cli {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 64, kMaxValues = 100'000;

int LineOf(const YAML::Node& node) { return node.Mark().line + 1; }

// Plain scalars only: a quoted "5" is a text.
bool IsPlainScalar(const YAML::Node& node) { return node.IsScalar() && node.Tag() != "!"; }

bool ParseNumber(const std::string& text, double* out) {
  if (text.empty() || std::isspace(static_cast<unsigned char>(text[0]))) return false;
  char* end = nullptr;
  *out = std::strtod(text.c_str(), &end);
  return *end == '\0' && std::isfinite(*out);
}

// False: too deep or too large (an alias may lead to itself, or multiply).
bool ToJson(const YAML::Node& node, int depth, int* values_left, nlohmann::ordered_json* out) {
  if (depth > kMaxDepth || --*values_left < 0) return false;
  if (node.IsMap()) {
    *out = nlohmann::ordered_json::object();
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return false;
      if (!ToJson(entry.second, depth + 1, values_left, &(*out)[entry.first.Scalar()])) return false;
    }
    return true;
  }
  if (node.IsSequence()) {
    *out = nlohmann::ordered_json::array();
    for (const auto& item : node)
      if (!ToJson(item, depth + 1, values_left, &out->emplace_back())) return false;
    return true;
  }
  *out = nullptr;
  if (node.IsNull()) return true;
  if (IsPlainScalar(node)) *out = nlohmann::ordered_json::parse(node.Scalar(), nullptr, false);
  if (!IsPlainScalar(node) || out->is_discarded() || out->is_structured() || out->is_string()) *out = node.Scalar();
  return true;
}

}  // namespace

absl::StatusOr<YamlMap> YamlMap::Parse(const std::string& text, const std::string& file_name) {
  if (text.size() > kMaxBytes) return InvalidArgument(file_name, ": larger than 1 MiB");
  if (text.find('\0') != std::string::npos) return InvalidArgument(file_name, ": not a text file");
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    return InvalidArgument(file_name, ":", std::max(e.mark.line, 0) + 1, ": not YAML: ", e.msg);
  } catch (const std::exception& e) {
    return InvalidArgument(file_name, ": not YAML: ", e.what());
  }
  if (!root.IsMap())
    return InvalidArgument(file_name, ":", std::max(root.Mark().line, 0) + 1, ": must be a mapping (key: value)");
  return YamlMap(root, file_name, "");
}

absl::StatusOr<YamlMap> YamlMap::Of(const YAML::Node& node, const std::string& file_name, const std::string& path) {
  if (!node.IsMap())
    return InvalidArgument(file_name, ":", LineOf(node), ": ", path, " must be a mapping (key: value)");
  return YamlMap(node, file_name, path);
}

absl::Status YamlMap::Error(const std::string& key, const std::string& text) const {
  return InvalidArgument(file_, ":", Line(key), ": ", path_, key, key.empty() ? "" : ": ", text);
}

int YamlMap::Line(const std::string& key) const {
  for (const auto& entry : node_)
    if (entry.first.IsScalar() && entry.first.Scalar() == key) return LineOf(entry.first);
  return LineOf(node_);
}

absl::Status YamlMap::CheckKeys(const std::vector<std::string>& known) const {
  std::vector<std::string> seen;
  for (const auto& entry : node_) {
    if (!entry.first.IsScalar())
      return InvalidArgument(file_, ":", LineOf(entry.first), ": ", path_, ": a key must be a plain word");
    const std::string& key = entry.first.Scalar();
    const std::string where = Cat(file_, ":", LineOf(entry.first), ": ", path_, key);
    if (!known.empty() && std::find(known.begin(), known.end(), key) == known.end())
      return InvalidArgument(where, ": unknown key", DidYouMean(key, known));
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) return InvalidArgument(where, ": given twice");
    seen.push_back(key);
  }
  return absl::OkStatus();
}

bool YamlMap::Has(const std::string& key) const { return At(key).IsDefined(); }

std::vector<std::string> YamlMap::Keys() const {
  std::vector<std::string> keys;
  for (const auto& entry : node_) keys.push_back(entry.first.Scalar());
  return keys;
}

YAML::Node YamlMap::At(const std::string& key) const {
  for (const auto& entry : node_)
    if (entry.first.IsScalar() && entry.first.Scalar() == key) return entry.second;
  return YAML::Node(YAML::NodeType::Undefined);
}

absl::StatusOr<YamlMap> YamlMap::Map(const std::string& key) const {
  const YAML::Node node = At(key);
  if (!node.IsDefined()) return Error("", Cat(key, ": missing"));
  if (!node.IsMap()) return Error(key, "must be a mapping (key: value)");
  return YamlMap(node, file_, path_ + key + ".");
}

absl::StatusOr<std::string> YamlMap::ReadJson(const std::string& key) const {
  nlohmann::ordered_json out;
  int values_left = kMaxValues;
  if (!ToJson(key.empty() ? node_ : At(key), 0, &values_left, &out))
    return Error(key, Cat("nested deeper than ", kMaxDepth, ", or more than ", kMaxValues, " values"));
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::Status YamlMap::Read(const std::string& key, std::string* out) const {
  const YAML::Node node = At(key);
  if (!node.IsDefined()) return absl::OkStatus();
  if (!node.IsScalar()) return Error(key, "must be a text");
  *out = node.Scalar();
  return absl::OkStatus();
}

absl::Status YamlMap::Read(const std::string& key, double* out) const {
  const YAML::Node node = At(key);
  if (!node.IsDefined()) return absl::OkStatus();
  if (!IsPlainScalar(node) || !ParseNumber(node.Scalar(), out)) return Error(key, "must be a number");
  return absl::OkStatus();
}

absl::Status YamlMap::Read(const std::string& key, int64_t* out) const {
  const YAML::Node node = At(key);
  double number = 0;
  if (!node.IsDefined()) return absl::OkStatus();
  if (!IsPlainScalar(node) || !ParseNumber(node.Scalar(), &number) || number != std::floor(number) ||
      std::abs(number) > 9e15)
    return Error(key, "must be a whole number");
  *out = static_cast<int64_t>(number);
  return absl::OkStatus();
}

absl::Status YamlMap::Read(const std::string& key, bool* out) const {
  const YAML::Node node = At(key);
  if (!node.IsDefined()) return absl::OkStatus();
  if (!IsPlainScalar(node) || (node.Scalar() != "true" && node.Scalar() != "false"))
    return Error(key, "must be true or false");
  *out = node.Scalar() == "true";
  return absl::OkStatus();
}

absl::Status YamlMap::Read(const std::string& key, std::vector<std::string>* out) const {
  const YAML::Node node = At(key);
  if (!node.IsDefined()) return absl::OkStatus();
  if (!node.IsSequence()) return Error(key, "must be a list of texts");
  out->clear();
  for (const auto& item : node) {
    if (!item.IsScalar()) return Error(key, "must be a list of texts");
    out->push_back(item.Scalar());
  }
  return absl::OkStatus();
}

}  // namespace optod::cli
