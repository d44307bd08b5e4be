#include "server/services/search_service.h"

#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "optod/v1/search.grpc.pb.h"
#include "server/engine/trace_search.h"
#include "server/services/llm_run.h"
#include "server/services/search_evaluation.h"
#include "server/services/unary.h"
#include "server/services/workflow_on_server.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Done;
using engine::Effects;
using engine::LiveSession;
using engine::SessionName;
using engine::TraceSearches;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr std::chrono::milliseconds kPoll{25};
constexpr int64_t kLongestWaitNs = 600'000'000'000;

absl::StatusOr<TraceSearches*> SearchesOf(LiveSession& session) {
  ASSIGN_OR_RETURN(engine::TraceFamily * family, engine::AsTrace(session));
  return &family->searches();
}

/// Starts the proposals that a search waits for, and goes on as long as finished ones lead to more. `resume` ends a
/// pause.
void LaunchProposals(const WorkflowParts& parts, Caller caller, const SessionName& name, int64_t search, bool resume);

/// Starts whatever the search waits for and this server does itself.
void Launch(const WorkflowParts& parts, const Caller& caller, const SessionName& name, int64_t search, bool resume) {
  LaunchEvaluations(parts, caller, name, search, resume,
                    [parts, caller, name, search] { Launch(parts, caller, name, search, false); });
  LaunchProposals(parts, caller, name, search, resume);
}

/// One of them, from its start to its end. It is an operation, so that it shows its progress and a drain can cancel it.
class SearchProposalRun : public std::enable_shared_from_this<SearchProposalRun> {
 public:
  SearchProposalRun(const WorkflowParts& parts, Caller caller, SessionName name,
                    std::unique_ptr<TraceSearches::Work> work, v1::Operation operation)
      : parts_(parts),
        engine_(*parts.engine),
        caller_(std::move(caller)),
        name_(std::move(name)),
        work_(std::move(work)),
        operation_(std::move(operation)),
        hold_(engine_.HoldDrain()) {}

  void Start() {
    engine::Operations& operations = *engine_.context().trace->operations;
    cancelled_ = operations.Begin(operation_);
    auto run = std::make_shared<LlmRun>(engine_, caller_, name_.Full(), work_->proposal, cancelled_);
    run->Start(
        [self = shared_from_this(), &operations](size_t answered, size_t known, const std::string& label) {
          if (*self->work_->cancelled) *self->cancelled_ = true;  // the search was stopped
          operations.Progress(self->operation_.name(), static_cast<double>(answered) / static_cast<double>(known),
                              Cat(label, " answered"));
        },
        [self = shared_from_this()](LlmRun::Result result) { self->End(std::move(result)); });
  }

 private:
  void End(LlmRun::Result result) {
    auto shared = std::make_shared<LlmRun::Result>(std::move(result));
    engine_.Mutate<v1::Search>(
        caller_, name_.Full(), "SearchProposed", "", "",
        [self = shared_from_this(), shared](LiveSession& session, v1::Search* out) -> absl::StatusOr<Effects> {
          Effects effects;
          ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
          RETURN_IF_ERROR(
              searches->Finish(session, *self->work_, shared->made, shared->costs, shared->failure, &effects));
          ASSIGN_OR_RETURN(*out, searches->Get(session, self->work_->search, false));
          google::protobuf::Any packed;
          packed.PackFrom(*out);
          effects.mutations.push_back(self->Operations().Finish(
              &self->operation_,
              shared->failure.ok() ? absl::StatusOr<google::protobuf::Any>(packed) : shared->failure));
          return effects;
        },
        [self = shared_from_this()](absl::StatusOr<v1::Search> search) {
          if (!search.ok()) {  // the session went away or its store failed: the operation must end all the same
            self->operation_.clear_response();
            store::Batch batch;
            batch.mutations.push_back(self->Operations().Finish(&self->operation_, search.status()));
            self->engine_.context().store->Commit(std::move(batch), [](absl::Status) {});
          }
          self->Operations().Ended(self->operation_);
          if (search.ok()) Launch(self->parts_, self->caller_, self->name_, self->work_->search, false);
          self->hold_.reset();
        });
  }
  engine::Operations& Operations() { return *engine_.context().trace->operations; }

  const WorkflowParts parts_;
  engine::Engine& engine_;
  const Caller caller_;
  const SessionName name_;
  const std::unique_ptr<TraceSearches::Work> work_;
  v1::Operation operation_;
  std::shared_ptr<void> hold_;
  std::shared_ptr<std::atomic<bool>> cancelled_;
};

