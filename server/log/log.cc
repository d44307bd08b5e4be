#include "server/log/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <vector>

namespace optod::log {
namespace {

struct State {
  std::atomic<Level> level{Level::kInfo};
  Format format = Format::kText;
  std::function<void(const std::string&)> sink;
  std::shared_ptr<spdlog::logger> logger;
};

State& Global() {
  static State* state = [] {
    auto* made = new State;
    made->logger = std::make_shared<spdlog::logger>("optod", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->logger->set_pattern("%v");
    made->logger->set_level(spdlog::level::trace);
    made->logger->flush_on(spdlog::level::trace);
    return made;
  }();
  return *state;
}

const char* LevelName(Level level) {
  switch (level) {
    case Level::kDebug:
      return "DEBUG";
    case Level::kInfo:
      return "INFO";
    case Level::kWarn:
      return "WARN";
    default:
      return "ERROR";
  }
}

/// Inside double quotes: valid for JSON, readable in text. Bytes of UTF-8 pass.
std::string Escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", byte);
      out += code;
    } else {
      out += c;
    }
  }
  return out;
}

bool NeedsQuotes(std::string_view text) {
  if (text.empty()) return true;
  for (char c : text) {
    unsigned char byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte == 0x7f || c == '"' || c == '=' || c == '\\') return true;
  }
  return false;
}

std::vector<const Field*> SessionFirst(std::initializer_list<Field> fields) {
  std::vector<const Field*> ordered;
  for (const Field& field : fields)
    if (field.key == "session") ordered.push_back(&field);
  for (const Field& field : fields)
    if (field.key != "session") ordered.push_back(&field);
  return ordered;
}

std::string Now() {
  auto now = std::chrono::system_clock::now();
  auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm utc;
  gmtime_r(&seconds, &utc);
  char text[40];
  size_t size = std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + size, sizeof(text) - size, ".%03dZ", static_cast<int>(ms % 1000));
  return text;
}

}  // namespace

void Init(Level level, Format format, std::function<void(const std::string&)> sink) {
  State& state = Global();
  state.level = level;
  state.format = format;
  state.sink = std::move(sink);
}

Level LevelFromName(std::string_view name) {
  if (name == "debug") return Level::kDebug;
  if (name == "warn") return Level::kWarn;
  if (name == "error") return Level::kError;
  return Level::kInfo;
}

std::string FormatText(std::string_view event, std::initializer_list<Field> fields) {
  std::string session, rest;
  for (const Field* field : SessionFirst(fields)) {
    std::string value = NeedsQuotes(field->value) ? '"' + Escape(field->value) + '"' : field->value;
    if (field->key == "session") {
      session = "session=" + value + " ";
    } else {
      rest += " " + field->key + "=" + value;
    }
  }
  return session + "event=" + std::string(event) + rest;
}

std::string FormatJson(std::string_view time, std::string_view level, std::string_view event,
                       std::initializer_list<Field> fields) {
  std::string session, rest;
  for (const Field* field : SessionFirst(fields)) {
    std::string value = field->bare ? field->value : '"' + Escape(field->value) + '"';
    if (field->key == "session") {
      session = "\"session\":" + value + ",";
    } else {
      rest += ",\"" + Escape(field->key) + "\":" + value;
    }
  }
  return "{" + session + "\"time\":\"" + std::string(time) + "\",\"level\":\"" + std::string(level) +
         "\",\"event\":\"" + Escape(event) + '"' + rest + "}";
}

void Write(Level level, std::string_view event, std::initializer_list<Field> fields) {
  State& state = Global();
  if (level < state.level) return;
  std::string line = state.format == Format::kJson ? FormatJson(Now(), LevelName(level), event, fields)
                                                   : Now() + " " + LevelName(level) + " " + FormatText(event, fields);
  if (state.sink) {
    state.sink(line);
  } else {
    state.logger->log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
  }
}

}  // namespace optod::log
