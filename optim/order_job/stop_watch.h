#pragma once
/// Turns a question that must be asked again and again ("shall I stop?") into a stop token.

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace optod::order {

class StopWatch {
 public:
  explicit StopWatch(std::function<bool()> asked) : asked_(std::move(asked)), thread_([this] { Watch(); }) {}
  ~StopWatch() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
  }
  std::stop_token token() const { return source_.get_token(); }
  /// Asks now, rather than within the next 50 ms.
  void Ask() {
    if (asked_()) source_.request_stop();
  }

 private:
  void Watch() {
    std::unique_lock lock(mutex_);
    while (!over_ && !source_.stop_requested()) {
      Ask();
      wake_.wait_for(lock, std::chrono::milliseconds(50));
    }
  }

  const std::function<bool()> asked_;
  std::stop_source source_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::jthread thread_;  // last: the others are there when it starts and until it has ended
};

}  // namespace optod::order
