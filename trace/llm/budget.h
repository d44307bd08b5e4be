#pragma once
/// What a session, a user or a run may spend on language models. Looked at before a call and charged after it: a
/// finished, paid reply is never thrown away, so tokens and money may pass the limit by the calls that were under way
/// when it was reached. Thread-safe.

#include <cstdint>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "trace/llm/chat.h"

namespace optod::trace {

struct BudgetLimits {
  std::optional<int64_t> max_calls{};   ///< answered calls; absent = no limit, 0 = none at all
  std::optional<int64_t> max_tokens{};  ///< prompt and reply
  std::optional<double> max_usd{};
};

struct BudgetUse {
  int64_t calls = 0;  ///< that were answered
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double usd = 0;
};

class Budget {
 public:
  explicit Budget(BudgetLimits limits = {}, BudgetUse used = {}) : limits_(limits), used_(used) {}

  /// Takes room for one call. RESOURCE_EXHAUSTED `llm budget: 5 of 5 calls are used` when there is none. Calls under
  /// way count as calls.
  absl::Status Begin();
  /// The call was answered (well or badly): it is paid.
  void Charge(const ChatUsage& usage);
  /// The call was not answered: its room is given back.
  void Release();

  BudgetUse used() const;
  const BudgetLimits& limits() const { return limits_; }

 private:
  const BudgetLimits limits_;
  mutable std::mutex mutex_;
  BudgetUse used_;
  int64_t under_way_ = 0;
};

}  // namespace optod::trace
