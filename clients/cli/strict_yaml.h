#pragma once
/// YAML read strictly: every error names file, line and key. Internal to clients/cli (the one place that knows
/// yaml-cpp's nodes beside the readers).

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::cli {

/// A mapping of the document with the path of keys that leads to it.
class YamlMap {
 public:
  YamlMap() = default;
  /// The document's root. INVALID_ARGUMENT: not YAML ("FILE:LINE: ..."), larger than 1 MiB, or no mapping.
  static absl::StatusOr<YamlMap> Parse(const std::string& text, const std::string& file_name);
  /// A mapping inside the document. `path` is what leads to it ("layout[0].").
  static absl::StatusOr<YamlMap> Of(const YAML::Node& node, const std::string& file_name, const std::string& path);

  /// INVALID_ARGUMENT when a key is not among `known` (with the nearest one; empty = any) or occurs twice.
  absl::Status CheckKeys(const std::vector<std::string>& known) const;

  bool Has(const std::string& key) const;
  std::vector<std::string> Keys() const;
  YAML::Node At(const std::string& key) const;
  /// INVALID_ARGUMENT naming the key when it is missing or no mapping.
  absl::StatusOr<YamlMap> Map(const std::string& key) const;
  /// Missing keys leave `out` alone; a wrong type is an error.
  absl::Status Read(const std::string& key, std::string* out) const;
  absl::Status Read(const std::string& key, double* out) const;
  absl::Status Read(const std::string& key, int64_t* out) const;
  absl::Status Read(const std::string& key, bool* out) const;
  absl::Status Read(const std::string& key, std::vector<std::string>* out) const;

  /// A value (key "": the whole map) as a JSON document: plain numbers, true, false and null are such, all else is
  /// text. INVALID_ARGUMENT: nested deeper than 64, or more than 100,000 values once its aliases are followed.
  absl::StatusOr<std::string> ReadJson(const std::string& key) const;

  /// "FILE:LINE: path.key: text".
  absl::Status Error(const std::string& key, const std::string& text) const;
  int Line(const std::string& key) const;  ///< 1-based; of the map itself when the key is absent

 private:
  YamlMap(YAML::Node node, std::string file, std::string path)
      : node_(std::move(node)), file_(std::move(file)), path_(std::move(path)) {}
  YAML::Node node_;
  std::string file_, path_;
};

}  // namespace optod::cli
