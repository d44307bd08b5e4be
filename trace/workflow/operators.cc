#include "trace/workflow/operators.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/status.h"
#include "trace/llm/json_parse.h"
#include "trace/workflow/document.h"
#include "trace/workflow/expression.h"

namespace optod::trace {
namespace {

using Arguments = std::vector<Json>;
using Result = absl::StatusOr<Json>;
using Function = Result (*)(const Arguments&);

constexpr size_t kMaxTextBytes = 4u << 20;

std::string Shown(const Json& value) {
  const std::string text = Dump(value);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

Result Finite(double value, const char* what) {
  if (!std::isfinite(value)) return InvalidArgument(what, ": the result is not a finite number");
  return Json(value);
}

absl::Status Need(bool good, const char* op, const Json& value, const char* what) {
  return good ? absl::OkStatus() : InvalidArgument(op, ": ", Shown(value), " is not ", what);
}

absl::Status NeedNumbers(const char* op, const Arguments& a) {
  for (const Json& value : a) RETURN_IF_ERROR(Need(value.is_number(), op, value, "a number"));
  return absl::OkStatus();
}

bool AllIntegers(const Arguments& a) {
  return std::all_of(a.begin(), a.end(), [](const Json& v) {
    return v.is_number_integer() && !(v.is_number_unsigned() && v.get<uint64_t>() > INT64_MAX);
  });
}

/// Exact on integers as long as the result fits, else on doubles.
template <typename Exact, typename Rounded>
Result Arithmetic(const char* op, const Arguments& a, Exact exact, Rounded rounded) {
  RETURN_IF_ERROR(NeedNumbers(op, a));
  int64_t whole = 0;
  if (AllIntegers(a) && exact(a[0].get<int64_t>(), a[1].get<int64_t>(), &whole)) return Json(whole);
  return Finite(rounded(a[0].get<double>(), a[1].get<double>()), op);
}

Result Joined(const Arguments& a) {
  std::string text;
  for (const Json& value : a) text += PlainText(Dump(value));
  return Json(text);
}

Result Add(const Arguments& a) {
  if (a[0].is_string() && a[1].is_string()) return Joined(a);
  if (a[0].is_array() && a[1].is_array()) {
    Json out = a[0];
    out.insert(out.end(), a[1].begin(), a[1].end());
    return out;
  }
  return Arithmetic(
      "add", a, [](int64_t x, int64_t y, int64_t* z) { return !__builtin_add_overflow(x, y, z); },
      [](double x, double y) { return x + y; });
}
Result Sub(const Arguments& a) {
  return Arithmetic(
      "sub", a, [](int64_t x, int64_t y, int64_t* z) { return !__builtin_sub_overflow(x, y, z); },
      [](double x, double y) { return x - y; });
}
Result Mul(const Arguments& a) {
  return Arithmetic(
      "mul", a, [](int64_t x, int64_t y, int64_t* z) { return !__builtin_mul_overflow(x, y, z); },
      [](double x, double y) { return x * y; });
}
Result Div(const Arguments& a) {
  RETURN_IF_ERROR(NeedNumbers("div", a));
  if (a[1].get<double>() == 0) return InvalidArgument("div: ", Shown(a[0]), " / 0");
  return Finite(a[0].get<double>() / a[1].get<double>(), "div");
}
/// As in Python: the sign of the divisor.
Result Mod(const Arguments& a) {
  RETURN_IF_ERROR(NeedNumbers("mod", a));
  const double y = a[1].get<double>();
  if (y == 0) return InvalidArgument("mod: ", Shown(a[0]), " mod 0");
  if (AllIntegers(a)) {
    if (a[1].get<int64_t>() == -1) return Json(0);  // INT64_MIN % -1 overflows
    const int64_t m = a[1].get<int64_t>(), r = a[0].get<int64_t>() % m;
    return Json(r != 0 && (r < 0) != (m < 0) ? r + m : r);
  }
  const double r = std::fmod(a[0].get<double>(), y);
  return Finite(r != 0 && (r < 0) != (y < 0) ? r + y : r, "mod");
}
Result Neg(const Arguments& a) { return Sub({Json(0), a[0]}); }
Result Abs(const Arguments& a) {
  RETURN_IF_ERROR(NeedNumbers("abs", a));
  return a[0].get<double>() < 0 ? Neg(a) : Result(a[0]);
}
Result Round(const Arguments& a) {
  RETURN_IF_ERROR(NeedNumbers("round", a));
  const double digits = a.size() > 1 ? a[1].get<double>() : 0;
  if (std::abs(digits) > 15) return InvalidArgument("round: ", Shown(a[1]), " digits; must be -15 to 15");
  const double scale = std::pow(10.0, digits), value = std::nearbyint(a[0].get<double>() * scale) / scale;
  if (digits <= 0 && std::abs(value) < 9e15) return Json(static_cast<int64_t>(value));
  return Finite(value, "round");
}

bool Truthy(const Json& value) { return IsTruthy(Dump(value)); }

absl::StatusOr<bool> Less(const char* op, const Json& x, const Json& y) {
  if (x.is_number() && y.is_number()) return x.get<double>() < y.get<double>();
  if (x.is_string() && y.is_string()) return x.get<std::string>() < y.get<std::string>();
  return InvalidArgument(op, ": cannot compare ", Shown(x), " with ", Shown(y));
}
Result Compare(const char* op, const Json& x, const Json& y, bool negate) {
  ASSIGN_OR_RETURN(const bool less, Less(op, x, y));
  return Json(less != negate);
}

Result Getitem(const Arguments& a) {
  const Json &whole = a[0], &key = a[1];
  if (whole.is_object() && key.is_string() && whole.contains(key.get<std::string>()))
    return Json(whole[key.get<std::string>()]);
  if ((whole.is_array() || whole.is_string()) && key.is_number_integer()) {
    const std::string text = whole.is_string() ? whole.get<std::string>() : "";
    const auto size = static_cast<int64_t>(whole.is_string() ? text.size() : whole.size());
    const int64_t at = key.get<int64_t>() < 0 ? key.get<int64_t>() + size : key.get<int64_t>();
    if (at >= 0 && at < size)
      return whole.is_string() ? Json(text.substr(static_cast<size_t>(at), 1)) : Json(whole[static_cast<size_t>(at)]);
  }
  return InvalidArgument("getitem: ", Shown(whole), " has no ", Shown(key));
}
Result Len(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_string() || a[0].is_structured(), "len", a[0], "a text, a list or a map"));
  return Json(a[0].is_string() ? a[0].get<std::string>().size() : a[0].size());
}
Result Contains(const Arguments& a) {
  if (a[0].is_string() && a[1].is_string())
    return Json(a[0].get<std::string>().find(a[1].get<std::string>()) != std::string::npos);
  if (a[0].is_array()) return Json(std::find(a[0].begin(), a[0].end(), a[1]) != a[0].end());
  if (a[0].is_object() && a[1].is_string()) return Json(a[0].contains(a[1].get<std::string>()));
  return InvalidArgument("contains: cannot look for ", Shown(a[1]), " in ", Shown(a[0]));
}

template <int (*kCase)(int)>
Result Case(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_string(), "lower or upper", a[0], "a text"));
  std::string text = a[0].get<std::string>();
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(kCase(c));
  return Json(text);
}
Result Strip(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_string(), "strip", a[0], "a text"));
  const std::string text = a[0].get<std::string>();
  const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return Json(begin == std::string::npos ? "" : text.substr(begin, end - begin + 1));
}
Result Split(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_string() && a[1].is_string() && !a[1].get<std::string>().empty(), "split", a[0],
                       "a text, or the separator is none"));
  const std::string text = a[0].get<std::string>(), by = a[1].get<std::string>();
  Json out = Json::array();
  for (size_t at = 0;;) {
    const size_t end = text.find(by, at);
    out.push_back(text.substr(at, end == std::string::npos ? end : end - at));
    if (end == std::string::npos) return out;
    at = end + by.size();
  }
}
Result Join(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_array(), "join", a[0], "a list"));
  RETURN_IF_ERROR(Need(a[1].is_string(), "join", a[1], "a text"));
  std::string text;
  for (size_t i = 0; i < a[0].size(); ++i) text += (i > 0 ? a[1].get<std::string>() : "") + PlainText(Dump(a[0][i]));
  return Json(text);
}
Result Replace(const Arguments& a) {
  for (const Json& value : a) RETURN_IF_ERROR(Need(value.is_string(), "replace", value, "a text"));
  std::string text = a[0].get<std::string>();
  const std::string from = a[1].get<std::string>(), to = a[2].get<std::string>();
  if (from.empty()) return InvalidArgument("replace: cannot replace an empty text");
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
    if (text.size() > kMaxTextBytes) return InvalidArgument("replace: the result is larger than 4 MiB");
  }
  return Json(text);
}

