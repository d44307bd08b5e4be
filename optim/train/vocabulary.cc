#include "optim/train/vocabulary.h"

#include <algorithm>
#include <cmath>

namespace optod::train {

void Vocabulary::PieceThere(int64_t first, const at::Tensor& logits) {
  const at::TensorOptions doubles = logits.options().dtype(at::kDouble);
  if (!best_there_.defined()) {
    best_there_ = at::full({logits.size(0)}, -INFINITY, doubles);
    sum_there_ = at::zeros({logits.size(0)}, doubles);
    asked_there_ = at::full({static_cast<int64_t>(asked_.size())}, NAN, doubles);
  }
  const at::Tensor best = at::maximum(best_there_, at::amax(logits, {1}).to(at::kDouble));
  const at::Tensor powers = at::exp(at::sub(logits, best.to(at::kFloat).unsqueeze(1)));
  sum_there_ = at::add(at::mul(sum_there_, at::exp(at::sub(best_there_, best))), at::sum(powers, {1}, false, at::kDouble));
  best_there_ = best;
  std::vector<int64_t> asks, places;
  for (size_t i = 0; i < asked_.size(); ++i) {
    const int64_t at = packed_.asks[i].target - first;
    if (at < 0 || at >= logits.size(1)) continue;
    asks.push_back(static_cast<int64_t>(i));
    places.push_back(packed_.asks[i].row * logits.size(1) + at);
  }
  if (asks.empty()) return;
  const auto there = [&](const std::vector<int64_t>& list) { return at::tensor(list, at::kLong).to(logits.device()); };
  asked_there_.index_copy_(0, there(asks), at::index_select(logits.reshape({-1}), 0, there(places)).to(at::kDouble));
}

void Vocabulary::Fetch() const {
  if (!best_there_.defined()) return;
  for (const auto& [from, to] : {std::pair(&best_there_, &best_), {&sum_there_, &sum_}, {&asked_there_, &asked_}}) {
    const at::Tensor here = from->to(at::kCPU);
    to->assign(here.data_ptr<double>(), here.data_ptr<double>() + here.numel());
  }
}

void Vocabulary::Piece(int64_t first, const at::Tensor& given, const at::Tensor& given_tangents) {
  if (enqueues_) return PieceThere(first, given);
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
  Fetch();
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
