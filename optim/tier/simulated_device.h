#pragma once
/// The pipeline's device with a virtual clock: every piece of work takes the time that a function gives it, and runs, in
/// the order of its virtual ends, on the thread that waits. Work whose edge is missing therefore runs at the wrong
/// moment for some times, and data say so; the trace says how long a schedule takes without a machine that could do it.

#include <functional>
#include <vector>

#include "optim/tier/device.h"

namespace optod::tier {

class SimulatedDevice final : public Device {
 public:
  struct Span {
    Queue queue;
    size_t unit, visit, slot;
    double begin, end;
  };
  /// Seconds that a piece of work takes; > 0, so that ends order what edges order.
  using Cost = std::function<double(const Work& work)>;

  explicit SimulatedDevice(Cost cost) : cost_(std::move(cost)) {}
  Event Submit(Work work) override;
  absl::Status Wait(Event event) override;
  absl::Status Drain() override;
  QueueTimes times() const override;
  /// Everything submitted so far, in that order.
  const std::vector<Span>& trace() const { return trace_; }
  /// Virtual time at which everything submitted so far has happened.
  double makespan() const { return latest_; }

 private:
  struct Pending {
    double end;
    Event event;
    absl::AnyInvocable<absl::Status()> run;
  };
  void RunUntil(double time);

  Cost cost_;
  std::vector<Span> trace_;       // event e is trace_[e - 1]
  std::vector<Pending> pending_;  // a heap, earliest end first
  double free_[kQueues] = {};
  double host_ = 0, latest_ = 0;
  QueueTimes times_;
  absl::Status error_;
};

}  // namespace optod::tier