Result Str(const Arguments& a) { return Json(PlainText(Dump(a[0]))); }
Result Num(const Arguments& a) {
  if (a[0].is_number()) return a[0];
  if (a[0].is_boolean()) return Json(a[0].get<bool>() ? 1 : 0);
  if (a[0].is_string()) {
    const std::string text = Strip(a)->get<std::string>();
    const Json value = ReadJson(text);
    if (value.is_number()) return value;
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && std::isfinite(number)) return Json(number);
  }
  return InvalidArgument("number: ", Shown(a[0]), " is not a number");
}
Result Int(const Arguments& a) {
  ASSIGN_OR_RETURN(const Json number, Num(a));
  if (number.is_number_integer()) return number;
  if (std::abs(number.get<double>()) > 9e15) return InvalidArgument("int: ", Shown(number), " is too large");
  return Json(static_cast<int64_t>(std::trunc(number.get<double>())));
}
Result JsonParse(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_string(), "json_parse", a[0], "a text"));
  Json value = ReadJson(a[0].get<std::string>());
  if (value.is_discarded()) return InvalidArgument("json_parse: ", Shown(a[0]), " is not JSON");
  return value;
}
Result JsonDump(const Arguments& a) { return Json(Dump(a[0])); }
Result If(const Arguments& a) { return Truthy(a[0]) ? a[1] : a[2]; }
Result List(const Arguments& a) { return Json(a); }

