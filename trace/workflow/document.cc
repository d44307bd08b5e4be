#include "trace/workflow/document.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/status.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 64, kMaxValues = 100'000;

class Converter {
 public:
  explicit Converter(const std::string& file) : file_(file) {}

  absl::StatusOr<DocNode> Convert(const YAML::Node& node, int depth) {
    DocNode out;
    out.line = std::max(node.Mark().line, 0) + 1;
    if (depth > kMaxDepth) return Error(out.line, Cat("nested deeper than ", kMaxDepth));
    if (--left_ < 0) return Error(out.line, Cat("more than ", kMaxValues, " values"));
    if (node.IsScalar()) {
      out.kind = DocNode::Kind::kScalar;
      out.scalar = node.Scalar();
      out.quoted = node.Tag() == "!";
    } else if (node.IsSequence()) {
      out.kind = DocNode::Kind::kList;
      for (const auto& item : node) {
        ASSIGN_OR_RETURN(DocNode child, Convert(item, depth + 1));
        out.list.push_back(std::move(child));
      }
    } else if (node.IsMap()) {
      out.kind = DocNode::Kind::kMap;
      for (const auto& entry : node) RETURN_IF_ERROR(AddEntry(entry.first, entry.second, depth, &out));
    }
    return out;
  }

 private:
  absl::Status AddEntry(const YAML::Node& key, const YAML::Node& value, int depth, DocNode* out) {
    const int line = std::max(key.Mark().line, 0) + 1;
    if (!key.IsScalar()) return Error(line, "a key must be a plain word");
    const bool twice =
        std::any_of(out->map.begin(), out->map.end(), [&](const auto& e) { return e.first == key.Scalar(); });
    if (twice) return Error(line, key.Scalar() + ": given twice");
    ASSIGN_OR_RETURN(DocNode child, Convert(value, depth + 1));
    child.line = line;
    out->map.emplace_back(key.Scalar(), std::move(child));
    return absl::OkStatus();
  }
  absl::Status Error(int line, const std::string& text) const { return InvalidArgument(file_, ":", line, ": ", text); }

  const std::string& file_;
  int left_ = kMaxValues;
};

Json ToJson(const DocNode& node) {
  switch (node.kind) {
    case DocNode::Kind::kNull:
      return nullptr;
    case DocNode::Kind::kList: {
      Json out = Json::array();
      for (const DocNode& item : node.list) out.push_back(ToJson(item));
      return out;
    }
    case DocNode::Kind::kMap: {
      Json out = Json::object();
      for (const auto& [key, value] : node.map) out[key] = ToJson(value);
      return out;
    }
    case DocNode::Kind::kScalar:
      break;
  }
  if (node.quoted) return node.scalar;
  Json out = ReadJson(node.scalar);
  if (out.is_discarded() || out.is_structured() || out.is_string()) return node.scalar;
  return out;
}

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t corner = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = corner + (a[i - 1] != b[j - 1]);
      corner = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

bool Number(const DocNode& node, double* out) {
  if (node.kind != DocNode::Kind::kScalar || node.quoted || node.scalar.empty()) return false;
  if (std::isspace(static_cast<unsigned char>(node.scalar[0]))) return false;
  char* end = nullptr;
  *out = std::strtod(node.scalar.c_str(), &end);
  return *end == '\0' && std::isfinite(*out);
}

}  // namespace

std::string DidYouMeanOf(const std::string& word, const std::vector<std::string>& known) {
  if (word.size() > 64) return "";
  const std::string* best = nullptr;
  size_t distance = std::max<size_t>(word.size() / 3, 2) + 1;
  for (const std::string& name : known) {
    const size_t d = EditDistance(word, name);
    if (d < distance) {
      distance = d;
      best = &name;
    }
  }
  return best == nullptr ? "" : "; did you mean " + *best + "?";
}

DocNode::DocNode() = default;
DocNode::~DocNode() = default;
DocNode::DocNode(const DocNode& other) = default;
DocNode::DocNode(DocNode&& other) noexcept = default;
DocNode& DocNode::operator=(const DocNode& other) = default;
DocNode& DocNode::operator=(DocNode&& other) noexcept = default;

