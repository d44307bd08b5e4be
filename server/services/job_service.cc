#include "server/services/job_service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>

#include "base/reason.h"
#include "base/status.h"
#include "optod/v1/job.grpc.pb.h"
#include "server/services/job_name.h"
#include "server/services/pages.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using grpc::CallbackServerContext;

constexpr std::chrono::milliseconds kPoll{100};
constexpr size_t kEventsPerRead = 256;
constexpr size_t kLogPiece = 64 << 10;

/// A server stream whose messages are read from somewhere on the pool, and waited for by a timer. States: reading ->
/// writing -> ... -> waiting -> reading; exactly one of them at a time.
template <typename Message>
class PollStream : public grpc::ServerWriteReactor<Message>, public std::enable_shared_from_this<PollStream<Message>> {
 public:
  /// Fills up to a few messages; `*ended` = nothing more will come.
  using Read = std::function<absl::Status(std::vector<Message>* out, bool* ended)>;

  PollStream(ThreadPool& pool, Timers& timers, CallbackServerContext* context, const std::atomic<bool>& stopping)
      : pool_(pool), timers_(timers), context_(context), stopping_(stopping) {}

  void Start(std::shared_ptr<PollStream> self, absl::Status opened, Read read) {
    self_ = std::move(self);
    if (!opened.ok()) return End(opened);
    read_ = std::move(read);
    this->StartSendInitialMetadata();
    pool_.Post([this] { Work(); });
  }
  void OnWriteDone(bool ok) override { ok ? Next() : End(absl::CancelledError("the reader is gone")); }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { self_.reset(); }  // a timer that is still set keeps the rest

 private:
  void Work() {
    if (cancelled_) return End(absl::CancelledError("cancelled"));
    if (stopping_) return End(WithReason(Unavailable("the server is draining; try again later"), "DRAINING"));
    messages_.clear();
    at_ = 0;
    const absl::Status status = read_(&messages_, &ended_);
    status.ok() ? Next() : End(status);
  }
  void Next() {
    if (at_ < messages_.size()) return this->StartWrite(&messages_[at_++]);
    if (ended_) return End(absl::OkStatus());
    if (!messages_.empty()) {
      pool_.Post([this] { Work(); });
      return;
    }
    timers_.After(kPoll, [self = self_] { self->Work(); });
  }
  void End(const absl::Status& status) { this->Finish(ToGrpc(status, context_)); }

  ThreadPool& pool_;
  Timers& timers_;
  CallbackServerContext* const context_;
  const std::atomic<bool>& stopping_;
  std::shared_ptr<PollStream> self_;
  Read read_;
  std::vector<Message> messages_;
  size_t at_ = 0;
  bool ended_ = false;
  std::atomic<bool> cancelled_{false};
};

class JobService final : public v1::JobService::CallbackService, public JobServiceControl {
 public:
  explicit JobService(const JobParts& parts) : parts_(parts) {}
  grpc::Service* service() override { return this; }
  void StopStreams() override { stopping_ = true; }

