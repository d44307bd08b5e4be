#pragma once
/// Long-running operations: durable rows, progress in memory, waiting and cancelling. Thread-safe.
///
/// Life: Prepare makes the row that is committed together with the request that starts it; Begin makes it live once that commit is durable; Finish
/// names the mutation that ends it, to be committed with its effect; Ended tells who waits. A row that was not ended when the server stopped is ended
/// with ABORTED at the next start (its paid work is in the cassette or the usage, never half applied).

#include <atomic>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/thread_pool.h"
#include "optod/v1/operation.pb.h"
#include "server/engine/engine.h"
#include "server/store/store.h"

namespace optod::engine {

class Operations {
 public:
  Operations(store::Store& store, Clock& clock, ThreadPool& pool, Timers& timers);
  ~Operations();

  /// Ends what an earlier process left undone. Call once at start, before serving.
  absl::Status AbortUnfinished();

  // ---- for the work behind an operation
  /// A fresh operation of `user` and the row for its start.
  v1::Operation Prepare(const std::string& user, const std::string& kind, const std::string& target, const std::string& request, store::Mutation* row);
  /// Makes it live. The flag turns true when somebody cancels.
  std::shared_ptr<std::atomic<bool>> Begin(const v1::Operation& operation);
  void Progress(const std::string& name, double progress, const std::string& message);
  /// `operation` ended with `result` (packed into Any by the caller) or an error: fills it in and returns the row to commit.
  store::Mutation Finish(v1::Operation* operation, const absl::StatusOr<google::protobuf::Any>& result);
  /// After that commit (or its failure).
  void Ended(const v1::Operation& operation);

  /// Cancels what is live and answers who waits, with the state as it stands. For the end of a drain whose grace is over.
  void CancelAll();

  // ---- OperationService
  void Get(const Caller&, const v1::GetOperationRequest&, Done<v1::Operation>);
  void List(const Caller&, const v1::ListOperationsRequest&, Done<v1::ListOperationsResponse>);
  void Wait(const Caller&, const v1::WaitOperationRequest&, Done<v1::Operation>);
  void Cancel(const Caller&, const v1::CancelOperationRequest&, Done<v1::Operation>);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace optod::engine
