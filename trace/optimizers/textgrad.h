#pragma once
/// TextGrad: feedback is passed back along the edges of the run by the model itself, then each parameter is rewritten
/// (Yuksekgonul et al., "TextGrad: Automatic Differentiation via Text", 2024, arXiv 2406.07496). Calls: one an edge
/// that leads to a parameter, one a node with several feedbacks (merge), one a parameter and candidate. Nodes of one
/// level are asked about at once.

#include <memory>

#include "trace/optimizers/proposer.h"

namespace optod::trace {

inline constexpr size_t kMostTextGradCalls = 2000;

/// Errors: as BuildProblem; FAILED_PRECONDITION when no parameter is trainable, none is reached, or the run takes more
/// than kMostTextGradCalls calls.
absl::StatusOr<std::unique_ptr<Proposer>> MakeTextGrad(const ProposerSpec& spec, const Graph& graph,
                                                       const FeedbackStore& feedback,
                                                       const std::vector<NodeId>& parameters);

/// The text between the last `<IMPROVED_VARIABLE>` and the tag that closes it, a line break behind the first and before
/// the second taken off; absent: no complete block.
std::optional<std::string> ImprovedVariable(std::string_view reply);

/// The first and last `words` words of a long text; `limit` code points at most.
std::string ShortValue(std::string_view text, size_t words = 10, uint32_t limit = 600);

}  // namespace optod::trace
