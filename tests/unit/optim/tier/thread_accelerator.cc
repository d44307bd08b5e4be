#include "thread_accelerator.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>

#include "cuda/pass_elements.h"
#include "optim/tier/unit_pass.h"

namespace optod::tier {
namespace {

constexpr size_t IndexOf(Queue queue) { return static_cast<size_t>(queue); }

/// The kernel of cuda/unit_pass.cu, block after block.
void RunPass(uint64_t seed, const Values& v, const std::vector<PassOp>& ops, const PassRule& rule,
             const PassCopies& copies, std::span<float> plus, std::span<float> minus) {
  const cuda::StreamId id{seed, 0, 0, v.uid};
  const auto n = static_cast<int64_t>(v.theta.size());
  for (uint64_t block = v.first / 4; 4 * block < v.first + v.theta.size(); ++block) {
    const auto at = static_cast<int64_t>(4 * block) - static_cast<int64_t>(v.first);
    const auto each = [&](auto body) {
      for (int64_t k = 0; k < 4; ++k) {
        if (at + k >= 0 && at + k < n) body(k, static_cast<size_t>(at + k));
      }
    };
    cuda::PassFour x = {};
    each([&](int64_t k, size_t i) {
      x.theta[k] = v.theta[i];
      if (!v.m.empty()) x.m[k] = v.m[i];
      if (!v.v.empty()) x.v[k] = v.v[i];
      if (copies.form == PassCopies::kMezoMinus) x.plus[k] = plus[i];
    });
    for (const PassOp& op : ops) cuda::ApplyOp(op, rule, id, block, x);
    cuda::FormCopies(copies, id, block, x);
    each([&](int64_t k, size_t i) {
      v.theta[i] = x.theta[k];
      if (!v.m.empty()) v.m[i] = x.m[k];
      if (!v.v.empty()) v.v[i] = x.v[k];
      if (cuda::WritesPlus(copies.form)) plus[i] = x.plus[k];
      if (cuda::WritesMinus(copies.form)) minus[i] = x.minus[k];
    });
  }
}

}  // namespace

struct ThreadAccelerator::Event {
  std::mutex mutex;
  std::condition_variable changed;
  bool happened = false;
  std::chrono::steady_clock::time_point when;
  void Set() {
    std::lock_guard lock(mutex);  // also while it notifies: who waits may end the event's life
    happened = true;
    when = std::chrono::steady_clock::now();
    changed.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return happened; });
  }
};

ThreadAccelerator::ThreadAccelerator(uint32_t seed, uint32_t most_delay) : seed_(seed), most_delay_(most_delay) {
  for (Queue stream : {Queue::kUpload, Queue::kCompute, Queue::kOffload})
    threads_.emplace_back([this, stream] { Serve(IndexOf(stream)); });
}

ThreadAccelerator::~ThreadAccelerator() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadAccelerator::Serve(size_t stream) {
  std::minstd_rand random(seed_ * 7 + static_cast<uint32_t>(stream) + 1);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || !queues_[stream].empty(); });
    if (queues_[stream].empty()) return;
    const std::function<void()> work = std::move(queues_[stream].front());
    queues_[stream].pop_front();
    lock.unlock();
    if (most_delay_ > 0 && random() % 8 == 0)
      std::this_thread::sleep_for(std::chrono::microseconds(random() % most_delay_));
    work();
    lock.lock();
  }
}

void ThreadAccelerator::Enqueue(Queue stream, std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    queues_[IndexOf(stream)].push_back(std::move(work));
  }
  changed_.notify_all();
}

void ThreadAccelerator::Fail(absl::Status status) {
  std::lock_guard lock(mutex_);
  failure_ = std::move(status);
}

absl::StatusOr<DeviceBuffer> ThreadAccelerator::Allocate(size_t bytes) {
  const auto floats = (bytes + sizeof(float) - 1) / sizeof(float);
  auto* memory = reinterpret_cast<std::byte*>(new float[floats + 1]);
  std::memset(memory, 0xff, bytes);  // NaN: contents are undefined
  *allocated_ += bytes;
  const std::shared_ptr<std::byte> owner(memory, [bytes, allocated = allocated_](std::byte* p) {
    *allocated -= bytes;
    delete[] reinterpret_cast<float*>(p);
  });
  return DeviceBuffer{owner, {memory, bytes}};
}

absl::Status ThreadAccelerator::CopyToHost(std::span<const std::byte> device, std::span<std::byte> host) {
  Event done;
  Enqueue(Queue::kCompute, [&] {
    std::memcpy(host.data(), device.data(), device.size());
    done.Set();
  });
  done.Wait();
  return absl::OkStatus();
}

