#pragma once
/// OptoPrime with tags instead of JSON: values stand between tags, so source text and prompts need no escaping, which
/// small models get right more often. Pure functions. Source: OptoPrime (arXiv 2406.16218); the tagged form is that of
/// its authors' later release.

#include <string>
#include <string_view>
#include <vector>

#include "trace/optimizers/optoprime.h"

namespace optod::trace {

/// As Render; constraints stand beside their variable.
Prompt RenderTagged(const ProblemInstance& problem, const RenderOptions& options = {});

/// Reads `<reasoning>..</reasoning>` and then, per changed variable,
/// `<variable><name>..</name><value>..</value></variable>`. Variables count only behind the closed reasoning, if there
/// is one at all; names and values are trimmed, a later block of the same name wins, an empty value is a value. Casts,
/// constraints and outcomes are those of ParseReply; options.peer_compat has no effect.
ReplyOutcome ParseTaggedReply(std::string_view reply, const std::vector<ReplyParameter>& parameters,
                              const ReplyOptions& options = {});

/// As BuildOptoPrimeRequests, without a response schema.
absl::StatusOr<std::vector<CandidateRequest>> BuildOptoPrimeV2Requests(const Graph& graph,
                                                                       const FeedbackStore& feedback,
                                                                       std::span<const NodeId> parameters,
                                                                       const std::vector<MemoryRound>& memory,
                                                                       const OptoPrimeOptions& options = {});

/// As ReadCandidate.
Candidate ReadTaggedCandidate(std::string_view reply, const Graph& graph, std::span<const NodeId> parameters,
                              const ReplyOptions& options = {});

}  // namespace optod::trace