void LaunchProposals(const WorkflowParts& parts, Caller caller, const SessionName& name, int64_t search, bool resume) {
  engine::Engine& engine = *parts.engine;
  caller.internal = true;
  struct Taken {
    std::vector<std::unique_ptr<TraceSearches::Work>> work;
    std::vector<v1::Operation> operations;
  };
  auto taken = std::make_shared<Taken>();
  engine.Mutate<v1::Search>(
      caller, name.Full(), "SearchPropose", "", "",
      [taken, search, resume, name, operations = engine.context().trace->operations](
          LiveSession& session, v1::Search*) -> absl::StatusOr<Effects> {
        Effects effects;
        effects.row_changed = false;
        ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
        taken->work = searches->TakeWork(session, search, resume);
        for (const auto& work : taken->work) {
          store::Mutation row;
          taken->operations.push_back(operations->Prepare(
              name.user, "search_propose", Cat(name.Full(), "/searches/", search), work->proposal.scope, &row));
          effects.mutations.push_back(std::move(row));
        }
        return effects;
      },
      [taken, parts, caller, name](absl::StatusOr<v1::Search> done) {
        if (!done.ok()) return;  // the session is gone or broken: loading it anew frees the work
        for (size_t i = 0; i < taken->work.size(); ++i)
          std::make_shared<SearchProposalRun>(parts, caller, name, std::move(taken->work[i]),
                                              std::move(taken->operations[i]))
              ->Start();
      });
}

class SearchService final : public v1::SearchService::CallbackService {
 public:
  SearchService(engine::Engine& engine, const auth::Authenticator& authenticator, WorkflowParts workflow)
      : engine_(engine), authenticator_(authenticator), workflow_(std::move(workflow)) {}

  ServerUnaryReactor* CreateSearch(CallbackServerContext* context, const v1::CreateSearchRequest* request,
                                   v1::Search* response) override {
    return RunUnary(authenticator_, context, response, [this, request](const Caller& caller, Done<v1::Search> done) {
      auto name = engine::ParseSessionName(request->session(), caller, "session");
      if (!name.ok()) return done(name.status());
      Change<v1::Search>(
          caller, *name, 0, "CreateSearch", *request,
          [this, request = *request](TraceSearches& searches, LiveSession& session, v1::Search* out, Effects* effects) {
            return searches.Create(
                session, request, [this](const trace::Workflow& workflow) { return Runnable(workflow); }, out, effects);
          },
          std::move(done));
    });
  }
  ServerUnaryReactor* GetSearch(CallbackServerContext* context, const v1::GetSearchRequest* request,
                                v1::Search* response) override {
    return RunUnary(authenticator_, context, response, [this, request](const Caller& caller, Done<v1::Search> done) {
      auto name = engine::ParseSearchName(request->name(), caller, "name");
      if (!name.ok()) return done(name.status());
      engine_.Read<v1::Search>(
          caller, name->first.Full(),
          [id = name->second](LiveSession& session) -> absl::StatusOr<v1::Search> {
            ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
            return searches->Get(session, id, /*with_candidates=*/true);
          },
          [this, caller, name = *name, done = std::move(done)](absl::StatusOr<v1::Search> search) mutable {
            // After a restart nobody works on a search that the server evaluates: whoever looks at it wakes it.
            const bool working =
                search.ok() && search->spec().has_workflow() &&
                (search->state() == v1::Search::EVALUATING || search->state() == v1::Search::PROPOSING);
            if (working && !caller.viewer) Launch(workflow_, caller, name.first, name.second, false);
            done(std::move(search));
          });
    });
  }
  ServerUnaryReactor* ListSearches(CallbackServerContext* context, const v1::ListSearchesRequest* request,
                                   v1::ListSearchesResponse* response) override {
    return RunUnary(authenticator_, context, response,
                    [this, request](const Caller& caller, Done<v1::ListSearchesResponse> done) {
                      engine_.Read<v1::ListSearchesResponse>(
                          caller, request->session(),
                          [](LiveSession& session) -> absl::StatusOr<v1::ListSearchesResponse> {
                            ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
                            return searches->List(session);
                          },
                          std::move(done));
                    });
  }
  ServerUnaryReactor* AskSearch(CallbackServerContext* context, const v1::AskSearchRequest* request,
                                v1::AskSearchResponse* response) override {
    return RunUnary(
        authenticator_, context, response,
        [this, request, peer = context->peer()](const Caller& caller, Done<v1::AskSearchResponse> done) {
          auto name = engine::ParseSearchName(request->name(), caller, "name");
          if (!name.ok()) return done(name.status());
          int64_t wait_ns =
              request->has_wait() ? google::protobuf::util::TimeUtil::DurationToNanoseconds(request->wait()) : 0;
          if (wait_ns < 0 || wait_ns > kLongestWaitNs)
            return done(InvalidArgument("wait: must be between 0 and 10 min"));
          auto ask = std::make_shared<Asking>(
              Asking{caller, name->first, name->second, *request, request->worker().empty() ? peer : request->worker(),
                     engine_.context().clock->NowMonotonicNs() + wait_ns, std::move(done)});
          Launch(workflow_, caller, ask->name, ask->search, true);  // after a restart nobody works on them
          TryAsk(std::move(ask));
        });
  }
  ServerUnaryReactor* TellSearch(CallbackServerContext* context, const v1::TellSearchRequest* request,
                                 v1::TellSearchResponse* response) override {
    return RunUnary(authenticator_, context, response,
                    [this, request](const Caller& caller, Done<v1::TellSearchResponse> done) {
                      auto name = engine::ParseSearchName(request->name(), caller, "name");
                      if (!name.ok()) return done(name.status());
                      Change<v1::TellSearchResponse>(
                          caller, name->first, name->second, "TellSearch", *request,
                          [request = *request, id = name->second](TraceSearches& searches, LiveSession& session,
                                                                  v1::TellSearchResponse* out, Effects* effects) {
                            return searches.Tell(session, id, request, out, effects);
                          },
                          std::move(done));
                    });
  }
  ServerUnaryReactor* StopSearch(CallbackServerContext* context, const v1::StopSearchRequest* request,
                                 v1::Search* response) override {
    return RunUnary(authenticator_, context, response, [this, request](const Caller& caller, Done<v1::Search> done) {
      auto name = engine::ParseSearchName(request->name(), caller, "name");
      if (!name.ok()) return done(name.status());
      Change<v1::Search>(
          caller, name->first, name->second, "StopSearch", *request,
          [id = name->second](TraceSearches& searches, LiveSession& session, v1::Search* out, Effects* effects) {
            return searches.Stop(session, id, out, effects);
          },
          std::move(done));
    });
  }

