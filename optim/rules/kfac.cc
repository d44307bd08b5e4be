// KFAC (Martens and Grosse 2015) in KAISA's form (Pauloski et al. 2021): factors of each layer (layer_rule.h), from I,
//   A := xi A + (1 - xi) X'X / n,  G := xi G + (1 - xi) n D'D,  X the (extended) input rows, D the rows of pgrad.
//   eigen:   A = Qa da Qa', G = Qg dg Qg' (da, dg clipped at 0);  P = Qg ((Qg' [dW | db] Qa) / (dg da' + mu)) Qa'
//   inverse: P = (G + mu I)^-1 [dW | db] (A + mu I)^-1
//   all P are multiplied by min(1, sqrt(kappa / |eta^2 sum <P, gradient>|)); SGD behind.
// Statistics are rows. State a layer: A, G, and QA, dA, QG, dG or A_inv, G_inv; backend/... Figure: kl_scale.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/rules/blas.h"
#include "optim/rules/factories.h"
#include "optim/rules/layer_rule.h"

namespace optod::optim {
namespace {

class KfacRule : public LayerRule {
 public:
  KfacRule(RuleArgs rule_args, std::unique_ptr<Rule> backend)
      : LayerRule(std::move(rule_args), std::move(backend)),
        eigen_(args().text("method") == "eigen"),
        factor_every_(static_cast<int64_t>(args().number("factor_every"))),
        inv_every_(static_cast<int64_t>(args().number("inv_every"))) {
    for (const Layer& layer : layers()) {
      sides_.push_back({Declare(layer, "A", layer.extended()), Declare(layer, "G", layer.out)});
      preconditioned_.emplace_back(layer.out * layer.extended() * DTypeSize(layer_compute(layer)));
    }
  }

 protected:
  bool FactorsDue(int64_t t) const override { return (t - 1) % factor_every_ == 0; }
  bool TakesMeans() const override { return false; }

  void Precondition(const StepInput& input, StepReport& report) override {
    double inner = 0;
    ForEachLayer(input, [&](size_t k, auto zero) { inner += StepLayer<decltype(zero)>(k, input); });
    const double kappa = args().number("kl_clip"), eta = lr(input);
    const double clip = std::sqrt(kappa / std::abs(eta * eta * inner));
    const double scale = kappa > 0 && clip < 1 ? clip : 1;
    report.figures["kl_scale"] = scale;
    ForEachLayer(input, [&](size_t k, auto zero) {
      using T = decltype(zero);
      const T* preconditioned = preconditioned_[k].template as<T>();
      const DType dtype = layer_compute(layers()[k]);
      const bool finite =
          Kernels().first_not_finite(dtype, preconditioned, layers()[k].out * layers()[k].extended()) < 0;
      if (finite) Scatter<T>(layers()[k], scale, preconditioned);  // else the gradient goes on as it is
    });
  }

 private:
  /// One factor and what its last inversion gave: eigenvectors and eigenvalues, or the damped inverse.
  struct Side {
    int64_t n;
    StateTensor *factor, *vectors, *values;
  };
  struct Sides {
    Side a, g;
  };

  Side Declare(const Layer& layer, const std::string& which, int64_t n) {
    const DType dtype = layer_compute(layer);
    Side side;
    side.n = n;
    side.factor = AddState(which + "/" + layer.name, dtype, {n, n});
    side.vectors = AddState((eigen_ ? "Q" + which : which + "_inv") + "/" + layer.name, dtype, {n, n});
    side.values = eigen_ ? AddState("d" + which + "/" + layer.name, dtype, {n}) : nullptr;
    WithComputeType(dtype, [&](auto zero) {
      using T = decltype(zero);
      // Before its first inversion a layer (its bias had no gradient at step 1) is preconditioned as by factors I.
      const T inverse = eigen_ ? T{1} : static_cast<T>(1 / (1 + args().number("damping")));
      for (int64_t i = 0; i < n; ++i) {
        side.factor->template as<T>()[i * n + i] = 1;
        side.vectors->template as<T>()[i * n + i] = inverse;
      }
      for (int64_t i = 0; i < n && eigen_; ++i) side.values->template as<T>()[i] = 1;
    });
    return side;
  }

