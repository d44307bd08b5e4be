#pragma once
/// One model call of a session: its budget is looked at before, its usage is stored after. Internal to server/services;
/// thread-safe.

#include <atomic>
#include <functional>
#include <string_view>

#include "optod/v1/workflow.pb.h"
#include "server/engine/engine.h"
#include "trace/llm/budget.h"

namespace optod::services {

/// Blocks on the model: for a thread of the llm pool. `on_text` may be empty. Answers when the usage is durable.
void CompleteForSession(engine::Engine& engine, const engine::Caller& caller, const v1::CompleteRequest& request,
                        const std::atomic<bool>* cancelled, std::function<void(std::string_view)> on_text,
                        engine::Done<v1::CompleteResponse> done);

/// calls, tokens and dollars of `more` on top of those of `usage`.
void AddUsage(const v1::Usage& more, v1::Usage* usage);

/// What the session may still spend. For its strand.
struct SessionPurse {
  trace::BudgetLimits limits;
  trace::BudgetUse used;
};
absl::StatusOr<SessionPurse> PurseOf(const engine::LiveSession& session, int64_t now_ms);

}  // namespace optod::services
