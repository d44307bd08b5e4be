#include "server/store/commit_queue.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/clock.h"

namespace optod::store {
namespace {

constexpr int64_t kMaxPatienceNs = 1'000'000;
constexpr int64_t kMinPatienceNs = 30'000;  // less is not worth going to sleep for

}  // namespace

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
    wake = wanted_ > 0 && queue_.size() >= wanted_;
    if (wake) wanted_ = 0;
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
    wanted_ = 0;
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
  int64_t took_ns = 0;
  for (;;) {
    const int64_t patience_ns = std::min(took_ns / 4, kMaxPatienceNs);
    TakeGroup(std::exchange(group, {}).size(), patience_ns, &group);
    if (group.empty()) return;
    const int64_t start_ns = SystemClock().NowMonotonicNs();
    process_(group);
    took_ns = SystemClock().NowMonotonicNs() - start_ns;
  }
}

void CommitQueue::TakeGroup(size_t last_group, int64_t patience_ns, std::vector<PendingBatch>* group) {
  std::unique_lock lock(mutex_);
  while (queue_.empty() && !closed_) {
    wanted_ = 1;
    submitted_.wait(lock);
  }
  if (queue_.size() < last_group && patience_ns >= kMinPatienceNs && !closed_) {
    wanted_ = last_group;
    submitted_.wait_for(lock, std::chrono::nanoseconds(patience_ns), [this] { return wanted_ == 0; });
  }
  wanted_ = 0;
  const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(std::min(queue_.size(), max_group_));
  group->assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
  queue_.erase(queue_.begin(), end);
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