  template <typename Body>
  void ForEachLayer(const StepInput& input, Body body) {
    for (size_t k = 0; k < layers().size(); ++k) {
      if (Present(layers()[k], input)) WithComputeType(layer_compute(layers()[k]), [&](auto zero) { body(k, zero); });
    }
  }

  // Returns <P, gradient>; P is left in preconditioned_[k].
  template <typename T>
  double StepLayer(size_t k, const StepInput& input) {
    const Layer& layer = layers()[k];
    const Sides& sides = sides_[k];
    const int64_t step = t(layer.weight), in = layer.extended(), out = layer.out;
    if (FactorsDue(step)) UpdateFactors<T>(layer, sides, input);
    if ((step - 1) % inv_every_ == 0) {
      Invert<T>(sides.a);
      Invert<T>(sides.g);
    }
    T *gradient = matrix_.as<T>(), *product = product_.as<T>(), *p = preconditioned_[k].as<T>();
    Gather<T>(layer, input, gradient);
    const T *qa = sides.a.vectors->as<T>(), *qg = sides.g.vectors->as<T>();
    if (eigen_) {
      const T *da = sides.a.values->as<T>(), *dg = sides.g.values->as<T>();
      const T mu = static_cast<T>(args().number("damping"));
      blas::Gemm<T>(true, false, out, in, out, 1, qg, gradient, 0, product);
      blas::Gemm<T>(false, false, out, in, in, 1, product, qa, 0, p);
      for (int64_t row = 0; row < out; ++row) {
        for (int64_t col = 0; col < in; ++col) p[row * in + col] /= dg[row] * da[col] + mu;
      }
      blas::Gemm<T>(false, false, out, in, out, 1, qg, p, 0, product);
      blas::Gemm<T>(false, true, out, in, in, 1, product, qa, 0, p);
    } else {
      blas::Gemm<T>(false, false, out, in, out, 1, qg, gradient, 0, product);
      blas::Gemm<T>(false, false, out, in, in, 1, product, qa, 0, p);
    }
    return blas::Dot(out * in, p, gradient);
  }

  template <typename T>
  void UpdateFactors(const Layer& layer, const Sides& sides, const StepInput& input) {
    const T xi = static_cast<T>(args().number("decay")), one_minus_xi = static_cast<T>(1 - args().number("decay"));
    std::vector<T> given, rows;
    const int64_t n = Statistic<T>(layer, "act/", input, given), in = layer.extended();
    rows.resize(n * in);
    for (int64_t row = 0; row < n; ++row) {
      std::copy_n(given.begin() + row * layer.in, layer.in, rows.begin() + row * in);
      if (layer.bias >= 0) rows[row * in + layer.in] = 1;
    }
    blas::Gemm<T>(true, false, in, in, n, one_minus_xi / static_cast<T>(n), rows.data(), rows.data(), xi,
                  sides.a.factor->as<T>());
    Statistic<T>(layer, "pgrad/", input, given);
    blas::Gemm<T>(true, false, layer.out, layer.out, n, one_minus_xi * static_cast<T>(n), given.data(), given.data(),
                  xi, sides.g.factor->as<T>());
  }

  // When LAPACK fails, the last inversion stays in use. Allocates: it runs every inv_every steps and costs a
  // decomposition.
  template <typename T>
  void Invert(const Side& side) {
    const T* factor = side.factor->as<T>();
    std::vector<T> matrix(factor, factor + side.n * side.n), values(side.n);
    if (eigen_) {
      if (!blas::Eigh<T>(side.n, matrix.data(), values.data())) return;
      for (T& value : values) value = std::max(value, T{0});
      std::copy(values.begin(), values.end(), side.values->as<T>());
    } else {
      for (int64_t i = 0; i < side.n; ++i) matrix[i * side.n + i] += static_cast<T>(args().number("damping"));
      if (!blas::InvertPositive<T>(side.n, matrix.data())) return;
    }
    std::copy(matrix.begin(), matrix.end(), side.vectors->as<T>());
  }

  const bool eigen_;
  const int64_t factor_every_, inv_every_;
  std::vector<Sides> sides_;
  std::vector<Buffer> preconditioned_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeKfac(RuleArgs args) {
  ASSIGN_OR_RETURN(std::unique_ptr<Rule> backend, MakeBackend("sgd", args));
  return std::make_unique<KfacRule>(std::move(args), std::move(backend));
}

}  // namespace optod::optim
