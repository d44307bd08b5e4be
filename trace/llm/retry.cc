#include "trace/llm/retry.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

namespace optod::trace {

using std::chrono::milliseconds;

bool IsRetryable(int http_status) {
  if (http_status == 408 || http_status == 429) return true;
  return http_status >= 500 && http_status < 600 && http_status != 501 && http_status != 505;
}

std::optional<milliseconds> ParseRetryAfter(const std::string& text, int64_t now_unix_ms) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string::npos) return std::nullopt;
  const std::string value = text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
  if (value.find_first_not_of("0123456789") == std::string::npos) {
    // More digits than a century of seconds has: still a number, capped.
    return milliseconds(value.size() > 9 ? 1'000'000'000'000 : std::stoll(value) * 1000);
  }
  static constexpr std::array<const char*, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                          "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  char weekday[4] = {}, month[4] = {}, zone[4] = {};
  int day = 0, year = 0, hour = 0, minute = 0, second = 0, used = 0;
  const int fields = std::sscanf(value.c_str(), "%3[A-Za-z], %2d %3[A-Za-z] %4d %2d:%2d:%2d %3[A-Z]%n", weekday, &day,
                                 month, &year, &hour, &minute, &second, zone, &used);
  if (fields != 8 || static_cast<size_t>(used) != value.size() || std::strcmp(zone, "GMT") != 0) return std::nullopt;
  const auto found =
      std::find_if(kMonths.begin(), kMonths.end(), [&](const char* name) { return std::strcmp(name, month) == 0; });
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(found - kMonths.begin() + 1)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (found == kMonths.end() || !date.ok() || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 ||
      second > 60)
    return std::nullopt;
  const auto at = std::chrono::sys_days(date) + std::chrono::hours(hour) + std::chrono::minutes(minute) +
                  std::chrono::seconds(second);
  const int64_t at_ms = std::chrono::duration_cast<milliseconds>(at.time_since_epoch()).count();
  return milliseconds(std::max<int64_t>(0, at_ms - now_unix_ms));
}

milliseconds Backoff(int attempt, milliseconds first, milliseconds max, uint64_t random) {
  milliseconds wait = first;
  for (int i = 1; i < attempt && wait < max; ++i) wait *= 2;
  wait = std::min(wait, max);
  const int64_t half = wait.count() / 2;
  return milliseconds(wait.count() - half + static_cast<int64_t>(random % static_cast<uint64_t>(half + 1)));
}

}  // namespace optod::trace
