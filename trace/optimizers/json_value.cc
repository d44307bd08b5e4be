#include "trace/optimizers/json_value.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

constexpr int kMaxDepth = 200;

void AppendUtf8(std::string& out, uint32_t c) {
  if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;  // a lone surrogate has no UTF-8 form
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

class Parser {
 public:
  Parser(std::string_view text, JsonOptions options, int64_t work)
      : text_(text), lenient_(options.lenient), work_(work) {}

  bool Value(JsonValue& out, int depth) {
    if (depth > kMaxDepth || !SkipSpace() || AtEnd()) return false;
    switch (const char c = text_[pos_]) {
      case '{':
        return Object(out, depth);
      case '[':
        return Array(out, depth);
      case '"':
        out.kind = JsonValue::Kind::kString;
        return String(out.text, '"');
      case '\'':
        out.kind = JsonValue::Kind::kString;
        return Lenient() && String(out.text, '\'');
      default:
        return (c == '-' || (c >= '0' && c <= '9')) ? Number(out) : Word(out);
    }
  }
  // False when work ran out, or inside an unclosed comment.
  bool SkipSpace() {
    for (; !AtEnd(); ++pos_) {
      const char c = text_[pos_];
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        if (!Spend(1)) return false;
        continue;
      }
      if (!lenient_ || !(c == '#' || Starts("//") || Starts("/*"))) return true;
      const bool block = Starts("/*");
      const size_t stop = text_.find(block ? "*/" : "\n", pos_);
      const size_t next = stop == std::string_view::npos ? text_.size() : stop + (block ? 1 : 0);
      if (!Spend(next - pos_) || (block && stop == std::string_view::npos)) return false;
      leniency_ = true;
      if (stop == std::string_view::npos) {
        pos_ = next;
        return true;
      }
      pos_ = next;
    }
    return true;
  }
  bool AtEnd() const { return pos_ >= text_.size(); }
  size_t pos() const { return pos_; }
  bool leniency() const { return leniency_; }
  int64_t work() const { return work_; }

 private:
  bool Spend(size_t bytes) { return (work_ -= static_cast<int64_t>(bytes)) > 0; }
  bool Starts(std::string_view s) const { return text_.substr(pos_, s.size()) == s; }
  bool Lenient() {
    leniency_ = true;
    return lenient_;
  }
  bool Take(char c) {
    if (AtEnd() || text_[pos_] != c) return false;
    ++pos_;
    return Spend(1);
  }

  // Between two elements: a comma, or in lenient mode a line break. `closed` is set when the bracket follows.
  bool Separator(char close, bool& closed) {
    const size_t before = pos_;
    if (!SkipSpace()) return false;
    if (Take(close)) return closed = true;
    if (!Take(',')) {
      return text_.substr(before, pos_ - before).find('\n') != std::string_view::npos && Lenient() && !AtEnd();
    }
    if (!SkipSpace()) return false;
    if (!AtEnd() && text_[pos_] == close) {
      ++pos_;
      return closed = Lenient();
    }
    return true;
  }

  bool Object(JsonValue& out, int depth) {
    out.kind = JsonValue::Kind::kObject;
    ++pos_;
    if (!SkipSpace()) return false;
    bool closed = Take('}');
    absl::flat_hash_map<std::string, size_t, std::hash<std::string>> places;
    while (!closed) {
      std::string key;
      JsonValue value;
      if (AtEnd()) return false;
      const char quote = text_[pos_];
      if (quote != '"' && !(quote == '\'' && Lenient())) return false;
      if (!String(key, quote) || !SkipSpace() || !Take(':') || !Value(value, depth + 1)) return false;
      if (!Separator('}', closed)) return false;
      const auto [known, is_new] = places.try_emplace(key, out.keys.size());
      if (is_new) {
        out.keys.push_back(std::move(key));
        out.items.push_back(std::move(value));
      } else {
        out.items[known->second] = std::move(value);
      }
    }
    return true;
  }

  bool Array(JsonValue& out, int depth) {
    out.kind = JsonValue::Kind::kArray;
    ++pos_;
    if (!SkipSpace()) return false;
    bool closed = Take(']');
    while (!closed) {
      if (!Value(out.items.emplace_back(), depth + 1) || !Separator(']', closed)) return false;
    }
    return true;
  }

  bool Hex4(uint32_t& out) {
    if (pos_ + 4 > text_.size()) return false;
    out = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[pos_++];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return false;
      out = out * 16 + static_cast<uint32_t>(digit);
    }
    return true;
  }

  bool Escape(std::string& out) {
    if (AtEnd()) return false;
    const char c = text_[pos_++];
    constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
      out += kTo[at];
      return true;
    }
    if (c != 'u') {  // an escape JSON does not have, such as \d or \'
      if (c != '\'' && c != '\n') out += '\\';
      out += c;
      return Lenient();
    }
    uint32_t unit = 0;
    if (!Hex4(unit)) return false;
    if (unit >= 0xD800 && unit < 0xDC00 && Starts("\\u")) {
      const size_t back = pos_;
      uint32_t low = 0;
      pos_ += 2;
      if (!Hex4(low)) return false;
      if (low >= 0xDC00 && low < 0xE000) {
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
      } else {
        pos_ = back;
      }
    }
    AppendUtf8(out, unit);
    return true;
  }

  bool String(std::string& out, char quote) {
    ++pos_;
    while (!AtEnd()) {
      size_t run = pos_;
      while (run < text_.size() && text_[run] != quote && text_[run] != '\\' &&
             static_cast<unsigned char>(text_[run]) >= 0x20)
        ++run;
      out.append(text_.substr(pos_, run - pos_));
      if (!Spend(run - pos_ + 1)) return false;
      pos_ = run;
      if (AtEnd()) return false;
      const char c = text_[pos_++];
      if (c == quote) return true;
      if (c == '\\') {
        if (!Escape(out)) return false;
      } else {
        if (!Lenient()) return false;
        out += c;
      }
    }
    return false;
  }

  size_t Digits() {
    const size_t begin = pos_;
    while (!AtEnd() && text_[pos_] >= '0' && text_[pos_] <= '9') ++pos_;
    return pos_ - begin;
  }

  bool Number(JsonValue& out) {
    if (Starts("-Infinity")) return Word(out);
    const size_t begin = pos_;
    if (text_[pos_] == '-') ++pos_;
    const size_t int_begin = pos_;
    const size_t digits = Digits();
    if (digits == 0) return false;
    if (digits > 1 && text_[int_begin] == '0') return false;
    out.kind = JsonValue::Kind::kInt;
    if (!AtEnd() && text_[pos_] == '.') {
      const size_t back = pos_++;
      if (Digits() == 0) {
        pos_ = back;  // as json.loads: the number ends before the dot
      } else {
        out.kind = JsonValue::Kind::kFloat;
      }
    }
    if (!AtEnd() && (text_[pos_] == 'e' || text_[pos_] == 'E')) {
      const size_t back = pos_++;
      if (!AtEnd() && (text_[pos_] == '+' || text_[pos_] == '-')) ++pos_;
      if (Digits() == 0) {
        pos_ = back;
      } else {
        out.kind = JsonValue::Kind::kFloat;
      }
    }
    out.text = text_.substr(begin, pos_ - begin);
    if (out.kind == JsonValue::Kind::kInt && out.text == "-0") out.text = "0";
    return Spend(pos_ - begin);
  }

  bool Word(JsonValue& out) {
    struct Entry {
      std::string_view word;
      JsonValue::Kind kind;
      bool boolean;
      bool strict;
    };
    static constexpr Entry kWords[] = {
        {"true", JsonValue::Kind::kBool, true, true},       {"false", JsonValue::Kind::kBool, false, true},
        {"null", JsonValue::Kind::kNull, false, true},      {"NaN", JsonValue::Kind::kFloat, false, true},
        {"Infinity", JsonValue::Kind::kFloat, false, true}, {"-Infinity", JsonValue::Kind::kFloat, false, true},
        {"True", JsonValue::Kind::kBool, true, false},      {"False", JsonValue::Kind::kBool, false, false},
        {"None", JsonValue::Kind::kNull, false, false}};
    for (const Entry& e : kWords) {
      if (!Starts(e.word) || (!e.strict && !Lenient())) continue;
      out.kind = e.kind;
      out.boolean = e.boolean;
      if (e.kind == JsonValue::Kind::kFloat) out.text = e.word == "NaN" ? "nan" : e.word == "Infinity" ? "inf" : "-inf";
      pos_ += e.word.size();
      return Spend(e.word.size());
    }
    return false;
  }

  std::string_view text_;
  bool lenient_;
  int64_t work_;
  size_t pos_ = 0;
  bool leniency_ = false;
};

