#pragma once
/// Sessions whose parameters are nodes of a recorded trace (optimizers `optoprime`, ...). Durable form: nodes as rows, feedback and memory as
/// observations, versions whose payload holds the values that differ from the parent's. Used on the session's strand only.

#include <map>
#include <string>
#include <vector>

#include "optod/v1/trace.pb.h"
#include "server/engine/engine.h"
#include "server/engine/operations.h"
#include "server/engine/proposal_spec.h"
#include "server/engine/reply_journal.h"
#include "server/engine/trace_services.h"
#include "server/engine/trace_values.h"
#include "trace/backward/feedback.h"
#include "trace/graph/graph.h"
#include "trace/llm/budget.h"
#include "trace/optimizers/optoprime.h"

namespace optod::engine {

class TraceSearches;

FamilyFactory MakeTraceFamilyFactory();

class TraceFamily final : public Family {
 public:
  static absl::StatusOr<std::unique_ptr<Family>> Load(Context& context, LiveSession& session);
  ~TraceFamily() override;

  absl::StatusOr<v1::AskResponse> Ask(LiveSession& session, const v1::AskRequest& request, const Caller& caller) override;
  absl::Status Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response, Effects* effects) override;
  absl::Status MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) override;
  absl::Status FillVersion(LiveSession& session, v1::Version* version) override;
  size_t ResidentBytes() const override { return graph_.BytesUsed(); }

  // ---- what TraceService calls
  absl::Status RecordNodes(LiveSession& session, const v1::RecordNodesRequest& request, v1::RecordNodesResponse* response, Effects* effects);
  absl::Status Backward(LiveSession& session, const v1::BackwardRequest& request, v1::BackwardResponse* response, Effects* effects);
  void ZeroFeedback(LiveSession& session, v1::ZeroFeedbackResponse* response, Effects* effects);
  absl::StatusOr<v1::Problem> GetProblem(LiveSession& session, const v1::GetProblemRequest& request);
  absl::Status SetValues(LiveSession& session, const v1::SetValuesRequest& request, v1::Version* out, Effects* effects);

  /// Everything that a proposal needs after it left the strand.
  struct Proposal {
    std::string endpoint;
    int64_t base_version = 0;
    std::unique_ptr<trace::Proposer> proposer;
    std::vector<trace::NodeId> nodes;   ///< given to the proposer, in order: what KeyResult::parameter counts in
    trace::MemoryRound round;
    int max_tokens = 4096;
    int64_t first_seed = 0;             ///< of call 0; call i has first_seed + i
    std::string scope;                  ///< of received replies: "" = named by content
    bool apply = false;
    bool client_model = false;          ///< the client answers the calls
    std::vector<std::string> given;     ///< its answers so far, by number of the call
    trace::BudgetLimits limits;   ///< of the session
    trace::BudgetUse used;
  };
  /// What one call came to.
  struct CallCost {
    bool answered = false;
    int64_t prompt_tokens = 0, completion_tokens = 0;
    double usd = 0;
  };
  absl::StatusOr<Proposal> PrepareProposal(LiveSession& session, const v1::ProposeRequest& request);
  /// Turns what the proposer made into versions. `costs` by number of the call.
  absl::Status FinishProposal(LiveSession& session, const Proposal& proposal, const trace::ProposerResult& result, const std::vector<CallCost>& costs,
                              v1::ProposeResponse* response, Effects* effects);
  ReplyJournal& replies() { return replies_; }
  TraceSearches& searches() { return *searches_; }

  const trace::Graph& graph() const { return graph_; }
  const trace::FeedbackStore& feedback() const { return feedback_; }
  std::vector<trace::NodeId> Trainable() const;

 private:
  using Values = std::map<trace::NodeId, TraceValue>;

  friend class TraceSearches;
  explicit TraceFamily(Context& context);
  absl::Status LoadNodes(LiveSession& session);
  absl::Status LoadFeedback(LiveSession& session);
  /// Values of all parameters at a version: along the branch, the nearest version that names one; else the initial value.
  absl::StatusOr<Values> ValuesAt(LiveSession& session, int64_t version);
  absl::Status SetGraphValues(const Values& values);
  void Register(trace::NodeId id);
  std::string KeyOf(LiveSession& session, trace::NodeId id) const;
  absl::StatusOr<trace::NodeId> FindParameter(const std::string& key) const;
  absl::StatusOr<std::vector<trace::NodeId>> Chosen(const google::protobuf::RepeatedField<int64_t>& ids) const;
  void DropFeedback(LiveSession& session, Effects* effects);
  store::VersionRow MakeVersion(LiveSession& session, int64_t parent, const Values& changed, const std::string& kind, const std::string& note,
                               const v1::Usage* cost = nullptr);
  static v1::Usage CostOf(const trace::ProposedCandidate& candidate, const std::vector<CallCost>& costs);
  void PushMemory(LiveSession& session, trace::MemoryRound round, Effects* effects);

  /// The endpoint's configuration and the spec made for it. FAILED_PRECONDITION: no language models, or none of that name.
  absl::StatusOr<ProposalSpec> SpecFor(LiveSession& session, const google::protobuf::RepeatedPtrField<std::string>& mask,
                                       const google::protobuf::Map<std::string, std::string>& titles);
  void FillBudget(LiveSession& session, Proposal* proposal);
  /// One candidate as the answer shows it; `changed` gets the values to set.
  void FillOutcome(const Proposal& proposal, const trace::ProposedCandidate& candidate, const std::vector<CallCost>& costs,
                   v1::CandidateOutcome* out, Values* changed);

  Context& context_;
  ReplyJournal replies_;
  std::unique_ptr<TraceSearches> searches_;
  trace::Graph graph_;
  trace::FeedbackStore feedback_;
  std::vector<trace::NodeId> parameters_;    ///< all parameter nodes
  Values initial_;                           ///< as recorded
  std::vector<trace::MemoryRound> memory_;
  int64_t next_feedback_ = 0, next_memory_ = 0;
  int64_t head_step_ = 0;                    ///< updates from version 0 to the head
};

/// The trace half of a session, or FAILED_PRECONDITION.
absl::StatusOr<TraceFamily*> AsTrace(LiveSession& session);

}  // namespace optod::engine
