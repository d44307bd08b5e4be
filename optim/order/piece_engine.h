#pragma once
/// The estimate where the correction is element by element (curvature none, diag, secant; internal to estimator.cc):
/// pieces of parameters go through all positions of a group of orders while their terms are in cache.

#include <algorithm>
#include <chrono>
#include <map>

#include "optim/order/engine.h"

namespace optod::order {

constexpr size_t kPiece = 512;  // parameters that go through all positions together: their state stays in L1
constexpr size_t kGroup = 64;   // orders that share the reference's directions of a piece

/// Terms of the parameters [begin, end) that a call needs, indexed by (record, position, batch).
template <typename T>
struct View {
  size_t begin = 0, end = 0;
  std::vector<std::shared_ptr<const std::vector<T>>> owners;  // null: not needed
  size_t origin = 0;                                          // parameter at an owner's index 0
  int positions = 0, batches = 0;

  const T* At(int record, int t, int l, size_t parameter) const {
    return owners[(static_cast<size_t>(record) * positions + t) * batches + l]->data() + (parameter - origin);
  }
};

template <typename T>
class PieceEngine : protected EngineBase<T> {
 public:
  using EngineBase<T>::EngineBase;

  absl::Status Run(std::span<const Order> orders, const Plan& plan, const Estimator::Sink& sink,
                   const Control& control) {
    const std::vector<std::set<int>> needed = Needed(orders);
    RETURN_IF_ERROR(CheckFilled(needed));
    int64_t cells = 0;
    for (const auto& batches : needed) cells += static_cast<int64_t>(batches.size()) * plan.records + 1;
    size_t tile = n();
    const bool resident = cells <= cache_.capacity();
    if (!resident) {
      tile = static_cast<size_t>(r_.options->memory_budget / (cells * static_cast<int64_t>(sizeof(T))));
      tile = tile / kPageElements * kPageElements;
      if (tile == 0) {
        return ResourceExhausted("memory_budget: ", r_.options->memory_budget, " bytes; one page of the ", cells,
                                 " terms needed takes ", cells * static_cast<int64_t>(sizeof(T) * kPageElements),
                                 "; estimate fewer orders at once or raise it");
      }
      cache_.Clear();
    }
    const size_t groups = (orders.size() + kGroup - 1) / kGroup;
    const auto begun = std::chrono::steady_clock::now();
    for (size_t begin = 0; begin < n(); begin += tile) {
      ASSIGN_OR_RETURN(const View<T> view, Load(needed, plan, begin, std::min(begin + tile, n()), resident, control));
      const size_t pieces = (view.end - view.begin + kPiece - 1) / kPiece;
      RETURN_IF_ERROR(ParallelFor(
          ThreadCount(r_.options->threads), static_cast<int64_t>(pieces * groups),
          [&](int64_t item) -> absl::Status {
            const size_t first = item % groups * kGroup, at = view.begin + item / groups * kPiece;
            OnePiece(view, orders.subspan(first, std::min(kGroup, orders.size() - first)), first, at,
                     std::min(kPiece, view.end - at), plan, sink);
            return absl::OkStatus();
          },
          control.stop));
      if (control.progress) {
        control.progress(static_cast<int64_t>(view.end), static_cast<int64_t>(n()),
                         std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
      }
    }
    return absl::OkStatus();
  }

 private:
  using Base = EngineBase<T>;
  using Base::batches, Base::cache_, Base::CheckFilled, Base::decays_, Base::n, Base::Needed, Base::positions, Base::r_,
      Base::steps_, Base::Wide;

  absl::StatusOr<View<T>> Load(const std::vector<std::set<int>>& needed, const Plan& plan, size_t begin, size_t end,
                               bool resident, const Control& control) {
    View<T> view{begin, end, {}, resident ? 0 : begin, positions(), batches()};
    view.owners.resize(static_cast<size_t>(plan.records) * positions() * batches());
    struct Want {
      int record, t, l;
    };
    std::vector<Want> wants;
    for (int t = 0; t < positions(); ++t) {
      std::set<int> gradients = needed[t];
      gradients.insert((*r_.reference_order)[t]);
      for (const int l : gradients) wants.push_back({kGradient, t, l});
      for (int record = 1; record < plan.records; ++record) {
        for (const int l : needed[t]) wants.push_back({record, t, l});
      }
    }
    RETURN_IF_ERROR(ParallelFor(
        ThreadCount(r_.options->threads), static_cast<int64_t>(wants.size()),
        [&](int64_t i) -> absl::Status {
          const Want& w = wants[i];
          auto& owner = view.owners[(static_cast<size_t>(w.record) * positions() + w.t) * batches() + w.l];
          if (resident) {
            ASSIGN_OR_RETURN(owner, cache_.Get(static_cast<Record>(w.record), w.t, w.l));
            return absl::OkStatus();
          }
          ASSIGN_OR_RETURN(std::vector<T> values,
                           CellCache<T>::Load(*r_.terms, static_cast<Record>(w.record), w.t, w.l, begin, end - begin));
          owner = std::make_shared<const std::vector<T>>(std::move(values));
          return absl::OkStatus();
        },
        control.stop));
    return view;
  }

  /// The reference's directions (and moments) along all positions for one piece of the parameters.
  struct Along {
    std::vector<T> theta, direction, m, v;  // [P][count]; m and v before each position, when held
  };

  /// The same for any call, so it is kept where a quarter of the memory budget holds all pieces of it.
  std::shared_ptr<const Along> AlongOf(const View<T>& view, size_t at, size_t count, const Plan& plan) {
    const auto bytes = static_cast<int64_t>(static_cast<size_t>(positions()) * n() * sizeof(T) * (decays_ ? 2 : 1));
    if (plan.held || bytes > r_.options->memory_budget / 4)
      return std::make_shared<const Along>(FollowReference(view, at, count, plan));
    {
      const std::lock_guard lock(along_mutex_);
      if (const auto found = along_.find(at); found != along_.end()) return found->second;
    }
    auto made = std::make_shared<const Along>(FollowReference(view, at, count, plan));
    const std::lock_guard lock(along_mutex_);
    return along_.emplace(at, std::move(made)).first->second;
  }

  Along FollowReference(const View<T>& view, size_t at, size_t count, const Plan& plan) const {
    Along along;
    const size_t all = static_cast<size_t>(positions()) * count;
    along.theta.resize(decays_ ? all : count);
    along.direction.resize(all);
    if (plan.held) along.m.resize(all), along.v.resize(all);
    std::vector<T> m(count, T{0}), v(count, T{0});
    std::vector<double> wide(decays_ ? count : 0);
    for (int t = 0; t < positions(); ++t) {
      T* theta = along.theta.data() + (decays_ ? t * count : 0);
      if (decays_) {
        r_.trajectory->Read(t, at, wide);
        std::copy(wide.begin(), wide.end(), theta);
      }
      if (plan.held) {
        std::copy(m.begin(), m.end(), along.m.begin() + static_cast<ptrdiff_t>(t * count));
        std::copy(v.begin(), v.end(), along.v.begin() + static_cast<ptrdiff_t>(t * count));
      }
      Direct(steps_[t], view.At(kGradient, t, (*r_.reference_order)[t], at), theta, m.data(), v.data(),
             along.direction.data() + t * count, count);
    }
    return along;
  }

  void OnePiece(const View<T>& view, std::span<const Order> orders, size_t first, size_t at, size_t count,
                const Plan& plan, const Estimator::Sink& sink) {
    const std::shared_ptr<const Along> kept = AlongOf(view, at, count, plan);
    const Along& along = *kept;
    std::vector<T> m(count), v(count), d(count);
    for (size_t i = 0; i < orders.size(); ++i) {
      for (auto* state : {&m, &v, &d}) std::fill(state->begin(), state->end(), T{0});
      for (int t = 0; t < positions(); ++t) {
        kernels::Piece<T> piece = PieceOf(along, t, count, plan, m, v, d.data());
        piece.g = view.At(kGradient, t, orders[i][t], at);
        if (plan.records > 1) piece.h = view.At(kCurvature, t, orders[i][t], at);
        if (plan.records > 2) piece.q = view.At(kThird, t, orders[i][t], at);
        Advance(steps_[t], piece, count);
      }
      sink(first + i, at, Wide(d));
    }
  }
  kernels::Piece<T> PieceOf(const Along& along, int t, size_t count, const Plan& plan, std::vector<T>& m,
                            std::vector<T>& v, T* d) const {
    kernels::Piece<T> piece;
    piece.theta = along.theta.data() + (decays_ ? t * count : 0);
    piece.direction = along.direction.data() + t * count;
    if (plan.held) piece.m_reference = along.m.data() + t * count, piece.v_reference = along.v.data() + t * count;
    piece.m = m.data();
    piece.v = v.data();
    piece.d = d;
    piece.cap = r_.cap;
    return piece;
  }

  std::mutex along_mutex_;
  std::map<size_t, std::shared_ptr<const Along>> along_;  // by the piece's first parameter
};

}  // namespace optod::order
