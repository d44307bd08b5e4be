#include "optim/worker/attempt.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <thread>

#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/trainer.h"
#include "optim/worker/guarded_training.h"
#include "optim/worker/memory_limit.h"
#include "optim/worker/sample_order.h"
#include "optim/worker/server_exchange.h"
#include "optim/zo/stream.h"
#include "optod/v1/worker.grpc.pb.h"

namespace optod::worker {
namespace {

constexpr std::chrono::milliseconds kHeartbeat{1000};

/// The stream to the server: writes from any thread, one reader, a heartbeat.
class Link {
 public:
  explicit Link(const AttemptOptions& options)
      : exchange_(options.rank, [this](const v1::WorkerMessage& message) { Send(message); }),
        channel_(grpc::CreateChannel(options.server, grpc::InsecureChannelCredentials())),
        stub_(v1::WorkerService::NewStub(channel_)),
        stream_(stub_->Attach(&context_)) {}
  ~Link() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    if (heart_.joinable()) heart_.join();
    if (reader_.joinable()) {
      context_.TryCancel();
      reader_.join();
    }
  }

  absl::StatusOr<v1::WorkerTask> Open(const AttemptOptions& options) {
    v1::WorkerMessage hello;
    hello.mutable_hello()->set_job(options.job);
    hello.mutable_hello()->set_attempt(options.attempt);
    hello.mutable_hello()->set_token(options.token);
    hello.mutable_hello()->set_pid(getpid());
    hello.mutable_hello()->set_version(options.version);
    hello.mutable_hello()->set_rank(options.rank);
    v1::ServerMessage first;
    if (!stream_->Write(hello) || !stream_->Read(&first) || !first.has_task()) {
      const grpc::Status status = stream_->Finish();
      return absl::Status(static_cast<absl::StatusCode>(status.ok() ? static_cast<int>(absl::StatusCode::kUnavailable)
                                                                    : status.error_code()),
                          status.ok() ? "the server ended the stream" : status.error_message());
    }
    reader_ = std::thread([this] { ReadAll(); });
    heart_ = std::thread([this] { Beat(); });
    return first.task();
  }

  void Send(const v1::WorkerMessage& message) {
    std::lock_guard lock(write_mutex_);
    if (!stream_->Write(message)) stop_ = true;
  }
  /// The last message; waits until the server has ended the stream or was silent for 5 s.
  void Finish(const v1::WorkerDone& done) {
    v1::WorkerMessage message;
    *message.mutable_done() = done;
    Send(message);
    {
      std::lock_guard lock(write_mutex_);
      stream_->WritesDone();
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::chrono::seconds(5), [this] { return read_all_; });
  }
  bool stop() const { return stop_; }
  ServerExchange& exchange() { return exchange_; }

 private:
  void ReadAll() {
    v1::ServerMessage message;
    while (stream_->Read(&message)) {
      if (message.has_stop()) stop_ = true;
      exchange_.Deliver(message);
    }
    stop_ = true;  // the server is gone
    exchange_.End();
    std::lock_guard lock(mutex_);
    read_all_ = true;
    wake_.notify_all();
  }
  void Beat() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, kHeartbeat, [this] { return closing_ || read_all_; })) {
      lock.unlock();
      v1::WorkerMessage beat;
      beat.mutable_heartbeat();
      Send(beat);
      lock.lock();
    }
  }

  ServerExchange exchange_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::ServerMessage>> stream_;
  std::atomic<bool> stop_{false};
  std::mutex write_mutex_, mutex_;
  std::condition_variable wake_;
  bool closing_ = false, read_all_ = false;
  std::thread reader_, heart_;
};

