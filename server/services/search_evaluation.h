#pragma once
/// What a search with a workflow evaluates in this server: the workflow runs on one task with a version's values, what
/// happened is recorded, and the search is told. Replies of models are durable before a step sees them, and a reply
/// that was received before a restart is not asked for again.
///
///   TakeEvaluations ──► model threads: RunWorkflow ──► strand + commit (each reply) ──► strand + commit (nodes, score)

#include <functional>

#include "server/engine/engine.h"
#include "server/services/workflow_service.h"

namespace optod::services {

/// Starts the evaluations that the search wants and nobody works on; `on_told` runs after each (a pool thread), so that
/// what follows can start. `resume` ends a pause. Nothing happens for a search without a workflow.
void LaunchEvaluations(const WorkflowParts& parts, engine::Caller caller, const engine::SessionName& name,
                       int64_t search, bool resume, std::function<void()> on_told);

}  // namespace optod::services
