#pragma once
/// Drives one proposal: asks the model for every call that the proposer wants, in parallel, until it is done. Replies
/// are durable in the session before the proposer sees them, and a reply that the session has already received is not
/// asked for again.
///
///   round: strand (received replies) ─► model threads ─► strand + commit (each reply) ─► proposer ─► next round

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/trace_family.h"
#include "server/engine/trace_services.h"

namespace optod::services {

class LlmRun : public std::enable_shared_from_this<LlmRun> {
 public:
  struct Result {
    trace::ProposerResult made;
    std::vector<engine::TraceFamily::CallCost> costs;  ///< by number of the call
    absl::Status failure;                              ///< the first error, when no call was answered at all
    std::vector<trace::ProposerCall> pending;  ///< calls that the client must still answer; `made` is then empty
  };
  using Progress = std::function<void(size_t answered, size_t known, const std::string& label)>;

  /// `caller` acts for the session's user with `internal` set. `cancelled` may be null.
  LlmRun(engine::Engine& engine, engine::Caller caller, std::string session, engine::TraceFamily::Proposal& proposal,
         std::shared_ptr<std::atomic<bool>> cancelled);

  /// `done` runs once, on a pool thread. The proposal must live until then.
  void Start(Progress progress, std::function<void(Result)> done);

 private:
  void NextRound();
  void AnswerByClient();
  void Lookup();
  void AskModel(size_t i);
  void Keep(size_t i, v1::ReceivedReply reply);
  void Answered(size_t i, trace::CallAnswer answer, engine::TraceFamily::CallCost cost);
  std::string KeyOf(size_t i) const;

  engine::Engine& engine_;
  engine::TraceServices& services_;
  const engine::Caller caller_;
  const std::string session_;
  engine::TraceFamily::Proposal& proposal_;
  const std::shared_ptr<std::atomic<bool>> cancelled_;
  trace::Budget budget_;
  Progress progress_;
  std::function<void(Result)> done_;

  std::vector<trace::ProposerCall> calls_;  // of this round
  size_t first_call_ = 0;                   // number of calls_[0]
  std::mutex mutex_;
  std::vector<trace::CallAnswer> answers_;
  size_t waiting_ = 0;
  Result result_;
  absl::Status first_error_;
  bool any_answered_ = false;
};

}  // namespace optod::services
