#include "server/services/order_service.h"

#include <grpcpp/grpcpp.h>

#include <mutex>

#include "base/reason.h"
#include "base/status.h"
#include "optod/v1/order.grpc.pb.h"
#include "server/services/job_name.h"
#include "server/services/status.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using grpc::CallbackServerContext;
using Stub = v1::OrderService::Stub;

/// Finds the study of a request and leases its process.
class Studies {
 public:
  explicit Studies(const OrderParts& parts) : parts_(parts) {}

  absl::StatusOr<StudyLease> Lease(const std::string& study, const Caller& caller) const {
    absl::StatusOr<JobName> name = ParseJobName(study, caller);
    if (absl::IsInvalidArgument(name.status()))
      return InvalidArgument("study: \"", study, "\" is not users/USER/jobs/JOB");
    if (!name.ok()) return NotFound("study: no job ", study);
    absl::StatusOr<v1::Job> job = parts_.queue->Get(name->user, name->id);
    if (!job.ok()) return NotFound("study: no job ", name->id);
    if (job->kind() != "sample_order")
      return InvalidArgument("study: job ", name->id, " is of kind ", job->kind(), "; must be sample_order");
    ASSIGN_OR_RETURN(const std::string folder, parts_.queue->WorkFolder(name->user, name->id));
    if (!parts_.fs->Exists(folder + "/study/reference.bin"))
      return FailedPrecondition("study: nothing is recorded yet; job ", name->id, " is ",
                                v1::Job::State_Name(job->state()),
                                job->reason().empty() ? "" : " (" + job->reason() + ")");
    return parts_.processes->Acquire(job->name(), folder, job->placement().memory_bytes());
  }

 private:
  const OrderParts& parts_;
};

/// The context of a call to the process: as long as the client waits, cancelled when it no longer does.
class Upstream {
 public:
  grpc::ClientContext& Begin(const CallbackServerContext& from) {
    const std::lock_guard lock(mutex_);
    context_ = std::make_unique<grpc::ClientContext>();
    if (from.deadline() != std::chrono::system_clock::time_point::max()) context_->set_deadline(from.deadline());
    if (cancelled_) context_->TryCancel();
    return *context_;
  }
  void Cancel() {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<grpc::ClientContext> context_;
  bool cancelled_ = false;
};

/// One question, many answers. States: opening -> (reading -> writing) ... -> finished, one at a time; frees itself.
template <typename Request, typename Response>
class AnswerStream final : public grpc::ServerWriteReactor<Response> {
 public:
  using Open = std::unique_ptr<grpc::ClientReader<Response>> (Stub::*)(grpc::ClientContext*, const Request&);

  AnswerStream(const OrderParts& parts, const Studies& studies, CallbackServerContext* context, const Request* request,
               Open open)
      : parts_(parts), studies_(studies), context_(context), request_(request), open_(open) {
    caller_ = parts.authenticator->Authenticate(*context);
    if (caller_.ok()) {
      parts_.pool->Post([this] { Begin(); });
    } else {
      this->Finish(ToGrpc(caller_.status(), context_));
    }
  }
  void OnWriteDone(bool ok) override {
    if (!ok) upstream_.Cancel();
    parts_.pool->Post([this] { Next(); });
  }
  void OnCancel() override { upstream_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void Begin() {
    lease_ = studies_.Lease(request_->study(), *caller_);
    if (!lease_.ok()) return this->Finish(ToGrpc(lease_.status(), context_));
    reader_ = ((*lease_)->stub.get()->*open_)(&upstream_.Begin(*context_), *request_);
    Next();
  }
  void Next() {
    if (reader_->Read(&response_)) return this->StartWrite(&response_);
    this->Finish(ToGrpc(lease_->Explain(reader_->Finish()), context_));
  }

  const OrderParts& parts_;
  const Studies& studies_;
  CallbackServerContext* const context_;
  const Request* const request_;
  const Open open_;
  absl::StatusOr<Caller> caller_ = absl::UnknownError("");
  absl::StatusOr<StudyLease> lease_ = absl::UnknownError("");
  Upstream upstream_;
  std::unique_ptr<grpc::ClientReader<Response>> reader_;
  Response response_;
};

/// Questions and answers in turn. States: reading -> (pool) asking -> writing -> reading ...; frees itself.
class OrdersStream final : public grpc::ServerBidiReactor<v1::EstimateOrdersRequest, v1::EstimateOrdersResponse> {
 public:
  OrdersStream(const OrderParts& parts, const Studies& studies, CallbackServerContext* context)
      : parts_(parts), studies_(studies), context_(context) {
    caller_ = parts.authenticator->Authenticate(*context);
    if (caller_.ok()) {
      StartRead(&request_);
    } else {
      Finish(ToGrpc(caller_.status(), context_));
    }
  }
  void OnReadDone(bool ok) override {
    parts_.pool->Post([this, ok] { ok ? Ask() : Last(); });
  }
  void OnWriteDone(bool ok) override {
    if (ok) return StartRead(&request_);
    upstream_.Cancel();
    parts_.pool->Post([this] { Last(); });
  }
  void OnCancel() override { upstream_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void Ask() {
    if (process_ == nullptr) {
      lease_ = studies_.Lease(request_.study(), *caller_);
      if (!lease_.ok()) return Finish(ToGrpc(lease_.status(), context_));
      process_ = (*lease_)->stub->EstimateOrders(&upstream_.Begin(*context_));
    }
    if (process_->Write(request_) && process_->Read(&response_)) return StartWrite(&response_);
    Last();
  }
  void Last() {
    if (process_ == nullptr) return Finish(ToGrpc(InvalidArgument("stream: it has no request"), context_));
    process_->WritesDone();
    Finish(ToGrpc(lease_->Explain(process_->Finish()), context_));
  }

  const OrderParts& parts_;
  const Studies& studies_;
  CallbackServerContext* const context_;
  absl::StatusOr<Caller> caller_ = absl::UnknownError("");
  absl::StatusOr<StudyLease> lease_ = absl::UnknownError("");
  Upstream upstream_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::EstimateOrdersRequest, v1::EstimateOrdersResponse>> process_;
  v1::EstimateOrdersRequest request_;
  v1::EstimateOrdersResponse response_;
};

class OrderService final : public v1::OrderService::CallbackService {
 public:
  explicit OrderService(const OrderParts& parts) : parts_(parts), studies_(parts_) {}

