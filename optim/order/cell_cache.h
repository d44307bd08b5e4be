#pragma once
/// Decoded terms in memory, up to a budget; the oldest go first. T is float where 4 bytes hold what is stored, else
/// double. Thread-safe.

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "optim/order/term_store.h"

namespace optod::order {

template <typename T>
class CellCache {
 public:
  using Cell = std::shared_ptr<const std::vector<T>>;

  CellCache(const TermStore& store, int64_t budget) : store_(store), budget_(budget) {}

  int64_t cell_bytes() const { return static_cast<int64_t>(store_.layout().n * sizeof(T)); }
  /// Cells that the budget holds at once.
  int64_t capacity() const { return budget_ / std::max<int64_t>(cell_bytes(), 1); }

  /// All of one record. What the budget cannot hold beside other cells drops those; a cell in use stays alive.
  absl::StatusOr<Cell> Get(Record record, int t, int l) {
    const uint64_t key = (static_cast<uint64_t>(record) * store_.layout().positions + t) * store_.layout().batches + l;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = cells_.find(key); found != cells_.end()) return found->second;
    }
    ASSIGN_OR_RETURN(std::vector<T> values, Load(store_, record, t, l, 0, store_.layout().n));
    auto cell = std::make_shared<const std::vector<T>>(std::move(values));
    const std::lock_guard lock(mutex_);
    const auto [at, inserted] = cells_.emplace(key, cell);
    if (!inserted) return at->second;  // another thread was faster
    age_.push_back(key);
    while (static_cast<int64_t>(age_.size()) > std::max<int64_t>(capacity(), 1)) {
      cells_.erase(age_.front());
      age_.pop_front();
    }
    return cell;
  }

  void Clear() {
    const std::lock_guard lock(mutex_);
    cells_.clear();
    age_.clear();
  }

  /// Decodes a piece into T, without keeping it.
  static absl::StatusOr<std::vector<T>> Load(const TermStore& store, Record record, int t, int l, size_t begin,
                                             size_t count) {
    std::vector<double> wide(count);
    RETURN_IF_ERROR(store.Read(record, t, l, begin, wide));
    if constexpr (std::is_same_v<T, double>) {
      return wide;
    } else {
      return std::vector<T>(wide.begin(), wide.end());
    }
  }

 private:
  const TermStore& store_;
  const int64_t budget_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, Cell> cells_;
  std::deque<uint64_t> age_;
};

}  // namespace optod::order
