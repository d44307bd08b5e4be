#include "clients/cli/optimize/python_function.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "clients/cli/nearest.h"

namespace optod::cli {
namespace {

// One statement as Python sees it: possibly several physical lines.
struct LogicalLine {
  size_t begin = 0, end = 0;  // bytes: from the start of its first line to before the end of its last line
  size_t text = 0;            // first byte after the indentation
  int width = 0;              // indentation, tabs to multiples of 8
};

// A physical line that begins inside a string: its leading white space belongs to the string.
struct Scan {
  std::vector<LogicalLine> lines;
  std::vector<size_t> inside_string;
};

class Scanner {
 public:
  explicit Scanner(const std::string& source) : s_(source) {}

  absl::StatusOr<Scan> Run() {
    while (at_ < s_.size()) RETURN_IF_ERROR(Line());
    return std::move(scan_);
  }

 private:
  char Peek(size_t ahead = 0) const { return at_ + ahead < s_.size() ? s_[at_ + ahead] : '\0'; }

  // One logical line, or a line that holds nothing.
  absl::Status Line() {
    LogicalLine line;
    line.begin = at_;
    while (Peek() == ' ' || Peek() == '\t' || Peek() == '\f') {
      line.width = s_[at_] == '\t' ? (line.width / 8 + 1) * 8 : s_[at_] == '\f' ? 0 : line.width + 1;
      ++at_;
    }
    line.text = at_;
    if (at_ >= s_.size()) return absl::OkStatus();
    if (Peek() == '#' || Peek() == '\n' || Peek() == '\r') {
      SkipToLineEnd();
      NewLine();
      return absl::OkStatus();
    }
    const size_t open = at_;
    for (int depth = 0; at_ < s_.size();) {
      const char c = s_[at_];
      if (c == '\n' || c == '\r') {
        if (depth == 0) break;
        NewLine();
      } else if (c == '#') {
        SkipToLineEnd();
      } else if (c == '\\' && (Peek(1) == '\n' || Peek(1) == '\r')) {
        ++at_;
        NewLine();
      } else if (c == '"' || c == '\'') {
        RETURN_IF_ERROR(String());
      } else {
        depth += c == '(' || c == '[' || c == '{';
        depth -= c == ')' || c == ']' || c == '}';
        if (depth < 0) depth = 0;
        ++at_;
      }
      if (at_ >= s_.size() && depth > 0) return InvalidArgument("line ", LineOf(open), ": a bracket is not closed");
    }
    line.end = at_;
    NewLine();
    scan_.lines.push_back(line);
    return absl::OkStatus();
  }

  absl::Status String() {
    const size_t open = at_;
    const char quote = s_[at_];
    const bool triple = Peek(1) == quote && Peek(2) == quote;
    at_ += triple ? 3 : 1;
    while (at_ < s_.size()) {
      const char c = s_[at_];
      if (c == '\\' && at_ + 1 < s_.size()) {
        ++at_;
        if (s_[at_] == '\n' || s_[at_] == '\r')
          NewLine(), scan_.inside_string.push_back(at_);
        else
          ++at_;
      } else if (c == '\n' || c == '\r') {
        if (!triple) return InvalidArgument("line ", LineOf(open), ": a string is not closed");
        NewLine();
        scan_.inside_string.push_back(at_);
      } else if (c == quote && (!triple || (Peek(1) == quote && Peek(2) == quote))) {
        at_ += triple ? 3 : 1;
        return absl::OkStatus();
      } else {
        ++at_;
      }
    }
    return InvalidArgument("line ", LineOf(open), ": a string is not closed");
  }

