#pragma once
/// What trace sessions need beside the store: the door to language models, the cassette, threads that may block on a model, and operations.

#include <functional>
#include <string>

#include "base/thread_pool.h"

namespace optod::trace {
class LlmGateway;   // trace/llm/gateway.h
class Cassette;     // trace/llm/cassette.h
}  // namespace optod::trace

namespace optod::engine {

class Operations;   // server/engine/operations.h

struct TraceServices {
  trace::LlmGateway* gateway = nullptr;
  trace::Cassette* cassette = nullptr;   ///< nullptr = none
  ThreadPool* llm_pool = nullptr;        ///< one thread a model call under way
  Operations* operations = nullptr;
  /// Told of evaluations that became durable, of sessions of any family; may be empty. Must be quick.
  std::function<void(const std::string& user, int64_t evaluations)> on_evaluations;
};

}  // namespace optod::engine
