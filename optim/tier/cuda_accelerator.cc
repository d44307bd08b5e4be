#include "optim/tier/cuda_accelerator.h"

#include <mutex>
#include <utility>
#include <vector>

#include "base/status.h"
#include "cuda/codec.h"
#include "cuda/unit_pass.h"
#include "optim/tier/unit_pass.h"

namespace optod::tier {
namespace {

absl::Status Checked(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return absl::OkStatus();
  if (code == cudaErrorMemoryAllocation) return ResourceExhausted("cuda: ", what, ": ", cudaGetErrorString(code));
  return Internal("cuda: ", what, ": ", cudaGetErrorString(code));
}
absl::Status Checked(const cuda::Error& error) {
  return error.ok() ? absl::OkStatus() : Internal("cuda: ", error.text);
}

cudaEvent_t EventOf(const Accelerator::Mark& mark) { return static_cast<cudaEvent_t>(mark.get()); }

float* Pointer(std::span<float> values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

/// CUDA events, used again when nobody holds their mark any more.
struct CudaAccelerator::Events {
  std::mutex mutex;
  std::vector<cudaEvent_t> free;
  ~Events() {
    for (cudaEvent_t event : free) cudaEventDestroy(event);
  }
};

absl::StatusOr<int> CudaDevices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) return FailedPrecondition("device: cuda: no CUDA device here: ", cudaGetErrorString(code));
  if (count == 0) return FailedPrecondition("device: cuda: no CUDA device here");
  return count;
}

absl::StatusOr<std::unique_ptr<CudaAccelerator>> CudaAccelerator::Create(int device) {
  ASSIGN_OR_RETURN(const int count, CudaDevices());
  if (device < 0 || device >= count)
    return FailedPrecondition("device: cuda: ", device, " of ", count, " CUDA devices");
  std::unique_ptr<CudaAccelerator> made(new CudaAccelerator(device));
  RETURN_IF_ERROR(made->Enter());
  made->events_ = std::make_shared<Events>();
  for (Queue queue : {Queue::kUpload, Queue::kCompute, Queue::kOffload})
    RETURN_IF_ERROR(Checked(
        cudaStreamCreateWithFlags(&made->streams_[static_cast<size_t>(queue)], cudaStreamNonBlocking), "a stream"));
  return made;
}

CudaAccelerator::~CudaAccelerator() {
  (void)Finish();
  for (cudaStream_t stream : streams_) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
}

absl::Status CudaAccelerator::Enter(cuda::Error error) const {
  RETURN_IF_ERROR(Checked(error));
  return Checked(cudaSetDevice(device_), "the device");
}

// ---- memory

absl::StatusOr<DeviceBuffer> CudaAccelerator::Allocate(size_t bytes) {
  RETURN_IF_ERROR(Enter());
  if (bytes == 0) return DeviceBuffer{};
  void* memory = nullptr;
  RETURN_IF_ERROR(Checked(cudaMalloc(&memory, bytes), Cat(bytes, " bytes of device memory").c_str()));
  auto* data = static_cast<std::byte*>(memory);
  return DeviceBuffer{{data, [](std::byte* p) { cudaFree(p); }}, {data, bytes}};
}

std::shared_ptr<void> CudaAccelerator::Lock(std::span<std::byte> host) {
  if (host.empty() || !Enter().ok()) return nullptr;
  if (cudaHostRegister(host.data(), host.size(), cudaHostRegisterPortable) != cudaSuccess) {
    (void)cudaGetLastError();  // not an error of what comes next
    return nullptr;
  }
  return {host.data(), [](void* p) { cudaHostUnregister(p); }};
}

absl::Status CudaAccelerator::CopyToHost(std::span<const std::byte> device, std::span<std::byte> host) {
  RETURN_IF_ERROR(Enter());
  const cudaStream_t stream = this->stream(Queue::kCompute);
  RETURN_IF_ERROR(Checked(cudaMemcpyAsync(host.data(), device.data(), device.size(), cudaMemcpyDeviceToHost, stream),
                          "copy to the host"));
  return Checked(cudaStreamSynchronize(stream), "the compute stream");
}

absl::Status CudaAccelerator::CopyToDevice(std::span<const std::byte> host, std::span<std::byte> device) {
  RETURN_IF_ERROR(Enter());
  const cudaStream_t stream = this->stream(Queue::kCompute);
  RETURN_IF_ERROR(Checked(cudaMemcpyAsync(device.data(), host.data(), host.size(), cudaMemcpyHostToDevice, stream),
                          "copy to the device"));
  return Checked(cudaStreamSynchronize(stream), "the compute stream");
}

// ---- order

absl::StatusOr<Accelerator::Mark> CudaAccelerator::Record(Queue stream) {
  RETURN_IF_ERROR(Enter(stream == Queue::kCompute ? pass_error_ : cuda::Error{}));
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(events_->mutex);
    if (!events_->free.empty()) {
      event = events_->free.back();
      events_->free.pop_back();
    }
  }
  if (event == nullptr) RETURN_IF_ERROR(Checked(cudaEventCreate(&event), "an event"));
  const Mark mark(event, [events = events_](void* e) {
    std::lock_guard lock(events->mutex);
    events->free.push_back(static_cast<cudaEvent_t>(e));
  });
  RETURN_IF_ERROR(Checked(cudaEventRecord(event, this->stream(stream)), QueueName(stream)));
  return mark;
}

