#pragma once
/// How many bytes may be held by transfers at once. Thread-safe.

#include <cstdint>
#include <mutex>

namespace optod::services {

class ByteBudget {
 public:
  explicit ByteBudget(int64_t limit_bytes) : limit_(limit_bytes) {}

  /// A share of the budget; gives it back when it goes.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept : budget_(other.budget_), bytes_(other.bytes_) { other.budget_ = nullptr; }
    Share& operator=(Share&& other) noexcept {
      if (this == &other) return *this;
      Release();
      budget_ = other.budget_;
      bytes_ = other.bytes_;
      other.budget_ = nullptr;
      return *this;
    }
    ~Share() { Release(); }
    explicit operator bool() const { return budget_ != nullptr; }

   private:
    friend class ByteBudget;
    Share(ByteBudget* budget, int64_t bytes) : budget_(budget), bytes_(bytes) {}
    void Release() {
      if (budget_ != nullptr) budget_->Give(bytes_);
      budget_ = nullptr;
    }
    ByteBudget* budget_ = nullptr;
    int64_t bytes_ = 0;
  };

  /// An empty share when it does not fit now.
  Share Take(int64_t bytes) {
    std::lock_guard lock(mutex_);
    if (bytes < 0 || bytes > limit_ - used_) return {};
    used_ += bytes;
    ++shares_;
    return Share(this, bytes);
  }
  int64_t used_bytes() {
    std::lock_guard lock(mutex_);
    return used_;
  }
  /// Transfers under way.
  int shares() {
    std::lock_guard lock(mutex_);
    return shares_;
  }

 private:
  void Give(int64_t bytes) {
    std::lock_guard lock(mutex_);
    used_ -= bytes;
    --shares_;
  }
  const int64_t limit_;
  std::mutex mutex_;
  int64_t used_ = 0;
  int shares_ = 0;
};

}  // namespace optod::services
