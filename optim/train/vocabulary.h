#pragma once
/// Log-probabilities of the asked tokens from hidden rows, the vocabulary matrix seen piece by piece: a running maximum
/// and sum a row, never all logits at once. With tangents of the logits, the slopes too. Private: LibTorch types.
///
/// The last bits of a sum depend on where the vocabulary is cut: whoever evaluates losses that others must find again
/// cuts it by VocabularyRows.

#include <vector>

#include "optim/nn/aten.h"
#include "optim/train/packed.h"

namespace optod::train {

/// Rows of a vocabulary matrix of so many columns that are one piece: theta and both perturbed copies of a piece stay in
/// a second-level cache.
constexpr int64_t VocabularyRows(int64_t columns) {
  constexpr int64_t kFloats = int64_t{1} << 17;
  return columns < kFloats ? kFloats / columns : 1;
}

class Vocabulary {
 public:
  explicit Vocabulary(const Packed& packed, bool enqueues = false)
      : packed_(packed),
        enqueues_(enqueues),
        best_(packed.rows.size(), -INFINITY),
        sum_(packed.rows.size(), 0),
        slope_(packed.rows.size(), 0),
        asked_(packed.asks.size(), NAN),
        asked_slope_(packed.asks.size(), NAN) {}

  /// Logits [rows, n] float32 of vocabulary entries first .. first + n - 1, and their tangents (or undefined). With
  /// `enqueues` the sums stay on the logits' device, and nothing is waited for before LogProbabilities; no tangents then.
  void Piece(int64_t first, const at::Tensor& logits, const at::Tensor& tangents = {});
  std::vector<double> LogProbabilities() const;
  /// d log p / dt = dl - sum_v p_v dl_v.
  std::vector<double> Slopes() const;

 private:
  void PieceThere(int64_t first, const at::Tensor& logits);
  /// What is on the other device comes here.
  void Fetch() const;

  const Packed& packed_;
  const bool enqueues_;
  mutable at::Tensor best_there_, sum_there_, asked_there_;  // double; asked_there_: one an ask
  mutable std::vector<double> best_, sum_, slope_;  // slope_: sum of exp(l - best) dl
  mutable std::vector<double> asked_, asked_slope_;
};

}  // namespace optod::train
