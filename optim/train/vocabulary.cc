#include "optim/train/vocabulary.h"

#include <algorithm>
#include <cmath>

namespace optod::train {

void Vocabulary::Piece(int64_t first, const at::Tensor& given, const at::Tensor& given_tangents) {
  const at::Tensor logits = given.contiguous();
  const at::Tensor tangents = given_tangents.defined() ? given_tangents.contiguous() : given_tangents;
  const float* l = logits.data_ptr<float>();
  const float* d = tangents.defined() ? tangents.data_ptr<float>() : nullptr;
  const int64_t n = logits.size(1);
  at::parallel_for(0, static_cast<int64_t>(best_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = l + r * n;
      double best = best_[static_cast<size_t>(r)];
      const float top = *std::max_element(row, row + n);
      if (!(top <= best)) {  // NaN comes through too
        sum_[static_cast<size_t>(r)] *= std::exp(best - top);
        slope_[static_cast<size_t>(r)] *= std::exp(best - top);
        best = top;
      }
      double sum = 0, slope = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double p = std::exp(row[i] - static_cast<float>(best));
        sum += p;
        if (d != nullptr) slope += p * d[r * n + i];
      }
      sum_[static_cast<size_t>(r)] += sum;
      slope_[static_cast<size_t>(r)] += slope;
      best_[static_cast<size_t>(r)] = best;
    }
  });
  for (size_t i = 0; i < asked_.size(); ++i) {
    const int64_t at = packed_.asks[i].target - first;
    if (at < 0 || at >= n) continue;
    asked_[i] = l[packed_.asks[i].row * n + at];
    if (d != nullptr) asked_slope_[i] = d[packed_.asks[i].row * n + at];
  }
}

std::vector<double> Vocabulary::LogProbabilities() const {
  std::vector<double> result(asked_.size());
  for (size_t i = 0; i < result.size(); ++i) {
    const auto row = static_cast<size_t>(packed_.asks[i].row);
    result[i] = asked_[i] - best_[row] - std::log(sum_[row]);
  }
  return result;
}

std::vector<double> Vocabulary::Slopes() const {
  std::vector<double> result(asked_.size());
  for (size_t i = 0; i < result.size(); ++i) {
    const auto row = static_cast<size_t>(packed_.asks[i].row);
    result[i] = asked_slope_[i] - slope_[row] / sum_[row];
  }
  return result;
}

}  // namespace optod::train
