#pragma once
/// OptoPrime with several candidates, made and chosen in one of several ways (Generation, Selection in proposer.h).
/// Also serves one plain round of k candidates for every optimizer whose proposal is one prompt. Source: OptoPrimeMulti
/// of arXiv 2406.16218's code and of its authors' later release.

#include <functional>
#include <memory>

#include "trace/optimizers/proposer.h"

namespace optod::trace {

/// `base` is the prompt of one candidate; `read` turns a reply into an outcome.
std::unique_ptr<Proposer> MakeRounds(const ProposerSpec& spec, CandidateRequest base,
                                     std::function<ReplyOutcome(std::string_view)> read);

/// Temperature of candidate `i` of `k`: from `top` (absent: 1 when k > 1) evenly down to `low`; one candidate: `top` as
/// it is.
std::optional<double> SpreadTemperature(std::optional<double> top, double low, uint32_t i, uint32_t k);

/// The number that a judge's reply names: member "best" of its JSON object, else the last whole number in [1, n] of its
/// text; absent: none.
std::optional<size_t> ReadChoice(std::string_view reply, size_t n);

/// Lines of a reply that name experts, without list marks; at most `n`.
std::vector<std::string> ReadExperts(std::string_view reply, size_t n);

}  // namespace optod::trace
