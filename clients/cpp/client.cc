#include "clients/cpp/client.h"

#include <cstdlib>

#include "base/fs.h"
#include "base/random_id.h"
#include "base/reason.h"
#include "base/status.h"
#include "clients/cpp/channel.h"
#include "clients/cpp/client_impl.h"

namespace optod::client {
namespace {

std::string Trailer(const grpc::ClientContext& context, const char* key) {
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
}

enum class Repeat { kSafe, kOnce };

// One unary call with its retries. The request id is set once, before the first attempt.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(const ClientImpl& impl, Stub& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                              Request request, CallOptions call, Repeat repeat = Repeat::kSafe) {
  if constexpr (requires { request.set_request_id(std::string()); }) {
    if (request.request_id().empty()) request.set_request_id(Uuid4());
  }
  const auto limit = call.deadline.count() > 0 ? call.deadline : impl.options.deadline;
  const int64_t start_ns = impl.clock().NowMonotonicNs();
  for (int attempt = 1;; ++attempt) {
    const auto spent = std::chrono::milliseconds((impl.clock().NowMonotonicNs() - start_ns) / 1'000'000);
    grpc::ClientContext context;
    impl.Prepare(&context, std::max(limit - spent, std::chrono::milliseconds(1)));
    Response response;
    absl::Status status = ToAbsl((stub.*method)(&context, request, &response), context);
    if (status.ok()) return response;
    if (repeat == Repeat::kOnce || !ShouldRetry(impl.options.retry, attempt, status)) return status;
    const double jitter = static_cast<double>(RandomU64() >> 11) * 0x1p-53;
    const auto wait = RetryWait(impl.options.retry, attempt, jitter, RetryAfter(status));
    if (spent + wait >= limit) return status;
    impl.clock().SleepFor(wait);
  }
}

absl::Status CheckAddress(const std::string& address) {
  if (address.rfind("unix:", 0) == 0 && address.size() > 5) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  const bool host = colon != std::string::npos && colon > 0;
  const std::string port = host ? address.substr(colon + 1) : "";
  const bool digits = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || std::atoi(port.c_str()) < 1 || std::atoi(port.c_str()) > 65535)
    return InvalidArgument("address: \"", address, "\" is neither HOST:PORT nor unix:PATH");
  return absl::OkStatus();
}

}  // namespace

absl::Status ToAbsl(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (const std::string reason = Trailer(context, "optod-reason"); !reason.empty())
    out = WithReason(std::move(out), reason);
  if (const std::string field = Trailer(context, "optod-field"); !field.empty()) out = WithField(std::move(out), field);
  if (const auto wait = ParseRetryAfter(Trailer(context, "retry-after-ms")))
    out = WithRetryAfterMs(std::move(out), wait->count());
  return out;
}

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  return ParseRetryAfter(PayloadOf(status, kRetryAfterUrl));
}

std::string ErrorReason(const absl::Status& status) { return PayloadOf(status, kReasonUrl); }

std::chrono::milliseconds TransferDeadline(uint64_t bytes) {
  return std::chrono::milliseconds(30'000 + static_cast<int64_t>(bytes / 10'000));
}

void ClientImpl::Prepare(grpc::ClientContext* context, std::chrono::milliseconds deadline) const {
  if (deadline.count() > 0) context->set_deadline(std::chrono::system_clock::now() + deadline);
  if (!options.token.empty()) context->AddMetadata("authorization", "Bearer " + options.token);
}

ClientOptions OptionsFromEnv(ClientOptions defaults) {
  const char* address = std::getenv("OPTOD_ADDRESS");
  const char* token = std::getenv("OPTOD_TOKEN");
  const char* ca = std::getenv("OPTOD_TLS_CA");
  if (address && *address) defaults.address = address;
  if (token && *token) defaults.token = token;
  if (ca && *ca) defaults.tls_ca_file = ca;
  return defaults;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ClientOptions& options) {
  RETURN_IF_ERROR(CheckAddress(options.address));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // retries are ours: they keep the request id
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options.tls_ca_file.empty()) {
    grpc::SslCredentialsOptions tls;
    ASSIGN_OR_RETURN(tls.pem_root_certs, PosixFs().ReadFile(options.tls_ca_file));
    credentials = grpc::SslCredentials(tls);
  }
  return grpc::CreateCustomChannel(options.address, credentials, arguments);
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ClientOptions& options) {
  ASSIGN_OR_RETURN(auto channel, OpenChannel(options));
  return std::unique_ptr<Client>(new Client(std::make_unique<ClientImpl>(options, std::move(channel))));
}

