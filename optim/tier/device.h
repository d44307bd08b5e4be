#pragma once
/// Where work of the pipeline runs: queues and events, as CUDA's streams and events. The scheduler (pipeline.h) is
/// written against this and knows neither threads nor clocks.
///
///   Submit(queue, after, run) -> event       work of one queue runs in the order of submission, each only after the
///   Wait(event)                              events it names; different queues run at the same time
///
/// An event exists before anything can wait for it, so no order of submission can deadlock. The first work that fails
/// ends everything: later work is passed over and every Wait returns that error. One thread of control submits and waits.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

namespace optod::tier {

/// disk -> host, host -> device, computing, device -> host, host -> disk.
enum class Queue { kRead, kUpload, kCompute, kOffload, kWrite };
inline constexpr size_t kQueues = 5;
/// "read", "upload", "compute", "offload", "write".
const char* QueueName(Queue queue);

using Event = uint64_t;
inline constexpr Event kDone = 0;  ///< an event that has happened

struct Work {
  Queue queue = Queue::kCompute;
  std::vector<Event> after;
  size_t unit = 0;    ///< what it is about: for traces
  size_t visit = 0;   ///< which visit of the run
  size_t slot = 0;    ///< of the working slots
  uint64_t bytes = 0; ///< moved; 0 for computing
  bool on_host = false;  ///< touches the host's memory when it is run: what it waits for must be over, not only in order
  absl::AnyInvocable<absl::Status()> run;
};

/// Seconds since the device was made (virtual ones on a simulated device).
struct QueueTimes {
  double busy[kQueues] = {};
  uint64_t bytes[kQueues] = {};
  double compute_waited = 0;  ///< the compute queue had work that waited for another queue
  double elapsed = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual Event Submit(Work work) = 0;
  /// Until the event has happened. The first error of any work.
  virtual absl::Status Wait(Event event) = 0;
  /// Until everything submitted has happened.
  virtual absl::Status Drain() = 0;
  virtual QueueTimes times() const = 0;
};

}  // namespace optod::tier
