#include "trace/workflow/expression.h"

#include <algorithm>
#include <optional>

#include "base/status.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

/// Literal text, or a hole when `path` is not empty.
struct Part {
  std::string literal;
  std::vector<std::string> path;
};

bool IsPathPart(const std::string& part) {
  return !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) {
    return c == '_' || c == '-' || (c < 0x80 && std::isalnum(c));
  });
}

std::string Joined(const std::vector<std::string>& path) {
  std::string text;
  for (const std::string& part : path) text += (text.empty() ? "" : ".") + part;
  return "{{" + text + "}}";
}

absl::StatusOr<std::vector<std::string>> ParsePath(const std::string& inside) {
  const size_t begin = inside.find_first_not_of(" \t");
  const size_t end = inside.find_last_not_of(" \t");
  const std::string text = begin == std::string::npos ? "" : inside.substr(begin, end - begin + 1);
  std::vector<std::string> path;
  for (size_t at = 0; at <= text.size();) {
    const size_t dot = std::min(text.find('.', at), text.size());
    path.push_back(text.substr(at, dot - at));
    if (!IsPathPart(path.back()))
      return InvalidArgument("{{", inside.substr(0, 60), "}}: is not a name or a path like {{item.label}}");
    at = dot + 1;
  }
  return path;
}

absl::StatusOr<std::vector<Part>> ParseText(const std::string& text) {
  std::vector<Part> parts;
  std::string literal;
  for (size_t at = 0; at < text.size();) {
    if (text.compare(at, 3, "\\{{") == 0) {
      literal += "{{";
      at += 3;
    } else if (text.compare(at, 2, "{{") == 0) {
      const size_t end = text.find("}}", at + 2);
      if (end == std::string::npos) return InvalidArgument("{{ has no }} (write \\{{ for plain braces)");
      ASSIGN_OR_RETURN(std::vector<std::string> path, ParsePath(text.substr(at + 2, end - at - 2)));
      if (!literal.empty()) parts.push_back({std::move(literal), {}});
      literal.clear();
      parts.push_back({"", std::move(path)});
      at = end + 2;
    } else {
      literal += text[at++];
    }
  }
  if (!literal.empty() || parts.empty()) parts.push_back({std::move(literal), {}});
  return parts;
}

/// The JSON with each text replaced by its parsed form.
struct Tree {
  enum class Kind { kPlain, kText, kList, kMap } kind = Kind::kPlain;
  Json plain;
  std::vector<Part> parts;
  std::vector<std::string> keys;
  std::vector<Tree> children;
};

absl::StatusOr<Tree> ParseTree(const Json& json, std::set<std::string>* names) {
  Tree tree;
  if (json.is_string()) {
    tree.kind = Tree::Kind::kText;
    ASSIGN_OR_RETURN(tree.parts, ParseText(json.get<std::string>()));
    for (const Part& part : tree.parts)
      if (!part.path.empty()) names->insert(part.path[0]);
  } else if (json.is_structured()) {
    tree.kind = json.is_array() ? Tree::Kind::kList : Tree::Kind::kMap;
    for (auto it = json.begin(); it != json.end(); ++it) {
      if (json.is_object()) tree.keys.push_back(it.key());
      ASSIGN_OR_RETURN(Tree child, ParseTree(*it, names));
      tree.children.push_back(std::move(child));
    }
  } else {
    tree.plain = json;
  }
  return tree;
}

absl::StatusOr<Json> Follow(const std::vector<std::string>& path, const Expression::Lookup& lookup) {
  const std::string* text = lookup(path[0]);
  if (text == nullptr) return NotFound(Joined(path), ": there is no value named ", path[0]);
  Json value = ReadJson(*text);
  if (value.is_discarded()) return Internal(Joined(path), ": the value of ", path[0], " is not JSON");
  for (size_t i = 1; i < path.size(); ++i) {
    const std::string& part = path[i];
    const bool index = part.find_first_not_of("0123456789") == std::string::npos && part.size() < 10;
    if (value.is_object() && value.contains(part)) {
      Json member = value[part];
      value = std::move(member);
    } else if (value.is_array() && index && std::stoul(part) < value.size()) {
      Json member = value[std::stoul(part)];
      value = std::move(member);
    } else {
      return NotFound(Joined(path), ": has no ", value.is_array() ? "entry " : "member ", part);
    }
  }
  return value;
}

std::string Shown(const Json& value) { return value.is_string() ? value.get<std::string>() : Dump(value); }

absl::StatusOr<Json> EvaluateTree(const Tree& tree, const Expression::Lookup& lookup) {
  switch (tree.kind) {
    case Tree::Kind::kPlain:
      return tree.plain;
    case Tree::Kind::kText: {
      if (tree.parts.size() == 1 && !tree.parts[0].path.empty()) return Follow(tree.parts[0].path, lookup);
      std::string text;
      for (const Part& part : tree.parts) {
        if (part.path.empty()) {
          text += part.literal;
          continue;
        }
        ASSIGN_OR_RETURN(const Json value, Follow(part.path, lookup));
        text += Shown(value);
      }
      return Json(text);
    }
    default: {
      Json out = tree.kind == Tree::Kind::kList ? Json::array() : Json::object();
      for (size_t i = 0; i < tree.children.size(); ++i) {
        ASSIGN_OR_RETURN(Json child, EvaluateTree(tree.children[i], lookup));
        if (tree.kind == Tree::Kind::kList)
          out.push_back(std::move(child));
        else
          out[tree.keys[i]] = std::move(child);
      }
      return out;
    }
  }
}

}  // namespace

struct Expression::Impl {
  Tree tree;
  std::set<std::string> names;
};

Expression::Expression() : impl_(new Impl) {}
Expression::~Expression() = default;
Expression::Expression(const Expression& other) : impl_(new Impl(*other.impl_)) {}
Expression& Expression::operator=(const Expression& other) {
  impl_ = std::make_unique<Impl>(*other.impl_);
  return *this;
}
Expression::Expression(Expression&&) noexcept = default;
Expression& Expression::operator=(Expression&&) noexcept = default;

absl::StatusOr<Expression> Expression::Parse(const std::string& json) {
  const Json value = ReadJson(json);
  if (value.is_discarded()) return InvalidArgument("is not JSON");
  Expression expression;
  ASSIGN_OR_RETURN(expression.impl_->tree, ParseTree(value, &expression.impl_->names));
  return expression;
}

const std::set<std::string>& Expression::names() const { return impl_->names; }

absl::StatusOr<std::string> Expression::Evaluate(const Lookup& lookup) const {
  ASSIGN_OR_RETURN(const Json value, EvaluateTree(impl_->tree, lookup));
  return Dump(value);
}

std::string PlainText(const std::string& json) {
  const Json value = ReadJson(json);
  return value.is_discarded() ? json : Shown(value);
}

std::string JsonOfText(const std::string& text) { return Dump(Json(text)); }

bool IsTruthy(const std::string& json) {
  const Json value = ReadJson(json);
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get<std::string>().empty();
  return value.is_structured() && !value.empty();
}

}  // namespace optod::trace