Client::Client(std::unique_ptr<ClientImpl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;
const ClientOptions& Client::options() const { return impl_->options; }

#define OPTOD_DEFINE(method, service, stub, request_type, response_type, repeat)                     \
  absl::StatusOr<v1::response_type> Client::method(v1::request_type request, CallOptions call) {     \
    return Call<v1::service::Stub, v1::request_type, v1::response_type>(                             \
        *impl_, *impl_->stub, &v1::service::Stub::method, std::move(request), call, Repeat::repeat); \
  }
OPTOD_DEFINE(CreateSession, SessionService, sessions, CreateSessionRequest, Session, kSafe)
OPTOD_DEFINE(GetSession, SessionService, sessions, GetSessionRequest, Session, kSafe)
OPTOD_DEFINE(ListSessions, SessionService, sessions, ListSessionsRequest, ListSessionsResponse, kSafe)
OPTOD_DEFINE(UpdateSession, SessionService, sessions, UpdateSessionRequest, Session, kSafe)
OPTOD_DEFINE(DeleteSession, SessionService, sessions, DeleteSessionRequest, Session, kSafe)
OPTOD_DEFINE(UndeleteSession, SessionService, sessions, UndeleteSessionRequest, Session, kSafe)
OPTOD_DEFINE(Ask, SessionService, sessions, AskRequest, AskResponse, kSafe)
OPTOD_DEFINE(Tell, SessionService, sessions, TellRequest, TellResponse, kSafe)
OPTOD_DEFINE(ListVersions, SessionService, sessions, ListVersionsRequest, ListVersionsResponse, kSafe)
OPTOD_DEFINE(GetVersion, SessionService, sessions, GetVersionRequest, Version, kSafe)
OPTOD_DEFINE(Rollback, SessionService, sessions, RollbackRequest, Session, kSafe)
OPTOD_DEFINE(ForkSession, SessionService, sessions, ForkSessionRequest, Session, kSafe)
OPTOD_DEFINE(ListOptimizers, SessionService, sessions, ListOptimizersRequest, ListOptimizersResponse, kSafe)
OPTOD_DEFINE(RecordNodes, TraceService, trace, RecordNodesRequest, RecordNodesResponse, kSafe)
OPTOD_DEFINE(ListNodes, TraceService, trace, ListNodesRequest, ListNodesResponse, kSafe)
OPTOD_DEFINE(Backward, TraceService, trace, BackwardRequest, BackwardResponse, kSafe)
OPTOD_DEFINE(ZeroFeedback, TraceService, trace, ZeroFeedbackRequest, ZeroFeedbackResponse, kSafe)
OPTOD_DEFINE(GetProblem, TraceService, trace, GetProblemRequest, Problem, kSafe)
OPTOD_DEFINE(Propose, TraceService, trace, ProposeRequest, Operation, kSafe)
OPTOD_DEFINE(SetValues, TraceService, trace, SetValuesRequest, Version, kSafe)
OPTOD_DEFINE(CreateSearch, SearchService, search, CreateSearchRequest, Search, kSafe)
OPTOD_DEFINE(GetSearch, SearchService, search, GetSearchRequest, Search, kSafe)
OPTOD_DEFINE(ListSearches, SearchService, search, ListSearchesRequest, ListSearchesResponse, kSafe)
OPTOD_DEFINE(AskSearch, SearchService, search, AskSearchRequest, AskSearchResponse, kSafe)
OPTOD_DEFINE(TellSearch, SearchService, search, TellSearchRequest, TellSearchResponse, kSafe)
OPTOD_DEFINE(StopSearch, SearchService, search, StopSearchRequest, Search, kSafe)
OPTOD_DEFINE(GetGraph, TraceService, trace, GetGraphRequest, GetGraphResponse, kSafe)
OPTOD_DEFINE(Complete, WorkflowService, workflows, CompleteRequest, CompleteResponse, kOnce)
OPTOD_DEFINE(ExecuteRun, WorkflowService, workflows, ExecuteRunRequest, Operation, kSafe)
OPTOD_DEFINE(GetOperation, OperationService, operations, GetOperationRequest, Operation, kSafe)
OPTOD_DEFINE(ListOperations, OperationService, operations, ListOperationsRequest, ListOperationsResponse, kSafe)
OPTOD_DEFINE(CancelOperation, OperationService, operations, CancelOperationRequest, Operation, kSafe)
OPTOD_DEFINE(CreateJob, JobService, jobs, CreateJobRequest, Job, kSafe)
OPTOD_DEFINE(GetJob, JobService, jobs, GetJobRequest, Job, kSafe)
OPTOD_DEFINE(ListJobs, JobService, jobs, ListJobsRequest, ListJobsResponse, kSafe)
OPTOD_DEFINE(CancelJob, JobService, jobs, CancelJobRequest, Job, kSafe)
OPTOD_DEFINE(ResumeJob, JobService, jobs, ResumeJobRequest, Job, kSafe)
OPTOD_DEFINE(GetArtifact, ArtifactService, artifacts, GetArtifactRequest, Artifact, kSafe)
OPTOD_DEFINE(ListArtifacts, ArtifactService, artifacts, ListArtifactsRequest, ListArtifactsResponse, kSafe)
OPTOD_DEFINE(DeleteArtifact, ArtifactService, artifacts, DeleteArtifactRequest, DeleteArtifactResponse, kSafe)
OPTOD_DEFINE(ListEvents, EventService, events, ListEventsRequest, ListEventsResponse, kSafe)
OPTOD_DEFINE(GetServerInfo, AdminService, admin, GetServerInfoRequest, ServerInfo, kSafe)
OPTOD_DEFINE(CreateUser, AdminService, admin, CreateUserRequest, User, kSafe)
OPTOD_DEFINE(ListUsers, AdminService, admin, ListUsersRequest, ListUsersResponse, kSafe)
OPTOD_DEFINE(DeleteUser, AdminService, admin, DeleteUserRequest, User, kSafe)
OPTOD_DEFINE(CreateToken, AdminService, admin, CreateTokenRequest, CreateTokenResponse, kOnce)
OPTOD_DEFINE(ListTokens, AdminService, admin, ListTokensRequest, ListTokensResponse, kSafe)
OPTOD_DEFINE(RevokeToken, AdminService, admin, RevokeTokenRequest, Token, kSafe)
OPTOD_DEFINE(GetUsage, AdminService, admin, GetUsageRequest, GetUsageResponse, kSafe)
OPTOD_DEFINE(Backup, AdminService, admin, BackupRequest, Operation, kSafe)
OPTOD_DEFINE(Drain, AdminService, admin, DrainRequest, DrainResponse, kOnce)
#undef OPTOD_DEFINE

absl::StatusOr<v1::Operation> Client::Wait(const std::string& operation, const Progress& progress,
                                           const std::atomic<bool>* cancelled) {
  v1::WaitOperationRequest request;
  request.set_name(operation);
  request.mutable_timeout()->set_nanos(500'000'000);
  bool cancel_sent = false;
  while (true) {
    if (cancelled && *cancelled && !cancel_sent) {
      v1::CancelOperationRequest cancel;
      cancel.set_name(operation);
      RETURN_IF_ERROR(CancelOperation(cancel).status());
      cancel_sent = true;
    }
    ASSIGN_OR_RETURN(v1::Operation state,
                     (Call<v1::OperationService::Stub, v1::WaitOperationRequest, v1::Operation>(
                         *impl_, *impl_->operations, &v1::OperationService::Stub::WaitOperation, request, {})));
    if (progress) progress(state);
    if (!state.done()) continue;
    if (state.has_error())
      return absl::Status(static_cast<absl::StatusCode>(state.error().code()), state.error().message());
    return state;
  }
}

absl::StatusOr<v1::ProposeResponse> Client::ProposeAndWait(v1::ProposeRequest request, const Progress& progress,
                                                           const std::atomic<bool>* cancelled) {
  ASSIGN_OR_RETURN(v1::Operation started, Propose(std::move(request)));
  ASSIGN_OR_RETURN(v1::Operation done, Wait(started.name(), progress, cancelled));
  v1::ProposeResponse response;
  if (!done.response().UnpackTo(&response))
    return Internal("operation ", done.name(), ": its response is not a ProposeResponse");
  return response;
}

}  // namespace optod::client
