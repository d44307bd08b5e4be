#include "optim/tier/streams_device.h"

#include <array>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/status.h"

namespace optod::tier {
namespace {

using Clock = std::chrono::steady_clock;
using Mark = Accelerator::Mark;

constexpr size_t IndexOf(Queue queue) { return static_cast<size_t>(queue); }
constexpr bool IsStream(Queue queue) { return queue != Queue::kRead && queue != Queue::kWrite; }

}  // namespace

struct StreamsDevice::Impl {
  struct Item {
    Event event = kDone;
    Work work;
  };
  /// A submitted event that is not known to have happened.
  struct Open {
    Queue queue = Queue::kCompute;
    bool issued = false;  // of a stream: enqueued, `mark` follows it
    Mark mark;
  };
  /// Work of a stream, to be timed when it is over.
  struct Issued {
    Event event = kDone;
    uint64_t bytes = 0;
    Mark asked, begin, end;
  };

  explicit Impl(Accelerator* a) : accelerator(a) {}

  Accelerator* const accelerator;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::array<std::deque<Item>, kQueues> waiting;
  std::array<std::deque<Issued>, kQueues> running;
  std::map<Event, Open> open;
  Event last = kDone;
  absl::Status error;
  bool closing = false;
  QueueTimes times;
  const Clock::time_point made = Clock::now();
  std::vector<std::thread> threads;

  void Keep(absl::Status status) {
    if (error.ok() && !status.ok()) error = std::move(status);
  }

  bool Ready(Event event) const {
    const auto it = open.find(event);
    return it == open.end() || it->second.issued;
  }
  /// Every event has happened, or is on a stream. What is left to wait for, other than `own` stream's order.
  std::vector<Mark> WaitUntilIssued(std::unique_lock<std::mutex>& lock, const Work& work) {
    changed.wait(lock, [&] {
      for (Event event : work.after) {
        if (!Ready(event)) return false;
      }
      return true;
    });
    std::vector<Mark> marks;
    for (Event event : work.after) {
      const auto it = open.find(event);
      if (it == open.end() || it->second.mark == nullptr) continue;
      if (it->second.queue != work.queue || work.on_host) marks.push_back(it->second.mark);
    }
    return marks;
  }

  /// Called with the lock held; enqueues without it.
  void RunStream(std::unique_lock<std::mutex>& lock, Item item) {
    Work& work = item.work;
    const std::vector<Mark> marks = WaitUntilIssued(lock, work);
    Issued issued;
    issued.event = item.event;
    issued.bytes = work.bytes;
    if (error.ok()) {
      lock.unlock();
      absl::Status status = Enqueue(work, marks, &issued);
      work.run = nullptr;
      lock.lock();
      Keep(std::move(status));
    }
    if (issued.end != nullptr) {
      open[item.event].mark = issued.end;
      open[item.event].issued = true;
      running[IndexOf(work.queue)].push_back(std::move(issued));
    } else {
      open.erase(item.event);
    }
    Reap(work.queue);
    changed.notify_all();
  }
  absl::Status Enqueue(Work& work, const std::vector<Mark>& marks, Issued* issued) {
    ASSIGN_OR_RETURN(issued->asked, accelerator->Record(work.queue));
    for (const Mark& mark : marks)
      RETURN_IF_ERROR(work.on_host ? accelerator->Synchronize(mark) : accelerator->Follow(work.queue, mark));
    ASSIGN_OR_RETURN(issued->begin, accelerator->Record(work.queue));
    absl::Status status = work.run();
    ASSIGN_OR_RETURN(issued->end,
                     accelerator->Record(work.queue));  // also when it failed half-way: what it enqueued runs
    return status;
  }
  /// Work that is over leaves the table.
  void Reap(Queue queue) {
    std::deque<Issued>& list = running[IndexOf(queue)];
    while (!list.empty() && accelerator->Happened(list.front().end)) {
      const Issued& done = list.front();
      times.busy[IndexOf(queue)] += accelerator->Seconds(done.begin, done.end);
      times.bytes[IndexOf(queue)] += done.bytes;
      if (queue == Queue::kCompute) times.compute_waited += accelerator->Seconds(done.asked, done.begin);
      open.erase(done.event);
      list.pop_front();
    }
  }