/// One list argument stands for its entries.
Arguments Spread(const Arguments& a) {
  if (a.size() == 1 && a[0].is_array()) return Arguments(a[0].begin(), a[0].end());
  return a;
}
Result Sum(const Arguments& a) {
  Json total = 0;
  for (const Json& value : Spread(a)) {
    RETURN_IF_ERROR(Need(value.is_number(), "sum", value, "a number"));
    ASSIGN_OR_RETURN(total, Add({total, value}));
  }
  return total;
}
Result Mean(const Arguments& a) {
  const Arguments values = Spread(a);
  if (values.empty()) return InvalidArgument("mean: of nothing");
  ASSIGN_OR_RETURN(const Json total, Sum(values));
  return Finite(total.get<double>() / static_cast<double>(values.size()), "mean");
}
Result Extreme(const char* op, const Arguments& a, bool largest) {
  const Arguments values = Spread(a);
  if (values.empty()) return InvalidArgument(op, ": of nothing");
  Json best = values[0];
  for (const Json& value : values) {
    ASSIGN_OR_RETURN(const bool less, Less(op, value, best));
    ASSIGN_OR_RETURN(const bool more, Less(op, best, value));
    if (largest ? more : less) best = value;
  }
  return best;
}
Result Sorted(const Arguments& a) {
  RETURN_IF_ERROR(Need(a[0].is_array(), "sorted", a[0], "a list"));
  Arguments values(a[0].begin(), a[0].end());
  for (size_t i = 1; i < values.size(); ++i) RETURN_IF_ERROR(Less("sorted", values[0], values[i]).status());
  std::stable_sort(values.begin(), values.end(), [](const Json& x, const Json& y) { return *Less("sorted", x, y); });
  return Json(values);
}

struct Row {
  OperatorRow row;
  Function function;
};

