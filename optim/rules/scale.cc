// SCALE (Glentis et al. 2025, Alg. 1, with the released code's root mean square): C(x) = x / max(RMS(x), 1e-8).
//   hidden matrices: p := p (1 - eta lambda) - eta C(g), one RMS a row; embeddings: one RMS a column (dim 0 is
//   reduced); other matrices (the last layer): C of m := mu m + (1 - mu) g, one RMS a row; tensors of rank < 2: Adam at
//   eta adam_lr / lr with eps inside the uncorrected root. Rank > 2 is taken as [d0, rest]. State: m of the last layer;
//   m, v of rank < 2. Figure: rms_min, the smallest RMS.
#include <algorithm>
#include <cmath>
#include <limits>

#include "optim/rules/adam_constants.h"
#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"
#include "optim/rules/glob.h"

namespace optod::optim {
namespace {

constexpr double kSmallestRms = 1e-8;
constexpr int64_t kSegments = 32;  // partial column sums: fixed, so that the number of threads changes no bit

class ScaleRule : public RuleBase {
 public:
  explicit ScaleRule(RuleArgs rule_args) : RuleBase(std::move(rule_args)), m_(layout().size()), v_(layout().size()) {
    int64_t most_columns = 0;
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& spec = layout()[i];
      kind_.push_back(Classify(spec));
      if (kind_[i] == Kind::kVector || kind_[i] == Kind::kLast)
        m_[i] = AddState("m/" + spec.name, compute(i), spec.shape);
      if (kind_[i] == Kind::kVector) v_[i] = AddState("v/" + spec.name, compute(i), spec.shape);
      if (kind_[i] == Kind::kEmbedding) most_columns = std::max(most_columns, Columns(i));
    }
    column_sums_.resize(kSegments * most_columns);
    column_rms_ = Buffer(most_columns * sizeof(double));
  }

