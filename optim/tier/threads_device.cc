#include "optim/tier/threads_device.h"

#include <array>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

namespace optod::tier {
namespace {

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace

const char* QueueName(Queue queue) {
  static constexpr const char* kNames[kQueues] = {"read", "upload", "compute", "offload", "write"};
  return kNames[static_cast<size_t>(queue)];
}

struct ThreadsDevice::Impl {
  struct Item {
    Event event = kDone;
    Work work;
  };

  mutable std::mutex mutex;
  std::condition_variable changed;
  std::array<std::deque<Item>, kQueues> waiting;
  std::set<Event> open;  // submitted, not happened
  Event last = kDone;
  absl::Status error;
  bool closing = false;
  QueueTimes times;
  const Clock::time_point made = Clock::now();
  std::vector<std::thread> threads;

  bool Happened(const std::vector<Event>& events) const {
    for (Event event : events) {
      if (open.contains(event)) return false;
    }
    return true;
  }

  // Called with the lock held; runs without it.
  void RunOne(std::unique_lock<std::mutex>& lock, Item item) {
    const auto queue = static_cast<size_t>(item.work.queue);
    const Clock::time_point asked = Clock::now();
    changed.wait(lock, [&] { return Happened(item.work.after); });
    if (item.work.queue == Queue::kCompute) times.compute_waited += Since(asked);
    if (error.ok()) {
      lock.unlock();
      const Clock::time_point begin = Clock::now();
      absl::Status status = item.work.run();
      const double seconds = Since(begin);
      item.work.run = nullptr;
      lock.lock();
      times.busy[queue] += seconds;
      times.bytes[queue] += item.work.bytes;
      if (error.ok() && !status.ok()) error = std::move(status);
    }
    open.erase(item.event);
    changed.notify_all();
  }

  void Serve(size_t queue) {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return closing || !waiting[queue].empty(); });
      if (waiting[queue].empty()) return;
      Item item = std::move(waiting[queue].front());
      waiting[queue].pop_front();
      RunOne(lock, std::move(item));
    }
  }
};

ThreadsDevice::ThreadsDevice() : impl_(std::make_unique<Impl>()) {
  for (size_t queue = 0; queue < kQueues; ++queue) {
    if (queue != static_cast<size_t>(Queue::kCompute))
      impl_->threads.emplace_back([impl = impl_.get(), queue] { impl->Serve(queue); });
  }
}

ThreadsDevice::~ThreadsDevice() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->closing = true;
  }
  impl_->changed.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

Event ThreadsDevice::Submit(Work work) {
  std::unique_lock lock(impl_->mutex);
  const Event event = ++impl_->last;
  impl_->open.insert(event);
  const auto queue = static_cast<size_t>(work.queue);
  Impl::Item item{event, std::move(work)};
  if (item.work.queue == Queue::kCompute) {
    impl_->RunOne(lock, std::move(item));
  } else {
    impl_->waiting[queue].push_back(std::move(item));
    lock.unlock();
    impl_->changed.notify_all();
  }
  return event;
}

absl::Status ThreadsDevice::Wait(Event event) {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return !impl_->open.contains(event); });
  return impl_->error;
}

absl::Status ThreadsDevice::Drain() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->open.empty(); });
  return impl_->error;
}

QueueTimes ThreadsDevice::times() const {
  std::lock_guard lock(impl_->mutex);
  QueueTimes times = impl_->times;
  times.elapsed = Since(impl_->made);
  return times;
}

}  // namespace optod::tier
