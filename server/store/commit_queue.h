#pragma once
/// The order of a store's writes: many threads submit, one thread (the writer) takes what is queued as a group, another
/// (completion) runs the callbacks, so that the next group's fsync does not wait for them.
///
///   Submit ──► queue ──► writer: process(group) ──► Complete ──► completion thread: callbacks in the order of Submit
///
/// Batches that arrive during an fsync are the next group. A lone batch is never kept waiting. But callers who were
/// just answered tend to come back at once: after a group of n the writer gives the queue a moment (a quarter of what
/// the group took, 1 ms at most) to hold n again. Without it the first to return would get an fsync of its own and the
/// other n - 1 would wait for it, time and again.

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "server/store/store.h"

namespace optod::store {

/// A batch on its way, with who waits for it.
struct PendingBatch {
  Batch batch;
  CommitCallback done;
};

/// Thread-safe, except that Complete is for `process` only.
class CommitQueue {
 public:
  /// Called on the writer thread with 1..max_group batches in order; must pass each of them to Complete, in order.
  using Process = std::function<void(std::span<PendingBatch>)>;

  CommitQueue(size_t max_group, Process process);
  ~CommitQueue();  ///< closes
  CommitQueue(const CommitQueue&) = delete;
  CommitQueue& operator=(const CommitQueue&) = delete;

  /// After Close: runs `done` with UNAVAILABLE on the calling thread.
  void Submit(Batch batch, CommitCallback done);
  /// Hands the callbacks to the completion thread. When `status` is an error, returns only after they have run: whoever
  /// learns of a failure there (and closes its gate) has done so before the next batch's gate is asked.
  void Complete(std::span<PendingBatch> batches, const absl::Status& status);
  /// Takes no more, processes what is queued, runs its callbacks, joins both threads. Idempotent.
  void Close();

 private:
  struct Completion {
    CommitCallback done;
    absl::Status status;
  };
  void WriterLoop();
  /// The next group; empty when closed. Waits as above.
  void TakeGroup(size_t last_group, int64_t patience_ns, std::vector<PendingBatch>* group);
  void CompletionLoop();

  const size_t max_group_;
  const Process process_;

  std::mutex mutex_;  ///< guards queue_, closed_, wanted_
  std::condition_variable submitted_;
  std::deque<PendingBatch> queue_;
  bool closed_ = false;
  size_t wanted_ = 0;  ///< the writer sleeps until the queue is this long; 0 = it is awake

  std::mutex completion_mutex_;  ///< guards the four below
  std::condition_variable completed_, drained_;
  std::vector<Completion> completions_;
  bool completion_busy_ = false;
  bool writer_finished_ = false;

  std::mutex close_mutex_;
  std::thread writer_, completion_;
};

}  // namespace optod::store
