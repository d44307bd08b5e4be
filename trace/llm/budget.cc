#include "trace/llm/budget.h"

#include "base/status.h"
#include "trace/llm/error.h"

namespace optod::trace {

absl::Status Budget::Begin() {
  std::lock_guard lock(mutex_);
  const auto spent = [](const auto& used, const auto& limit, const char* unit) {
    return LlmError(absl::StatusCode::kResourceExhausted, "budget",
                    Cat("llm budget: ", used, " of ", limit, " ", unit, " are used"));
  };
  if (limits_.max_calls && used_.calls + under_way_ >= *limits_.max_calls) {
    return spent(used_.calls + under_way_, *limits_.max_calls, "calls");
  }
  const int64_t tokens = used_.prompt_tokens + used_.completion_tokens;
  if (limits_.max_tokens && tokens >= *limits_.max_tokens) return spent(tokens, *limits_.max_tokens, "tokens");
  if (limits_.max_usd && used_.usd >= *limits_.max_usd) return spent(used_.usd, *limits_.max_usd, "USD");
  ++under_way_;
  return absl::OkStatus();
}

void Budget::Charge(const ChatUsage& usage) {
  std::lock_guard lock(mutex_);
  --under_way_;
  ++used_.calls;
  used_.prompt_tokens += usage.prompt_tokens;
  used_.completion_tokens += usage.completion_tokens;
  used_.usd += usage.usd;
}

void Budget::Release() {
  std::lock_guard lock(mutex_);
  --under_way_;
}

BudgetUse Budget::used() const {
  std::lock_guard lock(mutex_);
  return used_;
}

}  // namespace optod::trace
