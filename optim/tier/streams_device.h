#pragma once
/// The pipeline's device on an accelerator: uploading, computing and offloading are streams there, the disk's two
/// queues are threads here.
///
///   a stream waits for a stream       by a mark, on the device: the host does not wait
///   a stream waits for the disk       its issuing thread waits, then enqueues
///   the disk waits for a stream       the disk's thread waits for the mark
///
/// So Submit returns while the work is still to come; on the compute queue once it is enqueued, by the calling thread.
/// An event of a stream has happened when its mark has; Wait is where the host waits, once a step. Times of streams are
/// the device's own.

#include <memory>

#include "optim/tier/accelerator.h"
#include "optim/tier/device.h"

namespace optod::tier {

class StreamsDevice final : public Device {
 public:
  /// `accelerator` is borrowed.
  explicit StreamsDevice(Accelerator* accelerator);
  ~StreamsDevice() override;  ///< waits for what was submitted
  Event Submit(Work work) override;
  absl::Status Wait(Event event) override;
  absl::Status Drain() override;
  QueueTimes times() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::tier