absl::Status CudaAccelerator::Follow(Queue stream, const Mark& mark) {
  RETURN_IF_ERROR(Enter());
  return Checked(cudaStreamWaitEvent(this->stream(stream), EventOf(mark), 0), QueueName(stream));
}

absl::Status CudaAccelerator::Synchronize(const Mark& mark) {
  RETURN_IF_ERROR(Enter());
  return Checked(cudaEventSynchronize(EventOf(mark)), "waiting for a stream");
}

bool CudaAccelerator::Happened(const Mark& mark) { return cudaEventQuery(EventOf(mark)) != cudaErrorNotReady; }

absl::Status CudaAccelerator::Finish() {
  absl::Status first = Enter();
  for (Queue queue : {Queue::kUpload, Queue::kCompute, Queue::kOffload}) {
    absl::Status status = Checked(cudaStreamSynchronize(stream(queue)), QueueName(queue));
    if (first.ok()) first = std::move(status);
  }
  return first;
}

double CudaAccelerator::Seconds(const Mark& from, const Mark& to) {
  float milliseconds = 0;
  if (cudaEventElapsedTime(&milliseconds, EventOf(from), EventOf(to)) != cudaSuccess) return 0;
  return 1e-3 * static_cast<double>(milliseconds);
}

// ---- work

absl::Status CudaAccelerator::Upload(const RecordLayout& layout, std::span<const std::byte> record,
                                     std::span<std::byte> coded, std::span<float> slot) {
  RETURN_IF_ERROR(Enter());
  const cudaStream_t stream = this->stream(Queue::kUpload);
  const bool lossless = Lossless(layout.codec());
  const size_t bytes = lossless ? layout.slot_floats() * sizeof(float) : layout.record_bytes();
  void* to = lossless ? static_cast<void*>(slot.data()) : coded.data();
  RETURN_IF_ERROR(Checked(cudaMemcpyAsync(to, record.data(), bytes, cudaMemcpyHostToDevice, stream), "upload"));
  if (lossless) return absl::OkStatus();
  for (size_t p = 0; p < layout.parts(); ++p) {
    const UnitPart& part = layout.part(p);
    const auto from = layout.RangeOf(p, part.first, part.count, 0, layout.codec());
    const auto at = layout.RangeOf(p, part.first, part.count, 0, Codec::kNone);
    RETURN_IF_ERROR(
        Checked(cuda::Decode(layout.codec(), coded.data() + from.begin, static_cast<int64_t>(part.count),
                             static_cast<int64_t>(part.columns), slot.data() + at.begin / sizeof(float), stream)));
  }
  const size_t states = (layout.slot_floats() - layout.floats()) * sizeof(float);
  return Checked(cudaMemcpyAsync(slot.data() + layout.floats(), coded.data() + layout.coded_bytes(), states,
                                 cudaMemcpyDeviceToDevice, stream),
                 "states of an upload");
}

absl::Status CudaAccelerator::Offload(const RecordLayout& layout, std::span<const float> slot, uint64_t seed,
                                      uint32_t step, std::span<std::byte> coded, std::span<std::byte> record) {
  RETURN_IF_ERROR(Enter());
  const cudaStream_t stream = this->stream(Queue::kOffload);
  const size_t states = (layout.slot_floats() - layout.floats()) * sizeof(float);
  if (Lossless(layout.codec()))
    return Checked(cudaMemcpyAsync(record.data(), slot.data(), layout.slot_floats() * sizeof(float),
                                   cudaMemcpyDeviceToHost, stream),
                   "offload");
  for (size_t p = 0; p < layout.parts(); ++p) {
    const UnitPart& part = layout.part(p);
    const auto to = layout.RangeOf(p, part.first, part.count, 0, layout.codec());
    const auto at = layout.RangeOf(p, part.first, part.count, 0, Codec::kNone);
    RETURN_IF_ERROR(Checked(cuda::Encode(layout.codec(), slot.data() + at.begin / sizeof(float),
                                         static_cast<int64_t>(part.count), static_cast<int64_t>(part.columns),
                                         {seed, step, part.uid, part.first}, coded.data() + to.begin, stream)));
  }
  RETURN_IF_ERROR(Checked(cudaMemcpyAsync(coded.data() + layout.coded_bytes(), slot.data() + layout.floats(), states,
                                          cudaMemcpyDeviceToDevice, stream),
                          "states of an offload"));
  return Checked(
      cudaMemcpyAsync(record.data(), coded.data(), layout.coded_bytes() + states, cudaMemcpyDeviceToHost, stream),
      "offload");
}

absl::Status CudaAccelerator::Poison(Queue stream, std::span<float> device) {
  RETURN_IF_ERROR(Enter());
  return Checked(cudaMemsetAsync(device.data(), 0xff, device.size_bytes(), this->stream(stream)), "poison");
}

void CudaAccelerator::Pass(uint64_t seed, const Values& values, std::span<const PassOp> ops, const PassRule& rule,
                           const PassCopies& copies, std::span<float> plus, std::span<float> minus) {
  if (!Enter().ok()) return;  // Record says so
  cuda::PassValues there;
  there.seed = seed;
  there.tensor = values.uid;
  there.first = values.first;
  there.n = static_cast<int64_t>(values.theta.size());
  there.theta = values.theta.data();
  there.m = Pointer(values.m);
  there.v = Pointer(values.v);
  there.plus = Pointer(plus);
  there.minus = Pointer(minus);
  cuda::Error error = cuda::UnitPass(there, ops, rule, copies, stream(Queue::kCompute));
  if (pass_error_.ok()) pass_error_ = std::move(error);
}

}  // namespace optod::tier
