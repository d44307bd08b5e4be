#pragma once
/// The accelerator that is a CUDA device: three streams, events as marks, kernels of cuda/. Thread-safe as
/// accelerator.h says.

#include <cuda_runtime.h>

#include <memory>

#include "cuda/error.h"
#include "optim/tier/accelerator.h"

namespace optod::tier {

/// What this machine can do. FAILED_PRECONDITION: `device: cuda: no CUDA device here: ...`.
absl::StatusOr<int> CudaDevices();

class CudaAccelerator final : public Accelerator {
 public:
  /// `device`: number of the GPU. FAILED_PRECONDITION: there is none, or not so many.
  static absl::StatusOr<std::unique_ptr<CudaAccelerator>> Create(int device = 0);
  ~CudaAccelerator() override;  ///< waits for the streams

  int device() const { return device_; }
  /// For a model that computes with a framework: what it enqueues belongs on the compute stream.
  cudaStream_t stream(Queue queue) const { return streams_[static_cast<size_t>(queue)]; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override;
  std::shared_ptr<void> Lock(std::span<std::byte> host) override;
  absl::Status CopyToHost(std::span<const std::byte> device, std::span<std::byte> host) override;
  absl::Status CopyToDevice(std::span<const std::byte> host, std::span<std::byte> device) override;
  absl::StatusOr<Mark> Record(Queue stream) override;
  absl::Status Follow(Queue stream, const Mark& mark) override;
  absl::Status Synchronize(const Mark& mark) override;
  bool Happened(const Mark& mark) override;
  absl::Status Finish() override;
  double Seconds(const Mark& from, const Mark& to) override;
  absl::Status Upload(const RecordLayout& layout, std::span<const std::byte> record, std::span<std::byte> coded,
                      std::span<float> slot) override;
  absl::Status Offload(const RecordLayout& layout, std::span<const float> slot, uint64_t seed, uint32_t step,
                       std::span<std::byte> coded, std::span<std::byte> record) override;
  absl::Status Poison(Queue stream, std::span<float> device) override;
  void Pass(uint64_t seed, const Values& values, std::span<const PassOp> ops, const PassRule& rule,
            const PassCopies& copies, std::span<float> plus, std::span<float> minus) override;

 private:
  struct Events;
  explicit CudaAccelerator(int device) : device_(device) {}
  /// The calling thread speaks to this device from here on.
  absl::Status Enter(cuda::Error error = {}) const;

  const int device_;
  cudaStream_t streams_[kQueues] = {};
  std::shared_ptr<Events> events_;
  cuda::Error pass_error_;  // of the compute stream's thread
};

}  // namespace optod::tier
