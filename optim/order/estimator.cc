#include "optim/order/estimator.h"

#include <algorithm>

#include "base/status.h"
#include "optim/order/piece_engine.h"
#include "optim/order/product_engine.h"

namespace optod::order {
namespace {

template <typename T>
class Engine {
 public:
  explicit Engine(const Recorded& recorded)
      : r_(recorded),
        cache_(*r_.terms, Budget()),
        pieces_(recorded, cache_),
        products_(recorded, cache_, r_.options->memory_budget / 2) {}

  absl::Status Run(std::span<const Order> orders, const EstimateOptions& options, const Estimator::Sink& sink,
                   const Control& control) {
    ASSIGN_OR_RETURN(const Plan plan, MakePlan(r_, options));
    if (orders.empty()) return absl::OkStatus();
    return plan.product ? products_.Run(orders, plan, sink, control) : pieces_.Run(orders, plan, sink, control);
  }

  absl::StatusOr<std::vector<std::vector<double>>> Path(const Order& order, const EstimateOptions& options) {
    ASSIGN_OR_RETURN(const Plan plan, MakePlan(r_, options));
    std::vector<std::vector<double>> path;
    for (int t = 0; t <= r_.trajectory->positions(); ++t) path.push_back(r_.trajectory->Row(t));
    RETURN_IF_ERROR(products_.Follow(std::span(&order, 1), plan, [&](size_t, int t, std::span<const double> d) {
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
    RETURN_IF_ERROR(products_.Follow(std::span(&order, 1), plan, [&](size_t, int t, std::span<const double> d) {
      const bool zero = std::all_of(d.begin(), d.end(), [](double x) { return x == 0.0; });
      if (t == r_.trajectory->positions() || zero) return;
      double coverage = 0.0;
      solver.Solve(t, d, &coverage);
      sum += coverage;
      ++counted;
    }));
    return counted > 0 ? sum / counted : 1.0;
  }

  absl::StatusOr<double> Trust() { return products_.Trust(); }

  absl::StatusOr<std::vector<double>> OfProbe(int k, const EstimateOptions& options) {
    ASSIGN_OR_RETURN(Plan plan, MakePlan(r_, options));
    plan.left_out = k;
    std::vector<double> end(r_.trajectory->n());
    RETURN_IF_ERROR(products_.Follow(std::span(&(*r_.probe_orders)[static_cast<size_t>(k)], 1), plan,
                                     [&](size_t, int t, std::span<const double> d) {
                                       if (t == r_.trajectory->positions()) end.assign(d.begin(), d.end());
                                     }));
    return end;
  }

 private:
  int64_t Budget() const { return r_.options->memory_budget / (r_.probes != nullptr ? 2 : 1); }

  const Recorded r_;
  CellCache<T> cache_;
  PieceEngine<T> pieces_;
  ProductEngine<T> products_;
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

absl::StatusOr<double> Estimator::Trust() { return impl_->wide ? impl_->wide->Trust() : impl_->narrow->Trust(); }

absl::StatusOr<std::vector<double>> Estimator::OfProbe(int k, const EstimateOptions& options) {
  return impl_->wide ? impl_->wide->OfProbe(k, options) : impl_->narrow->OfProbe(k, options);
}

}  // namespace optod::order