  void SkipToLineEnd() {
    while (at_ < s_.size() && s_[at_] != '\n' && s_[at_] != '\r') ++at_;
  }
  void NewLine() {
    if (Peek() == '\r' && Peek(1) == '\n')
      at_ += 2;
    else if (at_ < s_.size())
      ++at_;
  }
  long LineOf(size_t byte) const {
    return 1 + std::count(s_.begin(), s_.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
  }

  const std::string& s_;
  size_t at_ = 0;
  Scan scan_;
};

bool IsNameByte(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80); }

// The word at `at` and the position after the white space behind it.
std::string Word(const std::string& s, size_t* at) {
  const size_t begin = *at;
  while (*at < s.size() && IsNameByte(s[*at])) ++*at;
  std::string word = s.substr(begin, *at - begin);
  while (*at < s.size() && (s[*at] == ' ' || s[*at] == '\t' || s[*at] == '\\' || s[*at] == '\n' || s[*at] == '\r'))
    ++*at;
  return word;
}

struct Head {
  bool is_def = false, is_class = false;
  std::string name;
};

Head ReadHead(const std::string& s, const LogicalLine& line) {
  size_t at = line.text;
  std::string word = Word(s, &at);
  if (word == "async") word = Word(s, &at);
  Head head;
  head.is_def = word == "def";
  head.is_class = word == "class";
  if (head.is_def || head.is_class) head.name = Word(s, &at);
  if (head.name.empty()) head = {};
  return head;
}

std::vector<FunctionPlace> FunctionsOf(const std::string& source, const std::vector<LogicalLine>& lines) {
  struct Block {
    int width;
    std::string name;
  };
  std::vector<FunctionPlace> found;
  std::vector<Block> blocks;
  for (size_t i = 0; i < lines.size(); ++i) {
    const Head head = ReadHead(source, lines[i]);
    while (!blocks.empty() && lines[i].width <= blocks.back().width) blocks.pop_back();
    if (head.name.empty()) continue;
    std::string qualified;
    for (const Block& block : blocks) qualified += block.name + ".";
    blocks.push_back({lines[i].width, head.name});
    if (!head.is_def) continue;
    size_t first = i, last = i;
    while (first > 0 && lines[first - 1].width == lines[i].width && source[lines[first - 1].text] == '@') --first;
    while (last + 1 < lines.size() && lines[last + 1].width > lines[i].width) ++last;
    FunctionPlace place;
    place.qualified_name = qualified + head.name;
    place.begin = lines[first].begin;
    place.end = lines[last].end;
    place.line = 1 + static_cast<int>(std::count(source.begin(),
                                                 source.begin() + static_cast<std::ptrdiff_t>(lines[i].begin), '\n'));
    place.indent = source.substr(lines[i].begin, lines[i].text - lines[i].begin);
    found.push_back(place);
  }
  return found;
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

bool UsesCrLf(const std::string& source) {
  const size_t line_end = source.find('\n');
  return line_end != std::string::npos && line_end > 0 && source[line_end - 1] == '\r';
}

// Calls `edit` with the start of every physical line that does not begin inside a string, last first.
template <typename Edit>
void ForEachLineStart(const std::string& text, const std::vector<size_t>& inside_string, Edit edit) {
  std::vector<size_t> starts = {0};
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] == '\n') starts.push_back(i + 1);
  for (size_t i = starts.size(); i-- > 0;)
    if (!std::binary_search(inside_string.begin(), inside_string.end(), starts[i])) edit(starts[i]);
}

std::string LastPart(const std::string& qualified) { return qualified.substr(qualified.rfind('.') + 1); }

}  // namespace

absl::StatusOr<std::vector<FunctionPlace>> ListFunctions(const std::string& source) {
  ASSIGN_OR_RETURN(const Scan scan, Scanner(source).Run());
  return FunctionsOf(source, scan.lines);
}

absl::StatusOr<FunctionPlace> FindFunction(const std::string& source, const std::string& name) {
  ASSIGN_OR_RETURN(const std::vector<FunctionPlace> all, ListFunctions(source));
  std::vector<FunctionPlace> matches;
  for (const FunctionPlace& place : all)
    if (place.qualified_name == name) matches.push_back(place);
  if (matches.empty())
    for (const FunctionPlace& place : all)
      if (LastPart(place.qualified_name) == name) matches.push_back(place);
  if (matches.size() == 1) return matches[0];
  if (matches.empty()) {
    std::vector<std::string> names;
    for (const FunctionPlace& place : all) names.push_back(place.qualified_name);
    return NotFound("function: \"", name, "\" is not defined here", DidYouMean(name, names));
  }
  std::string where;
  for (const FunctionPlace& place : matches)
    where += Cat(where.empty() ? "" : ", ", place.qualified_name, " at line ", place.line);
  return InvalidArgument("function: \"", name, "\" is ambiguous: ", where, "; give a qualified name that occurs once");
}

absl::StatusOr<std::string> GetFunction(const std::string& source, const std::string& name) {
  ASSIGN_OR_RETURN(const FunctionPlace place, FindFunction(source, name));
  ASSIGN_OR_RETURN(const Scan scan, Scanner(source).Run());
  std::vector<size_t> inside;
  for (const size_t at : scan.inside_string)
    if (at >= place.begin && at < place.end) inside.push_back(at - place.begin);
  std::string text = source.substr(place.begin, place.end - place.begin);
  ForEachLineStart(text, inside, [&](size_t at) {
    if (text.compare(at, place.indent.size(), place.indent) == 0) text.erase(at, place.indent.size());
  });
  return UsesCrLf(source) ? Replaced(std::move(text), "\r\n", "\n") : text;
}

absl::StatusOr<std::string> ReplaceFunction(const std::string& source, const std::string& name,
                                            const std::string& new_text) {
  ASSIGN_OR_RETURN(const FunctionPlace place, FindFunction(source, name));
  std::string text = Replaced(new_text, "\r\n", "\n");
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '\t')) text.pop_back();
  auto scan = Scanner(text).Run();
  if (!scan.ok())
    return InvalidArgument("function ", name, ": the new text is not Python: ", std::string(scan.status().message()));
  const std::string own_name = LastPart(place.qualified_name);
  const auto inner = FunctionsOf(text, scan->lines);
  if (std::none_of(inner.begin(), inner.end(),
                   [&](const FunctionPlace& f) { return f.qualified_name == own_name && f.indent.empty(); }))
    return InvalidArgument("function ", name, ": the new text does not define ", own_name, " at its outermost level");
  ForEachLineStart(text, scan->inside_string, [&](size_t at) {
    if (at < text.size() && text[at] != '\n') text.insert(at, place.indent);
  });
  if (UsesCrLf(source)) text = Replaced(std::move(text), "\n", "\r\n");
  return source.substr(0, place.begin) + text + source.substr(place.end);
}

}  // namespace optod::cli
