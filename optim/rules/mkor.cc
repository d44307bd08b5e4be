// MKOR (Mozaffari et al. 2023, Alg. 1): the inverses of the Kronecker factors of each layer (layer_rule.h) are kept and
// updated by rank 1.
//   a = mean row of the (extended) input, g = mean row of rows * pgrad, entries clipped first; K is A_inv with v = a,
//   or G_inv with v = g, from I. Each update, with K^ = s K + (1 - s) I, w = K^ v, q = v'w:
//     release  first sets K = I; then s = keep, K := K^ - w w' / (1 + q)                                   (the
//     published code) paper    K := gamma K^ + (1 - gamma) / (gamma^2 (1 + gamma (1 - gamma) q)) w w' (Algorithm 1)
//     exact    K := (K^ - (1 - gamma) w w' / (gamma + (1 - gamma) q)) / gamma  = (gamma K^^-1 + (1 - gamma) v v')^-1
//   paper, exact: s = zeta when max|K| > threshold (the stabiliser), else 1. D = G_inv [dW | db] A_inv, rescaled to the
//   gradient's size: release by (|dW| + |db|) / (|D_W| + |D_b|), else by Frobenius norms of the whole. The backend
//   steps on D.
// Statistics may be rows or, to keep a tell O(in + out), the mean vectors a and g themselves. A K that stops being
// finite restarts at I. MKOR-H: the loss l_t = EMA(l, L_t, beta), bias-corrected, is looked at every `window` steps;
// rate r = (l before - l now) / (window max(l, 1e-12)); r < fraction * (largest r so far) in `patience` successive
// windows, from step 2 window on: the backend goes on alone for good. State: A_inv, G_inv, a, g, updates a layer;
// backend/...; MKOR-H: loss_average, loss_before, rate_best, windows_below, loss_steps, switched_at. Figures:
// k_max/<layer>, stabilised/<layer> (0, 1, 2 factors), ratio/<layer>; MKOR-H: switched_at (0 = not yet).
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/rules/blas.h"
#include "optim/rules/factories.h"
#include "optim/rules/layer_rule.h"

namespace optod::optim {
namespace {

class MkorRule : public LayerRule {
 public:
  MkorRule(RuleArgs rule_args, std::unique_ptr<Rule> backend, bool hybrid)
      : LayerRule(std::move(rule_args), std::move(backend)),
        rule_(args().text("rule") == "release" ? Update::kRelease
              : args().text("rule") == "paper" ? Update::kPaper
                                               : Update::kExact),
        inv_freq_(static_cast<int64_t>(args().number("inv_freq"))),
        warmup_(static_cast<int64_t>(args().number("warmup_steps"))),
        hybrid_(hybrid) {
    int64_t widest = 0;
    for (const Layer& layer : layers()) {
      const DType dtype = layer_compute(layer);
      const int64_t in = layer.extended();
      Factors factors;
      factors.a_inv = AddIdentity("A_inv/" + layer.name, dtype, in);
      factors.g_inv = AddIdentity("G_inv/" + layer.name, dtype, layer.out);
      factors.a = AddState("a/" + layer.name, dtype, {in});
      factors.g = AddState("g/" + layer.name, dtype, {layer.out});
      factors.updates = AddState("updates/" + layer.name, DType::kI64, {});
      factors_.push_back(factors);
      widest = std::max({widest, in, layer.out});
    }
    w_ = Buffer(widest * sizeof(double));
    if (hybrid_) {
      for (const char* name : {"loss_average", "loss_before", "rate_best"})
        losses_.push_back(AddState(name, DType::kF64, {}));
      for (const char* name : {"loss_steps", "windows_below", "switched_at"})
        counts_.push_back(AddState(name, DType::kI64, {}));
    }
  }

 protected:
  bool FactorsDue(int64_t t) const override { return t <= warmup_ || (t - 1) % inv_freq_ == 0; }
  bool TakesMeans() const override { return true; }
  bool Active() const override { return !hybrid_ || Count(kSwitchedAt) == 0; }

  absl::Status Check(const StepInput& input) const override {
    if (hybrid_ && Active()) {
      if (!input.loss)
        return FailedPrecondition("loss: missing; mkor-h needs the loss of every step until it has switched");
      if (!std::isfinite(*input.loss)) return InvalidArgument("loss: ", *input.loss, " is not finite");
    }
    return LayerRule::Check(input);
  }

