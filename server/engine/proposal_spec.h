#pragma once
/// From a trace session's optimizer (name and hyperparameters) and a request's extras to what the trace library's
/// proposers take. Pure functions.

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "google/protobuf/map.h"
#include "optod/v1/session.pb.h"
#include "trace/llm/endpoint.h"
#include "trace/optimizers/proposer.h"

namespace optod::engine {

struct ProposalSpec {
  trace::ProposerSpec proposer;  ///< without memory
  trace::MemoryChoice memory;
  size_t memory_kept = 0;  ///< rounds that a session keeps for later steps; 0 = none
  std::string endpoint = "default";
  int max_tokens = 4096;  ///< of a reply
};

/// `endpoint`: what the prompt is built for; absent: no token limit. INVALID_ARGUMENT naming the hyperparameter or
/// `mask`, `titles`.
absl::StatusOr<ProposalSpec> MakeProposalSpec(const v1::Session& session,
                                              const google::protobuf::RepeatedPtrField<std::string>& mask,
                                              const google::protobuf::Map<std::string, std::string>& titles,
                                              const std::optional<trace::EndpointConfig>& endpoint);

/// A hyperparameter's number, or `fallback` when it is not set.
double HyperNumber(const v1::Session& session, const std::string& name, double fallback);
std::string HyperText(const v1::Session& session, const std::string& name, const std::string& fallback);

}  // namespace optod::engine
