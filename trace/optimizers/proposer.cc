#include "trace/optimizers/proposer.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/multi.h"
#include "trace/optimizers/opro.h"
#include "trace/optimizers/optoprime_v2.h"
#include "trace/optimizers/textgrad.h"

namespace optod::trace {
namespace {

constexpr std::string_view kGenerations[] = {"temperature", "self_refinement", "alternatives", "experts"};
constexpr std::string_view kSelections[] = {"first", "last_of_n", "best_of_n", "majority", "mixture"};

template <typename Enum, size_t N>
std::optional<Enum> Named(const std::string_view (&names)[N], std::string_view name) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

absl::StatusOr<CandidateRequest> BaseRequest(const ProposerSpec& spec, const Graph& graph,
                                             const FeedbackStore& feedback, const std::vector<NodeId>& parameters) {
  std::vector<CandidateRequest> requests;
  if (spec.optimizer == "opro") {
    OproOptions options{.objective = spec.problem.instruction, .max_prompt_tokens = spec.render.max_prompt_tokens};
    ASSIGN_OR_RETURN(requests, BuildOproRequests(graph, feedback, parameters, spec.memory, options));
  } else {
    OptoPrimeOptions options;
    options.problem = spec.problem;
    options.render = spec.render;
    if (spec.optimizer == "optoprime-v2") {
      ASSIGN_OR_RETURN(requests, BuildOptoPrimeV2Requests(graph, feedback, parameters, spec.memory, options));
    } else if (spec.optimizer == "optoprime" || spec.optimizer == "optoprime-multi") {
      ASSIGN_OR_RETURN(requests, BuildOptoPrimeRequests(graph, feedback, parameters, spec.memory, options));
    } else {
      return NotFound("optimizer: ", spec.optimizer, " is no trace optimizer");
    }
  }
  return std::move(requests.front());
}

}  // namespace

std::optional<Generation> ParseGeneration(std::string_view name) { return Named<Generation>(kGenerations, name); }
std::optional<Selection> ParseSelection(std::string_view name) { return Named<Selection>(kSelections, name); }

ReplyOutcome ReadReply(std::string_view optimizer, std::string_view reply,
                       const std::vector<ReplyParameter>& parameters, const ReplyOptions& options) {
  return optimizer == "optoprime-v2" ? ParseTaggedReply(reply, parameters, options)
                                     : ParseReply(reply, parameters, options);
}

absl::StatusOr<Prompt> FirstPrompt(const ProposerSpec& spec, const Graph& graph, const FeedbackStore& feedback,
                                   const std::vector<NodeId>& parameters) {
  if (spec.optimizer != "textgrad") {
    ASSIGN_OR_RETURN(CandidateRequest base, BaseRequest(spec, graph, feedback, parameters));
    return std::move(base.prompt);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Proposer> proposer, MakeTextGrad(spec, graph, feedback, parameters));
  std::vector<ProposerCall> calls = proposer->Next();
  if (calls.empty()) return FailedPrecondition("feedback: reaches no trainable parameter");
  return std::move(calls.front().prompt);
}

absl::StatusOr<std::unique_ptr<Proposer>> MakeProposer(const ProposerSpec& spec, const Graph& graph,
                                                       const FeedbackStore& feedback,
                                                       const std::vector<NodeId>& parameters) {
  if (spec.candidates == 0) return InvalidArgument("candidates: 0; must be at least 1");
  if (spec.optimizer == "textgrad") return MakeTextGrad(spec, graph, feedback, parameters);
  ASSIGN_OR_RETURN(CandidateRequest base, BaseRequest(spec, graph, feedback, parameters));
  if (base.prompt.over_limit) {
    return FailedPrecondition(
        "prompt: even the shortest form is over the ", spec.render.max_prompt_tokens,
        " tokens that the endpoint's context leaves for it; shorten the variables or take an endpoint with more");
  }
  auto read = [optimizer = spec.optimizer, all = ReplyParameters(graph, parameters),
               options = spec.reply](std::string_view reply) { return ReadReply(optimizer, reply, all, options); };
  return MakeRounds(spec, std::move(base), std::move(read));
}

}  // namespace optod::trace
