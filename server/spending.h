#pragma once
/// What users have used, by day (UTC): language models (by endpoint), evaluations, seconds of jobs; and what they may
/// spend on models. Kept in the store (meta rows `llm-usage/DAY/USER`; user `*` is everybody), so that a restart forgets
/// nothing: a row is written after each call that was paid, what else is counted with the next Flush. Thread-safe.

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "server/store/store.h"
#include "trace/llm/gateway.h"

namespace optod::server {

struct SpendingLimits {
  trace::BudgetLimits user_day;  ///< of each user
  trace::BudgetLimits day;       ///< of all together
};

/// One user on one day.
struct DayOfUse {
  std::string day, user;                             ///< "2026-01-31"
  trace::BudgetUse llm;                              ///< of all endpoints
  std::map<std::string, trace::BudgetUse> endpoints;
  int64_t evaluations = 0;                           ///< scores and probe results told
  int64_t job_ms = 0;                                ///< wall time of workers
};

class Spending final : public trace::UsageLedger {
 public:
  /// `store` and `clock` must outlive it.
  Spending(store::Store& store, Clock& clock, SpendingLimits limits) : store_(store), clock_(clock), limits_(limits) {}

  absl::Status Begin(const std::string& user) override;
  void Charge(const std::string& user, const std::string& endpoint, const trace::ChatUsage& usage) override;
  void Release(const std::string& user) override;

  void CountEvaluations(const std::string& user, int64_t evaluations);
  void CountJob(const std::string& user, int64_t wall_ms);
  /// Writes what was counted since. Cheap when there is nothing.
  void Flush();

  /// Of today. `user` "*" = all.
  trace::BudgetUse Today(const std::string& user);
  std::string DayNow() const;
  /// Days first..last ("2026-01-31"), by day, then user; "" = every user (without `*`). A read of one row a user and day.
  absl::StatusOr<std::vector<DayOfUse>> Days(const std::string& user, const std::string& first,
                                             const std::string& last);

 private:
  struct Total {
    DayOfUse use;
    int64_t under_way = 0;
  };
  Total& Of(const std::string& user);
  void Save(const std::string& user, const Total& total);

  store::Store& store_;
  Clock& clock_;
  const SpendingLimits limits_;
  std::mutex mutex_;
  std::string day_;
  std::map<std::string, Total> totals_;
  std::set<std::string> unsaved_;  ///< users of totals_ whose row is behind
};

}  // namespace optod::server
