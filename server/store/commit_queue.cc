#include "server/store/commit_queue.h"

#include <algorithm>
#include <utility>

namespace optod::store {

CommitQueue::CommitQueue(size_t max_group, Process process)
    : max_group_(std::max<size_t>(1, max_group)), process_(std::move(process)) {
  completion_ = std::thread([this] { CompletionLoop(); });
  writer_ = std::thread([this] { WriterLoop(); });
}

CommitQueue::~CommitQueue() { Close(); }

void CommitQueue::Submit(Batch batch, CommitCallback done) {
  bool wake = false;
  {
    std::unique_lock lock(mutex_);
    if (closed_) {
      lock.unlock();
      if (done) done(absl::UnavailableError("the store is closed"));
      return;
    }
    queue_.push_back({std::move(batch), std::move(done)});
    wake = std::exchange(writer_idle_, false);
  }
  if (wake) submitted_.notify_one();
}

void CommitQueue::Complete(std::span<PendingBatch> batches, const absl::Status& status) {
  if (batches.empty()) return;
  std::unique_lock lock(completion_mutex_);
  for (PendingBatch& pending : batches) completions_.push_back({std::move(pending.done), status});
  completed_.notify_one();
  if (!status.ok()) drained_.wait(lock, [this] { return completions_.empty() && !completion_busy_; });
}

void CommitQueue::Close() {
  std::lock_guard closing(close_mutex_);
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    writer_idle_ = false;
  }
  submitted_.notify_one();
  if (writer_.joinable()) writer_.join();
  {
    std::lock_guard lock(completion_mutex_);
    writer_finished_ = true;
  }
  completed_.notify_one();
  if (completion_.joinable()) completion_.join();
}

void CommitQueue::WriterLoop() {
  std::vector<PendingBatch> group;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      while (queue_.empty() && !closed_) {
        writer_idle_ = true;
        submitted_.wait(lock);
      }
      writer_idle_ = false;
      if (queue_.empty()) return;  // closed
      const size_t n = std::min(queue_.size(), max_group_);
      group.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.begin() + n));
      queue_.erase(queue_.begin(), queue_.begin() + n);
    }
    process_(group);
    group.clear();
  }
}

void CommitQueue::CompletionLoop() {
  std::vector<Completion> running;
  std::unique_lock lock(completion_mutex_);
  for (;;) {
    completed_.wait(lock, [this] { return !completions_.empty() || writer_finished_; });
    if (completions_.empty()) return;
    running.swap(completions_);
    completion_busy_ = true;
    lock.unlock();
    for (Completion& completion : running) {
      if (completion.done) completion.done(completion.status);
    }
    running.clear();
    lock.lock();
    completion_busy_ = false;
    if (completions_.empty()) drained_.notify_all();
  }
}

}  // namespace optod::store
