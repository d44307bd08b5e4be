#pragma once
/// The C++ client of optod: typed calls with deadlines, request ids and safe retries. Thread-safe: one Client serves
/// any number of threads.
///
///   ASSIGN_OR_RETURN(auto client, optod::client::Client::Connect({}));          // OPTOD_ADDRESS and OPTOD_TOKEN are
///   read by OptionsFromEnv ASSIGN_OR_RETURN(auto session, client->CreateSession(request)); ASSIGN_OR_RETURN(auto
///   answer, client->Ask(ask));
///
/// Calls. Requests and answers are the generated messages of optod/v1; their comments are the manual. A mutating
/// request whose `request_id` is empty gets a UUID4; a retry sends the same id, so that nothing is applied twice.
/// Retries. UNAVAILABLE only, RetryPolicy::attempts in all, waits doubling from `first_wait` to `longest_wait`; a
/// `retry-after-ms` of the server (trailing metadata) replaces the wait. Calls that cannot be repeated safely
/// (CreateToken, Drain, open streams) are sent once. Errors. The server's code and text unchanged; ErrorReason() gives
/// its machine-readable reason. UNAVAILABLE: nobody answers there. DEADLINE_EXCEEDED: no answer within
/// CallOptions::deadline, all attempts together.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "clients/cpp/retry.h"
#include "optod/v1/admin.pb.h"
#include "optod/v1/artifact.pb.h"
#include "optod/v1/event.pb.h"
#include "optod/v1/job.pb.h"
#include "optod/v1/operation.pb.h"
#include "optod/v1/search.pb.h"
#include "optod/v1/session.pb.h"
#include "optod/v1/trace.pb.h"
#include "optod/v1/workflow.pb.h"

