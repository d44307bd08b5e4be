#pragma once
/// Internal to clients/cpp: what the client's files share. Thread-safe like Client.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "clients/cpp/client.h"
#include "optod/v1/admin.grpc.pb.h"
#include "optod/v1/artifact.grpc.pb.h"
#include "optod/v1/event.grpc.pb.h"
#include "optod/v1/job.grpc.pb.h"
#include "optod/v1/operation.grpc.pb.h"
#include "optod/v1/search.grpc.pb.h"
#include "optod/v1/session.grpc.pb.h"
#include "optod/v1/trace.grpc.pb.h"
#include "optod/v1/workflow.grpc.pb.h"

namespace optod::client {

struct ClientImpl {
  explicit ClientImpl(ClientOptions client_options, std::shared_ptr<grpc::Channel> client_channel)
      : options(std::move(client_options)),
        channel(std::move(client_channel)),
        sessions(v1::SessionService::NewStub(channel)),
        trace(v1::TraceService::NewStub(channel)),
        workflows(v1::WorkflowService::NewStub(channel)),
        search(v1::SearchService::NewStub(channel)),
        operations(v1::OperationService::NewStub(channel)),
        jobs(v1::JobService::NewStub(channel)),
        artifacts(v1::ArtifactService::NewStub(channel)),
        events(v1::EventService::NewStub(channel)),
        admin(v1::AdminService::NewStub(channel)),
        generic(channel) {}

  ClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::SessionService::Stub> sessions;
  std::unique_ptr<v1::TraceService::Stub> trace;
  std::unique_ptr<v1::WorkflowService::Stub> workflows;
  std::unique_ptr<v1::SearchService::Stub> search;
  std::unique_ptr<v1::OperationService::Stub> operations;
  std::unique_ptr<v1::JobService::Stub> jobs;
  std::unique_ptr<v1::ArtifactService::Stub> artifacts;
  std::unique_ptr<v1::EventService::Stub> events;
  std::unique_ptr<v1::AdminService::Stub> admin;
  grpc::GenericStub generic;

  Clock& clock() const { return options.clock ? *options.clock : SystemClock(); }
  /// Puts token and deadline (0 = none) into a fresh context.
  void Prepare(grpc::ClientContext* context, std::chrono::milliseconds deadline) const;
};

/// Same code, same text; reason, field and retry-after-ms of the trailing metadata become payloads (base/reason.h).
absl::Status ToAbsl(const grpc::Status& status, const grpc::ClientContext& context);
/// What the server asked to wait, from a status made by ToAbsl.
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

/// Time for `bytes` on a slow link (10 MB/s) plus half a minute.
std::chrono::milliseconds TransferDeadline(uint64_t bytes);

}  // namespace optod::client
