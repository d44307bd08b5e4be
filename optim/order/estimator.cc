#include "optim/order/estimator.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "base/status.h"
#include "optim/order/cell_cache.h"
#include "optim/order/kernels.h"
#include "optim/order/span_solver.h"

namespace optod::order {
namespace {

constexpr size_t kPiece = 512;  // parameters that go through all positions together: their state stays in L1
constexpr size_t kGroup = 64;   // orders that share the reference's directions of a piece

struct Plan {
  bool product = false;  // H d by hvp or span
  bool held = false;     // the reference's moments
  int records = 1;       // read for the estimated run
};

absl::StatusOr<Plan> MakePlan(const Recorded& r, const EstimateOptions& options) {
  const Curvature curvature = r.options->curvature;
  const int stored = curvature == Curvature::kNone ? 0 : r.options->second_order ? 2 : 1;
  if (options.expansion < -1 || options.expansion > 2) {
    return InvalidArgument("expansion: ", options.expansion, "; must be 0, 1, 2 or -1 (the most that is stored)");
  }
  const int expansion = options.expansion < 0 ? stored : options.expansion;
  if (expansion > stored) {
    return FailedPrecondition("expansion: ", expansion, " was asked; curvature ", NameOf(curvature),
                              r.options->second_order ? " with" : " without", " second_order gives at most ", stored);
  }
  Plan plan;
  plan.product = expansion > 0 && (curvature == Curvature::kHvp || curvature == Curvature::kSpan);
  plan.held = options.moments == Moments::kReference;
  plan.records = plan.product ? 1 : 1 + expansion;
  if (plan.product && curvature == Curvature::kHvp && r.model == nullptr) {
    return FailedPrecondition("curvature: hvp takes products of the model, which is not there");
  }
  return plan;
}

template <typename T>
void Advance(const kernels::Step& step, const kernels::Piece<T>& piece, size_t n) {
  if constexpr (std::is_same_v<T, float>) {
    kernels::Best().advance_float(step, piece, n);
  } else {
    kernels::Best().advance_double(step, piece, n);
  }
}
template <typename T>
void Direct(const kernels::Step& step, const T* g, const T* theta, T* m, T* v, T* direction, size_t n) {
  if constexpr (std::is_same_v<T, float>) {
    kernels::Best().direct_float(step, g, theta, m, v, direction, n);
  } else {
    kernels::Best().direct_double(step, g, theta, m, v, direction, n);
  }
}

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
class Engine {
 public:
  explicit Engine(const Recorded& recorded) : r_(recorded), cache_(*r_.terms, r_.options->memory_budget) {
    for (int t = 0; t < positions(); ++t) steps_.push_back(kernels::MakeStep(r_.options->optimizer, (*r_.lr)[t], t));
    decays_ = r_.options->optimizer.weight_decay > 0.0 && !r_.options->optimizer.decoupled;
    if (r_.options->curvature == Curvature::kSpan) {
      solver_ = std::make_unique<SpanSolver>(*r_.trajectory, r_.options->span_ridge);
    }
  }

  absl::Status Run(std::span<const Order> orders, const EstimateOptions& options, const Estimator::Sink& sink,
                   const Control& control) {
    ASSIGN_OR_RETURN(const Plan plan, MakePlan(r_, options));
    if (orders.empty()) return absl::OkStatus();
    return plan.product ? RunProducts(orders, plan, sink, control) : RunPieces(orders, plan, sink, control);
  }

  absl::StatusOr<std::vector<std::vector<double>>> Path(const Order& order, const EstimateOptions& options) {
    ASSIGN_OR_RETURN(const Plan plan, MakePlan(r_, options));
    std::vector<std::vector<double>> path;
    for (int t = 0; t <= positions(); ++t) path.push_back(r_.trajectory->Row(t));
    RETURN_IF_ERROR(RunWhole(order, plan, [&](int t, std::span<const double> d) {
      for (size_t i = 0; i < d.size(); ++i) {
        if (d[i] != 0.0) path[t][i] += d[i];  // adding 0 would turn -0 into +0
      }
    }));
    return path;
  }