  void RunHost(std::unique_lock<std::mutex>& lock, Item item) {
    Work& work = item.work;
    const std::vector<Mark> marks = WaitUntilIssued(lock, work);
    if (error.ok()) {
      lock.unlock();
      absl::Status status;
      for (const Mark& mark : marks) {
        if (status.ok()) status = accelerator->Synchronize(mark);
      }
      const Clock::time_point begin = Clock::now();
      if (status.ok()) status = work.run();
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      work.run = nullptr;
      lock.lock();
      times.busy[IndexOf(work.queue)] += seconds;
      times.bytes[IndexOf(work.queue)] += work.bytes;
      Keep(std::move(status));
    }
    open.erase(item.event);
    changed.notify_all();
  }

  void Serve(Queue queue) {
    std::deque<Item>& items = waiting[IndexOf(queue)];
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return closing || !items.empty(); });
      if (items.empty()) return;
      Item item = std::move(items.front());
      items.pop_front();
      if (IsStream(queue))
        RunStream(lock, std::move(item));
      else
        RunHost(lock, std::move(item));
    }
  }

  /// Waits for a mark without the lock.
  void Await(std::unique_lock<std::mutex>& lock, const Mark& mark) {
    if (mark == nullptr) return;
    lock.unlock();
    absl::Status status = accelerator->Synchronize(mark);
    lock.lock();
    Keep(std::move(status));
  }
};

StreamsDevice::StreamsDevice(Accelerator* accelerator) : impl_(std::make_unique<Impl>(accelerator)) {
  for (Queue queue : {Queue::kRead, Queue::kUpload, Queue::kOffload, Queue::kWrite})
    impl_->threads.emplace_back([impl = impl_.get(), queue] { impl->Serve(queue); });
}

StreamsDevice::~StreamsDevice() {
  (void)Drain();
  {
    std::lock_guard lock(impl_->mutex);
    impl_->closing = true;
  }
  impl_->changed.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

Event StreamsDevice::Submit(Work work) {
  std::unique_lock lock(impl_->mutex);
  const Event event = ++impl_->last;
  impl_->open[event].queue = work.queue;
  const Queue queue = work.queue;
  Impl::Item item{event, std::move(work)};
  if (queue == Queue::kCompute) {
    impl_->RunStream(lock, std::move(item));
  } else {
    impl_->waiting[IndexOf(queue)].push_back(std::move(item));
    impl_->changed.notify_all();
  }
  return event;
}

absl::Status StreamsDevice::Wait(Event event) {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->Ready(event); });
  if (const auto it = impl_->open.find(event); it != impl_->open.end()) {
    const Mark mark = it->second.mark;
    impl_->Await(lock, mark);
  }
  return impl_->error;
}

absl::Status StreamsDevice::Drain() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] {
    for (const auto& [event, state] : impl_->open) {
      if (!state.issued) return false;
    }
    return true;
  });
  lock.unlock();
  absl::Status status = impl_->accelerator->Finish();
  lock.lock();
  impl_->Keep(std::move(status));
  for (Queue queue : {Queue::kUpload, Queue::kCompute, Queue::kOffload}) impl_->Reap(queue);
  return impl_->error;
}

QueueTimes StreamsDevice::times() const {
  std::lock_guard lock(impl_->mutex);
  for (Queue queue : {Queue::kUpload, Queue::kCompute, Queue::kOffload}) impl_->Reap(queue);
  QueueTimes times = impl_->times;
  times.elapsed = std::chrono::duration<double>(Clock::now() - impl_->made).count();
  return times;
}

}  // namespace optod::tier
