#pragma once
/// The pipeline's device on CPUs: a thread for every queue that moves data; computing runs on the thread that submits
/// it, which so keeps its OpenMP pool and its floating-point state.

#include <memory>

#include "optim/tier/device.h"

namespace optod::tier {

class ThreadsDevice final : public Device {
 public:
  ThreadsDevice();
  ~ThreadsDevice() override;  ///< waits for what was submitted
  Event Submit(Work work) override;
  absl::Status Wait(Event event) override;
  absl::Status Drain() override;
  QueueTimes times() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::tier