  absl::StatusOr<double> Coverage(const Order& order, const EstimateOptions& options) {
    ASSIGN_OR_RETURN(const Plan plan, MakePlan(r_, options));
    const SpanSolver solver(*r_.trajectory, r_.options->span_ridge);
    double sum = 0.0;
    int counted = 0;
    RETURN_IF_ERROR(RunWhole(order, plan, [&](int t, std::span<const double> d) {
      if (t == positions() || std::all_of(d.begin(), d.end(), [](double x) { return x == 0.0; })) return;
      double coverage = 0.0;
      solver.Solve(t, d, &coverage);
      sum += coverage;
      ++counted;
    }));
    return counted > 0 ? sum / counted : 1.0;
  }

 private:
  int positions() const { return r_.trajectory->positions(); }
  int batches() const { return r_.terms->layout().batches; }
  size_t n() const { return r_.trajectory->n(); }

  // ---- element-wise: pieces of parameters, groups of orders

  /// For each position the batches whose terms are needed; the first record of the reference's own batch always is.
  std::vector<std::set<int>> Needed(std::span<const Order> orders) const {
    std::vector<std::set<int>> needed(positions());
    for (const Order& order : orders) {
      for (int t = 0; t < positions(); ++t) needed[t].insert(order[t]);
    }
    return needed;
  }

  absl::Status CheckFilled(const std::vector<std::set<int>>& needed) const {
    for (int t = 0; t < positions(); ++t) {
      for (const int l : needed[t]) RETURN_IF_ERROR(CheckFilled(t, l));
      RETURN_IF_ERROR(CheckFilled(t, (*r_.reference_order)[t]));
    }
    return absl::OkStatus();
  }
  absl::Status CheckFilled(int t, int l) const {
    if (r_.terms->Has(t, l)) return absl::OkStatus();
    return FailedPrecondition("terms[", t, "][", l, "]: missing; ", r_.terms->filled(), " of ",
                              r_.terms->layout().segments(), " files are filled: precompute first");
  }