absl::Status ThreadAccelerator::CopyToDevice(std::span<const std::byte> host, std::span<std::byte> device) {
  Event done;
  Enqueue(Queue::kCompute, [&] {
    std::memcpy(device.data(), host.data(), host.size());
    done.Set();
  });
  done.Wait();
  return absl::OkStatus();
}

absl::StatusOr<Accelerator::Mark> ThreadAccelerator::Record(Queue stream) {
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok()) return std::exchange(failure_, absl::OkStatus());
  }
  auto event = std::make_shared<Event>();
  Enqueue(stream, [event] { event->Set(); });
  return event;
}

absl::Status ThreadAccelerator::Follow(Queue stream, const Mark& mark) {
  Enqueue(stream, [event = std::static_pointer_cast<Event>(mark)] { event->Wait(); });
  return absl::OkStatus();
}

absl::Status ThreadAccelerator::Synchronize(const Mark& mark) {
  std::static_pointer_cast<Event>(mark)->Wait();
  return absl::OkStatus();
}

bool ThreadAccelerator::Happened(const Mark& mark) {
  Event& event = *std::static_pointer_cast<Event>(mark);
  std::lock_guard lock(event.mutex);
  return event.happened;
}

absl::Status ThreadAccelerator::Finish() {
  for (Queue stream : {Queue::kUpload, Queue::kCompute, Queue::kOffload}) {
    Event done;
    Enqueue(stream, [&done] { done.Set(); });
    done.Wait();
  }
  return absl::OkStatus();
}

double ThreadAccelerator::Seconds(const Mark& from, const Mark& to) {
  return std::chrono::duration<double>(std::static_pointer_cast<Event>(to)->when -
                                       std::static_pointer_cast<Event>(from)->when)
      .count();
}

absl::Status ThreadAccelerator::Upload(const RecordLayout& layout, std::span<const std::byte> record,
                                       std::span<std::byte> coded, std::span<float> slot) {
  const std::span<const std::byte> from = record.first(layout.record_bytes());
  if (coded.empty()) {
    Enqueue(Queue::kUpload, [=, layout = layout] { layout.ToSlot(from, slot); });
    return absl::OkStatus();
  }
  Enqueue(Queue::kUpload, [=] { std::copy(from.begin(), from.end(), coded.begin()); });
  Enqueue(Queue::kUpload, [=, layout = layout] { layout.ToSlot(coded, slot); });
  return absl::OkStatus();
}

absl::Status ThreadAccelerator::Offload(const RecordLayout& layout, std::span<const float> slot, uint64_t seed,
                                        uint32_t step, std::span<std::byte> coded, std::span<std::byte> record) {
  const size_t bytes = layout.record_bytes();
  if (coded.empty()) {
    Enqueue(Queue::kOffload, [=, layout = layout] { layout.ToRecord(slot, seed, step, record); });
    return absl::OkStatus();
  }
  Enqueue(Queue::kOffload, [=, layout = layout] { layout.ToRecord(slot, seed, step, coded); });
  Enqueue(Queue::kOffload, [=] { std::copy_n(coded.begin(), bytes, record.begin()); });
  return absl::OkStatus();
}

absl::Status ThreadAccelerator::Poison(Queue stream, std::span<float> device) {
  Enqueue(stream, [=] { std::fill(device.begin(), device.end(), std::numeric_limits<float>::quiet_NaN()); });
  return absl::OkStatus();
}

void ThreadAccelerator::Pass(uint64_t seed, const Values& values, std::span<const PassOp> ops, const PassRule& rule,
                             const PassCopies& copies, std::span<float> plus, std::span<float> minus) {
  Enqueue(Queue::kCompute, [=, list = std::vector<PassOp>(ops.begin(), ops.end())] {
    RunPass(seed, values, list, rule, copies, plus, minus);
  });
}

// ---- the model

absl::Status EnqueuedCompute::Begin(int copies) {
  accelerator_->Enqueue(Queue::kCompute, [=, this] { (void)inner_->Begin(copies); });
  return absl::OkStatus();
}

absl::Status EnqueuedCompute::Gathered(int copy, std::span<const float> values) {
  accelerator_->Enqueue(Queue::kCompute, [=, this, held = std::vector<float>(values.begin(), values.end())] {
    (void)inner_->Gathered(copy, held);
  });
  return absl::OkStatus();
}

absl::Status EnqueuedCompute::Forward(size_t unit, int copy, std::span<const float> weights) {
  accelerator_->Enqueue(Queue::kCompute, [=, this] { (void)inner_->Forward(unit, copy, weights); });
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> EnqueuedCompute::Losses() {
  auto mark = accelerator_->Record(Queue::kCompute);
  if (!mark.ok()) return mark.status();
  if (absl::Status status = accelerator_->Synchronize(*mark); !status.ok()) return status;
  return inner_->Losses();
}

}  // namespace optod::tier
