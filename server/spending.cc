#include "server/spending.h"

#include <ctime>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "server/log/log.h"
#include "trace/llm/error.h"

namespace optod::server {
namespace {

using nlohmann::json;

constexpr char kEverybody[] = "*";

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
  const std::string today = DayOf(clock_.NowUnixMs());
  if (today != day_) {
    // Calls under way at midnight are charged to the new day.
    std::map<std::string, Total> carried;
    for (const auto& [name, total] : totals_)
      if (total.under_way > 0) carried[name].under_way = total.under_way;
    totals_ = std::move(carried);
    day_ = today;
  }
  const auto found = totals_.find(user);
  if (found != totals_.end()) return found->second;
  Total& total = totals_[user];
  const auto row = store_.GetMeta("llm-usage/" + day_ + "/" + user);
  if (!row.ok()) return total;
  const json saved = json::parse(*row, nullptr, false);
  total.use = UseOf(saved);
  if (saved.is_object() && saved.contains("endpoints") && saved["endpoints"].is_object())
    for (const auto& [name, use] : saved["endpoints"].items()) total.endpoints[name] = UseOf(use);
  return total;
}

absl::Status Spending::Begin(const std::string& user) {
  std::lock_guard lock(mutex_);
  Total& own = Of(user);
  Total& all = Of(kEverybody);
  if (!user.empty()) RETURN_IF_ERROR(CheckLimits("user " + user, limits_.user_day, own.use, own.under_way));
  RETURN_IF_ERROR(CheckLimits("this server", limits_.day, all.use, all.under_way));
  ++own.under_way;
  ++all.under_way;
  return absl::OkStatus();
}

void Spending::Charge(const std::string& user, const std::string& endpoint, const trace::ChatUsage& usage) {
  std::lock_guard lock(mutex_);
  for (const std::string& whose : {user, std::string(kEverybody)}) {
    Total& total = Of(whose);
    --total.under_way;
    Add(usage, &total.use);
    Add(usage, &total.endpoints[endpoint]);
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
  json row = ToJson(total.use);
  for (const auto& [name, use] : total.endpoints) row["endpoints"][name] = ToJson(use);
  store::Batch batch;
  batch.mutations.push_back(store::SetMeta{"llm-usage/" + day_ + "/" + user, row.dump()});
  store_.Commit(std::move(batch), [](absl::Status status) {
    if (!status.ok()) log::Warn("llm_usage_not_saved", {{"message", std::string(status.message())}});
  });
}

trace::BudgetUse Spending::Today(const std::string& user) {
  std::lock_guard lock(mutex_);
  return Of(user).use;
}

}  // namespace optod::server
