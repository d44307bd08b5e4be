#pragma once
/// A device with a memory of its own: what a tiered run needs of a GPU. Work is enqueued on three streams and runs
/// later, in the order of its stream; marks order the streams, and the host, with one another.
///
///   host arena (locked) --Upload--> slots --Pass, the model--> slots --Offload--> host arena
///                       kUpload            kCompute                   kOffload
///
/// Spans of "device memory" hold addresses that the host must not touch. Implementations: cuda_accelerator.h; the tests
/// have one on threads. Calls for different streams may come from different threads.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "optim/tier/device.h"
#include "optim/tier/pass_ops.h"
#include "optim/tier/record.h"

namespace optod::tier {

struct Values;

/// Device memory, given back with the last copy of this.
struct DeviceBuffer {
  std::shared_ptr<std::byte> owner;
  std::span<std::byte> bytes;
  std::span<float> floats() const { return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)}; }
};

class Accelerator {
 public:
  /// A place in a stream's order; alive as long as somebody waits for it.
  using Mark = std::shared_ptr<void>;

  virtual ~Accelerator() = default;

  // ---- memory
  /// Aligned to 256 bytes; contents undefined. RESOURCE_EXHAUSTED: the device has not so much.
  virtual absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) = 0;
  /// Locks pages of the host, so that copies run beside everything else; undone with the last copy of what is returned.
  /// Null where the system refuses: copies are slower then, and wait, but right.
  [[nodiscard]] virtual std::shared_ptr<void> Lock(std::span<std::byte> host) = 0;
  /// Behind everything on the compute stream; return when done.
  virtual absl::Status CopyToHost(std::span<const std::byte> device, std::span<std::byte> host) = 0;
  virtual absl::Status CopyToDevice(std::span<const std::byte> host, std::span<std::byte> device) = 0;

  // ---- order. Streams: kUpload, kCompute, kOffload
  /// After everything enqueued on the stream so far. Errors: also those that enqueued work met.
  virtual absl::StatusOr<Mark> Record(Queue stream) = 0;
  /// What is enqueued on the stream from now on runs after the mark.
  virtual absl::Status Follow(Queue stream, const Mark& mark) = 0;
  /// The host waits.
  virtual absl::Status Synchronize(const Mark& mark) = 0;
  virtual bool Happened(const Mark& mark) = 0;
  /// The host waits for everything that was enqueued, also after an error.
  virtual absl::Status Finish() = 0;
  /// Between two marks that have happened.
  virtual double Seconds(const Mark& from, const Mark& to) = 0;

  // ---- work
  /// On kUpload: record (host) -> slot (device). `coded`: device memory of record_bytes for lossy codecs, else empty.
  virtual absl::Status Upload(const RecordLayout& layout, std::span<const std::byte> record, std::span<std::byte> coded,
                              std::span<float> slot) = 0;
  /// On kOffload: slot (device) -> record (host), as RecordLayout::ToRecord.
  virtual absl::Status Offload(const RecordLayout& layout, std::span<const float> slot, uint64_t seed, uint32_t step,
                               std::span<std::byte> coded, std::span<std::byte> record) = 0;
  /// Every float becomes NaN.
  virtual absl::Status Poison(Queue stream, std::span<float> device) = 0;
  /// On kCompute: the operations on values in device memory, then the copies into plus and minus. An error comes out at
  /// the next Record.
  virtual void Pass(uint64_t seed, const Values& values, std::span<const PassOp> ops, const PassRule& rule,
                    const PassCopies& copies, std::span<float> plus, std::span<float> minus) = 0;
};

}  // namespace optod::tier
