// The stream of one worker. Messages are handed to the queue one at a time, in order, on a pool: the queue may write to
// the disk. Read -> (pool) queue -> read ...; writes wait for each other.
#include <deque>
#include <mutex>

#include "base/status.h"
#include "optod/v1/worker.grpc.pb.h"
#include "server/services/job_service.h"
#include "server/services/status.h"

namespace optod::services {
namespace {

class WorkerStream final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::ServerMessage>,
                           public jobs::WorkerChannel {
 public:
  WorkerStream(jobs::JobQueue& queue, ThreadPool& pool, grpc::CallbackServerContext* context)
      : queue_(queue), pool_(pool), context_(context) {
    StartRead(&message_);
  }

  void Send(const v1::ServerMessage& message) override {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    outgoing_.push_back(message);
    if (outgoing_.size() == 1) StartWrite(&outgoing_.front());
  }

  void OnReadDone(bool ok) override {
    pool_.Post([this, ok] { ok ? Work() : Gone(); });
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    if (!outgoing_.empty()) outgoing_.pop_front();
    if (ok && !finished_ && !outgoing_.empty()) StartWrite(&outgoing_.front());
  }
  void OnDone() override { delete this; }

 private:
  void Work() {
    if (attached_) {
      const absl::Status taken = queue_.OnMessage(this, message_);
      return taken.ok() ? StartRead(&message_) : End(ToGrpc(taken, context_));
    }
    if (!message_.has_hello()) return End(ToGrpc(InvalidArgument("message: the first one must be hello"), context_));
    absl::StatusOr<v1::WorkerTask> task = queue_.Attach(message_.hello(), this);
    if (!task.ok()) return End(ToGrpc(task.status(), context_));
    attached_ = true;
    v1::ServerMessage first;
    *first.mutable_task() = *std::move(task);
    Send(first);
    StartRead(&message_);
  }
  void Gone() {
    if (attached_) queue_.Detach(this);
    attached_ = false;
    End(grpc::Status::OK);
  }
  void End(grpc::Status status) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
    }
    Finish(std::move(status));
  }

  jobs::JobQueue& queue_;
  ThreadPool& pool_;
  grpc::CallbackServerContext* const context_;
  v1::WorkerMessage message_;
  bool attached_ = false;
  std::mutex mutex_;
  std::deque<v1::ServerMessage> outgoing_;  // the front one is being written
  bool finished_ = false;
};

class WorkerService final : public v1::WorkerService::CallbackService {
 public:
  WorkerService(jobs::JobQueue& queue, ThreadPool& pool) : queue_(queue), pool_(pool) {}
  /// Not authenticated as a user: the attempt's token is in the first message.
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::ServerMessage>* Attach(grpc::CallbackServerContext* context) override {
    return new WorkerStream(queue_, pool_, context);
  }

 private:
  jobs::JobQueue& queue_;
  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(jobs::JobQueue& queue, ThreadPool& pool) {
  return std::make_unique<WorkerService>(queue, pool);
}

}  // namespace optod::services
