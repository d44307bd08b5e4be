#pragma once
/// An accelerator for tests, on the host: a thread a stream, a random wait before some of what is enqueued, device
/// memory that is the host's. Passes are the GPU's element code (cuda/pass_elements.h). What lacks an edge therefore
/// runs at the wrong moment, and the data say so.

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "mlp_model.h"
#include "optim/tier/accelerator.h"

namespace optod::tier {

class ThreadAccelerator final : public Accelerator {
 public:
  /// `most_delay`: microseconds; 0 = none.
  explicit ThreadAccelerator(uint32_t seed, uint32_t most_delay = 200);
  ~ThreadAccelerator() override;

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override;
  std::shared_ptr<void> Lock(std::span<std::byte>) override { return nullptr; }
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

  /// `work` runs on the stream's thread.
  void Enqueue(Queue stream, std::function<void()> work);
  /// Bytes allocated and not given back.
  size_t allocated() const { return *allocated_; }
  /// Returned by the next Record, once.
  void Fail(absl::Status status);

 private:
  struct Event;
  void Serve(size_t stream);

  const uint32_t seed_, most_delay_;
  std::shared_ptr<std::atomic<size_t>> allocated_ = std::make_shared<std::atomic<size_t>>(0);
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<std::deque<std::function<void()>>, kQueues> queues_;
  bool closing_ = false;
  absl::Status failure_;
  std::vector<std::thread> threads_;
};

/// The small model on it: what reads weights is enqueued, Losses waits.
class EnqueuedCompute final : public BlockCompute {
 public:
  EnqueuedCompute(ThreadAccelerator* accelerator, MlpCompute* inner) : accelerator_(accelerator), inner_(inner) {}
  absl::Status Begin(int copies) override;
  std::vector<Slice> Wanted() override { return inner_->Wanted(); }
  absl::Status Gathered(int copy, std::span<const float> values) override;
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override;
  absl::StatusOr<std::vector<double>> Losses() override;

 private:
  ThreadAccelerator* const accelerator_;
  MlpCompute* const inner_;
};

}  // namespace optod::tier
