#include "server/store/store.h"

#include <condition_variable>
#include <mutex>
#include <utility>

namespace optod::store {

absl::Status Store::CommitAndWait(Batch batch) {
  std::mutex mutex;
  std::condition_variable ready;
  bool done = false;
  absl::Status result;
  Commit(std::move(batch), [&](absl::Status status) {
    std::lock_guard lock(mutex);  // notified under the lock: the waiter's stack must outlive the notification
    result = std::move(status);
    done = true;
    ready.notify_one();
  });
  std::unique_lock lock(mutex);
  ready.wait(lock, [&] { return done; });
  return result;
}

}  // namespace optod::store