  grpc::ServerUnaryReactor* GetStudy(CallbackServerContext* context, const v1::GetStudyRequest* request,
                                     v1::OrderStudy* response) override {
    return Pass(context, request, response, &Stub::GetStudy);
  }
  grpc::ServerUnaryReactor* EstimateOrder(CallbackServerContext* context, const v1::EstimateOrderRequest* request,
                                          v1::OrderEstimate* response) override {
    return Pass(context, request, response, &Stub::EstimateOrder);
  }
  grpc::ServerBidiReactor<v1::EstimateOrdersRequest, v1::EstimateOrdersResponse>* EstimateOrders(
      CallbackServerContext* context) override {
    return new OrdersStream(parts_, studies_, context);
  }
  grpc::ServerWriteReactor<v1::SearchOrdersResponse>* SearchOrders(CallbackServerContext* context,
                                                                   const v1::SearchOrdersRequest* request) override {
    return Stream<v1::SearchOrdersRequest, v1::SearchOrdersResponse>(context, request, &Stub::SearchOrders);
  }
  grpc::ServerWriteReactor<v1::EstimateMatrixResponse>* EstimateMatrix(
      CallbackServerContext* context, const v1::EstimateMatrixRequest* request) override {
    return Stream<v1::EstimateMatrixRequest, v1::EstimateMatrixResponse>(context, request, &Stub::EstimateMatrix);
  }
  grpc::ServerWriteReactor<v1::OrderChunk>* ExportOrder(CallbackServerContext* context,
                                                        const v1::ExportOrderRequest* request) override {
    return Stream<v1::ExportOrderRequest, v1::OrderChunk>(context, request, &Stub::ExportOrder);
  }

 private:
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Pass(CallbackServerContext* context, const Request* request, Response* response,
                                 grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
    return RunOnPool(context, *parts_.authenticator, *parts_.pool,
                     [this, context, request, response, method](const Caller& caller) -> absl::Status {
                       while (true) {
                         ASSIGN_OR_RETURN(const StudyLease lease, studies_.Lease(request->study(), caller));
                         Upstream upstream;
                         const grpc::Status status =
                             (lease->stub.get()->*method)(&upstream.Begin(*context), *request, response);
                         const absl::Status explained = lease.Explain(status);
                         // A process that ended of idleness just now has not seen the question.
                         if (!absl::IsUnavailable(explained) || !lease->EndedByItself()) return explained;
                       }
                     });
  }
  template <typename Request, typename Response>
  grpc::ServerWriteReactor<Response>* Stream(CallbackServerContext* context, const Request* request,
                                             typename AnswerStream<Request, Response>::Open open) {
    return new AnswerStream<Request, Response>(parts_, studies_, context, request, open);
  }

  const OrderParts parts_;
  const Studies studies_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOrderService(const OrderParts& parts) {
  return std::make_unique<OrderService>(parts);
}

}  // namespace optod::services
