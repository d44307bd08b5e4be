#pragma once
/// OptoPrime as pure functions: graph + feedback + parameters + memory -> chat messages; reply -> a set of new values.
/// Source: arXiv 2406.16218, section 4. The caller sends the messages, stores candidates and makes versions.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/optimizers/problem.h"
#include "trace/optimizers/prompt.h"
#include "trace/optimizers/reply.h"

namespace optod::trace {

struct OptoPrimeOptions {
  ProblemOptions problem{};
  RenderOptions render{};   ///< memory is filled from `memory` below
  uint32_t candidates = 1;  ///< k >= 1 independent proposals
  std::optional<double>
      temperature;           ///< one candidate: sent as given; several: the top of a linear schedule down to 0 (1.0)
  uint32_t memory_size = 0;  ///< rounds kept by PushMemory
};

/// One chat request. The same prompt serves all candidates; they differ in temperature.
struct CandidateRequest {
  Prompt prompt;
  std::optional<double> temperature;  ///< absent: the endpoint's default
  std::string response_schema;        ///< JSON schema of the reply, for endpoints that support one; empty: none
};

/// Errors: FAILED_PRECONDITION without feedback, or when no parameter is trainable; INVALID_ARGUMENT for candidates ==
/// 0.
absl::StatusOr<std::vector<CandidateRequest>> BuildOptoPrimeRequests(const Graph& graph, const FeedbackStore& feedback,
                                                                     std::span<const NodeId> parameters,
                                                                     const std::vector<MemoryRound>& memory,
                                                                     const OptoPrimeOptions& options = {});

/// The request once a candidate, temperatures spread as OptoPrimeOptions::temperature says.
std::vector<CandidateRequest> SpreadCandidates(const CandidateRequest& request, uint32_t candidates,
                                               std::optional<double> temperature);

/// JSON schema of `{"reasoning", "answer", "suggestion": {py_name: value}}` with the types and bounds of the variables.
/// Brief: `{"suggestion": {...}}` with every variable required.
std::string ReplySchema(const std::vector<ReplyParameter>& parameters, PromptForm form = PromptForm::kFull);

struct NewValue {
  NodeId node = kNoNode;
  std::string text{};
  std::optional<std::string> json{};
};

struct Candidate {
  ReplyOutcome outcome;
  std::vector<NewValue> values;  ///< changed parameters only; empty: no update
};

/// Reads one reply. `parameters` as given to BuildOptoPrimeRequests.
Candidate ReadCandidate(std::string_view reply, const Graph& graph, std::span<const NodeId> parameters,
                        const ReplyOptions& options = {});

/// The candidate that an outcome over `parameters` makes.
Candidate MakeCandidate(ReplyOutcome outcome, std::span<const NodeId> parameters);

/// Puts the values into the graph. All are checked first: either all are set or none.
absl::Status ApplyCandidate(Graph& graph, const Candidate& candidate);

/// The round that this state and feedback make, for the memory of later steps.
MemoryRound MakeMemoryRound(const Graph& graph, std::span<const NodeId> parameters, const FeedbackStore& feedback,
                            std::optional<double> score = std::nullopt);
/// Appends, then drops the oldest beyond `size`.
void PushMemory(std::vector<MemoryRound>& memory, MemoryRound round, uint32_t size);

}  // namespace optod::trace
