#pragma once
/// A YAML (or JSON, which is YAML) document as a plain tree that remembers lines, and strict reading of it: every error
/// names file, line and field, as `flow.yaml:7: steps.answer.llm.tempreture: unknown field; did you mean temperature?`.
/// Pure; thread-safe for reading.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::trace {

struct DocNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  // Defined in the source file, where DocNode is complete: a pair of it is a member (clang 14 refuses them inline).
  DocNode();
  ~DocNode();
  DocNode(const DocNode& other);
  DocNode(DocNode&& other) noexcept;
  DocNode& operator=(const DocNode& other);
  DocNode& operator=(DocNode&& other) noexcept;

  Kind kind = Kind::kNull;
  int line = 0;  ///< 1-based
  std::string scalar;
  bool quoted = false;  ///< "5" is a text, 5 a number
  std::vector<DocNode> list;
  std::vector<std::pair<std::string, DocNode>> map;  ///< in the order of the file
};

/// INVALID_ARGUMENT `FILE:LINE: not YAML: ...`, and for more than 1 MiB, 64 levels, 100,000 values (aliases counted
/// each time), a key that is no scalar or occurs twice.
absl::StatusOr<DocNode> ParseDocument(const std::string& text, const std::string& file);

/// The node as one JSON text: plain numbers, true, false and null are such, all else is text.
std::string DocToJson(const DocNode& node);

/// A map of the document and how it was reached. Cheap to copy; the document must outlive it.
class DocMap {
 public:
  /// INVALID_ARGUMENT when the node is no map.
  static absl::StatusOr<DocMap> Of(const DocNode& node, const std::string& file, const std::string& path);

  absl::Status CheckFields(const std::vector<std::string>& known) const;
  const DocNode* Find(const std::string& field) const;  ///< nullptr = absent
  bool Has(const std::string& field) const { return Find(field) != nullptr; }
  absl::StatusOr<DocMap> Map(const std::string& field) const;
  // Absent fields leave `out` alone; a wrong type is an error.
  absl::Status Read(const std::string& field, std::string* out) const;
  absl::Status Read(const std::string& field, int64_t* out, int64_t min, int64_t max) const;
  absl::Status Read(const std::string& field, double* out) const;
  absl::Status Read(const std::string& field, bool* out) const;
  absl::Status Read(const std::string& field, std::vector<std::string>* out) const;
  /// "90s", "250ms", "2m", "1h" or plain seconds, as milliseconds.
  absl::Status ReadDuration(const std::string& field, int64_t* out_ms) const;

  /// `FILE:LINE: path.field: text`.
  absl::Status Error(const std::string& field, const std::string& text) const;
  const DocNode& node() const { return *node_; }
  const std::string& file() const { return file_; }
  std::string PathOf(const std::string& field) const { return path_.empty() ? field : path_ + "." + field; }

 private:
  DocMap(const DocNode& node, std::string file, std::string path)
      : node_(&node), file_(std::move(file)), path_(std::move(path)) {}
  const DocNode* node_;
  std::string file_, path_;
};

/// "; did you mean X?" or "".
std::string DidYouMeanOf(const std::string& word, const std::vector<std::string>& known);

}  // namespace optod::trace
