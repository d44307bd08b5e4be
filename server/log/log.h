#pragma once
/// The server's log: one line an event on stderr, key=value or JSON, the session's name first. Values are escaped, so
/// that no request can write a second line. Nothing secret is passed here: callers log names and codes, never tokens,
/// keys or payloads. Thread-safe after Init.

#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>

namespace optod::log {

enum class Level { kDebug, kInfo, kWarn, kError };
enum class Format { kText, kJson };

/// A value with its key. `session` (when given) is moved to the front of the line.
struct Field {
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const std::string& v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(v) {}
  Field(std::string_view k, bool v) : key(k), value(v ? "true" : "false"), bare(true) {}
  template <typename Number>
  Field(std::string_view k, Number v) : key(k), value(std::to_string(v)), bare(true) {}
  std::string key, value;
  bool bare = false;  ///< a number or truth value: unquoted in JSON
};

/// Before the first Write: level info, format text. `sink` replaces stderr when set (tests); it gets whole lines
/// without the newline.
void Init(Level level, Format format, std::function<void(const std::string&)> sink = nullptr);

Level LevelFromName(std::string_view name);  ///< "debug" | "info" | "warn" | "error"; anything else is info

void Write(Level level, std::string_view event, std::initializer_list<Field> fields = {});

inline void Debug(std::string_view event, std::initializer_list<Field> fields = {}) {
  Write(Level::kDebug, event, fields);
}
inline void Info(std::string_view event, std::initializer_list<Field> fields = {}) {
  Write(Level::kInfo, event, fields);
}
inline void Warn(std::string_view event, std::initializer_list<Field> fields = {}) {
  Write(Level::kWarn, event, fields);
}
inline void Error(std::string_view event, std::initializer_list<Field> fields = {}) {
  Write(Level::kError, event, fields);
}

/// The line without time and level, as Write makes it; exposed for tests.
std::string FormatText(std::string_view event, std::initializer_list<Field> fields);
std::string FormatJson(std::string_view time, std::string_view level, std::string_view event,
                       std::initializer_list<Field> fields);

}  // namespace optod::log
