#include "optim/train/templates.h"

#include <cctype>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::train {
namespace {

char Lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

std::string LowerFirst(std::string text) {
  const size_t end = text.find(' ');
  if (text.substr(0, end) == "I" || text.starts_with("I'")) return text;
  if (!text.empty()) text[0] = Lower(text[0]);
  return text;
}

std::string Clause(std::string text) {
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

std::string Question(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text.ends_with('?') ? text : text + "?";
}

absl::StatusOr<std::string> Filter(const std::string& filter, std::string value) {
  if (filter == "lower-first") return LowerFirst(std::move(value));
  if (filter == "clause") return Clause(std::move(value));
  if (filter == "question") return Question(std::move(value));
  if (filter == "connective") return std::string(value == "cause" ? "because" : "so");
  if (filter == "lower") {
    for (char& c : value) c = Lower(c);
    return value;
  }
  if (filter == "before-blank" || filter == "after-blank") {
    const size_t blank = value.find('_');
    if (blank == std::string::npos) return InvalidArgument("template: no \"_\" in \"", value.substr(0, 64), "\"");
    if (filter == "after-blank") return value.substr(blank + 1);
    const size_t last = value.find_last_not_of(' ', blank == 0 ? 0 : blank - 1);
    return value.substr(0, last == std::string::npos || blank == 0 ? 0 : last + 1);
  }
  return InvalidArgument("template: filter \"", filter,
                         "\" is unknown (lower, lower-first, clause, connective, question, before-blank, after-blank)");
}

}  // namespace

const std::string* FieldOf(const Row& row, const std::string& name) {
  for (const auto& [key, value] : row) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<std::string> Render(const std::string& text_template, const Row& row) {
  std::string out;
  for (size_t at = 0; at < text_template.size();) {
    if (text_template[at] != '{') {
      out.push_back(text_template[at++]);
      continue;
    }
    const size_t end = text_template.find('}', at);
    if (end == std::string::npos) return InvalidArgument("template: \"{\" without \"}\"");
    const std::string inside = text_template.substr(at + 1, end - at - 1);
    const size_t bar = inside.find('|');
    const std::string* value = FieldOf(row, inside.substr(0, bar));
    if (value == nullptr) return InvalidArgument("column \"", inside.substr(0, bar), "\" is missing");
    std::string text = *value;
    if (bar != std::string::npos) {
      ASSIGN_OR_RETURN(text, Filter(inside.substr(bar + 1), std::move(text)));
    }
    out += text;
    at = end + 1;
  }
  return out;
}

absl::StatusOr<std::vector<std::string>> ListOf(const std::string& path, const Row& row) {
  const size_t dot = path.find('.');
  const std::string* field = FieldOf(row, path.substr(0, dot));
  if (field == nullptr) return InvalidArgument("column \"", path.substr(0, dot), "\" is missing");
  nlohmann::json value = nlohmann::json::parse(*field, nullptr, /*allow_exceptions=*/false);
  if (dot == std::string::npos && !value.is_array()) value = *field;
  for (size_t at = dot; at != std::string::npos;) {
    const size_t next = path.find('.', at + 1);
    const std::string name = path.substr(at + 1, next == std::string::npos ? next : next - at - 1);
    if (!value.is_object() || !value.contains(name)) return InvalidArgument("\"", path, "\" is missing");
    value = nlohmann::json(value[name]);
    at = next;
  }
  std::vector<std::string> texts;
  for (const nlohmann::json& text : value.is_array() ? value : nlohmann::json::array({value})) {
    if (text.is_string() && !text.get<std::string>().empty()) texts.push_back(text.get<std::string>());
  }
  if (texts.empty()) return InvalidArgument("\"", path, "\" has no text");
  return texts;
}

}  // namespace optod::train
