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
  explicit StopWatch(std::function<bool()> asked) : thread_([this, asked = std::move(asked)] { Watch(asked); }) {}
  ~StopWatch() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
  }
  std::stop_token token() const { return source_.get_token(); }

 private:
  void Watch(const std::function<bool()>& asked) {
    std::unique_lock lock(mutex_);
    while (!over_) {
      if (asked()) {
        source_.request_stop();
        return;
      }
      wake_.wait_for(lock, std::chrono::milliseconds(50));
    }
  }

  std::stop_source source_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::jthread thread_;  // last: the others are there when it starts and until it has ended
};

}  // namespace optod::order