v1::JobMemory MemoryToProto(const train::TrainMemory& memory) {
  v1::JobMemory out;
  for (const train::TrainMemory::Tensor& tensor : memory.tensors) {
    v1::TensorMemory* row = out.add_tensors();
    row->set_name(tensor.name);
    row->set_parameter_bytes(static_cast<uint64_t>(tensor.parameters));
    row->set_state_bytes(static_cast<uint64_t>(tensor.state));
    row->set_transient_bytes(static_cast<uint64_t>(tensor.transient));
  }
  out.set_parameter_bytes(static_cast<uint64_t>(memory.parameters));
  out.set_frozen_bytes(static_cast<uint64_t>(memory.frozen));
  out.set_state_bytes(static_cast<uint64_t>(memory.state));
  out.set_gradient_bytes(static_cast<uint64_t>(memory.gradients));
  out.set_transient_bytes(static_cast<uint64_t>(memory.transient));
  out.set_before_bytes(static_cast<uint64_t>(memory.before));
  out.set_peak_bytes(static_cast<uint64_t>(memory.peak));
  return out;
}

/// Of rank 0; what another rank logs or tells is about the same steps.
train::TrainHooks HooksFor(Link& link) {
  train::TrainHooks hooks;
  hooks.stop = [&link] { return link.stop(); };
  if (link.exchange().rank() > 0) return hooks;
  hooks.log = [](const std::string& line) {
    std::printf("%s\n", line.c_str());  // standard output is the job's log
    std::fflush(stdout);
  };
  hooks.progress = [&link](int64_t step, const std::map<std::string, double>& metrics) {
    v1::WorkerMessage message;
    message.mutable_progress()->set_step(step);
    for (const auto& [name, value] : metrics) (*message.mutable_progress()->mutable_metrics())[name] = value;
    link.Send(message);
  };
  hooks.memory = [&link](const train::TrainMemory& memory) {
    v1::WorkerMessage message;
    *message.mutable_memory() = MemoryToProto(memory);
    link.Send(message);
  };
  hooks.checkpoint = [&link](int64_t step) {
    v1::WorkerMessage message;
    message.mutable_checkpoint()->set_step(step);
    link.Send(message);
  };
  return hooks;
}

/// The result as JSON.
absl::StatusOr<std::string> Order(const v1::WorkerTask& task, Link& link) {
  const train::TrainHooks hooks = HooksFor(link);
  return RunSampleOrderJob(task.spec_json(), task.folder(), task.threads(),
                           {hooks.progress, hooks.log, hooks.checkpoint, hooks.stop});
}

absl::StatusOr<train::TrainResult> Train(const v1::WorkerTask& task, Link& link) {
  ASSIGN_OR_RETURN(train::TrainSpec spec, train::ParseTrainSpec(task.spec_json()));
  if (task.threads() > 0) spec.threads = task.threads();
  nn::UseCachingAllocator();
  zo::SetStreamThreads(nn::SetThreads(static_cast<int>(spec.threads)));
  train::TrainHooks hooks = HooksFor(link);
  hooks.told_step = task.told_step();
  if (task.workers() > 1) hooks.exchange = &link.exchange();
  return GuardedTraining(spec, train::RankFolder(task.folder(), task.rank()), task.attempt(), hooks);
}

absl::StatusOr<std::string> Work(const v1::WorkerTask& task, Link& link) {
  if (task.threads() > 0) nn::SetThreads(task.threads());
  RETURN_IF_ERROR(TakeMemoryLimit());
  if (IsSampleOrder(task.spec_json())) return Order(task, link);
  ASSIGN_OR_RETURN(const train::TrainResult result, Train(task, link));
  return train::ResultJson(result);
}

}  // namespace

absl::Status RunAttempt(const AttemptOptions& options) {
  Link link(options);
  ASSIGN_OR_RETURN(const v1::WorkerTask task, link.Open(options));
  const absl::StatusOr<std::string> result = Work(task, link);
  v1::WorkerDone done;
  done.set_code(static_cast<int>(result.status().code()));
  done.set_message(std::string(result.status().message()));
  if (result.ok())
    done.set_result_json(*result);
  else
    std::printf("ended: %s\n", done.message().c_str());
  std::fflush(stdout);
  link.Finish(done);
  return absl::OkStatus();
}

}  // namespace optod::worker
