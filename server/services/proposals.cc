#include "server/services/proposals.h"

#include "base/status.h"
#include "server/engine/trace_family.h"
#include "server/services/llm_run.h"

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
    auto run = std::make_shared<LlmRun>(engine_, caller_, session_, proposal, services_.operations->Begin(operation));
    run->Start(
        [self = shared_from_this()](size_t answered, size_t known, const std::string& label) {
          self->services_.operations->Progress(self->operation.name(),
                                               static_cast<double>(answered) / static_cast<double>(known),
                                               Cat(label, " answered; ", answered, " of ", known, " calls"));
        },
        [self = shared_from_this()](LlmRun::Result result) { self->End(std::move(result)); });
  }

 private:
  void FillCalls(const std::vector<trace::ProposerCall>& pending, v1::ProposeResponse* response) const {
    for (const trace::ProposerCall& call : pending) {
      v1::ClientCall* out = response->add_calls();
      out->set_system(call.prompt.system);
      out->set_user(call.prompt.user);
      if (call.temperature) out->set_temperature(*call.temperature);
      out->set_json_schema(call.response_schema);
      out->set_max_tokens(proposal.max_tokens);
      out->set_label(call.label);
    }
  }

  void End(LlmRun::Result result) {
    auto shared = std::make_shared<LlmRun::Result>(std::move(result));
    engine_.Mutate<v1::ProposeResponse>(
        caller_, session_, "ProposeEnd", "", "",
        [self = shared_from_this(), shared](LiveSession& session,
                                            v1::ProposeResponse* response) -> absl::StatusOr<Effects> {
          Effects effects;
          ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
          if (!shared->failure.ok()) {  // no call was answered: the operation failed as a whole
            family->replies().End(session, &effects);
            effects.mutations.push_back(self->services_.operations->Finish(&self->operation, shared->failure));
            return effects;
          }
          if (shared->pending.empty()) {
            RETURN_IF_ERROR(
                family->FinishProposal(session, self->proposal, shared->made, shared->costs, response, &effects));
          } else {
            self->FillCalls(shared->pending, response);
            response->set_head_version(session.row.head_version);
          }
          family->replies().End(session, &effects);
          google::protobuf::Any packed;
          packed.PackFrom(*response);
          effects.mutations.push_back(self->services_.operations->Finish(&self->operation, packed));
          return effects;
        },
        [self = shared_from_this()](absl::StatusOr<v1::ProposeResponse> response) {
          if (!response.ok()) {  // the session went away or its store failed: the operation must end all the same
            self->operation.clear_response();
            store::Batch batch;
            batch.mutations.push_back(self->services_.operations->Finish(&self->operation, response.status()));
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
};

}  // namespace

void StartProposal(engine::Engine& engine, const engine::Caller& caller, const v1::ProposeRequest& request,
                   engine::Done<v1::Operation> done) {
  if (engine.context().trace == nullptr) return done(FailedPrecondition("llm: this server has no language models"));
  auto name = engine::ParseSessionName(request.session(), caller, "session");
  if (!name.ok()) return done(name.status());
  auto run = std::make_shared<ProposalRun>(engine, caller, name->Full());
  engine.Mutate<v1::Operation>(
      caller, request.session(), "Propose", request.request_id(),
      request.request_id().empty() ? "" : engine::CanonicalBytes(request),
      [run, request, user = name->user, operations = engine.context().trace->operations](
          LiveSession& session, v1::Operation* out) -> absl::StatusOr<Effects> {
        ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
        ASSIGN_OR_RETURN(run->proposal, family->PrepareProposal(session, request));
        family->replies().Begin();
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
