#include "clients/cli/optimize/unified_diff.h"

#include <algorithm>
#include <string_view>
#include <vector>

namespace optod::cli {
namespace {

constexpr int kContext = 3;
constexpr int kMaxEdits = 2000;

// Lines with their ends, so that "x" and "x\n" differ.
std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return lines;
}

struct Edit {
  char sign;  // ' ', '-', '+'
  std::string_view line;
};

using LineList = std::vector<std::string_view>;

// Myers' greedy search; `trace[d]` holds the furthest x on each diagonal before round d. False: more than kMaxEdits
// edits.
bool Search(const LineList& a, const LineList& b, std::vector<std::vector<int>>* trace) {
  const int n = static_cast<int>(a.size()), m = static_cast<int>(b.size()), limit = std::min(n + m, kMaxEdits);
  std::vector<int> furthest(2 * static_cast<size_t>(limit) + 3, 0);
  const auto at = [&](int k) -> int& { return furthest[static_cast<size_t>(k + limit + 1)]; };
  for (int d = 0; d <= limit; ++d) {
    trace->push_back(furthest);
    for (int k = -d; k <= d; k += 2) {
      int x = k == -d || (k != d && at(k - 1) < at(k + 1)) ? at(k + 1) : at(k - 1) + 1;
      while (x < n && x - k < m && x - k >= 0 && a[static_cast<size_t>(x)] == b[static_cast<size_t>(x - k)]) ++x;
      at(k) = x;
      if (x >= n && x - k >= m) return true;
    }
  }
  return false;
}

std::vector<Edit> EditScript(const LineList& a, const LineList& b) {
  std::vector<std::vector<int>> trace;
  std::vector<Edit> edits;
  if (!Search(a, b, &trace)) {
    for (const auto line : a) edits.push_back({'-', line});
    for (const auto line : b) edits.push_back({'+', line});
    return edits;
  }
  const int limit = std::min(static_cast<int>(a.size() + b.size()), kMaxEdits);
  int x = static_cast<int>(a.size()), y = static_cast<int>(b.size());
  for (int d = static_cast<int>(trace.size()) - 1; d >= 0; --d) {
    const auto at = [&](int k) { return trace[static_cast<size_t>(d)][static_cast<size_t>(k + limit + 1)]; };
    const int k = x - y;
    const int from_k = k == -d || (k != d && at(k - 1) < at(k + 1)) ? k + 1 : k - 1;
    const int from_x = d == 0 ? 0 : at(from_k), from_y = d == 0 ? 0 : from_x - from_k;
    while (x > from_x && y > from_y) edits.push_back({' ', a[static_cast<size_t>(--x)]}), --y;
    if (d > 0) {
      if (x == from_x)
        edits.push_back({'+', b[static_cast<size_t>(--y)]});
      else
        edits.push_back({'-', a[static_cast<size_t>(--x)]});
    }
  }
  std::reverse(edits.begin(), edits.end());
  return edits;
}

// Common head and tail are taken off first: cheap, and it keeps the search small.
std::vector<Edit> Compare(const std::string& before, const std::string& after) {
  LineList a = Lines(before), b = Lines(after);
  size_t head = 0, tail = 0;
  while (head < a.size() && head < b.size() && a[head] == b[head]) ++head;
  while (tail < a.size() - head && tail < b.size() - head && a[a.size() - 1 - tail] == b[b.size() - 1 - tail]) ++tail;
  const LineList all = a;
  const auto cut = [&](LineList& lines) {
    lines =
        LineList(lines.begin() + static_cast<std::ptrdiff_t>(head), lines.end() - static_cast<std::ptrdiff_t>(tail));
  };
  cut(a);
  cut(b);
  std::vector<Edit> edits;
  for (size_t i = 0; i < head; ++i) edits.push_back({' ', all[i]});
  for (const Edit& edit : EditScript(a, b)) edits.push_back(edit);
  for (size_t i = all.size() - tail; i < all.size(); ++i) edits.push_back({' ', all[i]});
  return edits;
}

void AppendLine(std::string* out, const Edit& edit) {
  *out += edit.sign;
  *out += edit.line;
  if (edit.line.back() != '\n') *out += "\n\\ No newline at end of file\n";
}

// "12,3" as in hunk headers; an empty range names the line before it.
std::string Range(size_t first, size_t count) {
  if (count == 1) return std::to_string(first + 1);
  return std::to_string(count == 0 ? first : first + 1) + "," + std::to_string(count);
}

// Calls `emit(begin, end)` for every hunk of the script.
template <typename Emit>
void ForEachHunk(const std::vector<Edit>& edits, Emit emit) {
  for (size_t i = 0; i < edits.size();) {
    if (edits[i].sign == ' ') {
      ++i;
      continue;
    }
    const size_t begin = i < kContext ? 0 : i - kContext;
    size_t last = i;
    for (size_t j = i; j < edits.size() && j <= last + 2 * kContext; ++j)
      if (edits[j].sign != ' ') last = j;
    emit(begin, std::min(edits.size(), last + 1 + kContext));
    i = last + 1;
  }
}

}  // namespace

std::string UnifiedDiff(const std::string& path, const std::string& before, const std::string& after) {
  if (before == after) return "";
  const std::vector<Edit> edits = Compare(before, after);
  // A name with spaces is ended by a tab, as git and patch expect it.
  const std::string end_of_name = path.find(' ') == std::string::npos ? "\n" : "\t\n";
  std::string out = "--- a/" + path + end_of_name + "+++ b/" + path + end_of_name;
  size_t position = 0, line_a = 0, line_b = 0;
  ForEachHunk(edits, [&](size_t begin, size_t end) {
    for (; position < begin; ++position) line_a += edits[position].sign != '+', line_b += edits[position].sign != '-';
    size_t count_a = 0, count_b = 0;
    std::string body;
    for (; position < end; ++position) {
      count_a += edits[position].sign != '+';
      count_b += edits[position].sign != '-';
      AppendLine(&body, edits[position]);
    }
    out += "@@ -" + Range(line_a, count_a) + " +" + Range(line_b, count_b) + " @@\n" + body;
    line_a += count_a;
    line_b += count_b;
  });
  return out;
}

std::string DiffLines(const std::string& before, const std::string& after) {
  const std::vector<Edit> edits = Compare(before, after);
  std::string out;
  ForEachHunk(edits, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      out += edits[i].sign;
      out += edits[i].line;
      if (edits[i].line.back() != '\n') out += '\n';
    }
  });
  return out;
}

}  // namespace optod::cli
