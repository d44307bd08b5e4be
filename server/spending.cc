#include "server/spending.h"

#include <ctime>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "server/log/log.h"
#include "server/store/meta_range.h"
#include "trace/llm/error.h"

namespace optod::server {
namespace {

using nlohmann::json;

constexpr char kEverybody[] = "*";
const std::string kRows = "llm-usage/";

std::string DayOf(int64_t unix_ms) {
  const std::time_t seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &parts);
  return text;
}

json ToJson(const trace::BudgetUse& use) {
  return {{"calls", use.calls},
          {"prompt_tokens", use.prompt_tokens},
          {"completion_tokens", use.completion_tokens},
          {"usd", use.usd}};
}

trace::BudgetUse UseOf(const json& object) {
  trace::BudgetUse use;
  if (!object.is_object()) return use;
  use.calls = object.value("calls", int64_t{0});
  use.prompt_tokens = object.value("prompt_tokens", int64_t{0});
  use.completion_tokens = object.value("completion_tokens", int64_t{0});
  use.usd = object.value("usd", 0.0);
  return use;
}

std::string RowOf(const DayOfUse& day) {
  json row = ToJson(day.llm);
  for (const auto& [name, use] : day.endpoints) row["endpoints"][name] = ToJson(use);
  row["evaluations"] = day.evaluations;
  row["job_ms"] = day.job_ms;
  return row.dump();
}

void ReadRow(const std::string& text, DayOfUse* day) {
  const json row = json::parse(text, nullptr, false);
  day->llm = UseOf(row);
  if (!row.is_object()) return;
  day->evaluations = row.value("evaluations", int64_t{0});
  day->job_ms = row.value("job_ms", int64_t{0});
  if (row.contains("endpoints") && row["endpoints"].is_object())
    for (const auto& [name, use] : row["endpoints"].items()) day->endpoints[name] = UseOf(use);
}

void Add(const trace::ChatUsage& usage, trace::BudgetUse* use) {
  ++use->calls;
  use->prompt_tokens += usage.prompt_tokens;
  use->completion_tokens += usage.completion_tokens;
  use->usd += usage.usd;
}

absl::Status CheckLimits(const std::string& whose, const trace::BudgetLimits& limits, const trace::BudgetUse& use,
                         int64_t under_way) {
  const auto spent = [&](const auto& used, const auto& limit, const char* unit) {
    return trace::LlmError(absl::StatusCode::kResourceExhausted, "budget",
                           Cat("llm budget of ", whose, " today: ", used, " of ", limit, " ", unit, " are used"));
  };
  const int64_t tokens = use.prompt_tokens + use.completion_tokens;
  if (limits.max_calls && use.calls + under_way >= *limits.max_calls)
    return spent(use.calls + under_way, *limits.max_calls, "calls");
  if (limits.max_tokens && tokens >= *limits.max_tokens) return spent(tokens, *limits.max_tokens, "tokens");
  if (limits.max_usd && use.usd >= *limits.max_usd) return spent(use.usd, *limits.max_usd, "USD");
  return absl::OkStatus();
}

}  // namespace

/// Under the lock. Reads what an earlier process left.
Spending::Total& Spending::Of(const std::string& user) {
  const std::string today = DayNow();
  if (today != day_) {
    for (const std::string& name : unsaved_) Save(name, totals_[name]);
    unsaved_.clear();
    // Calls under way at midnight are charged to the new day.
    std::map<std::string, Total> carried;
    for (const auto& [name, total] : totals_)
      if (total.under_way > 0) carried[name] = Total{{today, name, {}, {}, 0, 0}, total.under_way};
    totals_ = std::move(carried);
    day_ = today;
  }
  const auto found = totals_.find(user);
  if (found != totals_.end()) return found->second;
  Total& total = totals_[user];
  total.use.day = day_;
  total.use.user = user;
  const auto row = store_.GetMeta(kRows + day_ + "/" + user);
  if (row.ok()) ReadRow(*row, &total.use);
  return total;
}

