#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

constexpr int kMaxDepth = 256;

bool TooDeep(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

Json ReadJson(const std::string& text) {
  if (TooDeep(text)) return Json(Json::value_t::discarded);
  return Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

const Json& Member(const Json& json, const char* name) {
  static const Json kNull;
  if (!json.is_object()) return kNull;
  const auto it = json.find(name);
  return it == json.end() ? kNull : *it;
}

std::string Text(const Json& json) { return json.is_string() ? json.get<std::string>() : std::string(); }

int64_t Count(const Json& json) {
  if (!json.is_number()) return 0;
  const double value = json.get<double>();
  return value > 0 && value < 1e12 ? static_cast<int64_t>(value) : 0;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace optod::trace
