#include "server/services/proposals.h"

#include <mutex>

#include "base/status.h"
#include "server/engine/trace_family.h"

namespace optod::services {
namespace {

using engine::Effects;
using engine::LiveSession;
using engine::TraceFamily;

/// One proposal between its start and its end.
class ProposalRun : public std::enable_shared_from_this<ProposalRun> {
 public:
  ProposalRun(engine::Engine& engine, engine::Caller caller, std::string session)
      : engine_(engine), services_(*engine.context().trace), caller_(std::move(caller)), session_(std::move(session)) {
    caller_.internal = true;
  }

  bool prepared = false;
  TraceFamily::Proposal proposal;
  v1::Operation operation;

  /// The start is durable: ask the model.
  void Launch() {
    hold_ = engine_.HoldDrain();
    cancelled_ = services_.operations->Begin(operation);
    budget_ = std::make_unique<trace::Budget>(proposal.limits, proposal.used);
    replies_.assign(proposal.requests.size(), absl::UnknownError("not asked"));
    waiting_ = proposal.requests.size();
    for (size_t i = 0; i < proposal.requests.size(); ++i) services_.llm_pool->Post([self = shared_from_this(), i] { self->AskModel(i); });
  }

 private:
  void AskModel(size_t i) {
    const trace::CandidateRequest& wanted = proposal.requests[i];
    trace::ChatRequest chat;
    if (!wanted.prompt.system.empty()) chat.messages.push_back({"system", wanted.prompt.system});
    chat.messages.push_back({"user", wanted.prompt.user});
    chat.temperature = wanted.temperature;
    chat.max_tokens = proposal.max_tokens;
    chat.seed = proposal.first_seed + static_cast<int64_t>(i);
    if (!wanted.response_schema.empty()) chat.json_schema = trace::JsonSchema{"suggestion", wanted.response_schema};
    auto reply = services_.gateway->Complete(proposal.endpoint, chat, budget_.get(), cancelled_.get(), services_.cassette);
    bool last = false;
    size_t answered = 0;
    {
      std::lock_guard lock(mutex_);
      replies_[i] = std::move(reply);
      last = --waiting_ == 0;
      answered = replies_.size() - waiting_;
    }
    if (last) return End();
    services_.operations->Progress(operation.name(), static_cast<double>(answered) / static_cast<double>(replies_.size()),
                                   Cat("candidate ", answered, " of ", replies_.size()));
  }

  /// The operation failed as a whole when no model call was answered.
  absl::Status Failure() const {
    for (const auto& reply : replies_)
      if (reply.ok()) return absl::OkStatus();
    return replies_.front().status();
  }

  void End() {
    auto self = shared_from_this();
    engine_.Mutate<v1::ProposeResponse>(
        caller_, session_, "ProposeEnd", "", "",
        [self](LiveSession& session, v1::ProposeResponse* response) -> absl::StatusOr<Effects> {
          Effects effects;
          if (absl::Status failure = self->Failure(); !failure.ok()) {
            effects.mutations.push_back(self->services_.operations->Finish(&self->operation, failure));
            return effects;
          }
          ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
          RETURN_IF_ERROR(family->FinishProposal(session, self->proposal, self->replies_, response, &effects));
          google::protobuf::Any packed;
          packed.PackFrom(*response);
          effects.mutations.push_back(self->services_.operations->Finish(&self->operation, packed));
          return effects;
        },
        [self](absl::StatusOr<v1::ProposeResponse> result) {
          if (!result.ok()) {   // the session went away or its store failed: the operation must end all the same
            self->operation.clear_response();
            store::Batch batch;
            batch.mutations.push_back(self->services_.operations->Finish(&self->operation, result.status()));
            self->engine_.context().store->Commit(std::move(batch), [](absl::Status) {});
          }
          self->services_.operations->Ended(self->operation);
          self->hold_.reset();
        });
  }

  engine::Engine& engine_;
  engine::TraceServices& services_;
  engine::Caller caller_;
  const std::string session_;
  std::shared_ptr<void> hold_;
  std::shared_ptr<std::atomic<bool>> cancelled_;
  std::unique_ptr<trace::Budget> budget_;
  std::mutex mutex_;
  std::vector<absl::StatusOr<trace::ChatReply>> replies_;
  size_t waiting_ = 0;
};

}  // namespace

void StartProposal(engine::Engine& engine, const engine::Caller& caller, const v1::ProposeRequest& request, engine::Done<v1::Operation> done) {
  if (engine.context().trace == nullptr) return done(FailedPrecondition("llm: this server has no language models"));
  auto name = engine::ParseSessionName(request.session(), caller, "session");
  if (!name.ok()) return done(name.status());
  auto run = std::make_shared<ProposalRun>(engine, caller, name->Full());
  engine.Mutate<v1::Operation>(
      caller, request.session(), "Propose", request.request_id(), request.request_id().empty() ? "" : engine::CanonicalBytes(request),
      [run, request, user = name->user, operations = engine.context().trace->operations](LiveSession& session, v1::Operation* out) -> absl::StatusOr<Effects> {
        ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
        ASSIGN_OR_RETURN(run->proposal, family->PrepareProposal(session, request));
        store::Mutation row;
        run->operation = operations->Prepare(user, "propose", session.name().Full(), request.SerializeAsString(), &row);
        run->prepared = true;
        *out = run->operation;
        Effects effects;
        effects.row_changed = false;
        effects.mutations.push_back(std::move(row));
        return effects;
      },
      [run, done = std::move(done)](absl::StatusOr<v1::Operation> operation) mutable {
        if (operation.ok() && run->prepared) run->Launch();
        done(std::move(operation));
      });
}

}  // namespace optod::services
