#pragma once
/// OPRO: the model sees no trace, only the objective and the values tried so far with what was said about each. Pure
/// functions. Source: Yang et al., "Large Language Models as Optimizers", 2023 (arXiv 2309.03409). Replies are read as
/// OptoPrime's (ReadCandidate).

#include <string>
#include <vector>

#include "trace/optimizers/optoprime.h"

namespace optod::trace {

struct OproOptions {
  std::string objective{};  ///< empty: a default that refers to the feedback
  uint32_t candidates = 1;  ///< as in OptoPrimeOptions
  std::optional<double> temperature{};
  uint32_t max_rounds = 50;        ///< newest rounds shown; older ones are counted in one line
  uint32_t max_prompt_tokens = 0;  ///< as in RenderOptions
};

/// `memory` holds the past rounds, oldest first, without the current one. Errors: as BuildOptoPrimeRequests.
absl::StatusOr<std::vector<CandidateRequest>> BuildOproRequests(const Graph& graph, const FeedbackStore& feedback,
                                                                std::span<const NodeId> parameters,
                                                                const std::vector<MemoryRound>& memory,
                                                                const OproOptions& options = {});

}  // namespace optod::trace
