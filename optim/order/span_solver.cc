#include "optim/order/span_solver.h"

#include <algorithm>
#include <cmath>

#include "optim/order/codec.h"

namespace optod::order {
namespace {

double Dot(const double* a, const double* b, size_t n) {
  double lanes[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (; i < n; ++i) lanes[i % 8] += a[i] * b[i];
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

SpanSolver::SpanSolver(const Trajectory& trajectory, double ridge)
    : trajectory_(trajectory),
      ridge_(ridge),
      gram0_(trajectory.positions() * trajectory.positions(), 0.0),
      factors_(trajectory.positions()) {
  const int positions = trajectory.positions();
  std::vector<std::vector<double>> pieces(positions, std::vector<double>(kPageElements));
  std::vector<double> origin(kPageElements);
  for (size_t begin = 0; begin < trajectory.n(); begin += kPageElements) {
    const size_t count = std::min(kPageElements, trajectory.n() - begin);
    trajectory.Read(0, begin, std::span(origin).first(count));
    for (int s = 0; s < positions; ++s) {
      trajectory.Read(s, begin, std::span(pieces[s]).first(count));
      for (size_t i = 0; i < count; ++i) pieces[s][i] -= origin[i];
      for (int r = 0; r <= s; ++r) {
        gram0_[s * positions + r] += Dot(pieces[s].data(), pieces[r].data(), count);
      }
    }
  }
  for (int s = 0; s < positions; ++s) {
    for (int r = 0; r < s; ++r) gram0_[r * positions + s] = gram0_[s * positions + r];
  }
}

const SpanSolver::Factor& SpanSolver::FactorOf(int t) const {
  const std::lock_guard lock(mutex_);
  if (factors_[t] != nullptr) return *factors_[t];
  const int size = trajectory_.positions();
  const auto k = [&](int s, int r) { return gram0_[s * size + r]; };
  auto factor = std::make_unique<Factor>();
  factor->gram.resize(gram0_.size());
  for (int s = 0; s < size; ++s) {
    for (int r = 0; r < size; ++r) factor->gram[s * size + r] = k(s, r) - k(s, t) - k(t, r) + k(t, t);
  }
  factor->ridge = std::make_unique<RidgeFactor>(factor->gram, size, ridge_, /*left_out=*/t);
  factors_[t] = std::move(factor);
  return *factors_[t];
}

std::vector<double> SpanSolver::Solve(int t, std::span<const double> d, double* coverage) const {
  const int size = trajectory_.positions();
  std::vector<double> right(size, 0.0), here(kPageElements), other(kPageElements);
  double norm = 0.0;
  for (size_t begin = 0; begin < d.size(); begin += kPageElements) {
    const size_t count = std::min(kPageElements, d.size() - begin);
    trajectory_.Read(t, begin, std::span(here).first(count));
    norm += Dot(d.data() + begin, d.data() + begin, count);
    for (int s = 0; s < size; ++s) {
      if (s == t) continue;
      trajectory_.Read(s, begin, std::span(other).first(count));
      for (size_t i = 0; i < count; ++i) other[i] -= here[i];
      right[s] += Dot(d.data() + begin, other.data(), count);
    }
  }
  const Factor& factor = FactorOf(t);
  const std::vector<double> c = factor.ridge->Solve(right);
  if (coverage != nullptr) {
    double inner = 0.0, square = 0.0;  // |d - Dc|^2 = |d|^2 - 2 c'b + c'Gc
    for (int s = 0; s < size; ++s) {
      inner += c[s] * right[s];
      for (int r = 0; r < size; ++r) square += c[s] * factor.gram[s * size + r] * c[r];
    }
    *coverage = norm > 0.0 ? std::clamp((2.0 * inner - square) / norm, 0.0, 1.0) : 1.0;
  }
  return c;
}

}  // namespace optod::order
