#include "server/services/trace_service.h"

#include "base/status.h"
#include "optod/v1/trace.grpc.pb.h"
#include "server/engine/trace_family.h"
#include "server/services/proposals.h"
#include "server/services/unary.h"
#include "trace/graph/dot.h"

namespace optod::services {
namespace {

using engine::AsTrace;
using engine::Caller;
using engine::Done;
using engine::Effects;
using engine::LiveSession;
using engine::TraceFamily;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

class TraceService final : public v1::TraceService::CallbackService {
 public:
  TraceService(engine::Engine& engine, const auth::Authenticator& authenticator) : engine_(engine), authenticator_(authenticator) {}

  ServerUnaryReactor* RecordNodes(CallbackServerContext* context, const v1::RecordNodesRequest* request, v1::RecordNodesResponse* response) override {
    return Mutate<v1::RecordNodesResponse>(context, "RecordNodes", request, response,
                                           [](TraceFamily& family, LiveSession& session, const auto& req, auto* out, Effects* effects) {
                                             return family.RecordNodes(session, req, out, effects);
                                           });
  }
  ServerUnaryReactor* Backward(CallbackServerContext* context, const v1::BackwardRequest* request, v1::BackwardResponse* response) override {
    if (!request->has_score()) return RunBackward(context, request, response);
    // A score is told first: it is the same observation, and a retry of either half finds its own answer.
    return RunUnary(authenticator_, context, response, [this, request](const Caller& caller, Done<v1::BackwardResponse> done) {
      auto shared = std::make_shared<Done<v1::BackwardResponse>>(std::move(done));
      engine_.GetSession(caller, NameOf(request->session()), [this, caller, request, shared](absl::StatusOr<v1::Session> session) {
        if (!session.ok()) return (*shared)(session.status());
        v1::TellRequest tell;
        tell.set_session(request->session());
        if (!request->request_id().empty()) tell.set_request_id(request->request_id());
        tell.mutable_score()->set_version(session->head_version());
        tell.mutable_score()->set_score(request->score());
        engine_.Tell(caller, std::move(tell), [this, caller, request, shared](absl::StatusOr<v1::TellResponse> told) {
          if (!told.ok()) return (*shared)(told.status());
          BackwardInEngine(caller, *request, [shared](absl::StatusOr<v1::BackwardResponse> out) { (*shared)(std::move(out)); });
        });
      });
    });
  }
  ServerUnaryReactor* ZeroFeedback(CallbackServerContext* context, const v1::ZeroFeedbackRequest* request,
                                   v1::ZeroFeedbackResponse* response) override {
    return Mutate<v1::ZeroFeedbackResponse>(context, "ZeroFeedback", request, response,
                                            [](TraceFamily& family, LiveSession& session, const auto&, auto* out, Effects* effects) {
                                              family.ZeroFeedback(session, out, effects);
                                              return absl::OkStatus();
                                            });
  }
  ServerUnaryReactor* SetValues(CallbackServerContext* context, const v1::SetValuesRequest* request, v1::Version* response) override {
    return Mutate<v1::Version>(context, "SetValues", request, response,
                               [](TraceFamily& family, LiveSession& session, const auto& req, auto* out, Effects* effects) {
                                 return family.SetValues(session, req, out, effects);
                               });
  }
  ServerUnaryReactor* Propose(CallbackServerContext* context, const v1::ProposeRequest* request, v1::Operation* response) override {
    return RunUnary(authenticator_, context, response, [this, request](const Caller& caller, Done<v1::Operation> done) {
      StartProposal(engine_, caller, *request, std::move(done));
    });
  }