namespace optod::client {

struct ClientOptions {
  std::string address = "127.0.0.1:7070";  ///< HOST:PORT or unix:PATH
  std::string token;                       ///< "" = none; sent as `authorization: Bearer TOKEN`
  std::string tls_ca_file;                 ///< PEM of the authority that signed the server's certificate; "" = no TLS
  std::chrono::milliseconds deadline{30'000};  ///< of a unary call, unless the call says otherwise
  RetryPolicy retry;
  Clock* clock = nullptr;  ///< nullptr = SystemClock(); waits between attempts
};

/// `defaults` with OPTOD_ADDRESS, OPTOD_TOKEN and OPTOD_TLS_CA put in where they are set and not empty.
ClientOptions OptionsFromEnv(ClientOptions defaults = {});

struct CallOptions {
  std::chrono::milliseconds deadline{0};  ///< 0 = the client's
};

/// The server's machine-readable reason of an error ("REQUEST_ID_REUSED", ...), "" when it gave none.
std::string ErrorReason(const absl::Status& status);

class AskTellStream;
class StepStream;
struct ClientImpl;

class Client {
 public:
  /// Opens a channel; the connection itself is made by the first call. INVALID_ARGUMENT: an address that is neither
  /// HOST:PORT nor unix:PATH.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const ClientOptions& options() const;

#define OPTOD_CALL(method, request, response) absl::StatusOr<v1::response> method(v1::request, CallOptions = {})
  // ---- sessions
  OPTOD_CALL(CreateSession, CreateSessionRequest, Session);
  OPTOD_CALL(GetSession, GetSessionRequest, Session);
  OPTOD_CALL(ListSessions, ListSessionsRequest, ListSessionsResponse);
  OPTOD_CALL(UpdateSession, UpdateSessionRequest, Session);
  OPTOD_CALL(DeleteSession, DeleteSessionRequest, Session);
  OPTOD_CALL(UndeleteSession, UndeleteSessionRequest, Session);
  OPTOD_CALL(Ask, AskRequest, AskResponse);
  OPTOD_CALL(Tell, TellRequest, TellResponse);
  OPTOD_CALL(ListVersions, ListVersionsRequest, ListVersionsResponse);
  OPTOD_CALL(GetVersion, GetVersionRequest, Version);
  OPTOD_CALL(Rollback, RollbackRequest, Session);
  OPTOD_CALL(ForkSession, ForkSessionRequest, Session);
  OPTOD_CALL(ListOptimizers, ListOptimizersRequest, ListOptimizersResponse);
  // ---- trace
  OPTOD_CALL(RecordNodes, RecordNodesRequest, RecordNodesResponse);
  OPTOD_CALL(ListNodes, ListNodesRequest, ListNodesResponse);
  OPTOD_CALL(Backward, BackwardRequest, BackwardResponse);
  OPTOD_CALL(ZeroFeedback, ZeroFeedbackRequest, ZeroFeedbackResponse);
  OPTOD_CALL(GetProblem, GetProblemRequest, Problem);
  OPTOD_CALL(Propose, ProposeRequest, Operation);
  OPTOD_CALL(SetValues, SetValuesRequest, Version);
  OPTOD_CALL(GetGraph, GetGraphRequest, GetGraphResponse);
  // ---- workflows; Complete is sent once, since the model is paid each time
  OPTOD_CALL(Complete, CompleteRequest, CompleteResponse);
  OPTOD_CALL(ExecuteRun, ExecuteRunRequest, Operation);
  // ---- search
  OPTOD_CALL(CreateSearch, CreateSearchRequest, Search);
  OPTOD_CALL(GetSearch, GetSearchRequest, Search);
  OPTOD_CALL(ListSearches, ListSearchesRequest, ListSearchesResponse);
  OPTOD_CALL(AskSearch, AskSearchRequest, AskSearchResponse);
  OPTOD_CALL(TellSearch, TellSearchRequest, TellSearchResponse);
  OPTOD_CALL(StopSearch, StopSearchRequest, Search);
  // ---- operations
  OPTOD_CALL(GetOperation, GetOperationRequest, Operation);
  OPTOD_CALL(ListOperations, ListOperationsRequest, ListOperationsResponse);
  OPTOD_CALL(CancelOperation, CancelOperationRequest, Operation);
  // ---- jobs
  OPTOD_CALL(CreateJob, CreateJobRequest, Job);
  OPTOD_CALL(GetJob, GetJobRequest, Job);
  OPTOD_CALL(ListJobs, ListJobsRequest, ListJobsResponse);
  OPTOD_CALL(CancelJob, CancelJobRequest, Job);
  OPTOD_CALL(ResumeJob, ResumeJobRequest, Job);
  // ---- artifacts, events
  OPTOD_CALL(GetArtifact, GetArtifactRequest, Artifact);
  OPTOD_CALL(ListArtifacts, ListArtifactsRequest, ListArtifactsResponse);
  OPTOD_CALL(DeleteArtifact, DeleteArtifactRequest, DeleteArtifactResponse);
  OPTOD_CALL(ListEvents, ListEventsRequest, ListEventsResponse);
  // ---- administration
  OPTOD_CALL(GetServerInfo, GetServerInfoRequest, ServerInfo);
  OPTOD_CALL(CreateUser, CreateUserRequest, User);
  OPTOD_CALL(ListUsers, ListUsersRequest, ListUsersResponse);
  OPTOD_CALL(DeleteUser, DeleteUserRequest, User);
  OPTOD_CALL(CreateToken, CreateTokenRequest, CreateTokenResponse);
  OPTOD_CALL(ListTokens, ListTokensRequest, ListTokensResponse);
  OPTOD_CALL(RevokeToken, RevokeTokenRequest, Token);
  OPTOD_CALL(GetUsage, GetUsageRequest, GetUsageResponse);
  OPTOD_CALL(Backup, BackupRequest, Operation);
  OPTOD_CALL(Drain, DrainRequest, DrainResponse);
#undef OPTOD_CALL

  // ---- operations, waited for
  using Progress = std::function<void(const v1::Operation&)>;
  /// Waits until the operation is done, asking about once a second. Its failure is the returned error. When `cancelled`
  /// becomes true the operation is cancelled and the result is CANCELLED.
  absl::StatusOr<v1::Operation> Wait(const std::string& operation, const Progress& progress = nullptr,
                                     const std::atomic<bool>* cancelled = nullptr);
  /// Propose, Wait and unpacking in one call.
  absl::StatusOr<v1::ProposeResponse> ProposeAndWait(v1::ProposeRequest request, const Progress& progress = nullptr,
                                                     const std::atomic<bool>* cancelled = nullptr);

