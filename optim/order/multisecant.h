#pragma once
/// H d from probe runs (probe_runs.h): the deviation d is fitted by those of the runs at the same position, in least
/// squares with a ridge, and the same combination of their gradient changes is the answer:
///
///   c = (S'S + ridge mean|s|^2 I)^-1 S'd       S = [s_1 .. s_K] at position t
///   H d ~ Y c                                   Y = [y_1 .. y_K]
///
/// The multisecant condition of quasi-Newton methods (Y = B S). Not in the FUT paper; why it works where diagonals do
/// not: deviations of random orders lie close to few directions at each position (above all, which batches came
/// first), while the Hessian of a network is neither diagonal nor of low rank. The changes are of real steps of the
/// size that estimates make, so the loss need not be quadratic. What it leaves open: y_k is of the batch that run k saw
/// there, not of the estimate's, and the part of d outside the span is answered with 0 (or by `rest`, see estimator.h).

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/cell_cache.h"
#include "optim/order/kernels.h"
#include "optim/order/probe_runs.h"
#include "optim/order/small_solve.h"

namespace optod::order {

namespace kernels {
inline double Dot(const float* a, const float* b, size_t n) { return Best().dot_float(a, b, n); }
inline double Dot(const double* a, const double* b, size_t n) { return Best().dot_double(a, b, n); }
inline void Combine(const float* const* y, const float* c, size_t count, float* out, size_t n) {
  Best().combine_float(y, c, count, out, n);
}
inline void Combine(const double* const* y, const double* c, size_t count, double* out, size_t n) {
  Best().combine_double(y, c, count, out, n);
}
}  // namespace kernels

/// T: float or double, the width of the decoded terms. Thread-safe.
template <typename T>
class Multisecant {
 public:
  static constexpr size_t kPiece = 4096;  // numbers that a dot product adds up in T

  /// `store` must outlive it; at most `budget` bytes of it are held decoded.
  Multisecant(const TermStore& store, double ridge, int64_t budget)
      : store_(store), ridge_(ridge), cache_(store, budget), systems_(store.layout().positions) {}

  int runs() const { return store_.layout().batches; }

  struct System {
    System(std::vector<double> products, int size, double relative)
        : gram(std::move(products)), ridge(relative), factor(gram, size, relative) {}
    const std::vector<double> gram;  // S'S [K, K]
    const double ridge;
    const RidgeFactor factor;
  };

  /// What all runs say about one position.
  class Position {
   public:
    const T* s(int k) const { return s_[k]->data(); }
    const T* y(int k) const { return y_[k]->data(); }

    /// c [K] of every d [n]; one pass over S. Run `left_out` (unless -1) as if it had not been made.
    std::vector<std::vector<T>> Fit(std::span<const T* const> d, int left_out = -1) const {
      std::vector<std::vector<double>> right(d.size(), std::vector<double>(s_.size()));
      for (size_t begin = 0; begin < n_; begin += kPiece) {
        const size_t count = std::min(kPiece, n_ - begin);
        for (size_t i = 0; i < d.size(); ++i) {
          for (size_t k = 0; k < s_.size(); ++k)
            right[i][k] += kernels::Dot(s_[k]->data() + begin, d[i] + begin, count);
        }
      }
      std::optional<RidgeFactor> without;
      if (left_out >= 0) without.emplace(system_->gram, static_cast<int>(s_.size()), system_->ridge, left_out);
      std::vector<std::vector<T>> fits;
      for (auto& one : right) {
        const std::vector<double> c = (without ? *without : system_->factor).Solve(std::move(one));
        fits.emplace_back(c.begin(), c.end());
      }
      return fits;
    }
    /// out = [Y] c or [S] c, at parameters [begin, begin + count).
    void Change(const std::vector<T>& c, size_t begin, size_t count, T* out) const { Sum(y_, c, begin, count, out); }
    void Fitted(const std::vector<T>& c, size_t begin, size_t count, T* out) const { Sum(s_, c, begin, count, out); }

   private:
    friend class Multisecant;
    using Cells = std::vector<typename CellCache<T>::Cell>;
    void Sum(const Cells& cells, const std::vector<T>& c, size_t begin, size_t count, T* out) const {
      std::vector<const T*> at(cells.size());
      for (size_t k = 0; k < cells.size(); ++k) at[k] = cells[k]->data() + begin;
      kernels::Combine(at.data(), c.data(), c.size(), out, count);
    }
    Cells s_, y_;
    size_t n_ = 0;
    std::shared_ptr<const System> system_;
  };

  /// Reads position t. FAILED_PRECONDITION: "probe runs: 3 of 16 files are there; precompute first"; DATA_LOSS.
  absl::StatusOr<Position> At(int t) {
    if (const int all = store_.layout().segments(); store_.filled() < all)
      return FailedPrecondition("probe runs: ", store_.filled(), " of ", all, " files are there; precompute first");
    Position position;
    position.n_ = store_.layout().n;
    for (int k = 0; k < runs(); ++k) {
      ASSIGN_OR_RETURN(position.s_.emplace_back(), cache_.Get(kDeviation, t, k));
      ASSIGN_OR_RETURN(position.y_.emplace_back(), cache_.Get(kChange, t, k));
    }
    const std::lock_guard lock(mutex_);
    if (systems_[t] == nullptr) systems_[t] = std::make_shared<const System>(Gram(position), runs(), ridge_);
    position.system_ = systems_[t];
    return position;
  }

 private:
  /// S'S of a position: [K, K].
  std::vector<double> Gram(const Position& position) const {
    const int size = runs();
    std::vector<double> gram(static_cast<size_t>(size) * size, 0.0);
    for (size_t begin = 0; begin < position.n_; begin += kPiece) {
      const size_t count = std::min(kPiece, position.n_ - begin);
      for (int k = 0; k < size; ++k) {
        for (int j = 0; j <= k; ++j) {
          gram[k * size + j] += kernels::Dot(position.s(k) + begin, position.s(j) + begin, count);
          gram[j * size + k] = gram[k * size + j];
        }
      }
    }
    return gram;
  }

  const TermStore& store_;
  const double ridge_;
  CellCache<T> cache_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<const System>> systems_;
};

}  // namespace optod::order
