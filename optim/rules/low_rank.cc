// GaLore (Zhao et al. 2024), Fira (Chen et al. 2024), APOLLO and APOLLO-Mini (Zhu et al. 2024): Adam's statistics live
// in a subspace of the gradient G [rows, cols] of each matrix. Rows >= cols: P [r, cols], R = G P'; else P [rows, r], R
// = P' G. Every T steps P is renewed: GaLore and Fira take the first r singular vectors of G, APOLLO draws Gaussians of
// variance 1/r from (seed, tensor, step).
//   m, v: EMAs of R; N = m / (sqrt(v) + eps); step = eta sqrt(1 - b2^t) / (1 - b1^t)
//   galore: U = scale back(N);  fira: U = scale back(N) + limit((G - scale back(R)) f);  apollo: U = sqrt(scale)
//   limit(G f), or limit(sqrt(scale) G f) (scale on back(R) too: so does Fira's released code.) f = ||N|| / (||R|| +
//   1e-8), one a channel (row of R when rows >= cols, else column) or one a tensor; limit(S) = S / l, l = max(||S|| /
//   (last norm + 1e-8), limiter) / limiter, from a matrix's second step on;  p := (p - step U)(1 - eta lambda).
// Tensors that are no matrices, and those named by full_tensors, take the same Adam without projection. State: m, v of
// R, projector/<tensor> and limit/<tensor> (the limited norm); moments are kept across a change of P. Optional input
// projector/<tensor>, of the projector's shape: GaLore and Fira turn the signs of their singular vectors to match it;
// APOLLO uses it in place of its draw.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/rules/adam_constants.h"
#include "optim/rules/blas.h"
#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"
#include "optim/rules/glob.h"
#include "optim/zo/stream.h"

namespace optod::optim {
namespace {

enum class Kind { kGalore, kFira, kApollo };

class LowRankRule : public RuleBase {
 public:
  LowRankRule(RuleArgs rule_args, Kind kind)
      : RuleBase(std::move(rule_args)),
        kind_(kind),
        settings_{args().number("beta1"),        args().number("beta2"),     args().number("eps"),
                  args().number("weight_decay"), AdamSettings::Decay::kLast, true},
        scale_(args().number("scale")),
        gap_(static_cast<int64_t>(args().number("update_proj_gap"))),
        per_tensor_(kind == Kind::kApollo && args().text("scale_type") == "tensor"),
        scale_front_(kind == Kind::kApollo && args().flag("scale_front")) {
    size_t full = 0, low = 0, channels = 0;
    for (int i = 0; i < tensors(); ++i) {
      matrices_.push_back(Declare(i));
      const Matrix& matrix = matrices_[i];
      if (matrix.rank == 0) continue;
      full = std::max(full, FullBytes(i));
      low = std::max<size_t>(low, matrix.m->data.size());
      channels = std::max(channels, matrix.channels());
    }
    for (Buffer* buffer : {&gradient_, &update_}) *buffer = Buffer(full);
    for (Buffer* buffer : {&projected_, &direction_}) *buffer = Buffer(low);
    factor_.resize(channels);
  }

 protected:
  size_t Scratch() const override {
    return gradient_.size() + update_.size() + projected_.size() + direction_.size() + factor_.size() * sizeof(double);
  }
  size_t ScratchOf(int i) const override {
    if (matrices_[i].rank == 0) return 0;
    return 2 * FullBytes(i) + 2 * matrices_[i].m->data.size() + matrices_[i].channels() * sizeof(double);
  }
  absl::Status Check(const StepInput& input) const override {
    for (int i = 0; i < tensors(); ++i) {
      const std::string name = "projector/" + layout()[i].name;
      if (matrices_[i].rank == 0 || Extra(input, name) == nullptr) continue;
      RETURN_IF_ERROR(CheckExtra(input, name, compute(i), ""));
      if (Extra(input, name)->spec.shape != matrices_[i].projector->spec.shape) {
        return InvalidArgument(name, ": its shape must be the projector's, ", matrices_[i].projector->spec.shape[0],
                               " by ", matrices_[i].projector->spec.shape[1]);
      }
    }
    return absl::OkStatus();
  }

