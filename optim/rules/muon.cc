// Muon (Jordan et al. 2024): m := EMA(m, g, mu); u = (1 - mu) g + mu m (Nesterov) or m; O = NewtonSchulz(u), u as [d0,
// rest]; p := p (1 - eta lambda) - eta sqrt(max(1, rows/cols)) O. For rank 4 rows and cols of that factor are the
// kernel's last two sizes, as in the released code. Tensors of rank < 2 and those named by aux_tensors take AdamW at
// eta adam_lr / lr. State: m of matrices; m, v of the rest.
#include <algorithm>
#include <cmath>

#include "optim/rules/adam_constants.h"
#include "optim/rules/blas.h"
#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"
#include "optim/rules/glob.h"
#include "optim/rules/half.h"

namespace optod::optim {
namespace {

// Quintic coefficients of the iteration: steep at zero; singular values end in about [0.7, 1.2].
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
constexpr double kSmallestNorm = 1e-7;

class MuonRule : public RuleBase {
 public:
  explicit MuonRule(RuleArgs rule_args)
      : RuleBase(std::move(rule_args)),
        momentum_(args().number("momentum")),
        bf16_(args().text("ns_dtype") == "bfloat16"),
        v_(layout().size()) {
    m_ = AddLike("m");
    size_t most = 0, most_square = 0;
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& spec = layout()[i];
      matrix_.push_back(spec.shape.size() >= 2 && spec.elements() > 0 &&
                        !MatchesAny(args().text("aux_tensors"), spec.name));
      if (!matrix_[i]) {
        v_[i] = AddState("v/" + spec.name, compute(i), spec.shape);
        continue;
      }
      const size_t rows = spec.shape[0], cols = spec.elements() / rows, small = std::min(rows, cols),
                   width = DTypeSize(compute(i));
      most = std::max(most, rows * cols * width);
      most_square = std::max(most_square, small * small * width);
    }
    for (Buffer* buffer : {&x_, &next_}) *buffer = Buffer(most);
    for (Buffer* buffer : {&gram_, &polynomial_}) *buffer = Buffer(most_square);
  }

 protected:
  size_t Scratch() const override {
    return x_.size() + next_.size() + gram_.size() + polynomial_.size();
  }
  void Apply(std::span<void* const> params, const StepInput& input, StepReport&) override {
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || layout()[i].elements() == 0) continue;
      Operands operands = Bind(i, params, input);
      operands.s[0] = m_[i]->data.data();
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        if (matrix_[i]) {
          StepMatrix<T>(i, operands, lr(input));
        } else {
          StepAux<T>(i, operands, lr(input));
        }
      });
    }
  }

 private:
  template <typename T>
  void StepMatrix(int i, const Operands& operands, double eta) {
    const std::vector<int64_t>& shape = layout()[i].shape;
    const int64_t n = layout()[i].elements(), rows = shape[0], cols = n / rows;
    Average<T>(operands, n);
    Orthogonalise<T>(rows, cols);
    const double tall = static_cast<double>(shape[shape.size() - 2]) / static_cast<double>(shape.back());
    formula::Normalised<T> c;
    c.decay = static_cast<T>(1 - eta * weight_decay(i));
    c.lr = static_cast<T>(eta * std::sqrt(std::max(1.0, tall)));
    c.rms = 1;
    Operands move = operands;
    move.g = x_.data();
    move.g_dtype = compute(i);
    ForEachRowBlock(rows, cols, [&](int64_t first, int64_t last) {
      RunKernel(kNormalisedRow, &c, move, first * cols, last * cols);
    });
  }

  // Momentum, and the matrix to orthogonalise into x_.
  template <typename T>
  void Average(const Operands& operands, int64_t n) {
    const formula::Ema<T> average = {static_cast<T>(momentum_), static_cast<T>(1 - momentum_)};
    const bool nesterov = args().flag("nesterov");
    T* x = x_.as<T>();
    T* m = static_cast<T*>(operands.s[0]);
    ForEachRowBlock(n, 1, [&](int64_t first, int64_t last) {
      T tile[kTile];
      for (int64_t at = first; at < last; at += kTile) {
        const int64_t count = std::min(kTile, last - at);
        const T* g = Load<T>(operands.g_dtype, operands.g, at, count, tile);
        for (int64_t e = 0; e < count; ++e) {
          m[at + e] = average(m[at + e], g[e]);
          x[at + e] = nesterov ? average(m[at + e], g[e]) : m[at + e];
        }
      }
    });
  }

  // x_ [rows, cols] becomes its nearest semi-orthogonal matrix, nearly: the iteration x := a x + (b s + c s^2) x, s = x
  // x', on the short side. (x' x stands on the right for tall matrices, which saves the transposition.)
  template <typename T>
  void Orthogonalise(int64_t rows, int64_t cols) {
    const int64_t n = rows * cols, small = std::min(rows, cols);
    const bool tall = rows > cols;
    T *x = x_.as<T>(), *next = next_.as<T>(), *gram = gram_.as<T>(), *polynomial = polynomial_.as<T>();
    Round(x, n);
    const T norm = static_cast<T>(std::sqrt(blas::SumSquares(n, x)) + kSmallestNorm);
    ForEachEntry(n, [=](int64_t e) { x[e] /= norm; });
    Round(x, n);
    for (int64_t step = 0; step < static_cast<int64_t>(args().number("ns_steps")); ++step) {
      blas::Gram<T>(tall, small, std::max(rows, cols), 1, x, gram);
      Round(gram, small * small);
      blas::Gram<T>(false, small, small, static_cast<T>(kC), gram, polynomial);  // gram is symmetric: its square
      ForEachEntry(small * small, [=](int64_t e) { polynomial[e] += static_cast<T>(kB) * gram[e]; });
      Round(polynomial, small * small);
      blas::Gemm<T>(false, false, rows, cols, small, 1, tall ? x : polynomial, tall ? polynomial : x, 0, next);
      ForEachEntry(n, [=](int64_t e) { x[e] = static_cast<T>(kA) * x[e] + next[e]; });
      Round(x, n);
    }
  }

  // With ns_dtype bfloat16 every intermediate is stored in 16 bits (products are exact in float32, as bf16 matrix units
  // add them).
  template <typename T>
  void Round(T* x, int64_t n) const {
    if (!bf16_) return;
    ForEachEntry(n, [=](int64_t e) { x[e] = half::FromBf16(half::ToBf16(static_cast<float>(x[e]))); });
  }

  template <typename F>
  static void ForEachEntry(int64_t n, F f) {
#pragma omp parallel for schedule(static) if (n > 4 * kChunk)
    for (int64_t e = 0; e < n; ++e) f(e);
  }

  template <typename T>
  void StepAux(int i, const Operands& bound, double eta) {
    const double own = eta * args().number("adam_lr") / args().number("lr");
    const AdamSettings settings = {args().number("adam_beta1"), args().number("adam_beta2"), args().number("adam_eps"),
                                   weight_decay(i)};
    const formula::Adam<T> c = AdamConstants<T>(settings, own, static_cast<double>(t(i)));
    Operands operands = bound;
    operands.s[1] = v_[i]->data.data();
    ForEachRowBlock(layout()[i].elements(), 1,
                    [&](int64_t first, int64_t last) { RunKernel(kAdam, &c, operands, first, last); });
  }

  const double momentum_;
  const bool bf16_;
  std::vector<bool> matrix_;
  std::vector<StateTensor*> m_, v_;
  Buffer x_, next_, gram_, polynomial_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeMuon(RuleArgs args) { return std::make_unique<MuonRule>(std::move(args)); }

}  // namespace optod::optim
