#pragma once
/// Where a tiered job computes: this process's CPUs, or a GPU with its own memory, on which LibTorch computes too.
/// Private: LibTorch types.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "optim/nn/aten.h"
#include "optim/tier/accelerator.h"
#include "optim/tier/device.h"

namespace optod::train {

class TieredPlace {
 public:
  /// `device`: "cpu", "cuda" (the first GPU), or "rehearsal": the CPU, by the operations that a GPU is given (for
  /// tests). FAILED_PRECONDITION: `device: cuda: no CUDA device here`, or a worker that was built without CUDA.
  static absl::StatusOr<std::unique_ptr<TieredPlace>> Open(const std::string& device);
  virtual ~TieredPlace() = default;

  virtual tier::Accelerator* accelerator() { return nullptr; }
  virtual at::Device device() const { return at::kCPU; }
  /// Whether the model may only enqueue: no pointers into tensors, nothing waited for before the losses.
  virtual bool enqueues() const { return true; }
  /// Queues for one pipeline.
  virtual std::unique_ptr<tier::Device> MakeQueues() = 0;
  /// What LibTorch enqueues from the calling thread goes behind the pipeline's own work, as long as this lives.
  virtual std::shared_ptr<void> Enter() { return nullptr; }
};

}  // namespace optod::train
