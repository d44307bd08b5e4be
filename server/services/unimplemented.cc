#include "server/services/unimplemented.h"

#include "base/reason.h"
#include "base/status.h"
#include "optod/v1/job.grpc.pb.h"
#include "server/services/status.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

absl::Status NotInThisRelease() {
  return WithReason(Unimplemented("JobService: worker jobs are not part of this release"), "SERVICE_NOT_IN_RELEASE");
}

/// A stream that ends before it begins.
template <typename Message>
class RefusedStream final : public grpc::ServerWriteReactor<Message> {
 public:
  explicit RefusedStream(grpc::CallbackServerContext* context) { this->Finish(ToGrpc(NotInThisRelease(), context)); }
  void OnDone() override { delete this; }
};

class JobService final : public v1::JobService::CallbackService {
  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;

  Unary* CreateJob(Context* c, const v1::CreateJobRequest*, v1::Job*) override { return Refuse(c, NotInThisRelease()); }
  Unary* GetJob(Context* c, const v1::GetJobRequest*, v1::Job*) override { return Refuse(c, NotInThisRelease()); }
  Unary* ListJobs(Context* c, const v1::ListJobsRequest*, v1::ListJobsResponse*) override {
    return Refuse(c, NotInThisRelease());
  }
  Unary* CancelJob(Context* c, const v1::CancelJobRequest*, v1::Job*) override { return Refuse(c, NotInThisRelease()); }
  Unary* ResumeJob(Context* c, const v1::ResumeJobRequest*, v1::Job*) override { return Refuse(c, NotInThisRelease()); }
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(Context* c, const v1::WatchJobRequest*) override {
    return new RefusedStream<v1::JobEvent>(c);
  }
  grpc::ServerWriteReactor<v1::LogChunk>* TailLogs(Context* c, const v1::TailLogsRequest*) override {
    return new RefusedStream<v1::LogChunk>(c);
  }
};

}  // namespace

std::unique_ptr<grpc::Service> MakeUnimplementedJobService() { return std::make_unique<JobService>(); }

}  // namespace optod::services
