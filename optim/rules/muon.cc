// Muon (Jordan et al. 2024): m := EMA(m, g, mu); u = (1 - mu) g + mu m (Nesterov) or m; O = NewtonSchulz(u), u as [d0,
// rest]; p := p (1 - eta lambda) - eta sqrt(max(1, rows/cols)) O. For rank 4 rows and cols of that factor are the
// kernel's last two sizes, as in the released code. Tensors of rank < 2 and those named by aux_tensors take AdamW at
// eta adam_lr / lr. State: m of matrices; m, v of the rest.
#include <algorithm>
#include <cmath>

#include "optim/rules/adam_constants.h"
#include "optim/rules/bf16_products.h"
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
    size_t most = 0, most_square = 0, most_packed = 0;
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& spec = layout()[i];
      matrix_.push_back(spec.shape.size() >= 2 && spec.elements() > 0 &&
                        !MatchesAny(args().text("aux_tensors"), spec.name));
      if (!matrix_[i]) {
        v_[i] = AddState("v/" + spec.name, compute(i), spec.shape);
        continue;
      }
      most = std::max(most, FullBytes(i));
      most_square = std::max(most_square, SquareBytes(i));
      most_packed = std::max(most_packed, PackedBytes(i));
    }
    for (Buffer* buffer : {&x_, &next_}) *buffer = Buffer(most);
    for (Buffer* buffer : {&gram_, &polynomial_}) *buffer = Buffer(most_square);
    packed_ = Buffer(most_packed);
  }

 protected:
  size_t Scratch() const override {
    return x_.size() + next_.size() + gram_.size() + polynomial_.size() + packed_.size();
  }
  size_t ScratchOf(int i) const override { return matrix_[i] ? 2 * FullBytes(i) + 2 * SquareBytes(i) + PackedBytes(i) : 0; }
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
  /// Of matrix i, and of the product with its transpose over the longer side, in the compute dtype.
  size_t FullBytes(int i) const { return static_cast<size_t>(layout()[i].elements()) * DTypeSize(compute(i)); }
  size_t SquareBytes(int i) const {
    const int64_t rows = layout()[i].shape[0], small = std::min(rows, layout()[i].elements() / rows);
    return static_cast<size_t>(small * small) * DTypeSize(compute(i));
  }

  /// Whether products are the processor's own of bfloat16 numbers.
  bool PacksProducts(DType dtype) const { return bf16_ && dtype == DType::kF32 && bf16::ProductsHere(); }
  size_t PackedBytes(int i) const {
    if (!PacksProducts(compute(i))) return 0;
    const int64_t rows = layout()[i].shape[0], cols = layout()[i].elements() / rows, small = std::min(rows, cols);
    return std::max(bf16::ScratchBytes(small, small, std::max(rows, cols)), bf16::ScratchBytes(rows, cols, small));
  }

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
      Gram<T>(tall, small, std::max(rows, cols), 1, x, gram);
      Round(gram, small * small);
      Gram<T>(false, small, small, static_cast<T>(kC), gram, polynomial);  // gram is symmetric: its square
      ForEachRounded(small * small, polynomial, [=](int64_t e) { return polynomial[e] + static_cast<T>(kB) * gram[e]; });
      Product<T>(rows, cols, small, tall ? x : polynomial, tall ? polynomial : x, next);
      ForEachRounded(n, x, [=](int64_t e) { return static_cast<T>(kA) * x[e] + next[e]; });
    }
  }

  // c [n, n] = alpha op(a) op(a)'; c [m, n] = a b: of bfloat16 numbers where the processor has such products.
  template <typename T>
  void Gram(bool transpose, int64_t n, int64_t k, T alpha, const T* a, T* c) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (PacksProducts(DType::kF32)) return bf16::Gram(transpose, n, k, alpha, a, c, packed_.data());
    }
    blas::Gram<T>(transpose, n, k, alpha, a, c);
  }
  template <typename T>
  void Product(int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (PacksProducts(DType::kF32)) return bf16::Gemm(false, false, m, n, k, 1, a, b, c, packed_.data());
    }
    blas::Gemm<T>(false, false, m, n, k, 1, a, b, 0, c);
  }

  // With ns_dtype bfloat16 every intermediate is stored in 16 bits (products are exact in float32, as bf16 matrix units
  // add them).
  template <typename T>
  static T Rounded(T value) {
    return half::FromBf16(half::ToBf16(static_cast<float>(value)));
  }
  template <typename T>
  void Round(T* x, int64_t n) const {
    if (bf16_) ForEachEntry(n, [=](int64_t e) { x[e] = Rounded(x[e]); });
  }
  /// to[e] = f(e), rounded.
  template <typename T, typename F>
  void ForEachRounded(int64_t n, T* to, F f) const {
    if (bf16_) {
      ForEachEntry(n, [=](int64_t e) { to[e] = Rounded<T>(f(e)); });
    } else {
      ForEachEntry(n, [=](int64_t e) { to[e] = f(e); });
    }
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
  Buffer x_, next_, gram_, polynomial_, packed_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeMuon(RuleArgs args) { return std::make_unique<MuonRule>(std::move(args)); }

}  // namespace optod::optim
