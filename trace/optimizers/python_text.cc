#include "trace/optimizers/python_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace optod::trace {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string ReprString(std::string_view s) {
  const bool single = s.find('\'') != std::string_view::npos, both = single && s.find('"') != std::string_view::npos;
  const char quote = single && !both ? '"' : '\'';
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out(1, quote);
  for (size_t i = 0; i < s.size(); ++i) {
    const auto c = static_cast<unsigned char>(s[i]);
    // U+0080..U+00A0 and U+00AD do not print; other code points beyond ASCII are taken to.
    const bool c2 = c == 0xC2 && i + 1 < s.size() &&
                    (static_cast<unsigned char>(s[i + 1]) <= 0xA0 || static_cast<unsigned char>(s[i + 1]) == 0xAD);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += s[i];
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c < 0x20 || c == 0x7F || c2) {
      const unsigned char code = c2 ? static_cast<unsigned char>(s[++i]) : c;
      out += "\\x";
      out += kHex[code >> 4];
      out += kHex[code & 15];
    } else {
      out += s[i];
    }
  }
  return out + quote;
}

// Removes underscores; false when one is not between two digits.
bool DropUnderscores(std::string_view text, std::string& out) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !IsDigit(text[i - 1]) || !IsDigit(text[i + 1])) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto scientific = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(scientific.ptr - buffer));
  const size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(text);  // to_chars also writes two exponent digits and a sign
  const bool negative = text[0] == '-';
  std::string digits;
  for (char c : text.substr(0, e)) {
    if (IsDigit(c)) digits += c;
  }
  std::string out = negative ? "-" : "";
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string PythonRepr(const JsonValue& v) {
  switch (v.kind) {
    case JsonValue::Kind::kNull:
      return "None";
    case JsonValue::Kind::kBool:
      return v.boolean ? "True" : "False";
    case JsonValue::Kind::kInt:
      return v.text;
    case JsonValue::Kind::kFloat:
      return FloatRepr(v.Number());
    case JsonValue::Kind::kString:
      return ReprString(v.text);
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject:
      break;
  }
  const bool object = v.kind == JsonValue::Kind::kObject;
  std::string out = object ? "{" : "[";
  for (size_t i = 0; i < v.items.size(); ++i) {
    if (i > 0) out += ", ";
    if (object) out += ReprString(v.keys[i]) + ": ";
    out += PythonRepr(v.items[i]);
  }
  return out + (object ? '}' : ']');
}

std::string PythonStr(const JsonValue& v) { return v.kind == JsonValue::Kind::kString ? v.text : PythonRepr(v); }

std::string_view Strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\v\f\x1c\x1d\x1e\x1f";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::optional<std::string> ParsePythonInt(std::string_view text) {
  text = Strip(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '+' || text[0] == '-')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  std::string digits;
  if (text.empty() || !DropUnderscores(text, digits) || !std::all_of(digits.begin(), digits.end(), IsDigit))
    return std::nullopt;
  if (digits.size() > 4300) return std::nullopt;  // Python's own limit
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  return negative && digits != "0" ? "-" + digits : digits;
}

std::optional<double> ParsePythonFloat(std::string_view text) {
  std::string clean;
  if (!DropUnderscores(Strip(text), clean) || clean.empty()) return std::nullopt;
  // strtod also reads hexadecimal and `nan(...)`: only these characters are Python's.
  std::string lower = clean;
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  const std::string_view unsigned_part = std::string_view(lower).substr(lower[0] == '+' || lower[0] == '-' ? 1 : 0);
  const bool word = unsigned_part == "inf" || unsigned_part == "infinity" || unsigned_part == "nan";
  if (!word && lower.find_first_not_of("0123456789+-.e") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(clean.c_str(), &end);
  if (end != clean.c_str() + clean.size()) return std::nullopt;
  return value;
}

}  // namespace optod::trace
