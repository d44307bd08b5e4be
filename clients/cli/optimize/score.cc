#include "clients/cli/optimize/score.h"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/status.h"

namespace optod::cli {
namespace {

constexpr size_t kMaxRegexLine = 64 * 1024;  // std::regex recurses by the character

// Lines of `text`, last first; stops when `use` returns true.
template <typename Use>
bool FromLastLine(const std::string& text, Use use) {
  for (size_t end = text.size();;) {
    const size_t line_end = text.rfind('\n', end == 0 ? 0 : end - 1);
    const size_t begin = end == 0 || line_end == std::string::npos ? 0 : line_end + 1;
    if (end > begin && use(text.substr(begin, end - begin))) return true;
    if (begin == 0) return false;
    end = begin - 1;
  }
}

absl::StatusOr<double> Finite(double value, const std::string& what) {
  if (!std::isfinite(value)) return InvalidArgument(what, " is not finite");
  return value;
}

absl::StatusOr<double> FromJson(const std::string& field, const std::string& out) {
  nlohmann::json document;
  const bool found = FromLastLine(out, [&](const std::string& line) {
    if (line.find('{') == std::string::npos) return false;
    document = nlohmann::json::parse(line, nullptr, false);
    return document.is_object();
  });
  if (!found) return InvalidArgument("no score: no line of the output is a JSON object with the field \"", field, "\"");
  const nlohmann::json* node = &document;
  if (!document.contains(field)) {
    for (size_t begin = 0; begin <= field.size() && node;) {
      const size_t dot = std::min(field.find('.', begin), field.size());
      const std::string part = field.substr(begin, dot - begin);
      node = node->is_object() && node->contains(part) ? &(*node)[part] : nullptr;
      begin = dot + 1;
    }
  } else {
    node = &document[field];
  }
  if (!node) return InvalidArgument("no score: the last JSON line has no field \"", field, "\"");
  if (node->is_boolean()) return node->get<bool>() ? 1.0 : 0.0;
  if (!node->is_number()) return InvalidArgument("no score: the field \"", field, "\" is not a number");
  return Finite(node->get<double>(), "no score: the field \"" + field + "\"");
}

absl::StatusOr<double> FromRegex(const std::string& expression, const std::string& out) {
  std::string text;
  try {
    const std::regex pattern(expression, std::regex::ECMAScript);
    FromLastLine(out, [&](const std::string& line) {
      if (line.size() > kMaxRegexLine) return false;
      for (std::sregex_iterator it(line.begin(), line.end(), pattern), end; it != end; ++it)
        text = (*it)[it->size() > 1 ? 1 : 0].str();
      return !text.empty();
    });
  } catch (const std::regex_error& e) {
    return InvalidArgument("no score: the regular expression failed: ", e.what());
  }
  if (text.empty()) return InvalidArgument("no score: no line of the output matches '", expression, "'");
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (*end != '\0')
    return InvalidArgument("no score: '", expression, "' matched \"", text, "\", which is not a number");
  return Finite(value, "no score: the match \"" + text + "\"");
}

}  // namespace

absl::StatusOr<double> ExtractScore(const ScoreRule& rule, const std::string& out, int exit_code) {
  switch (rule.kind) {
    case ScoreRule::Kind::kJson:
      return FromJson(rule.expression, out);
    case ScoreRule::Kind::kRegex:
      return FromRegex(rule.expression, out);
    case ScoreRule::Kind::kExitCode:
      break;
  }
  return exit_code == 0 ? 1.0 : 0.0;
}

}  // namespace optod::cli