  void Precondition(const StepInput& input, StepReport& report) override {
    if (hybrid_) {
      WatchLoss(*input.loss);
      report.figures["switched_at"] = static_cast<double>(Count(kSwitchedAt));
      if (!Active()) return;
    }
    for (size_t k = 0; k < layers().size(); ++k) {
      const Layer& layer = layers()[k];
      if (!Present(layer, input)) continue;
      if (layer_compute(layer) == DType::kF64) {
        StepLayer<double>(layer, factors_[k], input, report);
      } else {
        StepLayer<float>(layer, factors_[k], input, report);
      }
    }
  }

 private:
  enum class Update { kRelease, kPaper, kExact };
  enum LossState { kAverage, kBefore, kBest };
  enum CountState { kLossSteps, kBelow, kSwitchedAt };
  struct Factors {
    StateTensor *a_inv, *g_inv, *a, *g, *updates;
  };

  double& Loss(LossState which) const { return *losses_[which]->as<double>(); }
  int64_t& Count(CountState which) const { return *counts_[which]->as<int64_t>(); }

  StateTensor* AddIdentity(const std::string& name, DType dtype, int64_t n) {
    StateTensor* state = AddState(name, dtype, {n, n});
    WithComputeType(dtype, [&](auto zero) { SetIdentity(n, state->template as<decltype(zero)>()); });
    return state;
  }
  template <typename T>
  static void SetIdentity(int64_t n, T* k) {
    std::fill_n(k, n * n, T{0});
    for (int64_t i = 0; i < n; ++i) k[i * n + i] = 1;
  }

  template <typename T>
  void StepLayer(const Layer& layer, const Factors& f, const StepInput& input, StepReport& report) {
    if (FactorsDue(t(layer.weight))) {
      ReadMean<T>(layer, "act/", layer.in, input, f.a->as<T>());
      if (layer.bias >= 0) f.a->as<T>()[layer.in] = Clip<T>(1);
      ReadMean<T>(layer, "pgrad/", layer.out, input, f.g->as<T>());
      const bool first = (*f.updates->as<int64_t>())++ == 0;
      const int stabilised = UpdateInverse<T>(layer.extended(), first, f.a->as<T>(), f.a_inv->as<T>()) +
                             UpdateInverse<T>(layer.out, first, f.g->as<T>(), f.g_inv->as<T>());
      report.figures["stabilised/" + layer.name] = stabilised;
      report.figures["k_max/" + layer.name] = std::max(blas::MaxAbs(f.a_inv->spec.elements(), f.a_inv->as<T>()),
                                                       blas::MaxAbs(f.g_inv->spec.elements(), f.g_inv->as<T>()));
    }
    const int64_t in = layer.extended();
    T *gradient = matrix_.as<T>(), *product = product_.as<T>();
    Gather<T>(layer, input, gradient);
    const double before = Size(layer, gradient);
    blas::Gemm<T>(false, false, layer.out, in, layer.out, 1, f.g_inv->as<T>(), gradient, 0, product);
    blas::Gemm<T>(false, false, layer.out, in, in, 1, product, f.a_inv->as<T>(), 0, gradient);
    const double ratio = before / Size(layer, gradient);
    report.figures["ratio/" + layer.name] = ratio;
    if (std::isfinite(ratio)) Scatter<T>(layer, ratio, gradient);  // a zero gradient stays as it is
  }

  template <typename T>
  T Clip(T value) const {
    const T bound = static_cast<T>(args().number("clipping"));
    return bound > 0 ? std::clamp(value, -bound, bound) : value;
  }

  // a, or g: rows are clipped (pgrad times their number) and averaged; a vector is taken as the mean.
  template <typename T>
  void ReadMean(const Layer& layer, const std::string& prefix, int64_t width, const StepInput& input, T* mean) {
    std::vector<T> values;
    const int64_t rows = Statistic<T>(layer, prefix, input, values);
    if (rows == 0) {
      std::copy_n(values.begin(), width, mean);
      return;
    }
    const T scale = prefix == "pgrad/" ? static_cast<T>(rows) : T{1};
    for (int64_t col = 0; col < width; ++col) {
      double sum = 0;
      for (int64_t row = 0; row < rows; ++row) sum += Clip<T>(scale * values[row * width + col]);
      mean[col] = static_cast<T>(sum / static_cast<double>(rows));
    }
  }

