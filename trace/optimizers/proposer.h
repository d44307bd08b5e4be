#pragma once
/// A language-model optimizer as a state machine: it says which calls to make, is told the answers, and ends with
/// candidates. It knows no model, network or clock, so a proposal can be run again from recorded answers and makes the
/// same calls. Not thread-safe.
///
///   auto proposer = MakeProposer(spec, graph, feedback, parameters);      // the graph is no longer needed after this
///   while (calls = proposer->Next(), !calls.empty()) proposer->Answer(<replies to calls, in order>);
///   ProposerResult result = proposer->Take();

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/optimizers/memory.h"
#include "trace/optimizers/optoprime.h"

namespace optod::trace {

/// One chat call: system and user message.
struct ProposerCall {
  Prompt prompt;
  std::optional<double> temperature;
  std::string response_schema;  ///< "" = none
  std::string label;            ///< for progress: "candidate 2 of 4", "feedback add0 -> a0"
};

/// What became of a call.
struct CallAnswer {
  enum class Kind { kText, kEmpty, kFailed };
  Kind kind = Kind::kFailed;
  std::string text;    ///< kText
  std::string reason;  ///< kEmpty, kFailed
};

struct ProposedCandidate {
  ReplyOutcome outcome;
  bool call_failed = false;   ///< there is no reply: `outcome.reason` is the error
  std::string reply;          ///< the text behind it
  std::vector<size_t> calls;  ///< numbers of the calls behind it, counted over the whole proposal
};

struct ProposerResult {
  std::vector<ProposedCandidate> candidates;
  std::optional<size_t> selected;  ///< the optimizer's choice; absent: none is usable
};

class Proposer {
 public:
  virtual ~Proposer() = default;
  /// The calls to make now, all at once; empty: done.
  virtual std::vector<ProposerCall> Next() = 0;
  /// One answer a call of the last Next, in order.
  virtual void Answer(std::vector<CallAnswer> answers) = 0;
  virtual ProposerResult Take() = 0;
};

/// How optoprime-multi makes its candidates (after its authors' later release).
enum class Generation {
  kTemperature,     ///< one prompt, temperatures spread
  kSelfRefinement,  ///< one after the other; each sees the one before
  kAlternatives,    ///< one after the other; each sees all before and must differ
  kExperts          ///< at once; each from the view of another expert, whom the model names first
};
/// Which candidate counts.
enum class Selection {
  kFirst,     ///< the first usable one
  kLastOfN,   ///< the last usable one (of falling temperatures: the coolest)
  kBestOfN,   ///< one more call picks
  kMajority,  ///< the medoid of the largest cluster of similar candidates
  kMixture    ///< one more call merges them into a further candidate
};
std::optional<Generation> ParseGeneration(std::string_view name);  ///< temperature self_refinement alternatives experts
std::optional<Selection> ParseSelection(std::string_view name);    ///< first last_of_n best_of_n majority mixture

struct ProposerSpec {
  std::string optimizer = "optoprime";  ///< optoprime, optoprime-v2, optoprime-multi, opro, textgrad
  uint32_t candidates = 1;              ///< k >= 1
  std::optional<double> temperature{};  ///< one candidate: as given; several: the top of the spread
  double temperature_low = 0;           ///< several: its end
  Generation generation = Generation::kTemperature;
  Selection selection = Selection::kFirst;
  ProblemOptions problem{};
  RenderOptions render{};             ///< its memory is filled from `memory`
  std::vector<MemoryRound> memory{};  ///< rounds to show, oldest first
  ReplyOptions reply{};
};

/// Errors: NOT_FOUND for an unknown optimizer; those of BuildOptoPrimeRequests; FAILED_PRECONDITION when even the
/// shortest prompt is longer than render.max_prompt_tokens.
absl::StatusOr<std::unique_ptr<Proposer>> MakeProposer(const ProposerSpec& spec, const Graph& graph,
                                                       const FeedbackStore& feedback,
                                                       const std::vector<NodeId>& parameters);

/// The first prompt that a proposal would send, also one that is over the limit. Errors: those of MakeProposer but that
/// one.
absl::StatusOr<Prompt> FirstPrompt(const ProposerSpec& spec, const Graph& graph, const FeedbackStore& feedback,
                                   const std::vector<NodeId>& parameters);

/// Reads a reply in the form that the optimizer asks for: tags for optoprime-v2, JSON for the others.
ReplyOutcome ReadReply(std::string_view optimizer, std::string_view reply,
                       const std::vector<ReplyParameter>& parameters, const ReplyOptions& options = {});

}  // namespace optod::trace
