#include "optim/tier/simulated_device.h"

#include <algorithm>
#include <utility>

namespace optod::tier {
namespace {

// Of two, the one that ends later (or was submitted later) is the smaller: std heaps keep the largest in front.
struct Later {
  template <class P>
  bool operator()(const P& a, const P& b) const {
    return a.end != b.end ? a.end > b.end : a.event > b.event;
  }
};

}  // namespace

Event SimulatedDevice::Submit(Work work) {
  const auto queue = static_cast<size_t>(work.queue);
  const double able = std::max(free_[queue], host_);
  double begin = able;
  for (Event event : work.after) {
    if (event != kDone) begin = std::max(begin, trace_[event - 1].end);
  }
  const double seconds = cost_(work);
  if (work.queue == Queue::kCompute) times_.compute_waited += begin - able;
  times_.busy[queue] += seconds;
  times_.bytes[queue] += work.bytes;
  free_[queue] = begin + seconds;
  latest_ = std::max(latest_, free_[queue]);
  trace_.push_back({work.queue, work.unit, work.visit, work.slot, begin, begin + seconds});
  pending_.push_back({begin + seconds, trace_.size(), std::move(work.run)});
  std::push_heap(pending_.begin(), pending_.end(), Later());
  return trace_.size();
}

void SimulatedDevice::RunUntil(double time) {
  while (!pending_.empty() && pending_.front().end <= time) {
    std::pop_heap(pending_.begin(), pending_.end(), Later());
    Pending now = std::move(pending_.back());
    pending_.pop_back();
    if (!error_.ok()) continue;
    error_ = now.run();
  }
}

absl::Status SimulatedDevice::Wait(Event event) {
  if (event != kDone) {
    host_ = std::max(host_, trace_[event - 1].end);
    RunUntil(trace_[event - 1].end);
  }
  return error_;
}

absl::Status SimulatedDevice::Drain() {
  host_ = latest_;
  RunUntil(latest_);
  return error_;
}

QueueTimes SimulatedDevice::times() const {
  QueueTimes times = times_;
  times.elapsed = latest_;
  return times;
}

}  // namespace optod::tier