  // Returns 1 when the stabiliser acted. K^ is never formed: one matrix-vector product, then one pass over K.
  template <typename T>
  int UpdateInverse(int64_t n, bool first, const T* v, T* k) {
    if (rule_ == Update::kRelease && first) {
      SetIdentity(n, k);
      return 0;
    }
    const double gamma = args().number("gamma");
    const bool stabilise = rule_ != Update::kRelease && blas::MaxAbs(n * n, k) > args().number("threshold");
    const double s = rule_ == Update::kRelease ? args().number("keep") : stabilise ? args().number("zeta") : 1;
    T* w = w_.as<T>();
    blas::Symv<T>(n, k, v, w);
    Kernels().typed<T>().scale_and_add(static_cast<T>(s), w, static_cast<T>(1 - s), v, n);
    const double q = blas::Dot(n, v, w);
    double alpha = 1, beta = -1 / (1 + q);
    if (rule_ == Update::kPaper) {
      alpha = gamma;
      beta = (1 - gamma) / (gamma * gamma * (1 + gamma * (1 - gamma) * q));
    } else if (rule_ == Update::kExact) {
      alpha = 1 / gamma;
      beta = -(1 - gamma) / (gamma + (1 - gamma) * q) / gamma;
    }
    ForEachRowBlock(n, n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Kernels().typed<T>().scale_and_add(static_cast<T>(alpha * s), k + row * n, static_cast<T>(beta * w[row]), w, n);
        k[row * n + row] += static_cast<T>(alpha * (1 - s));
      }
    });
    const DType dtype = sizeof(T) == 8 ? DType::kF64 : DType::kF32;
    if (Kernels().first_not_finite(dtype, k, n * n) >= 0) SetIdentity(n, k);
    return stabilise ? 1 : 0;
  }

  // Norm by which the preconditioned gradient is rescaled.
  template <typename T>
  double Size(const Layer& layer, const T* matrix) const {
    const int64_t in = layer.extended();
    const double all = blas::SumSquares(layer.out * in, matrix);
    if (rule_ != Update::kRelease || layer.bias < 0) return std::sqrt(all);
    double weight = 0, bias = 0;
    for (int64_t row = 0; row < layer.out; ++row) {
      weight += blas::SumSquares(layer.in, matrix + row * in);
      bias += static_cast<double>(matrix[row * in + layer.in]) * matrix[row * in + layer.in];
    }
    return std::sqrt(weight) + std::sqrt(bias);
  }

  void WatchLoss(double loss) {
    const double beta = args().number("beta");
    const int64_t window = static_cast<int64_t>(args().number("window")), step = ++Count(kLossSteps);
    Loss(kAverage) = beta * Loss(kAverage) + (1 - beta) * loss;
    if (step % window != 0) return;
    const double now = Loss(kAverage) / (1 - std::pow(beta, static_cast<double>(step)));
    const double rate = (Loss(kBefore) - now) / (static_cast<double>(window) * std::max(now, 1e-12));
    Loss(kBefore) = now;
    if (step < 2 * window) return;  // the first window has nothing before it
    const bool below = rate < args().number("fraction") * Loss(kBest);
    Count(kBelow) = below ? Count(kBelow) + 1 : 0;
    Loss(kBest) = std::max(Loss(kBest), rate);
    if (Count(kBelow) >= static_cast<int64_t>(args().number("patience"))) Count(kSwitchedAt) = step;
  }

  const Update rule_;
  const int64_t inv_freq_, warmup_;
  const bool hybrid_;
  std::vector<Factors> factors_;
  std::vector<StateTensor*> losses_, counts_;
  Buffer w_;
};

absl::StatusOr<std::unique_ptr<Rule>> Make(RuleArgs args, bool hybrid) {
  ASSIGN_OR_RETURN(std::unique_ptr<Rule> backend, MakeBackend(args.text("backend"), args));
  return std::make_unique<MkorRule>(std::move(args), std::move(backend), hybrid);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeMkor(RuleArgs args) { return Make(std::move(args), false); }
absl::StatusOr<std::unique_ptr<Rule>> MakeMkorH(RuleArgs args) { return Make(std::move(args), true); }

}  // namespace optod::optim