  grpc::ServerUnaryReactor* CreateJob(CallbackServerContext* context, const v1::CreateJobRequest* request,
                                      v1::Job* response) override {
    return Run(context, [this, request, response](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireWriter(caller));
      ASSIGN_OR_RETURN(const std::string user, auth::ResolveUser(request->parent(), caller, "parent"));
      ASSIGN_OR_RETURN(*response, parts_.queue->Create(user, *request));
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* GetJob(CallbackServerContext* context, const v1::GetJobRequest* request,
                                   v1::Job* response) override {
    return Run(context, [this, request, response](const Caller& caller) -> absl::Status {
      ASSIGN_OR_RETURN(const JobName name, ParseJobName(request->name(), caller));
      ASSIGN_OR_RETURN(*response, parts_.queue->Get(name.user, name.id));
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* CancelJob(CallbackServerContext* context, const v1::CancelJobRequest* request,
                                      v1::Job* response) override {
    return Run(context, [this, request, response](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireWriter(caller));
      ASSIGN_OR_RETURN(const JobName name, ParseJobName(request->name(), caller));
      ASSIGN_OR_RETURN(*response, parts_.queue->Cancel(name.user, name.id));
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ResumeJob(CallbackServerContext* context, const v1::ResumeJobRequest* request,
                                      v1::Job* response) override {
    return Run(context, [this, request, response](const Caller& caller) -> absl::Status {
      RETURN_IF_ERROR(auth::RequireWriter(caller));
      ASSIGN_OR_RETURN(const JobName name, ParseJobName(request->name(), caller));
      if (!request->checkpoint().empty())
        return Unimplemented("checkpoint: jobs go on from their last checkpoint; leave it empty");
      ASSIGN_OR_RETURN(*response, parts_.queue->Resume(name.user, name.id));
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ListJobs(CallbackServerContext* context, const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override {
    return Run(context, [this, request, response](const Caller& caller) -> absl::Status {
      ASSIGN_OR_RETURN(const std::string user, auth::ResolveUser(request->parent(), caller, "parent"));
      ASSIGN_OR_RETURN(const int64_t size, PageSize(request->page_size()));
      const std::string scope = "ListJobs/" + user;
      ASSIGN_OR_RETURN(const PageStart start, ParsePageToken(scope, request->page_token()));
      const std::vector<v1::Job> all = parts_.queue->List(user);
      // The page begins behind the job that the token names, wherever that is by now.
      size_t first = 0;
      for (size_t i = 0; i < all.size() && !start.text.empty(); ++i) {
        if (all[i].name() == start.text) first = i + 1;
      }
      for (size_t i = first; i < all.size() && static_cast<int64_t>(i - first) < size; ++i)
        *response->add_jobs() = all[i];
      if (first + static_cast<size_t>(size) < all.size())
        response->set_next_page_token(MakePageToken(scope, {0, response->jobs().rbegin()->name()}));
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override {
    auto stream = std::make_shared<PollStream<v1::JobEvent>>(*parts_.pool, *parts_.timers, context, stopping_);
    const absl::StatusOr<JobName> name = NameFor(context, request->name());
    stream->Start(stream, name.status(),
                  [this, name, after = request->after_sequence()](std::vector<v1::JobEvent>* out,
                                                                  bool* ended) mutable -> absl::Status {
                    ASSIGN_OR_RETURN(*out, parts_.queue->Events(name->user, name->id, after, kEventsPerRead, ended));
                    after += static_cast<int64_t>(out->size());
                    return absl::OkStatus();
                  });
    return stream.get();
  }

  grpc::ServerWriteReactor<v1::LogChunk>* TailLogs(CallbackServerContext* context,
                                                   const v1::TailLogsRequest* request) override {
    auto stream = std::make_shared<PollStream<v1::LogChunk>>(*parts_.pool, *parts_.timers, context, stopping_);
    absl::StatusOr<JobName> name = NameFor(context, request->name());
    if (name.ok() && request->after_offset() < 0)
      name = InvalidArgument("after_offset: ", request->after_offset(), " is negative");
    stream->Start(stream, name.status(),
                  [this, name, at = request->after_offset()](std::vector<v1::LogChunk>* out,
                                                             bool* ended) mutable -> absl::Status {
                    ASSIGN_OR_RETURN(const std::string path,
                                     parts_.queue->LogPath(name->user, name->id,
                                                           ended));  // before reading: no last words are missed
                    std::ifstream file(path, std::ios::binary);
                    std::string data(kLogPiece, '\0');
                    file.seekg(at);
                    file.read(data.data(), static_cast<std::streamsize>(data.size()));
                    data.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
                    if (data.size() == kLogPiece) *ended = false;
                    if (data.empty()) return absl::OkStatus();
                    out->emplace_back().set_offset(at);
                    out->back().set_data(data);
                    at += static_cast<int64_t>(data.size());
                    return absl::OkStatus();
                  });
    return stream.get();
  }

 private:
  grpc::ServerUnaryReactor* Run(CallbackServerContext* context, std::function<absl::Status(const Caller&)> work) {
    return RunOnPool(context, *parts_.authenticator, *parts_.pool, std::move(work));
  }
  absl::StatusOr<JobName> NameFor(CallbackServerContext* context, const std::string& name) const {
    ASSIGN_OR_RETURN(const Caller caller, parts_.authenticator->Authenticate(*context));
    return ParseJobName(name, caller);
  }

  const JobParts parts_;
  std::atomic<bool> stopping_{false};
};

}  // namespace

std::unique_ptr<JobServiceControl> MakeJobService(const JobParts& parts) { return std::make_unique<JobService>(parts); }

}  // namespace optod::services
