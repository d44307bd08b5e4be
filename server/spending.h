#pragma once
/// What users have spent on language models, by day (UTC) and by endpoint, and what they may. Kept in the store (meta
/// rows `llm-usage/DAY/USER`; user
/// `*` is everybody), so that a restart forgets nothing; a row is written after each call that was paid. Thread-safe.

#include <map>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "server/store/store.h"
#include "trace/llm/gateway.h"

namespace optod::server {

struct SpendingLimits {
  trace::BudgetLimits user_day;  ///< of each user
  trace::BudgetLimits day;       ///< of all together
};

class Spending final : public trace::UsageLedger {
 public:
  /// `store` and `clock` must outlive it.
  Spending(store::Store& store, Clock& clock, SpendingLimits limits) : store_(store), clock_(clock), limits_(limits) {}

  absl::Status Begin(const std::string& user) override;
  void Charge(const std::string& user, const std::string& endpoint, const trace::ChatUsage& usage) override;
  void Release(const std::string& user) override;

  /// Of today. `user` "*" = all.
  trace::BudgetUse Today(const std::string& user);

 private:
  struct Total {
    trace::BudgetUse use;
    std::map<std::string, trace::BudgetUse> endpoints;
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
};

}  // namespace optod::server