const std::vector<Row>& Table() {
  static const std::vector<Row> table = {
      {{"abs", 1, 1, "|a|"}, &Abs},
      {{"add", 2, 2, "a + b; texts and lists are joined"}, &Add},
      {{"and", 1, -1, "true when all are"},
       [](const Arguments& a) -> Result { return Json(std::all_of(a.begin(), a.end(), &Truthy)); }},
      {{"concat", 1, -1, "the texts of all, one after another"}, &Joined},
      {{"contains", 2, 2, "whether text, list or map a holds b"}, &Contains},
      {{"div", 2, 2, "a / b, a real number"}, &Div},
      {{"eq", 2, 2, "a == b"}, [](const Arguments& a) -> Result { return Json(a[0] == a[1]); }},
      {{"ge", 2, 2, "a >= b"}, [](const Arguments& a) { return Compare("ge", a[0], a[1], true); }},
      {{"getitem", 2, 2, "entry b of list, map or text a"}, &Getitem},
      {{"gt", 2, 2, "a > b"}, [](const Arguments& a) { return Compare("gt", a[1], a[0], false); }},
      {{"if", 3, 3, "b when a is true, else c"}, &If},
      {{"int", 1, 1, "a as a whole number, cut towards 0"}, &Int},
      {{"join", 2, 2, "texts of list a with b between them"}, &Join},
      {{"json_dump", 1, 1, "a as JSON text"}, &JsonDump},
      {{"json_parse", 1, 1, "the value that text a holds"}, &JsonParse},
      {{"le", 2, 2, "a <= b"}, [](const Arguments& a) { return Compare("le", a[1], a[0], true); }},
      {{"len", 1, 1, "bytes of a text, entries of a list or map"}, &Len},
      {{"list", 0, -1, "a list of all"}, &List},
      {{"lower", 1, 1, "A-Z as a-z"}, &Case<std::tolower>},
      {{"lt", 2, 2, "a < b"}, [](const Arguments& a) { return Compare("lt", a[0], a[1], false); }},
      {{"max", 1, -1, "the largest, of all or of one list"},
       [](const Arguments& a) { return Extreme("max", a, true); }},
      {{"mean", 1, -1, "the mean, of all or of one list"}, &Mean},
      {{"min", 1, -1, "the smallest, of all or of one list"},
       [](const Arguments& a) { return Extreme("min", a, false); }},
      {{"mod", 2, 2, "a mod b, with the sign of b"}, &Mod},
      {{"mul", 2, 2, "a * b"}, &Mul},
      {{"ne", 2, 2, "a != b"}, [](const Arguments& a) -> Result { return Json(a[0] != a[1]); }},
      {{"neg", 1, 1, "-a"}, &Neg},
      {{"not", 1, 1, "whether a is false, 0, empty or null"},
       [](const Arguments& a) -> Result { return Json(!Truthy(a[0])); }},
      {{"number", 1, 1, "the number that a is or spells"}, &Num},
      {{"or", 1, -1, "true when one is"},
       [](const Arguments& a) -> Result { return Json(std::any_of(a.begin(), a.end(), &Truthy)); }},
      {{"replace", 3, 3, "text a with c for every b"}, &Replace},
      {{"round", 1, 2, "a to b decimals, halves to even"}, &Round},
      {{"sorted", 1, 1, "list a in rising order"}, &Sorted},
      {{"split", 2, 2, "parts of text a between b"}, &Split},
      {{"str", 1, 1, "a as text"}, &Str},
      {{"strip", 1, 1, "a without white space at its ends"}, &Strip},
      {{"sub", 2, 2, "a - b"}, &Sub},
      {{"sum", 1, -1, "the sum, of all or of one list"}, &Sum},
      {{"upper", 1, 1, "a-z as A-Z"}, &Case<std::toupper>},
  };
  return table;
}

const Row* Find(const std::string& name) {
  for (const Row& row : Table())
    if (name == row.row.name) return &row;
  return nullptr;
}

}  // namespace

const std::vector<OperatorRow>& Operators() {
  static const std::vector<OperatorRow> rows = [] {
    std::vector<OperatorRow> out;
    for (const Row& row : Table()) out.push_back(row.row);
    return out;
  }();
  return rows;
}

absl::Status CheckOperator(const std::string& name, size_t arguments) {
  const Row* row = Find(name);
  if (row == nullptr) {
    std::vector<std::string> names;
    for (const Row& one : Table()) names.push_back(one.row.name);
    return InvalidArgument("\"", name, "\" is no operator", DidYouMeanOf(name, names));
  }
  const auto count = static_cast<int>(std::min<size_t>(arguments, 1'000'000));
  const int least = row->row.min_arguments, most = row->row.max_arguments;
  if (count >= least && (most < 0 || count <= most)) return absl::OkStatus();
  return InvalidArgument(name, " takes ", least,
                         most < 0       ? " or more"
                         : most > least ? Cat(" to ", most)
                                        : "",
                         " arguments, ", count, " are given");
}

absl::StatusOr<std::string> ApplyOperator(const std::string& name, const std::vector<std::string>& arguments) {
  RETURN_IF_ERROR(CheckOperator(name, arguments.size()));
  Arguments values;
  for (const std::string& text : arguments) {
    values.push_back(ReadJson(text));
    if (values.back().is_discarded()) return InvalidArgument(name, ": argument ", values.size(), " is not JSON");
  }
  ASSIGN_OR_RETURN(const Json result, Find(name)->function(values));
  return Dump(result);
}

}  // namespace optod::trace
