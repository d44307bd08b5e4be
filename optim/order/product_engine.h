#pragma once
/// The estimate where H d needs whole vectors (curvature hvp, span, and everything with probe runs; internal to
/// estimator.cc): an order, or with probe runs a group of them, goes through the positions one after the other.

#include <algorithm>
#include <chrono>
#include <optional>

#include "optim/order/engine.h"
#include "optim/order/multisecant.h"
#include "optim/order/span_solver.h"

namespace optod::order {

template <typename T>
class ProductEngine : protected EngineBase<T> {
 public:
  ProductEngine(const Recorded& recorded, CellCache<T>& cache, int64_t probe_budget)
      : EngineBase<T>(recorded, cache), probe_budget_(probe_budget) {
    if (r_.options->curvature == Curvature::kSpan)
      solver_ = std::make_unique<SpanSolver>(*r_.trajectory, r_.options->span_ridge);
    if (r_.probes != nullptr)
      multisecant_ = std::make_unique<Multisecant<T>>(*r_.probes, r_.options->probe_ridge, probe_budget);
  }

  absl::Status Run(std::span<const Order> orders, const Plan& plan, const Estimator::Sink& sink,
                   const Control& control) {
    RETURN_IF_ERROR(CheckFilled(Needed(orders)));
    int threads = ThreadCount(r_.options->threads);
    if (r_.options->curvature == Curvature::kHvp) threads = std::min(threads, r_.model->concurrency());
    const size_t together = Together(orders.size(), threads), groups = (orders.size() + together - 1) / together;
    std::mutex mutex;
    int64_t done = 0;
    const auto begun = std::chrono::steady_clock::now();
    return ParallelFor(
        threads, static_cast<int64_t>(groups),
        [&](int64_t group) -> absl::Status {
          const size_t first = static_cast<size_t>(group) * together;
          const std::span<const Order> some = orders.subspan(first, std::min(together, orders.size() - first));
          RETURN_IF_ERROR(Follow(some, plan, [&](size_t i, int t, std::span<const double> d) {
            if (t == positions()) sink(first + i, 0, d);
          }));
          const std::lock_guard lock(mutex);
          done += static_cast<int64_t>(some.size());
          if (control.progress) {
            control.progress(done, static_cast<int64_t>(orders.size()),
                             std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
          }
          return absl::OkStatus();
        },
        control.stop);
  }

  /// `visit(i, t, d)` for every order i and t = 0 .. P.
  using Visit = std::function<void(size_t i, int t, std::span<const double> d)>;
  absl::Status Follow(std::span<const Order> orders, const Plan& plan, const Visit& visit) {
    RETURN_IF_ERROR(CheckFilled(Needed(orders)));
    std::vector<State> states(orders.size());
    for (size_t i = 0; i < orders.size(); ++i) {
      for (auto* values : {&states[i].m, &states[i].v, &states[i].d, &states[i].product}) values->resize(n());
      visit(i, 0, Wide(states[i].d));
    }
    std::vector<T> along_m(n()), along_v(n()), held_m, held_v, direction(n());
    for (int t = 0; t < positions(); ++t) {
      const std::vector<double> wide_theta = r_.trajectory->Row(t);
      const std::vector<T> theta(wide_theta.begin(), wide_theta.end());
      if (plan.held) held_m = along_m, held_v = along_v;
      ASSIGN_OR_RETURN(const auto own, cache_.Get(kGradient, t, (*r_.reference_order)[t]));
      Direct(steps_[t], own->data(), theta.data(), along_m.data(), along_v.data(), direction.data(), n());
      for (size_t i = 0; i < orders.size(); ++i) {
        RETURN_IF_ERROR(Read(t, orders[i][t], plan.records, &states[i]));
      }
      if (plan.product) RETURN_IF_ERROR(Products(t, orders, plan, wide_theta, states));
      for (size_t i = 0; i < orders.size(); ++i) {
        kernels::Piece<T> piece = PieceOf(plan, &states[i]);
        piece.theta = theta.data();
        piece.direction = direction.data();
        if (plan.held) piece.m_reference = held_m.data(), piece.v_reference = held_v.data();
        Advance(steps_[t], piece, n());
        visit(i, t + 1, Wide(states[i].d));
      }
    }
    return absl::OkStatus();
  }

  /// What `rest` deserves: see estimator.h.
  absl::StatusOr<double> Trust() {
    const std::lock_guard lock(trust_mutex_);
    if (!trust_) {
      ASSIGN_OR_RETURN(trust_, MeasureTrust());
    }
    return *trust_;
  }

 private:
  using Base = EngineBase<T>;
  using Base::cache_, Base::CheckFilled, Base::n, Base::Needed, Base::positions, Base::r_, Base::steps_, Base::Wide;

  static constexpr size_t kTogether = 16;  // orders that share a pass over the probe runs
  static constexpr int kTrusted = 4;       // runs that trust is measured on

  struct State {
    std::vector<T> m, v, d, product;
    std::vector<std::shared_ptr<const std::vector<T>>> terms;  // of the position at hand
  };

  /// Orders of a group: as many as a quarter of the memory budget holds, and enough groups for the threads.
  size_t Together(size_t orders, int threads) const {
    if (multisecant_ == nullptr) return 1;
    const auto bytes = static_cast<int64_t>(4 * n() * sizeof(T));
    const auto fit = static_cast<size_t>(std::max<int64_t>(r_.options->memory_budget / 4 / threads / bytes, 1));
    return std::clamp<size_t>((orders + threads - 1) / threads, 1, std::min(kTogether, fit));
  }

  absl::Status Read(int t, int l, int records, State* state) {
    state->terms.clear();
    for (int record = 0; record < records; ++record) {
      ASSIGN_OR_RETURN(state->terms.emplace_back(), cache_.Get(static_cast<Record>(record), t, l));
    }
    return absl::OkStatus();
  }

  kernels::Piece<T> PieceOf(const Plan& plan, State* state) const {
    kernels::Piece<T> piece;
    piece.g = state->terms[0]->data();
    if (plan.product) {
      piece.product = state->product.data();
    } else {
      if (plan.records > 1) piece.h = state->terms[1]->data();
      if (plan.records > 2) piece.q = state->terms[2]->data();
    }
    piece.m = state->m.data(), piece.v = state->v.data(), piece.d = state->d.data();
    piece.cap = r_.cap;
    return piece;
  }

  static bool Zero(const std::vector<T>& d) {
    return std::all_of(d.begin(), d.end(), [](T x) { return x == T{0}; });
  }

  /// states[i].product = H(theta_t, B_l) d of every order.
  absl::Status Products(int t, std::span<const Order> orders, const Plan& plan, const std::vector<double>& theta,
                        std::span<State> states) {
    if (multisecant_ != nullptr) return FromProbes(t, orders, plan, states);
    for (size_t i = 0; i < states.size(); ++i) {
      std::fill(states[i].product.begin(), states[i].product.end(), T{0});
      if (Zero(states[i].d)) continue;
      const std::vector<double> d(states[i].d.begin(), states[i].d.end());
      std::vector<double> product(n());
      if (r_.options->curvature == Curvature::kHvp) {
        RETURN_IF_ERROR(r_.model->HessianVector(Batch(orders[i][t]), theta, d, product));
      } else {
        RETURN_IF_ERROR(OverSpan(t, orders[i][t], d, product));
      }
      states[i].product.assign(product.begin(), product.end());
    }
    return absl::OkStatus();
  }

  /// Curvature span: sum_s c_s (g(theta_s, B_l) - g(theta_t, B_l)).
  absl::Status OverSpan(int t, int l, std::span<const double> d, std::vector<double>& product) {
    std::fill(product.begin(), product.end(), 0.0);
    const std::vector<double> c = solver_->Solve(t, d);
    double total = 0.0;
    for (int s = 0; s < positions(); ++s) {
      if (c[s] == 0.0) continue;
      ASSIGN_OR_RETURN(const auto g, cache_.Get(kGradient, s, l));
      for (size_t i = 0; i < n(); ++i) product[i] += c[s] * static_cast<double>((*g)[i]);
      total += c[s];
    }
    ASSIGN_OR_RETURN(const auto g, cache_.Get(kGradient, t, l));
    for (size_t i = 0; i < n(); ++i) product[i] -= total * static_cast<double>((*g)[i]);
    return absl::OkStatus();
  }

  // ---- probe runs

  absl::StatusOr<typename Multisecant<T>::Position> Probes(int t) {
    const auto bytes = static_cast<int64_t>(2 * n() * sizeof(T)) * multisecant_->runs();
    if (bytes > probe_budget_)
      return ResourceExhausted("memory_budget: ", r_.options->memory_budget, " bytes, half of it for probe runs; the ",
                               multisecant_->runs(), " runs take ", bytes,
                               " at one position; raise it or record fewer probe_runs");
    return multisecant_->At(t);
  }

  absl::Status FromProbes(int t, std::span<const Order> orders, const Plan& plan, std::span<State> states) {
    constexpr size_t kPiece = Multisecant<T>::kPiece;
    ASSIGN_OR_RETURN(const auto probes, Probes(t));
    ASSIGN_OR_RETURN(const double measured, r_.options->curvature == Curvature::kMultisecant ? 0.0 : Trust());
    const auto trust = static_cast<T>(measured);
    std::vector<const T*> d;
    for (const State& state : states) d.push_back(state.d.data());
    std::vector<std::vector<T>> fits = probes.Fit(d, plan.left_out);
    for (size_t begin = 0; begin < n(); begin += kPiece) {
      const size_t count = std::min(kPiece, n() - begin);
      for (size_t i = 0; i < states.size(); ++i) {
        probes.Change(fits[i], begin, count, states[i].product.data() + begin);
        if (trust > T{0} && plan.records > 1) AddDiagonal(probes, fits[i], trust, begin, count, &states[i]);
      }
    }
    if (trust > T{0} && r_.options->curvature == Curvature::kSpan) {
      for (size_t i = 0; i < states.size(); ++i) {
        if (!Zero(states[i].d)) RETURN_IF_ERROR(AddSpan(probes, t, orders[i][t], fits[i], measured, &states[i]));
      }
    }
    return absl::OkStatus();
  }

  /// What the runs do not span, by the diagonal.
  void AddDiagonal(const typename Multisecant<T>::Position& probes, const std::vector<T>& fit, T trust, size_t begin,
                   size_t count, State* state) const {
    T fitted[Multisecant<T>::kPiece];
    probes.Fitted(fit, begin, count, fitted);
    const T* h = state->terms[1]->data() + begin;
    const T* q = state->terms.size() > 2 ? state->terms[2]->data() + begin : nullptr;
    const T cap = static_cast<T>(r_.cap);
    for (size_t j = 0; j < count; ++j) {
      const T rest = state->d[begin + j] - fitted[j];
      const T slope = q == nullptr ? h[j] : std::clamp(h[j] + T{0.5} * q[j] * rest, -cap, cap);
      state->product[begin + j] += trust * slope * rest;
    }
  }

  absl::Status AddSpan(const typename Multisecant<T>::Position& probes, int t, int l, const std::vector<T>& fit,
                       double trust, State* state) {
    std::vector<T> fitted(n());
    probes.Fitted(fit, 0, n(), fitted.data());
    std::vector<double> rest(n()), product(n());
    for (size_t j = 0; j < n(); ++j) rest[j] = static_cast<double>(state->d[j]) - static_cast<double>(fitted[j]);
    RETURN_IF_ERROR(OverSpan(t, l, rest, product));
    for (size_t j = 0; j < n(); ++j) state->product[j] += static_cast<T>(trust * product[j]);
    return absl::OkStatus();
  }

  // ---- trust: every fourth or so run left out, and what the other curvature says of its rest beside what is true

  absl::StatusOr<double> MeasureTrust() {
    double both = 0.0, square = 0.0;
    const int runs = multisecant_->runs();
    for (int t = 1; t < positions(); ++t) {
      ASSIGN_OR_RETURN(const auto probes, Probes(t));
      for (int j = 0; j < std::min(kTrusted, runs); ++j) {
        RETURN_IF_ERROR(LeaveOut(probes, t, j * runs / std::min(kTrusted, runs), &both, &square));
      }
    }
    return square > 0.0 ? std::clamp(both / square, 0.0, 1.0) : 0.0;
  }

  /// Adds <predicted, true> and |predicted|^2 of run k's rest, in units of the gradient's square.
  absl::Status LeaveOut(const typename Multisecant<T>::Position& probes, int t, int k, double* both, double* square) {
    const int l = (*r_.probe_orders)[static_cast<size_t>(k)][static_cast<size_t>(t)];
    const T* own = probes.s(k);
    const std::vector<T> fit = probes.Fit(std::span(&own, 1), k)[0];
    std::vector<T> fitted(n()), change(n());
    probes.Fitted(fit, 0, n(), fitted.data());
    probes.Change(fit, 0, n(), change.data());
    std::vector<double> rest(n()), predicted(n());
    for (size_t i = 0; i < n(); ++i) rest[i] = static_cast<double>(probes.s(k)[i]) - static_cast<double>(fitted[i]);
    if (r_.options->curvature == Curvature::kSpan) {
      RETURN_IF_ERROR(OverSpan(t, l, rest, predicted));
    } else {
      ASSIGN_OR_RETURN(const auto h, cache_.Get(kCurvature, t, l));
      for (size_t i = 0; i < n(); ++i) predicted[i] = static_cast<double>((*h)[i]) * rest[i];
    }
    ASSIGN_OR_RETURN(const auto g, cache_.Get(kGradient, t, l));
    double inner = 0.0, norm = 0.0, gradient = 0.0;
    for (size_t i = 0; i < n(); ++i) {
      inner += predicted[i] * (static_cast<double>(probes.y(k)[i]) - static_cast<double>(change[i]));
      norm += predicted[i] * predicted[i];
      gradient += static_cast<double>((*g)[i]) * static_cast<double>((*g)[i]);
    }
    if (gradient > 0.0) *both += inner / gradient, *square += norm / gradient;
    return absl::OkStatus();
  }

  const int64_t probe_budget_;
  std::unique_ptr<SpanSolver> solver_;
  std::unique_ptr<Multisecant<T>> multisecant_;
  std::mutex trust_mutex_;
  std::optional<double> trust_;
};

}  // namespace optod::order
