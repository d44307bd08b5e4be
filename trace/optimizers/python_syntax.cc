#include "trace/optimizers/python_syntax.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/status.h"

namespace optod::trace {
namespace {

enum class TokenKind { kName, kNumber, kString, kOp, kNewline };  // kNewline: end of a logical line

struct Token {
  TokenKind kind;
  std::string_view text;
  int line;
  int indent;  // of the first token of a logical line, columns; else -1
};

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Tokenizer {
 public:
  explicit Tokenizer(std::string_view source) : s_(source) {}

  // Empty, or what is wrong.
  std::string Run(std::vector<Token>& out) {
    while (pos_ < s_.size()) {
      if (at_line_start_ && !LineStart()) continue;
      const char c = s_[pos_];
      if (c == '\n') {
        if (brackets_.empty()) {
          if (!out.empty() && out.back().kind != TokenKind::kNewline)
            out.push_back({TokenKind::kNewline, "\n", line_, -1});
          at_line_start_ = true;
        }
        ++line_;
        ++pos_;
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f') {
        ++pos_;
      } else if (c == '#') {
        pos_ = std::min(s_.find('\n', pos_), s_.size());
      } else if (c == '\\') {
        ++pos_;
        if (pos_ < s_.size() && s_[pos_] == '\r') ++pos_;
        if (pos_ >= s_.size() || s_[pos_] != '\n') return At("a backslash must end its line");
        ++pos_;
        ++line_;
      } else if (std::string error = Next(out); !error.empty()) {
        return error;
      }
    }
    if (!brackets_.empty())
      return Cat("line ", brackets_.back().second, ": '", brackets_.back().first, "' is never closed");
    if (!out.empty() && out.back().kind != TokenKind::kNewline) out.push_back({TokenKind::kNewline, "\n", line_, -1});
    return {};
  }

 private:
  std::string At(std::string_view what) const { return Cat("line ", line_, ": ", what); }

  // Measures the indentation; false when the line is blank or a comment (it is then skipped).
  bool LineStart() {
    size_t p = pos_;
    int columns = 0;
    for (; p < s_.size() && (s_[p] == ' ' || s_[p] == '\t' || s_[p] == '\r' || s_[p] == '\f'); ++p) {
      columns = s_[p] == '\t' ? (columns / 8 + 1) * 8 : columns + (s_[p] == ' ');
    }
    if (p < s_.size() && s_[p] == '#') p = std::min(s_.find('\n', p), s_.size());
    pos_ = p;
    if (p >= s_.size()) return false;
    if (s_[p] == '\n') {
      ++line_;
      ++pos_;
      return false;
    }
    at_line_start_ = false;
    indent_ = columns;
    return true;
  }

  void Push(std::vector<Token>& out, TokenKind kind, size_t begin) {
    out.push_back({kind, s_.substr(begin, pos_ - begin), line_, indent_});
    indent_ = -1;
  }

  std::string Next(std::vector<Token>& out) {
    const size_t begin = pos_;
    const char c = s_[pos_];
    if (IsNameStart(c)) {
      while (pos_ < s_.size() && (IsNameStart(s_[pos_]) || IsDigit(s_[pos_]))) ++pos_;
      const bool prefix = pos_ - begin <= 2 && pos_ < s_.size() && (s_[pos_] == '"' || s_[pos_] == '\'') &&
                          s_.substr(begin, pos_ - begin).find_first_not_of("rRbBuUfF") == std::string_view::npos;
      if (prefix) return String(out, begin);
      Push(out, TokenKind::kName, begin);
      return {};
    }
    if (IsDigit(c) || (c == '.' && pos_ + 1 < s_.size() && IsDigit(s_[pos_ + 1]))) {
      while (pos_ < s_.size() && (IsDigit(s_[pos_]) || IsNameStart(s_[pos_]) || s_[pos_] == '.' ||
                                  ((s_[pos_] == '+' || s_[pos_] == '-') &&
                                   (s_[pos_ - 1] == 'e' || s_[pos_ - 1] == 'E') && s_.substr(begin, 2) != "0x"))) {
        ++pos_;
      }
      Push(out, TokenKind::kNumber, begin);
      return NumberError(out.back().text);
    }
    if (c == '"' || c == '\'') return String(out, begin);
    return Operator(out, begin);
  }

  std::string NumberError(std::string_view n) const {
    if (n.size() > 1 && n[0] == '0' && std::string_view("xXoObB").find(n[1]) != std::string_view::npos) return {};
    size_t i = 0;
    auto digits = [&] {
      while (i < n.size() && (IsDigit(n[i]) || n[i] == '_')) ++i;
    };
    digits();
    if (i < n.size() && n[i] == '.') ++i, digits();
    if (i < n.size() && (n[i] == 'e' || n[i] == 'E')) {
      ++i;
      if (i < n.size() && (n[i] == '+' || n[i] == '-')) ++i;
      digits();
    }
    if (i < n.size() && (n[i] == 'j' || n[i] == 'J')) ++i;
    return i == n.size() ? std::string() : At(Cat("'", n.substr(0, 40), "' is no number"));
  }

  std::string String(std::vector<Token>& out, size_t begin) {
    const char quote = s_[pos_];
    const int first_line = line_;
    const bool triple = s_.substr(pos_, 3) == std::string(3, quote);
    pos_ += triple ? 3 : 1;
    for (; pos_ < s_.size(); ++pos_) {
      const char c = s_[pos_];
      if (c == '\\') {
        if (pos_ + 1 < s_.size() && s_[pos_ + 1] == '\n') ++line_;
        ++pos_;
      } else if (c == '\n') {
        if (!triple) break;
        ++line_;
      } else if (c == quote && (!triple || s_.substr(pos_, 3) == std::string(3, quote))) {
        pos_ += triple ? 3 : 1;
        Push(out, TokenKind::kString, begin);
        return {};
      }
    }
    return Cat("line ", first_line, ": a string is never closed");
  }

  std::string Operator(std::vector<Token>& out, size_t begin) {
    static constexpr std::string_view kOps[] = {"**=", "//=", ">>=", "<<=", "...", "**", "//", ">>",
                                                "<<",  "<=",  ">=",  "==",  "!=",  "->", "+=", "-=",
                                                "*=",  "/=",  "%=",  "&=",  "|=",  "^=", "@=", ":="};
    const char c = s_[pos_];
    for (std::string_view op : kOps) {
      if (s_.substr(pos_, op.size()) == op) {
        pos_ += op.size();
        Push(out, TokenKind::kOp, begin);
        return {};
      }
    }
    if (std::string_view("+-*/%@&|^~<>()[]{},:.;=").find(c) == std::string_view::npos) {
      return At(Cat("'", std::string(1, c), "' is no Python"));
    }
    if (c == '(' || c == '[' || c == '{') brackets_.emplace_back(c, line_);
    if (c == ')' || c == ']' || c == '}') {
      const char open = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (brackets_.empty() || brackets_.back().first != open)
        return At(Cat("'", std::string(1, c), "' closes nothing"));
      brackets_.pop_back();
    }
    ++pos_;
    Push(out, TokenKind::kOp, begin);
    return {};
  }

  std::string_view s_;
  size_t pos_ = 0;
  int line_ = 1;
  int indent_ = -1;
  bool at_line_start_ = true;
  std::vector<std::pair<char, int>> brackets_;
};

template <size_t N>
bool Among(std::string_view text, const std::string_view (&list)[N]) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

// Words that begin a statement, and only that.
constexpr std::string_view kStatementWords[] = {"class",    "def",    "return", "while",    "try",   "except",
                                                "finally",  "with",   "raise",  "pass",     "break", "global",
                                                "continue", "assert", "del",    "nonlocal", "elif"};
// Words that open a block: the statement needs a ':'.
constexpr std::string_view kBlockWords[] = {"class", "def",  "while", "try",  "except", "finally",
                                            "with",  "elif", "if",    "else", "for",    "async"};
// Words that stand between operands.
constexpr std::string_view kBinaryWords[] = {"and", "or",   "in", "is",     "if",   "else",
                                             "for", "from", "as", "import", "async"};
// Words that stand before an operand.
constexpr std::string_view kPrefixWords[] = {"not", "lambda", "await", "yield"};
// Operators that need a value on their left. (`*`, `**`, `/`, `@`, `-` and others also have uses without.)
constexpr std::string_view kNeedsLeft[] = {
    "=",  "==", "!=", "<",  ">",  "<=", ">=", "%",  "//", "&",  "|",   "^",   ">>",  "<<", "->",
    ":=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "@=", "//=", "**=", ">>=", "<<="};
// Statements of one word.
constexpr std::string_view kLoneWords[] = {"pass", "break", "continue"};
constexpr std::string_view kSoftWords[] = {"match", "case", "type"};

bool HasHeaderColon(const std::vector<Token>& t, size_t begin, size_t end) {
  int depth = 0;
  for (size_t i = begin; i < end; ++i) {
    const std::string_view op = t[i].text;
    if (t[i].kind != TokenKind::kOp) continue;
    if (op == "(" || op == "[" || op == "{") ++depth;
    if (op == ")" || op == "]" || op == "}") --depth;
    if (op == ":" && depth == 0) return true;
  }
  return false;
}

// Checks the order of words in one logical line [begin, end); end is its kNewline.
class LineChecker {
 public:
  LineChecker(const std::vector<Token>& tokens, size_t begin, size_t end) : t_(tokens), begin_(begin), end_(end) {}

  std::string Run() {
    bool operand = false;         // the previous token ends an operand
    bool statement_start = true;  // at the head of a statement
    for (size_t i = begin_; i < end_; ++i) {
      const Token& t = t_[i];
      if (t.kind == TokenKind::kOp) {
        if (std::string error = Op(i, operand, statement_start); !error.empty()) return error;
        continue;
      }
      const bool keyword = t.kind == TokenKind::kName && Word(i, statement_start);
      if (keyword) {
        if (KeywordMisplaced(i, operand, statement_start)) return Misplaced(t);
        operand = false;
        statement_start = false;
        continue;
      }
      const bool joined = t.kind == TokenKind::kString && i > begin_ && t_[i - 1].kind == TokenKind::kString;
      if (operand && !joined)
        return Cat("line ", t.line, ": '", t.text.substr(0, 40), "' follows a value without an operator");
      operand = true;
      statement_start = false;
    }
    return End(operand);
  }

 private:
  static std::string Misplaced(const Token& t) { return Cat("line ", t.line, ": '", t.text, "' cannot stand here"); }
  bool AfterAsync(size_t i) const { return i > begin_ && t_[i - 1].text == "async"; }
  bool Contains(size_t from, size_t to, std::string_view word) const {
    return std::any_of(t_.begin() + static_cast<std::ptrdiff_t>(from), t_.begin() + static_cast<std::ptrdiff_t>(to),
                       [&](const Token& t) { return t.text == word; });
  }

  bool KeywordMisplaced(size_t i, bool operand, bool statement_start) const {
    const std::string_view w = t_[i].text;
    if (Among(w, kStatementWords) && !statement_start && !AfterAsync(i)) return true;
    if (Among(w, kPrefixWords) && operand && w != "not") return true;
    if (Among(w, kLoneWords)) return i + 1 < end_ && t_[i + 1].text != ";";
    if (w == "and" || w == "or" || w == "is" || (w == "in" && t_[begin_].text != "for")) {
      return !operand && !(w == "in" && i > begin_ && t_[i - 1].text == "not");
    }
    // `x if y else z` needs all its parts; inside brackets an `if` may also filter a comprehension.
    if (w == "if" && operand && depth_ == 0) return t_[begin_].text != "case" && !Contains(i, end_, "else");
    if (w == "else" && !statement_start) return !Contains(begin_, i, "if");
    return false;
  }
  bool Word(size_t i, bool statement_start) const {
    const std::string_view w = t_[i].text;
    const bool relative_import = w == "import" && t_[begin_].text == "from";
    if (i > begin_ && t_[i - 1].text == "." && !relative_import) return false;
    if (Among(w, kStatementWords) || Among(w, kBinaryWords) || Among(w, kPrefixWords)) return true;
    // `match x:` is a statement, `match = 1` a name.
    return statement_start && Among(w, kSoftWords) && i + 1 < end_ && t_[i + 1].kind != TokenKind::kOp &&
           HasHeaderColon(t_, i, end_);
  }

  std::string Op(size_t i, bool& operand, bool& statement_start) {
    const Token& t = t_[i];
    const std::string_view op = t.text;
    if (op == "(" || op == "[" || op == "{") {
      if (op == "{" && operand) return Misplaced(t);
      ++depth_;
      operand = false;
    } else if (op == ")" || op == "]" || op == "}") {
      --depth_;
      if (!operand && Dangling(i)) return Cat("line ", t.line, ": a value is missing before '", op, "'");
      operand = true;
    } else if (op == "...") {
      if (operand) return Misplaced(t);
      operand = t_[begin_].text != "from";  // `from ...package import name`
    } else if (op == ".") {
      const bool name_next = i + 1 < end_ && t_[i + 1].kind == TokenKind::kName;
      const bool relative_import = t_[begin_].text == "from" && !operand;
      if (!relative_import && (!operand || !name_next)) return Misplaced(t);
      operand = false;
    } else {
      const bool unpacks = op == "=" && i > begin_ && t_[i - 1].text == ",";  // `a, = b`
      if (!operand && !unpacks && (Among(op, kNeedsLeft) || (depth_ == 0 && i == begin_ && (op == "/" || op == "**"))))
        return Misplaced(t);
      if (op == "->" && (t_[i - 1].text != ")" || !Contains(begin_, i, "def"))) return Misplaced(t);
      const bool header = t_[begin_].text == "if" || t_[begin_].text == "elif" || t_[begin_].text == "while";
      if (op == ":=" && depth_ == 0 && !header) return Misplaced(t);
      // `a[:, 0]`, `def f(a, *, b, /)`: a comma may follow these.
      const bool marker = i > begin_ && (t_[i - 1].text == ":" || t_[i - 1].text == "*" || t_[i - 1].text == "/");
      if (op == "," && !operand && !marker) return Misplaced(t);
      operand = false;
    }
    // A new statement begins behind `;` and behind a block header's colon.
    statement_start = depth_ == 0 && (op == ";" || op == ":") && t_[i].kind == TokenKind::kOp;
    return {};
  }

  // Whether the operator before a closing bracket needs something on its right.
  bool Dangling(size_t i) const {
    const Token& before = t_[i - 1];
    if (before.kind == TokenKind::kName) return before.text != "yield";  // a keyword
    return before.text != "(" && before.text != "[" && before.text != "{" && before.text != "," && before.text != ":" &&
           before.text != "*" && before.text != "/";
  }

  std::string End(bool operand) const {
    const Token& last = t_[end_ - 1];
    if (operand || last.kind != TokenKind::kOp) {
      const bool needs_more =
          last.kind == TokenKind::kName && !operand &&
          (Among(last.text, kBinaryWords) || (Among(last.text, kPrefixWords) && last.text != "yield"));
      return needs_more ? Cat("line ", last.line, ": nothing follows '", last.text, "'") : std::string();
    }
    if (last.text == ":" || last.text == "," || last.text == ";") return {};
    if (last.text == "*" && t_[begin_].text == "from") return {};
    return Cat("line ", last.line, ": nothing follows '", last.text, "'");
  }

  const std::vector<Token>& t_;
  size_t begin_, end_;
  int depth_ = 0;
};

// Shape of a function header: def NAME ( ... ) [-> ...] :
std::string CheckDef(const std::vector<Token>& t, size_t at, size_t end) {
  if (at + 2 >= end || t[at + 1].kind != TokenKind::kName || t[at + 2].text != "(") {
    return Cat("line ", t[at].line, ": 'def' needs a name and parentheses");
  }
  return {};
}

std::string CheckLines(const std::vector<Token>& t) {
  std::vector<int> indents = {0};
  bool want_block = false;
  int header_line = 0;
  for (size_t begin = 0; begin < t.size();) {
    size_t end = begin;
    while (t[end].kind != TokenKind::kNewline) ++end;
    const Token& head = t[begin];
    if (want_block) {
      if (head.indent <= indents.back())
        return Cat("line ", head.line, ": the block of line ", header_line, " is not indented");
      indents.push_back(head.indent);
    } else if (head.indent > indents.back()) {
      return Cat("line ", head.line, ": unexpected indentation");
    } else {
      while (head.indent < indents.back()) indents.pop_back();
      if (head.indent != indents.back()) return Cat("line ", head.line, ": indentation matches no block");
    }
    if (std::string error = LineChecker(t, begin, end).Run(); !error.empty()) return error;
    const bool opens = Among(head.text, kBlockWords) && head.kind == TokenKind::kName;
    if (opens && !HasHeaderColon(t, begin, end)) return Cat("line ", head.line, ": '", head.text, "' needs a ':'");
    const size_t def = head.text == "async" ? begin + 1 : begin;
    if (t[def].text == "def") {
      if (std::string error = CheckDef(t, def, end); !error.empty()) return error;
    }
    want_block = t[end - 1].text == ":" && t[end - 1].kind == TokenKind::kOp;
    if (want_block && !opens && !Among(head.text, kSoftWords))
      return Cat("line ", head.line, ": ':' ends a line that opens no block");
    header_line = head.line;
    begin = end + 1;
  }
  return want_block ? Cat("line ", header_line, ": its block is missing") : std::string();
}

}  // namespace

std::string CheckPythonSource(std::string_view source) {
  if (source.find('\0') != std::string_view::npos) return "holds a NUL character";
  std::vector<Token> tokens;
  if (std::string error = Tokenizer(source).Run(tokens); !error.empty()) return error;
  return CheckLines(tokens);
}

std::vector<std::string_view> PythonTokens(std::string_view source) {
  std::vector<Token> tokens;
  (void)Tokenizer(source).Run(tokens);
  std::vector<std::string_view> out;
  for (const Token& token : tokens) {
    if (token.kind != TokenKind::kNewline) out.push_back(token.text);
  }
  return out;
}

std::string FirstFunctionName(std::string_view source) {
  std::vector<Token> tokens;
  (void)Tokenizer(source).Run(tokens);  // tokens up to the first error are enough
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    if (tokens[i].kind == TokenKind::kName && tokens[i].text == "def" && tokens[i + 1].kind == TokenKind::kName) {
      return std::string(tokens[i + 1].text);
    }
  }
  return {};
}

bool DefinesFunction(std::string_view source, std::string_view name) {
  std::vector<Token> tokens;
  (void)Tokenizer(source).Run(tokens);
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    if (tokens[i].kind == TokenKind::kName && tokens[i].text == "def" && tokens[i + 1].text == name) return true;
  }
  return false;
}

}  // namespace optod::trace
