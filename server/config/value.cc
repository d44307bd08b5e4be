#include "server/config/value.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <vector>

#include "base/status.h"

namespace optod::config {
namespace {

struct Unit {
  std::string_view name;
  int64_t factor;
};

/// A whole number, then one of the units.
absl::StatusOr<int64_t> ParseWithUnit(const std::string& text, std::span<const Unit> units, const char* examples) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, number);
  std::string_view unit(rest, static_cast<size_t>(end - rest));
  auto known = std::find_if(units.begin(), units.end(), [&](const Unit& u) { return u.name == unit; });
  if (error != std::errc() || known == units.end()) {
    return InvalidArgument('"', text, "\" is not a value like ", examples);
  }
  if (number < 0) return InvalidArgument(text, " is negative");
  if (number > std::numeric_limits<int64_t>::max() / known->factor) return InvalidArgument(text, " is too large");
  return number * known->factor;
}

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      int substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

absl::StatusOr<int64_t> ParseDurationMs(const std::string& text) {
  static constexpr Unit kUnits[] = {{"ms", 1}, {"s", 1000}, {"", 1000}, {"m", 60'000}, {"h", 3'600'000}};
  return ParseWithUnit(text, kUnits, "500ms, 10s, 2m, 1h");
}

absl::StatusOr<int64_t> ParseBytes(const std::string& text) {
  static constexpr Unit kUnits[] = {{"", 1},          {"B", 1},         {"KiB", 1 << 10},
                                    {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", int64_t{1} << 40}};
  ASSIGN_OR_RETURN(int64_t bytes, ParseWithUnit(text, kUnits, "64KiB, 512MiB, 2GiB"));
  if (bytes == 0) return InvalidArgument(text, " is zero; must be > 0");
  return bytes;
}

absl::StatusOr<int64_t> ParseCount(const std::string& text) {
  static constexpr Unit kUnits[] = {{"", 1}};
  ASSIGN_OR_RETURN(int64_t count, ParseWithUnit(text, kUnits, "1, 100"));
  if (count == 0) return InvalidArgument(text, " is zero; must be >= 1");
  return count;
}

absl::StatusOr<bool> ParseBool(const std::string& text) {
  for (const char* yes : {"true", "yes", "on", "1"})
    if (text == yes) return true;
  for (const char* no : {"false", "no", "off", "0"})
    if (text == no) return false;
  return InvalidArgument('"', text, "\" is not true or false");
}

std::string Nearest(std::string_view name, std::span<const std::string_view> known) {
  std::string_view best;
  int best_distance = std::max(2, static_cast<int>(name.size()) / 3) + 1;
  for (std::string_view candidate : known) {
    int distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return std::string(best);
}

}  // namespace optod::config
