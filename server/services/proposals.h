#pragma once
/// A proposal as an operation: prompt on the session's strand, model calls on the LLM pool, replies back on the strand as one commit.

#include "server/engine/engine.h"
#include "optod/v1/trace.pb.h"

namespace optod::services {

/// Answers with the operation once it is durable; the work goes on behind it. Errors as TraceService.Propose says.
void StartProposal(engine::Engine& engine, const engine::Caller& caller, const v1::ProposeRequest& request, engine::Done<v1::Operation> done);

}  // namespace optod::services