bool AppendJson(const JsonValue& v, std::string& out) {
  switch (v.kind) {
    case JsonValue::Kind::kNull:
      out += "null";
      return true;
    case JsonValue::Kind::kBool:
      out += v.boolean ? "true" : "false";
      return true;
    case JsonValue::Kind::kInt:
      out += v.text;
      return true;
    case JsonValue::Kind::kFloat:
      if (!std::isfinite(v.Number())) return false;
      out += FloatRepr(v.Number());
      return true;
    case JsonValue::Kind::kString:
      out += QuoteJson(v.text);
      return true;
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject:
      break;
  }
  const bool object = v.kind == JsonValue::Kind::kObject;
  out += object ? '{' : '[';
  for (size_t i = 0; i < v.items.size(); ++i) {
    if (i > 0) out += ',';
    if (object) out += QuoteJson(v.keys[i]) + ':';
    if (!AppendJson(v.items[i], out)) return false;
  }
  out += object ? '}' : ']';
  return true;
}

}  // namespace

const JsonValue* JsonValue::Find(std::string_view key) const {
  if (kind != Kind::kObject) return nullptr;
  const auto at = std::find(keys.begin(), keys.end(), key);
  return at == keys.end() ? nullptr : &items[static_cast<size_t>(at - keys.begin())];
}

double JsonValue::Number() const { return std::strtod(text.c_str(), nullptr); }

JsonValue JsonValue::String(std::string text) {
  JsonValue v;
  v.kind = Kind::kString;
  v.text = std::move(text);
  return v;
}

std::optional<JsonValue> ParseJsonPrefix(std::string_view text, JsonOptions options, size_t* end, bool* leniency,
                                         int64_t* work) {
  Parser parser(text, options, work ? *work : INT64_MAX);
  JsonValue value;
  const bool ok = parser.Value(value, 0);
  if (work) *work = parser.work();
  if (!ok) return std::nullopt;
  *end = parser.pos();
  if (leniency) *leniency = parser.leniency();
  return value;
}

std::optional<JsonValue> ParseJson(std::string_view text, JsonOptions options) {
  Parser parser(text, options, INT64_MAX);
  JsonValue value;
  if (!parser.Value(value, 0) || !parser.SkipSpace() || !parser.AtEnd()) return std::nullopt;
  return value;
}

std::string QuoteJson(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    constexpr std::string_view kHex = "0123456789abcdef";
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += kHex[static_cast<unsigned char>(c) >> 4];
          out += kHex[c & 15];
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

std::optional<std::string> ToJson(const JsonValue& value) {
  std::string out;
  if (!AppendJson(value, out)) return std::nullopt;
  return out;
}

}  // namespace optod::trace