 protected:
  size_t Scratch() const override {
    return column_sums_.size() * sizeof(double) + column_rms_.size();
  }
  size_t ScratchOf(int i) const override {
    return kind_[i] == Kind::kEmbedding ? static_cast<size_t>((kSegments + 1) * Columns(i)) * sizeof(double) : 0;
  }
  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) override {
    double smallest = std::numeric_limits<double>::infinity();
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || layout()[i].elements() == 0) continue;
      const Operands operands = Bind(i, params, input);
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        if (kind_[i] == Kind::kVector) return StepVector<T>(i, operands, lr(input));
        const double found =
            kind_[i] == Kind::kEmbedding ? StepColumns<T>(i, operands, lr(input)) : StepRows<T>(i, operands, lr(input));
        smallest = std::min(smallest, found);
      });
    }
    if (std::isfinite(smallest)) report.figures["rms_min"] = smallest;
  }

 private:
  enum class Kind { kVector, kHidden, kEmbedding, kLast };

  Kind Classify(const TensorSpec& spec) const {
    if (spec.shape.size() < 2) return Kind::kVector;
    if (MatchesAny(args().text("embedding_tensors"), spec.name)) return Kind::kEmbedding;
    return MatchesAny(args().text("hidden_tensors"), spec.name) ? Kind::kHidden : Kind::kLast;
  }
  int64_t Rows(int i) const { return layout()[i].shape[0]; }
  int64_t Columns(int i) const { return layout()[i].elements() / std::max<int64_t>(1, Rows(i)); }

  template <typename T>
  formula::Normalised<T> Constants(int i, double eta) const {
    const double mu = args().number("momentum");
    formula::Normalised<T> c;
    c.average = {static_cast<T>(mu), static_cast<T>(1 - mu)};
    c.decay = static_cast<T>(1 - eta * weight_decay(i));
    c.lr = static_cast<T>(eta);
    c.rms = 1;
    return c;
  }

  template <typename T>
  void StepVector(int i, const Operands& bound, double eta) const {
    const double own = eta * args().number("adam_lr") / args().number("lr");
    const AdamSettings settings = {args().number("beta1"), args().number("beta2"),      args().number("adam_eps"),
                                   weight_decay(i),        AdamSettings::Decay::kFirst, true};
    const formula::Adam<T> c = AdamConstants<T>(settings, own, static_cast<double>(t(i)));
    Operands operands = bound;
    operands.s[0] = m_[i]->data.data();
    operands.s[1] = v_[i]->data.data();
    RunKernel(kAdam, &c, operands, 0, layout()[i].elements());
  }

  // One row after the other, so that a row is normalised while it is in cache. Returns the smallest RMS.
  template <typename T>
  double StepRows(int i, const Operands& bound, double eta) const {
    const int64_t rows = Rows(i), cols = Columns(i);
    const bool last = kind_[i] == Kind::kLast;
    Operands operands = bound;
    if (last) operands.s[0] = m_[i]->data.data();
    double smallest = std::numeric_limits<double>::infinity();
    ForEachRowBlock(rows, cols, [&](int64_t first, int64_t end) {
      formula::Normalised<T> c = Constants<T>(i, eta);
      double block_smallest = std::numeric_limits<double>::infinity();
      for (int64_t row = first; row < end; ++row) {
        const Operands slice = Slice(operands, row * cols);
        if (last) RunKernel(kAverage, &c.average, slice, 0, cols);
        const double squares =
            last ? SumSquares<T>(compute(i), slice.s[0], cols) : SumSquares<T>(slice.g_dtype, slice.g, cols);
        const double rms = std::sqrt(squares / static_cast<double>(cols));
        block_smallest = std::min(block_smallest, rms);
        c.rms = static_cast<T>(std::max(rms, kSmallestRms));
        RunKernel(last ? kNormalisedMomentum : kNormalisedRow, &c, slice, 0, cols);
      }
#pragma omp critical(optod_rules_scale)
      smallest = std::min(smallest, block_smallest);
    });
    return smallest;
  }

  template <typename T>
  static double SumSquares(DType dtype, const void* data, int64_t n) {
    T tile[kTile];
    double sum = 0;
    for (int64_t at = 0; at < n; at += kTile) {
      const int64_t count = std::min(kTile, n - at);
      sum += Kernels().typed<T>().sum_squares(Load<T>(dtype, data, at, count, tile), count);
    }
    return sum;
  }

  template <typename T>
  double StepColumns(int i, const Operands& operands, double eta) {
    const int64_t rows = Rows(i), cols = Columns(i);
    SumColumns<T>(rows, cols, operands);
    T* rms = column_rms_.as<T>();
    double smallest = std::numeric_limits<double>::infinity();
    for (int64_t col = 0; col < cols; ++col) {
      double sum = 0;
      for (int64_t segment = 0; segment < kSegments; ++segment) sum += column_sums_[segment * cols + col];
      const double found = std::sqrt(sum / static_cast<double>(rows));
      smallest = std::min(smallest, found);
      rms[col] = static_cast<T>(std::max(found, kSmallestRms));
    }
    const formula::Normalised<T> c = Constants<T>(i, eta);
    ForEachRowBlock(rows, cols, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        Operands slice = Slice(operands, row * cols);
        slice.x = rms;
        RunKernel(kNormalisedColumns, &c, slice, 0, cols);
      }
    });
    return smallest;
  }

  // Squares summed down the columns, each segment of rows by itself.
  template <typename T>
  void SumColumns(int64_t rows, int64_t cols, const Operands& operands) {
    const int64_t per_segment = (rows + kSegments - 1) / kSegments;
#pragma omp parallel for schedule(static) if (rows * cols > 4 * kChunk)
    for (int64_t segment = 0; segment < kSegments; ++segment) {
      double* sums = column_sums_.data() + segment * cols;
      std::fill_n(sums, cols, 0.0);
      double unused[kRowsAtOnce] = {};
      const int64_t end = std::min(rows, (segment + 1) * per_segment);
      for (int64_t row = segment * per_segment; row < end; row += kRowsAtOnce)
        AddSquares<T>(operands.g_dtype, operands.g, row, std::min(kRowsAtOnce, end - row), cols, sums, unused);
    }
  }

  std::vector<Kind> kind_;
  std::vector<StateTensor*> m_, v_;
  std::vector<double> column_sums_;
  Buffer column_rms_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeScale(RuleArgs args) { return std::make_unique<ScaleRule>(std::move(args)); }

}  // namespace optod::optim