  ServerUnaryReactor* ListNodes(CallbackServerContext* context, const v1::ListNodesRequest* request, v1::ListNodesResponse* response) override {
    return Read<v1::ListNodesResponse>(
        context, request->session(), response,
        [request = *request](TraceFamily& family, LiveSession&) -> absl::StatusOr<v1::ListNodesResponse> {
          const std::string& token = request.page_token();
          if (token.size() > 10 || token.find_first_not_of("0123456789") != std::string::npos)
            return InvalidArgument("page_token: not from a page of this list");
          if (request.page_size() < 0 || request.page_size() > 1000)
            return InvalidArgument("page_size: ", request.page_size(), " is outside [0, 1000]");
          const uint64_t first = token.empty() ? 0 : std::stoull(token);
          const uint64_t end = std::min<uint64_t>(family.graph().size(), first + (request.page_size() == 0 ? 100 : request.page_size()));
          v1::ListNodesResponse out;
          for (uint64_t id = first; id < end; ++id) *out.add_nodes() = engine::NodeToWire(family.graph(), static_cast<trace::NodeId>(id));
          if (end < family.graph().size()) out.set_next_page_token(std::to_string(end));
          return out;
        });
  }
  ServerUnaryReactor* GetProblem(CallbackServerContext* context, const v1::GetProblemRequest* request, v1::Problem* response) override {
    return Read<v1::Problem>(context, request->session(), response,
                             [request = *request](TraceFamily& family, LiveSession& session) { return family.GetProblem(session, request); });
  }
  ServerUnaryReactor* GetGraph(CallbackServerContext* context, const v1::GetGraphRequest* request, v1::GetGraphResponse* response) override {
    return Read<v1::GetGraphResponse>(
        context, request->session(), response,
        [request = *request](TraceFamily& family, LiveSession&) -> absl::StatusOr<v1::GetGraphResponse> {
          trace::DotOptions options;
          options.simple = request.simple();
          options.reverse = request.reverse();
          if (request.print_limit() < 0) return InvalidArgument("print_limit: ", request.print_limit(), " is negative");
          if (request.print_limit() > 0) options.print_limit = static_cast<uint32_t>(request.print_limit());
          v1::GetGraphResponse out;
          if (!request.subgraph()) {
            out.set_dot(trace::ToDot(family.graph(), options));
            return out;
          }
          if (family.feedback().empty()) return FailedPrecondition("subgraph: there is no feedback; call Backward first");
          ASSIGN_OR_RETURN(auto subgraph, trace::ComputeSubgraph(family.graph(), family.feedback().Outputs(), family.Trainable()));
          out.set_dot(trace::ToDot(family.graph(), subgraph.nodes, options));
          return out;
        });
  }

 private:
  static v1::GetSessionRequest NameOf(const std::string& session) {
    v1::GetSessionRequest out;
    out.set_name(session);
    return out;
  }

  template <typename Response, typename Request, typename Work>
  void MutateInEngine(const Caller& caller, const char* method, const Request& request, Work work, Done<Response> done) {
    auto shared = std::make_shared<const Request>(request);
    engine_.Mutate<Response>(
        caller, shared->session(), method, shared->request_id(), shared->request_id().empty() ? "" : engine::CanonicalBytes(*shared),
        [shared, work](LiveSession& session, Response* out) -> absl::StatusOr<Effects> {
          if (session.row.state != v1::Session::ACTIVE) return FailedPrecondition("session ", session.name().Full(), " is closed");
          ASSIGN_OR_RETURN(TraceFamily * family, AsTrace(session));
          Effects effects;
          RETURN_IF_ERROR(work(*family, session, *shared, out, &effects));
          return effects;
        },
        std::move(done));
  }
  template <typename Response, typename Request, typename Work>
  ServerUnaryReactor* Mutate(CallbackServerContext* context, const char* method, const Request* request, Response* response, Work work) {
    return RunUnary(authenticator_, context, response, [&](const Caller& caller, Done<Response> done) {
      MutateInEngine<Response>(caller, method, *request, work, std::move(done));
    });
  }
  template <typename Response, typename Work>
  ServerUnaryReactor* Read(CallbackServerContext* context, const std::string& session, Response* response, Work work) {
    return RunUnary(authenticator_, context, response, [&](const Caller& caller, Done<Response> done) {
      engine_.Read<Response>(
          caller, session,
          [work](LiveSession& live) -> absl::StatusOr<Response> {
            ASSIGN_OR_RETURN(TraceFamily * family, AsTrace(live));
            return work(*family, live);
          },
          std::move(done));
    });
  }

  void BackwardInEngine(const Caller& caller, const v1::BackwardRequest& request, Done<v1::BackwardResponse> done) {
    MutateInEngine<v1::BackwardResponse>(
        caller, "Backward", request,
        [](TraceFamily& family, LiveSession& session, const v1::BackwardRequest& req, v1::BackwardResponse* out, Effects* effects) {
          return family.Backward(session, req, out, effects);
        },
        std::move(done));
  }
  ServerUnaryReactor* RunBackward(CallbackServerContext* context, const v1::BackwardRequest* request, v1::BackwardResponse* response) {
    return RunUnary(authenticator_, context, response, [&](const Caller& caller, Done<v1::BackwardResponse> done) {
      BackwardInEngine(caller, *request, std::move(done));
    });
  }

  engine::Engine& engine_;
  const auth::Authenticator& authenticator_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTraceService(engine::Engine& engine, const auth::Authenticator& authenticator) {
  return std::make_unique<TraceService>(engine, authenticator);
}

}  // namespace optod::services