absl::StatusOr<DocNode> ParseDocument(const std::string& text, const std::string& file) {
  if (text.size() > kMaxBytes) return InvalidArgument(file, ": larger than 1 MiB");
  if (text.find('\0') != std::string::npos) return InvalidArgument(file, ": not a text file");
  try {
    return Converter(file).Convert(YAML::Load(text), 0);
  } catch (const YAML::Exception& e) {
    return InvalidArgument(file, ":", std::max(e.mark.line, 0) + 1, ": not YAML: ", e.msg);
  } catch (const std::exception& e) {
    return InvalidArgument(file, ": not YAML: ", e.what());
  }
}

std::string DocToJson(const DocNode& node) { return Dump(ToJson(node)); }

absl::StatusOr<DocMap> DocMap::Of(const DocNode& node, const std::string& file, const std::string& path) {
  if (node.kind != DocNode::Kind::kMap)
    return InvalidArgument(file, ":", node.line, ": ", path, path.empty() ? "" : ": ",
                           "must be a mapping (key: value)");
  return DocMap(node, file, path);
}

absl::Status DocMap::Error(const std::string& field, const std::string& text) const {
  const DocNode* at = Find(field);
  const std::string where = field.empty() ? path_ : PathOf(field);
  return InvalidArgument(file_, ":", (at != nullptr ? at : node_)->line, ": ", where, where.empty() ? "" : ": ", text);
}

absl::Status DocMap::CheckFields(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : node_->map) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      return Error(key, "unknown field" + DidYouMeanOf(key, known));
  }
  return absl::OkStatus();
}

const DocNode* DocMap::Find(const std::string& field) const {
  for (const auto& [key, value] : node_->map)
    if (key == field) return &value;
  return nullptr;
}

absl::StatusOr<DocMap> DocMap::Map(const std::string& field) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return Error(field, "missing");
  if (node->kind != DocNode::Kind::kMap) return Error(field, "must be a mapping (key: value)");
  return DocMap(*node, file_, PathOf(field));
}

absl::Status DocMap::Read(const std::string& field, std::string* out) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return absl::OkStatus();
  if (node->kind != DocNode::Kind::kScalar) return Error(field, "must be a text");
  *out = node->scalar;
  return absl::OkStatus();
}

absl::Status DocMap::Read(const std::string& field, double* out) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return absl::OkStatus();
  if (!Number(*node, out)) return Error(field, "must be a number");
  return absl::OkStatus();
}

absl::Status DocMap::Read(const std::string& field, int64_t* out, int64_t min, int64_t max) const {
  const DocNode* node = Find(field);
  double number = 0;
  if (node == nullptr) return absl::OkStatus();
  if (!Number(*node, &number) || number != std::floor(number) || number < static_cast<double>(min) ||
      number > static_cast<double>(max))
    return Error(field, Cat("must be a whole number from ", min, " to ", max));
  *out = static_cast<int64_t>(number);
  return absl::OkStatus();
}

absl::Status DocMap::Read(const std::string& field, bool* out) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return absl::OkStatus();
  if (node->kind != DocNode::Kind::kScalar || node->quoted || (node->scalar != "true" && node->scalar != "false"))
    return Error(field, "must be true or false");
  *out = node->scalar == "true";
  return absl::OkStatus();
}

absl::Status DocMap::Read(const std::string& field, std::vector<std::string>* out) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return absl::OkStatus();
  if (node->kind != DocNode::Kind::kList) return Error(field, "must be a list of texts");
  out->clear();
  for (const DocNode& item : node->list) {
    if (item.kind != DocNode::Kind::kScalar) return Error(field, "must be a list of texts");
    out->push_back(item.scalar);
  }
  return absl::OkStatus();
}

absl::Status DocMap::ReadDuration(const std::string& field, int64_t* out_ms) const {
  const DocNode* node = Find(field);
  if (node == nullptr) return absl::OkStatus();
  const auto bad = [&] { return Error(field, "must be a duration such as 250ms, 60s, 10m, 2h"); };
  if (node->kind != DocNode::Kind::kScalar || node->scalar.empty()) return bad();
  char* end = nullptr;
  const double amount = std::strtod(node->scalar.c_str(), &end);
  const std::string unit = end;
  const double scale = unit == "ms"                  ? 1
                       : unit == "s" || unit.empty() ? 1e3
                       : unit == "m"                 ? 6e4
                       : unit == "h"                 ? 3.6e6
                                                     : 0;
  if (end == node->scalar.c_str() || scale == 0 || !(amount * scale >= 1) || amount * scale > 1e9) return bad();
  *out_ms = std::llround(amount * scale);
  return absl::OkStatus();
}

}  // namespace optod::trace
