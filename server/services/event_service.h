#pragma once
/// optod.v1.EventService: lists the durable event log and follows it. A watcher reads the store every 100 ms through
/// the timers; there may be 256 of them.

#include <memory>

#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/store/store.h"

namespace grpc {
class Service;
}

namespace optod::services {

class EventServiceControl {
 public:
  virtual ~EventServiceControl() = default;
  virtual grpc::Service* service() = 0;
  /// Ends all watchers with UNAVAILABLE (reason DRAINING) and refuses new ones. Returns at once; they end on gRPC's
  /// threads.
  virtual void StopWatchers() = 0;
};

/// Borrowed parts must outlive it. `timers` must post to a pool on which store reads may block.
std::unique_ptr<EventServiceControl> MakeEventService(const auth::Authenticator& authenticator, store::Store& store,
                                                      ThreadPool& pool, Timers& timers);

}  // namespace optod::services