  absl::Status RunPieces(std::span<const Order> orders, const Plan& plan, const Estimator::Sink& sink,
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
  /// Numbers as the world outside sees them; valid until the next call of this thread.
  static std::span<const double> Wide(const std::vector<T>& values) {
    if constexpr (std::is_same_v<T, double>) {
      return values;
    } else {
      thread_local std::vector<double> wide;
      wide.assign(values.begin(), values.end());
      return wide;
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

  // ---- by products: whole vectors, one order a thread

  absl::Status RunProducts(std::span<const Order> orders, const Plan& plan, const Estimator::Sink& sink,
                           const Control& control) {
    RETURN_IF_ERROR(CheckFilled(Needed(orders)));
    int threads = ThreadCount(r_.options->threads);
    if (r_.options->curvature == Curvature::kHvp) threads = std::min(threads, r_.model->concurrency());
    std::mutex mutex;
    int64_t done = 0;
    const auto begun = std::chrono::steady_clock::now();
    return ParallelFor(
        threads, static_cast<int64_t>(orders.size()),
        [&](int64_t i) -> absl::Status {
          RETURN_IF_ERROR(RunWhole(orders[i], plan, [&](int t, std::span<const double> d) {
            if (t == positions()) sink(i, 0, d);
          }));
          const std::lock_guard lock(mutex);
          ++done;
          if (control.progress) {
            control.progress(done, static_cast<int64_t>(orders.size()),
                             std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
          }
          return absl::OkStatus();
        },
        control.stop);
  }

  /// One order over whole vectors; `visit(t, d)` for t = 0 .. P.
  absl::Status RunWhole(const Order& order, const Plan& plan,
                        const std::function<void(int, std::span<const double>)>& visit) {
    RETURN_IF_ERROR(CheckFilled(Needed(std::span(&order, 1))));
    std::vector<T> along_m(n()), along_v(n()), held_m, held_v, m(n()), v(n()), d(n()), direction(n()), product;
    visit(0, Wide(d));
    for (int t = 0; t < positions(); ++t) {
      const std::vector<double> wide_theta = r_.trajectory->Row(t);
      const std::vector<T> theta(wide_theta.begin(), wide_theta.end());
      if (plan.held) held_m = along_m, held_v = along_v;
      ASSIGN_OR_RETURN(const auto own, cache_.Get(kGradient, t, (*r_.reference_order)[t]));
      Direct(steps_[t], own->data(), theta.data(), along_m.data(), along_v.data(), direction.data(), n());
      kernels::Piece<T> piece;
      std::vector<std::shared_ptr<const std::vector<T>>> terms;
      for (int record = 0; record < plan.records; ++record) {
        ASSIGN_OR_RETURN(terms.emplace_back(), cache_.Get(static_cast<Record>(record), t, order[t]));
      }
      piece.g = terms[0]->data();
      if (plan.records > 1) piece.h = terms[1]->data();
      if (plan.records > 2) piece.q = terms[2]->data();
      if (plan.product) {
        ASSIGN_OR_RETURN(const std::vector<double> wide,
                         Product(t, order[t], wide_theta, std::vector<double>(d.begin(), d.end())));
        product.assign(wide.begin(), wide.end());
        piece.product = product.data();
      }
      piece.theta = theta.data();
      piece.direction = direction.data();
      if (plan.held) piece.m_reference = held_m.data(), piece.v_reference = held_v.data();
      piece.m = m.data(), piece.v = v.data(), piece.d = d.data();
      piece.cap = r_.cap;
      Advance(steps_[t], piece, n());
      visit(t + 1, Wide(d));
    }
    return absl::OkStatus();
  }

  /// H(theta_t, B_l) d.
  absl::StatusOr<std::vector<double>> Product(int t, int l, const std::vector<double>& theta,
                                              const std::vector<double>& d) {
    std::vector<double> product(n(), 0.0);
    if (std::all_of(d.begin(), d.end(), [](double x) { return x == 0.0; })) return product;
    if (r_.options->curvature == Curvature::kHvp) {
      RETURN_IF_ERROR(r_.model->HessianVector(Batch(l), theta, d, product));
      return product;
    }
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
    return product;
  }

  const Recorded r_;
  CellCache<T> cache_;
  std::vector<kernels::Step> steps_;
  bool decays_ = false;
  std::mutex along_mutex_;
  std::map<size_t, std::shared_ptr<const Along>> along_;  // by the piece's first parameter
  std::unique_ptr<SpanSolver> solver_;
};

}  // namespace

/// One of the two: float when every stored number fits one.
struct Estimator::Impl {
  std::unique_ptr<Engine<float>> narrow;
  std::unique_ptr<Engine<double>> wide;
};

Estimator::Estimator(const Recorded& recorded) : impl_(std::make_unique<Impl>()) {
  const Codec& codec = recorded.terms->layout().codec;
  if (codec.lossless() && codec.precision == Precision::kFloat64) {
    impl_->wide = std::make_unique<Engine<double>>(recorded);
  } else {
    impl_->narrow = std::make_unique<Engine<float>>(recorded);
  }
}
Estimator::~Estimator() = default;

absl::Status Estimator::Deviations(std::span<const Order> orders, const EstimateOptions& options, const Sink& sink,
                                   const Control& control) {
  return impl_->wide ? impl_->wide->Run(orders, options, sink, control)
                     : impl_->narrow->Run(orders, options, sink, control);
}

absl::StatusOr<std::vector<std::vector<double>>> Estimator::Path(const Order& order, const EstimateOptions& options) {
  return impl_->wide ? impl_->wide->Path(order, options) : impl_->narrow->Path(order, options);
}

absl::StatusOr<double> Estimator::SpanCoverage(const Order& order, const EstimateOptions& options) {
  return impl_->wide ? impl_->wide->Coverage(order, options) : impl_->narrow->Coverage(order, options);
}

}  // namespace optod::order