  void Apply(std::span<void* const> params, const StepInput& input, StepReport&) override {
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || layout()[i].elements() == 0) continue;
      const Operands operands = Bind(i, params, input);
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        if (matrices_[i].rank == 0) {
          StepFull<T>(i, operands, lr(input));
        } else {
          StepMatrix<T>(i, operands, input);
        }
      });
    }
  }

 private:
  struct Matrix {
    int64_t rows = 0, cols = 0, rank = 0;  // rank 0: not projected
    bool right = false;                    // rows >= cols: P stands on the right
    StateTensor *m = nullptr, *v = nullptr, *projector = nullptr, *limit = nullptr;
    int64_t long_side() const { return right ? rows : cols; }
    size_t channels() const { return static_cast<size_t>(std::max(rows, cols)); }
  };

  /// Of tensor i in the compute dtype.
  size_t FullBytes(int i) const { return static_cast<size_t>(layout()[i].elements()) * DTypeSize(compute(i)); }

  Matrix Declare(int i) {
    const TensorSpec& spec = layout()[i];
    Matrix matrix;
    const bool projected =
        spec.shape.size() == 2 && spec.elements() > 0 && !MatchesAny(args().text("full_tensors"), spec.name);
    if (!projected) {
      matrix.m = AddState("m/" + spec.name, compute(i), spec.shape);
      matrix.v = AddState("v/" + spec.name, compute(i), spec.shape);
      return matrix;
    }
    matrix.rows = spec.shape[0];
    matrix.cols = spec.shape[1];
    matrix.right = matrix.rows >= matrix.cols;
    matrix.rank = std::min({static_cast<int64_t>(args().number("rank")), matrix.rows, matrix.cols});
    const std::vector<int64_t> low =
        matrix.right ? std::vector{matrix.rows, matrix.rank} : std::vector{matrix.rank, matrix.cols};
    const std::vector<int64_t> basis =
        matrix.right ? std::vector{matrix.rank, matrix.cols} : std::vector{matrix.rows, matrix.rank};
    matrix.m = AddState("m/" + spec.name, compute(i), low);
    matrix.v = AddState("v/" + spec.name, compute(i), low);
    matrix.projector = AddState("projector/" + spec.name, compute(i), basis);
    if (kind_ != Kind::kGalore) matrix.limit = AddState("limit/" + spec.name, DType::kF64, {});
    return matrix;
  }

  template <typename T>
  void StepFull(int i, const Operands& bound, double eta) const {
    const formula::Adam<T> c = AdamConstants<T>(settings_.WithDecay(weight_decay(i)), eta, static_cast<double>(t(i)));
    Operands operands = bound;
    operands.s[0] = matrices_[i].m->data.data();
    operands.s[1] = matrices_[i].v->data.data();
    ForEachRowBlock(layout()[i].elements(), 1,
                    [&](int64_t first, int64_t last) { RunKernel(kAdam, &c, operands, first, last); });
  }

  template <typename T>
  void StepMatrix(int i, const Operands& operands, const StepInput& input) {
    const Matrix& matrix = matrices_[i];
    const int64_t n = matrix.rows * matrix.cols;
    T* gradient = gradient_.as<T>();
    ForEachRowBlock(n, 1, [&](int64_t first, int64_t last) {
      const T* g = Load<T>(operands.g_dtype, operands.g, first, last - first, gradient + first);
      if (g != gradient + first) std::copy_n(g, last - first, gradient + first);
    });
    if ((t(i) - 1) % gap_ == 0) RenewProjector<T>(i, input);
    Project<T>(matrix, gradient, projected_.as<T>());
    const formula::Adam<T> c =
        AdamConstants<T>(settings_.WithDecay(weight_decay(i)), lr(input), static_cast<double>(t(i)));
    Direction<T>(c, matrix);
    if (kind_ == Kind::kApollo) {
      ScaledGradient<T>(matrix, gradient);
    } else {
      SubspaceUpdate<T>(matrix, gradient);
    }
    Move<T>(operands, c, n);
  }

  // N from R; moments advance.
  template <typename T>
  void Direction(const formula::Adam<T>& c, const Matrix& matrix) {
    const int64_t n = matrix.m->spec.elements();
    const T* r = projected_.as<T>();
    T *m = matrix.m->as<T>(), *v = matrix.v->as<T>(), *direction = direction_.as<T>();
    for (int64_t e = 0; e < n; ++e) {
      m[e] = c.first(m[e], r[e]);
      v[e] = c.second(v[e], r[e] * r[e]);
      direction[e] = m[e] / (formula::Sqrt(v[e]) + c.eps);
    }
  }

  template <typename T>
  void Project(const Matrix& x, const T* full, T* low) const {
    const T* p = x.projector->as<T>();
    if (x.right) {
      blas::Gemm<T>(false, true, x.rows, x.rank, x.cols, 1, full, p, 0, low);
    } else {
      blas::Gemm<T>(true, false, x.rank, x.cols, x.rows, 1, p, full, 0, low);
    }
  }
  /// full = alpha back(low) + beta full
  template <typename T>
  void Back(const Matrix& x, T alpha, const T* low, T beta, T* full) const {
    const T* p = x.projector->as<T>();
    if (x.right) {
      blas::Gemm<T>(false, false, x.rows, x.cols, x.rank, alpha, low, p, beta, full);
    } else {
      blas::Gemm<T>(false, false, x.rows, x.cols, x.rank, alpha, p, low, beta, full);
    }
  }

  // f of each channel into factor_ (all equal with one factor a tensor).
  template <typename T>
  void Factors(const Matrix& x) {
    const T *r = projected_.as<T>(), *n = direction_.as<T>();
    const int64_t channels = x.long_side(), all = x.m->spec.elements();
    const auto ratio = [](double direction, double gradient) {
      return std::sqrt(direction) / (std::sqrt(gradient) + 1e-8);
    };
    if (per_tensor_) {
      std::fill_n(factor_.begin(), channels, ratio(blas::SumSquares(all, n), blas::SumSquares(all, r)));
      return;
    }
    const int64_t channel_step = x.right ? x.rank : 1, entry_step = x.right ? 1 : channels;
    for (int64_t c = 0; c < channels; ++c) {
      double direction = 0, gradient = 0;
      for (int64_t k = 0; k < x.rank; ++k) {
        const int64_t at = c * channel_step + k * entry_step;
        direction += static_cast<double>(n[at]) * n[at];
        gradient += static_cast<double>(r[at]) * r[at];
      }
      factor_[c] = ratio(direction, gradient);
    }
  }

  // s[row, col] *= f of its channel, times `more`.
  template <typename T>
  void ApplyFactors(const Matrix& x, double more, T* s) const {
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t col = 0; col < x.cols; ++col)
        s[row * x.cols + col] *= static_cast<T>(factor_[x.right ? row : col] * more);
    }
  }

  // Norm growth limiter: s shrinks when its norm grew by more than the limiter allows.
  template <typename T>
  void Limit(const Matrix& x, T* s) const {
    const int64_t n = x.rows * x.cols;
    double norm = std::sqrt(blas::SumSquares(n, s));
    double& last = *x.limit->as<double>();
    if (last > 0) {
      const double limiter = args().number("limiter"), shrink = std::max(norm / (last + 1e-8), limiter) / limiter;
      for (int64_t e = 0; e < n && shrink != 1; ++e) s[e] /= static_cast<T>(shrink);
      norm /= shrink;
    }
    last = norm;
  }

  // GaLore and Fira: update_ = scale back(N) (+ the limited part outside the subspace).
  template <typename T>
  void SubspaceUpdate(const Matrix& x, T* gradient) {
    T* update = update_.as<T>();
    if (kind_ == Kind::kGalore) return Back<T>(x, static_cast<T>(scale_), direction_.as<T>(), 0, update);
    Factors<T>(x);
    std::copy_n(gradient, x.rows * x.cols, update);
    Back<T>(x, static_cast<T>(-scale_), projected_.as<T>(), 1, update);
    ApplyFactors<T>(x, 1, update);
    Limit<T>(x, update);
    Back<T>(x, static_cast<T>(scale_), direction_.as<T>(), 1, update);
  }

  // APOLLO: update_ = the gradient, scaled and limited.
  template <typename T>
  void ScaledGradient(const Matrix& x, const T* gradient) {
    const int64_t n = x.rows * x.cols;
    T* update = update_.as<T>();
    std::copy_n(gradient, n, update);
    Factors<T>(x);
    ApplyFactors<T>(x, scale_front_ ? std::sqrt(scale_) : 1, update);
    Limit<T>(x, update);
    for (int64_t e = 0; e < n && !scale_front_; ++e) update[e] *= static_cast<T>(std::sqrt(scale_));
  }

  template <typename T>
  void Move(const Operands& operands, const formula::Adam<T>& c, int64_t n) const {
    const T* update = update_.as<T>();
    ForEachRowBlock(n, 1, [&](int64_t first, int64_t last) {
      T tile[kTile];
      for (int64_t at = first; at < last; at += kTile) {
        const int64_t count = std::min(kTile, last - at);
        T* p = const_cast<T*>(Load<T>(operands.p_dtype, operands.p, at, count, tile));
        for (int64_t e = 0; e < count; ++e) p[e] = (p[e] - c.step * update[at + e]) * c.decay_after;
        StoreParameter<T>(operands, at, count, p);
      }
    });
  }

  template <typename T>
  void RenewProjector(int i, const StepInput& input) {
    const Matrix& x = matrices_[i];
    T* projector = x.projector->as<T>();
    const int64_t n = x.projector->spec.elements();
    const OwnedTensor* given = Extra(input, "projector/" + layout()[i].name);
    std::vector<T> reference(given != nullptr ? n : 0);
    if (given != nullptr) {
      const T* values = Load<T>(given->spec.dtype, given->data.data(), 0, n, reference.data());
      if (values != reference.data()) std::copy_n(values, n, reference.data());
    }
    if (kind_ != Kind::kApollo) {
      SingularProjector<T>(x, projector);
      if (given != nullptr) AlignSigns<T>(x, reference.data(), projector);
    } else if (given != nullptr) {
      std::copy_n(reference.data(), n, projector);
    } else {
      std::vector<float> draw(n);
      zo::FillNormal({args().seed, static_cast<uint32_t>(t(i)), 0}, static_cast<uint32_t>(i), 0, draw);
      for (int64_t e = 0; e < n; ++e) projector[e] = static_cast<T>(draw[e] / std::sqrt(static_cast<double>(x.rank)));
    }
  }

  // First r singular vectors of the gradient. Allocates: it runs every T steps and costs a decomposition. When LAPACK
  // fails, the old basis stays.
  template <typename T>
  void SingularProjector(const Matrix& x, T* projector) const {
    const int64_t k = std::min(x.rows, x.cols);
    const T* gradient = gradient_.as<T>();
    std::vector<T> a(gradient, gradient + x.rows * x.cols), u(x.rows * k), s(k), vt(k * x.cols);
    if (!blas::Svd<T>(x.rows, x.cols, a.data(), u.data(), s.data(), vt.data())) return;
    if (x.right) {
      std::copy_n(vt.begin(), x.rank * x.cols, projector);
      return;
    }
    for (int64_t row = 0; row < x.rows; ++row) std::copy_n(u.begin() + row * k, x.rank, projector + row * x.rank);
  }

  template <typename T>
  void AlignSigns(const Matrix& x, const T* reference, T* projector) const {
    const int64_t length = x.right ? x.cols : x.rows, vector_step = x.right ? x.cols : 1,
                  entry_step = x.right ? 1 : x.rank;
    for (int64_t k = 0; k < x.rank; ++k) {
      double dot = 0;
      for (int64_t e = 0; e < length; ++e)
        dot += static_cast<double>(projector[k * vector_step + e * entry_step]) *
               reference[k * vector_step + e * entry_step];
      for (int64_t e = 0; e < length && dot < 0; ++e) projector[k * vector_step + e * entry_step] *= -1;
    }
  }

  const Kind kind_;
  const AdamSettings settings_;
  const double scale_;
  const int64_t gap_;
  const bool per_tensor_, scale_front_;
  std::vector<Matrix> matrices_;
  Buffer gradient_, update_, projected_, direction_;
  std::vector<double> factor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeGalore(RuleArgs args) {
  return std::make_unique<LowRankRule>(std::move(args), Kind::kGalore);
}
absl::StatusOr<std::unique_ptr<Rule>> MakeFira(RuleArgs args) {
  return std::make_unique<LowRankRule>(std::move(args), Kind::kFira);
}
absl::StatusOr<std::unique_ptr<Rule>> MakeApollo(RuleArgs args) {
  return std::make_unique<LowRankRule>(std::move(args), Kind::kApollo);
}

}  // namespace optod::optim
