#include "optim/train/tiered_place.h"

#include "base/status.h"
#include "optim/tier/streams_device.h"
#include "optim/tier/threads_device.h"

#if defined(OPTOD_TORCH_CUDA)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "optim/tier/cuda_accelerator.h"
#endif

namespace optod::train {
namespace {

class OnCpu final : public TieredPlace {
 public:
  explicit OnCpu(bool enqueues) : enqueues_(enqueues) {}
  bool enqueues() const override { return enqueues_; }
  std::unique_ptr<tier::Device> MakeQueues() override { return std::make_unique<tier::ThreadsDevice>(); }

 private:
  const bool enqueues_;
};

#if defined(OPTOD_TORCH_CUDA)
class OnCuda final : public TieredPlace {
 public:
  explicit OnCuda(std::unique_ptr<tier::CudaAccelerator> gpu) : gpu_(std::move(gpu)) {}
  tier::Accelerator* accelerator() override { return gpu_.get(); }
  at::Device device() const override { return {at::kCUDA, static_cast<c10::DeviceIndex>(gpu_->device())}; }
  std::unique_ptr<tier::Device> MakeQueues() override { return std::make_unique<tier::StreamsDevice>(gpu_.get()); }
  std::shared_ptr<void> Enter() override {
    return std::make_shared<c10::cuda::CUDAStreamGuard>(c10::cuda::getStreamFromExternal(
        gpu_->stream(tier::Queue::kCompute), static_cast<c10::DeviceIndex>(gpu_->device())));
  }

 private:
  std::unique_ptr<tier::CudaAccelerator> gpu_;
};
#endif

}  // namespace

absl::StatusOr<std::unique_ptr<TieredPlace>> TieredPlace::Open(const std::string& device) {
  if (device == "cpu" || device == "rehearsal") return std::make_unique<OnCpu>(device == "rehearsal");
#if defined(OPTOD_TORCH_CUDA)
  ASSIGN_OR_RETURN(std::unique_ptr<tier::CudaAccelerator> gpu, tier::CudaAccelerator::Create());
  return std::make_unique<OnCuda>(std::move(gpu));
#else
  return FailedPrecondition("device: ", device,
                            ": this worker was built without CUDA (it needs nvcc and a LibTorch for CUDA)");
#endif
}

}  // namespace optod::train