  // ---- tensors: the flat buffer of the session's layout, in 1 MiB pieces that are sent from where they lie (no copy)
  /// `data`: the whole buffer, little-endian, layout order; only read, and no longer used once the call returns. The
  /// values are checked by CRC-32C on the way. INVALID_ARGUMENT: size differs from the layout's.
  absl::StatusOr<v1::PushParametersResponse> PushParameters(const std::string& session,
                                                            std::span<const std::byte> data);
  struct Tensors {
    int64_t version = 0;
    v1::TensorIndex index;  ///< of `data`
    std::vector<std::byte> data;
  };
  /// `version` < 0 = head; `globs` over tensor names, empty = all. DATA_LOSS: a checksum does not fit or the stream is
  /// cut short.
  absl::StatusOr<Tensors> PullParameters(const std::string& session, int64_t version = -1,
                                         const std::vector<std::string>& globs = {});
  /// Optimizer state of the head.
  absl::StatusOr<Tensors> PullState(const std::string& session);

  /// The session at `version` (< 0 = head) as one safetensors file (StateFile in session.proto), piece by piece.
  absl::Status ExportState(const std::string& session, int64_t version,
                           const std::function<absl::Status(std::string_view)>& sink);
  /// A new session from the bytes of such a file, or header.session that takes it as its new head. `header`: what is wanted of it; total_bytes, sha256 and a missing
  /// request id are filled in.
  absl::StatusOr<v1::Session> ImportState(v1::ImportStateHeader header, std::span<const std::byte> file);

  // ---- long-lived streams
  absl::StatusOr<std::unique_ptr<AskTellStream>> OpenAskTell();
  absl::StatusOr<std::unique_ptr<StepStream>> OpenSteps(const std::string& session, bool return_values);

  // ---- streams of bytes and events
  /// Pulls `read` until it returns an empty piece. `header.size_bytes` must be the total.
  absl::StatusOr<v1::Artifact> WriteArtifact(const v1::WriteArtifactHeader& header,
                                             const std::function<absl::StatusOr<std::string>()>& read);
  absl::Status ReadArtifact(const v1::ReadArtifactRequest& request,
                            const std::function<absl::Status(const std::string&)>& sink);
  absl::Status ExportSession(const std::string& session, const std::function<absl::Status(const std::string&)>& sink);
  /// Delivers events until `sink` returns an error (returned; CANCELLED is the usual one) or the server refuses. Broken
  /// connections are taken up again after the last event delivered: none is lost, none is doubled.
  absl::Status WatchEvents(v1::WatchEventsRequest request, const std::function<absl::Status(const v1::Event&)>& sink);
  absl::Status WatchJob(v1::WatchJobRequest request, const std::function<absl::Status(const v1::JobEvent&)>& sink);
  absl::Status TailLogs(v1::TailLogsRequest request, const std::function<absl::Status(const v1::LogChunk&)>& sink);

 private:
  explicit Client(std::unique_ptr<ClientImpl> impl);
  std::unique_ptr<ClientImpl> impl_;
};

/// Ask and tell over one stream: one round trip a step. For one thread. Destruction ends the stream.
class AskTellStream {
 public:
  virtual ~AskTellStream() = default;
  /// Sends one message; answers come in the order of sending. A missing request id of a tell is filled in.
  virtual absl::Status Send(v1::AskTellRequest request) = 0;
  /// The next answer. An error of that message alone is in its error_code; the stream goes on.
  virtual absl::StatusOr<v1::AskTellResponse> Receive() = 0;
  /// Send, Receive, and the message's own error as the status.
  virtual absl::StatusOr<v1::AskTellResponse> Exchange(v1::AskTellRequest request) = 0;
  /// Half-closes and returns the stream's status.
  virtual absl::Status Close() = 0;
};

/// First-order steps over one stream: raw gradients out, optionally new parameters back. For one thread. A stream that
/// breaks loses only the step that was not answered: open another one and go on from `opened().seq`.
class StepStream {
 public:
  virtual ~StepStream() = default;
  virtual const v1::StepStreamOpened& opened() const = 0;
  /// One step. `gradients`: flat buffer in layout order, `dtype` (unspecified = the parameters'). `values`: receives
  /// the new parameters when the stream was opened with return_values (may be empty otherwise); size =
  /// opened().total_bytes. `begin`: seq, base_version, request_id and loss; the rest is filled in.
  virtual absl::StatusOr<v1::TellResponse> Step(v1::StepStreamBegin begin, std::span<const std::byte> gradients,
                                                std::span<std::byte> values) = 0;
  virtual absl::Status Close() = 0;
};

}  // namespace optod::client
