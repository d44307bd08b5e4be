#pragma once
/// What trace sessions need beside the store: the door to language models, the cassette, threads that may block on a model, and operations.

#include "base/thread_pool.h"
#include "server/engine/operations.h"
#include "trace/llm/gateway.h"

namespace optod::engine {

struct TraceServices {
  trace::LlmGateway* gateway = nullptr;
  trace::Cassette* cassette = nullptr;   ///< nullptr = none
  ThreadPool* llm_pool = nullptr;        ///< one thread a model call under way
  Operations* operations = nullptr;
};

}  // namespace optod::engine