absl::Status Spending::Begin(const std::string& user) {
  std::lock_guard lock(mutex_);
  Total& own = Of(user);
  Total& all = Of(kEverybody);
  if (!user.empty()) RETURN_IF_ERROR(CheckLimits("user " + user, limits_.user_day, own.use.llm, own.under_way));
  RETURN_IF_ERROR(CheckLimits("this server", limits_.day, all.use.llm, all.under_way));
  ++own.under_way;
  ++all.under_way;
  return absl::OkStatus();
}

void Spending::Charge(const std::string& user, const std::string& endpoint, const trace::ChatUsage& usage) {
  std::lock_guard lock(mutex_);
  for (const std::string& whose : {user, std::string(kEverybody)}) {
    Total& total = Of(whose);
    --total.under_way;
    Add(usage, &total.use.llm);
    Add(usage, &total.use.endpoints[endpoint]);
    unsaved_.erase(whose);
    Save(whose, total);
  }
}

void Spending::Release(const std::string& user) {
  std::lock_guard lock(mutex_);
  --Of(user).under_way;
  --Of(kEverybody).under_way;
}

/// Under the lock, so that rows are queued in the order of the calls.
void Spending::Save(const std::string& user, const Total& total) {
  store::Batch batch;
  batch.mutations.push_back(store::SetMeta{kRows + day_ + "/" + user, RowOf(total.use)});
  store_.Commit(std::move(batch), [](absl::Status status) {
    if (!status.ok()) log::Warn("llm_usage_not_saved", {{"message", std::string(status.message())}});
  });
}

trace::BudgetUse Spending::Today(const std::string& user) {
  std::lock_guard lock(mutex_);
  return Of(user).use.llm;
}

std::string Spending::DayNow() const { return DayOf(clock_.NowUnixMs()); }

void Spending::CountEvaluations(const std::string& user, int64_t evaluations) {
  std::lock_guard lock(mutex_);
  for (const std::string& whose : {user, std::string(kEverybody)}) {
    Of(whose).use.evaluations += evaluations;
    unsaved_.insert(whose);
  }
}

void Spending::CountJob(const std::string& user, int64_t wall_ms) {
  std::lock_guard lock(mutex_);
  for (const std::string& whose : {user, std::string(kEverybody)}) {
    Of(whose).use.job_ms += wall_ms;
    unsaved_.insert(whose);
  }
}

void Spending::Flush() {
  std::lock_guard lock(mutex_);
  for (const std::string& user : unsaved_) Save(user, totals_[user]);
  unsaved_.clear();
}

absl::StatusOr<std::vector<DayOfUse>> Spending::Days(const std::string& user, const std::string& first,
                                                     const std::string& last) {
  std::lock_guard lock(mutex_);  // what is in memory is newer than its row: neither moves meanwhile
  ASSIGN_OR_RETURN(const auto rows, store::ListMeta(store_, kRows + first + "/", kRows + last + "0"));  // '0' follows '/'
  std::map<std::pair<std::string, std::string>, DayOfUse> days;
  for (const auto& [key, text] : rows) {
    const size_t slash = key.find('/', kRows.size());
    if (slash == std::string::npos) continue;
    DayOfUse day{key.substr(kRows.size(), slash - kRows.size()), key.substr(slash + 1), {}, {}, 0, 0};
    ReadRow(text, &day);
    days[{day.day, day.user}] = std::move(day);
  }
  for (const auto& [name, total] : totals_)
    if (day_ >= first && day_ <= last && total.use.llm.calls + total.use.evaluations + total.use.job_ms > 0)
      days[{day_, name}] = total.use;
  std::vector<DayOfUse> out;
  for (auto& [key, day] : days)
    if (user.empty() ? day.user != kEverybody : day.user == user) out.push_back(std::move(day));
  return out;
}

}  // namespace optod::server