 private:
  /// What this server could not run is refused before anything is paid for.
  absl::Status Runnable(const trace::Workflow& workflow) const {
    RETURN_IF_ERROR(CheckExecutor(workflow_));
    trace::WorkflowServices services = ServicesHere(workflow_);
    services.complete = [](auto&&...) { return absl::UnknownError(""); };
    return trace::CheckServices(workflow, services);
  }
  struct Asking {
    Caller caller;
    SessionName name;
    int64_t search;
    v1::AskSearchRequest request;
    std::string worker;
    int64_t deadline_ns;
    Done<v1::AskSearchResponse> done;
  };

  /// A change of a search, durable before its answer; then the proposals that it calls for start. `search` 0: taken
  /// from the answer.
  template <typename Response, typename Request, typename Work>
  void Change(const Caller& caller, const SessionName& name, int64_t search, const char* method, const Request& request,
              Work work, Done<Response> done) {
    engine_.Mutate<Response>(
        caller, name.Full(), method, request.request_id(),
        request.request_id().empty() ? "" : engine::CanonicalBytes(request),
        [work](LiveSession& session, Response* out) -> absl::StatusOr<Effects> {
          if (session.row.state != v1::Session::ACTIVE)
            return FailedPrecondition("session ", session.name().Full(), " is closed");
          ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
          Effects effects;
          RETURN_IF_ERROR(work(*searches, session, out, &effects));
          return effects;
        },
        [this, caller, name, search, done = std::move(done)](absl::StatusOr<Response> response) mutable {
          int64_t id = search;
          if constexpr (std::is_same_v<Response, v1::Search>) {
            if (response.ok() && id == 0) {
              if (auto made = engine::ParseSearchName(response->name(), caller, "name"); made.ok()) id = made->second;
            }
          }
          if (response.ok()) Launch(workflow_, caller, name, id, false);
          done(std::move(response));
        });
  }

  /// Asks; when there is nothing to hand out and time to wait, asks again a little later.
  void TryAsk(std::shared_ptr<Asking> ask) {
    if (ask->caller.viewer) return ask->done(absl::PermissionDeniedError("this token may read but not change"));
    engine_.Read<v1::AskSearchResponse>(
        ask->caller, ask->name.Full(),
        [ask](LiveSession& session) -> absl::StatusOr<v1::AskSearchResponse> {
          ASSIGN_OR_RETURN(TraceSearches * searches, SearchesOf(session));
          return searches->Ask(session, ask->search, ask->request, ask->worker);
        },
        [this, ask](absl::StatusOr<v1::AskSearchResponse> answer) {
          const bool open =
              answer.ok() && answer->evaluations().empty() &&
              (answer->search().state() == v1::Search::EVALUATING || answer->search().state() == v1::Search::PROPOSING);
          if (!open || engine_.context().clock->NowMonotonicNs() >= ask->deadline_ns)
            return ask->done(std::move(answer));
          engine_.context().timers->After(kPoll, [this, ask] { TryAsk(ask); });
        });
  }

  engine::Engine& engine_;
  const auth::Authenticator& authenticator_;
  const WorkflowParts workflow_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSearchService(engine::Engine& engine, const auth::Authenticator& authenticator,
                                                 WorkflowParts workflow) {
  return std::make_unique<SearchService>(engine, authenticator, std::move(workflow));
}

}  // namespace optod::services
