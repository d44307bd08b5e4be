#include "server/usage_report.h"

#include <chrono>
#include <cmath>
#include <cstdio>

#include "base/status.h"
#include "server/auth/authenticator.h"

namespace optod::server {
namespace {

/// YYYY-MM-DD of the Gregorian calendar.
absl::StatusOr<std::chrono::sys_days> ParseDay(const std::string& field, const std::string& text) {
  int year = 0;
  unsigned month = 0, day = 0;
  int read = 0;
  const bool shaped = text.size() == 10 && text.find_first_not_of("0123456789-") == std::string::npos &&
                      std::sscanf(text.c_str(), "%4d-%2u-%2u%n", &year, &month, &day, &read) == 3 && read == 10;
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
  if (!shaped || !date.ok()) return InvalidArgument(field, ": \"", text, "\" is no day; must be YYYY-MM-DD");
  return std::chrono::sys_days(date);
}

void Fill(const trace::BudgetUse& use, v1::ModelUsage* out) {
  out->set_calls(use.calls);
  out->set_prompt_tokens(use.prompt_tokens);
  out->set_completion_tokens(use.completion_tokens);
  out->set_micro_usd(std::llround(use.usd * 1e6));
}

void Add(const v1::UsageCounts& more, v1::UsageCounts* total) {
  v1::ModelUsage* llm = total->mutable_llm();
  llm->set_calls(llm->calls() + more.llm().calls());
  llm->set_prompt_tokens(llm->prompt_tokens() + more.llm().prompt_tokens());
  llm->set_completion_tokens(llm->completion_tokens() + more.llm().completion_tokens());
  llm->set_micro_usd(llm->micro_usd() + more.llm().micro_usd());
  total->set_evaluations(total->evaluations() + more.evaluations());
  total->set_job_seconds(total->job_seconds() + more.job_seconds());
}

void Fill(const DayOfUse& day, v1::DayUsage* out) {
  out->set_day(day.day);
  out->set_user("users/" + day.user);
  Fill(day.llm, out->mutable_total()->mutable_llm());
  out->mutable_total()->set_evaluations(day.evaluations);
  out->mutable_total()->set_job_seconds((day.job_ms + 500) / 1000);
  for (const auto& [name, use] : day.endpoints) Fill(use, &(*out->mutable_models())[name]);
}

}  // namespace

absl::Status ReportUsage(Spending& spending, const engine::Caller& caller, const v1::GetUsageRequest& request,
                         v1::GetUsageResponse* response) {
  std::string user;  // "" = everybody
  if (!request.user().empty() || !caller.admin) {
    ASSIGN_OR_RETURN(user, auth::ResolveUser(request.user(), caller, "user"));
  }
  const std::string last = request.to_day().empty() ? spending.DayNow() : request.to_day();
  const std::string first = request.from_day().empty() ? last : request.from_day();
  ASSIGN_OR_RETURN(const auto from, ParseDay("from_day", first));
  ASSIGN_OR_RETURN(const auto to, ParseDay("to_day", last));
  if (to < from) return InvalidArgument("to_day: ", last, " is before from_day, ", first);
  if ((to - from).count() + 1 > kMaxUsageDays)
    return InvalidArgument("from_day: ", first, " to ", last, " is ", (to - from).count() + 1, " days; at most ",
                           kMaxUsageDays);
  ASSIGN_OR_RETURN(const std::vector<DayOfUse> days, spending.Days(user, first, last));
  for (const DayOfUse& day : days) {
    v1::DayUsage* out = response->add_days();
    Fill(day, out);
    Add(out->total(), response->mutable_total());
  }
  response->mutable_total()->mutable_llm();
  return absl::OkStatus();
}

}  // namespace optod::server
