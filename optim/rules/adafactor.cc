// Adafactor (Shazeer and Stern 2018, Alg. 4): beta2_t = 1 - t^decay_rate; for rank >= 2, over the last two dimensions,
//   row := EMA(row, mean over columns of g^2 + eps1), col := EMA(col, mean over rows), u = g / sqrt(row col /
//   mean(row)); else v := EMA(v, g^2 + eps1), u = g / sqrt(v); u /= max(1, RMS(u) / clip_threshold); u *= alpha, alpha
//   = eta max(eps2, RMS(p)) with scale_parameter; beta1 > 0: m := EMA(m, u), u = m; p := p (1 - eta' lambda) - u with
//   eta' = alpha.
// State: row [..., rows], col [..., cols] of rank >= 2, v of the rest, m with beta1. Figure: rms/<tensor>, RMS(p)
// before the step.
#include <algorithm>
#include <cmath>

#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

class AdafactorRule : public RuleBase {
 public:
  explicit AdafactorRule(RuleArgs rule_args)
      : RuleBase(std::move(rule_args)),
        eps1_(args().number("eps1")),
        beta1_(args().number("beta1")),
        row_(layout().size()),
        col_(layout().size()),
        v_(layout().size()),
        m_(layout().size()) {
    int64_t most_rows = 0, most_cols = 0;
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& spec = layout()[i];
      if (spec.shape.size() >= 2) {
        std::vector<int64_t> rows = spec.shape, cols = spec.shape;
        rows.pop_back();
        cols.erase(cols.end() - 2);
        row_[i] = AddState("row/" + spec.name, compute(i), rows);
        col_[i] = AddState("col/" + spec.name, compute(i), cols);
        most_rows = std::max(most_rows, row_[i]->spec.elements());
        most_cols = std::max(most_cols, spec.shape.back());
      } else {
        v_[i] = AddState("v/" + spec.name, compute(i), spec.shape);
      }
      if (beta1_ > 0) m_[i] = AddState("m/" + spec.name, compute(i), spec.shape);
    }
    row_factor_.resize(most_rows);
    col_factor_ = Buffer(most_cols * sizeof(double));
    col_sums_.resize(kSegments * most_cols);
    partial_.resize(kSegments);
  }

 protected:
  size_t Scratch() const override {
    return (row_factor_.size() + col_sums_.size() + partial_.size()) * sizeof(double) + col_factor_.size();
  }
  size_t ScratchOf(int i) const override {
    const TensorSpec& spec = layout()[i];
    const int64_t factors = spec.shape.size() < 2 ? 0 : row_[i]->spec.elements() + (kSegments + 1) * spec.shape.back();
    return static_cast<size_t>(factors + kSegments) * sizeof(double);
  }
  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) override {
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || layout()[i].elements() == 0) continue;
      WithComputeType(compute(i),
                      [&](auto zero) { StepTensor<decltype(zero)>(i, Bind(i, params, input), input, report); });
    }
  }

 private:
  static constexpr int64_t kSegments = 32;  // of partial sums: fixed, so that the number of threads changes no bit

  template <typename T>
  void StepTensor(int i, const Operands& o, const StepInput& input, StepReport& report) {
    const int64_t n = layout()[i].elements();
    const double rms_p =
        std::sqrt(Sum<T>(n,
                         [&](int64_t at, int64_t count, T* tile) {
                           return Kernels().typed<T>().sum_squares(Load<T>(o.p_dtype, o.p, at, count, tile), count);
                         }) /
                  static_cast<double>(n));
    report.figures["rms/" + layout()[i].name] = rms_p;
    const double steps = static_cast<double>(t(i));
    double alpha = input.lr                       ? *input.lr
                   : args().flag("relative_step") ? std::min(1e-2, 1 / std::sqrt(steps))
                                                  : args().number("lr");
    if (args().flag("scale_parameter")) alpha *= std::max(args().number("eps2"), rms_p);
    const double beta2 = 1 - std::pow(steps, args().number("decay_rate"));
    const int64_t matrices = v_[i] != nullptr ? 1 : n / (Rows(i) * Cols(i));
    if (v_[i] != nullptr) {
      UpdateFull<T>(i, o, beta2);
    } else {
      for (int64_t b = 0; b < matrices; ++b) UpdateFactors<T>(i, b, o, beta2);
    }
    Prepare<T>(i);
    const double squares = SumUpdates<T>(i, o, matrices);
    const double clip = std::max(1.0, std::sqrt(squares / static_cast<double>(n)) / args().number("clip_threshold"));
    for (int64_t b = 0; b < matrices; ++b) Move<T>(i, b, o, alpha, clip);
  }

  int64_t Rows(int i) const { return layout()[i].shape[layout()[i].shape.size() - 2]; }
  int64_t Cols(int i) const { return layout()[i].shape.back(); }

  template <typename T>
  void UpdateFull(int i, const Operands& o, double beta2) {
    const formula::Ema<T> average = {static_cast<T>(beta2), static_cast<T>(1 - beta2)};
    T* v = v_[i]->template as<T>();
    const T eps = static_cast<T>(eps1_);
    ForEachRowBlock(layout()[i].elements(), 1, [&](int64_t first, int64_t last) {
      T tile[kTile];
      for (int64_t at = first; at < last; at += kTile) {
        const int64_t count = std::min(kTile, last - at);
        const T* g = Load<T>(o.g_dtype, o.g, at, count, tile);
        for (int64_t e = 0; e < count; ++e) v[at + e] = average(v[at + e], g[e] * g[e] + eps);
      }
    });
  }

  // Row and column means of g^2 + eps1 of matrix b, one pass over the gradient.
  template <typename T>
  void UpdateFactors(int i, int64_t b, const Operands& o, double beta2) {
    const int64_t rows = Rows(i), cols = Cols(i);
    T* row = row_[i]->template as<T>() + b * rows;
    T* col = col_[i]->template as<T>() + b * cols;
    const int64_t per_segment = (rows + kSegments - 1) / kSegments;
    const formula::Ema<T> average = {static_cast<T>(beta2), static_cast<T>(1 - beta2)};
#pragma omp parallel for schedule(static) if (rows * cols > 4 * kChunk)
    for (int64_t segment = 0; segment < kSegments; ++segment) {
      double* sums = col_sums_.data() + segment * cols;
      std::fill_n(sums, cols, 0.0);
      const int64_t end = std::min(rows, (segment + 1) * per_segment);
      for (int64_t first = segment * per_segment; first < end; first += kRowsAtOnce) {
        const int64_t count = std::min(kRowsAtOnce, end - first);
        double squares[kRowsAtOnce] = {};
        AddSquares<T>(o.g_dtype, o.g, b * rows + first, count, cols, sums, squares);
        for (int64_t r = 0; r < count; ++r)
          row[first + r] = average(row[first + r], static_cast<T>(squares[r] / static_cast<double>(cols) + eps1_));
      }
    }
    for (int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (int64_t segment = 0; segment < kSegments; ++segment) sum += col_sums_[segment * cols + c];
      col[c] = average(col[c], static_cast<T>(sum / static_cast<double>(rows) + eps1_));
    }
  }

  // row_factor_[b rows + r] = 1 / sqrt(row / mean(row)).
  template <typename T>
  void Prepare(int i) {
    if (v_[i] != nullptr) return;
    const int64_t rows = Rows(i), all = row_[i]->spec.elements();
    const T* row = row_[i]->template as<T>();
    for (int64_t begin = 0; begin < all; begin += rows) {
      double mean = 0;
      for (int64_t r = 0; r < rows; ++r) mean += row[begin + r];
      mean /= static_cast<double>(rows);
      for (int64_t r = 0; r < rows; ++r) row_factor_[begin + r] = 1 / std::sqrt(row[begin + r] / mean);
    }
  }

  // The update before clipping of `count` entries from `at` on, which stay within one row of matrix b (or within v).
  template <typename T>
  void Update(int i, const Operands& o, int64_t at, int64_t count, int64_t col_begin, double row_factor, T* u) const {
    T tile[kTile];
    const T* g = Load<T>(o.g_dtype, o.g, at, count, tile);
    if (v_[i] != nullptr) {
      const T* v = v_[i]->template as<T>() + at;
      for (int64_t e = 0; e < count; ++e) u[e] = g[e] / formula::Sqrt(v[e]);
    } else {
      Kernels().typed<T>().scale_by(static_cast<T>(row_factor), g, col_factor_.as<T>() + col_begin, u, count);
    }
  }

  template <typename T>
  void LoadColumnFactors(int i, int64_t b) {
    const T* col = col_[i]->template as<T>() + b * Cols(i);
    T* factor = col_factor_.as<T>();
    for (int64_t c = 0; c < Cols(i); ++c) factor[c] = static_cast<T>(1 / std::sqrt(static_cast<double>(col[c])));
  }

  /// body(at, count, col_begin, row factor) over runs within rows of matrix b, on all threads in fixed segments.
  template <typename T, typename Body>
  void ForEachRun(int i, int64_t b, Body body) {
    const bool full = v_[i] != nullptr;
    const int64_t cols = full ? layout()[i].elements() : Cols(i), rows = full ? 1 : Rows(i);
    const int64_t runs_a_row = (cols + kTile - 1) / kTile, runs = rows * runs_a_row;
    const int64_t per_segment = (runs + kSegments - 1) / kSegments;
#pragma omp parallel for schedule(static) if (rows * cols > 4 * kChunk)
    for (int64_t segment = 0; segment < kSegments; ++segment) {
      for (int64_t run = segment * per_segment; run < std::min(runs, (segment + 1) * per_segment); ++run) {
        const int64_t r = run / runs_a_row, begin = run % runs_a_row * kTile;
        body(segment, (b * rows + r) * cols + begin, std::min(kTile, cols - begin), begin,
             full ? 1 : row_factor_[b * rows + r]);
      }
    }
  }

  template <typename T>
  double SumUpdates(int i, const Operands& o, int64_t matrices) {
    double sum = 0;
    for (int64_t b = 0; b < matrices; ++b) {
      if (v_[i] == nullptr) LoadColumnFactors<T>(i, b);
      std::fill(partial_.begin(), partial_.end(), 0.0);
      ForEachRun<T>(i, b, [&](int64_t segment, int64_t at, int64_t count, int64_t col, double row_factor) {
        T u[kTile];
        if (v_[i] == nullptr) {
          const T* g = Load<T>(o.g_dtype, o.g, at, count, u);
          partial_[segment] += Kernels().typed<T>().sum_squares_scaled(static_cast<T>(row_factor), g,
                                                                       col_factor_.as<T>() + col, count);
          return;
        }
        Update<T>(i, o, at, count, col, row_factor, u);
        partial_[segment] += Kernels().typed<T>().sum_squares(u, count);
      });
      for (double part : partial_) sum += part;
    }
    return sum;
  }

  template <typename T>
  void Move(int i, int64_t b, const Operands& o, double alpha, double clip) {
    if (v_[i] == nullptr) LoadColumnFactors<T>(i, b);
    const formula::Ema<T> average = {static_cast<T>(beta1_), static_cast<T>(1 - beta1_)};
    const T scale = static_cast<T>(alpha / clip), decay = static_cast<T>(1 - alpha * weight_decay(i));
    ForEachRun<T>(i, b, [&](int64_t, int64_t at, int64_t count, int64_t col, double row_factor) {
      T u[kTile], tile[kTile];
      T* p = const_cast<T*>(Load<T>(o.p_dtype, o.p, at, count, tile));
      if (m_[i] == nullptr && v_[i] == nullptr) {
        const T* g = Load<T>(o.g_dtype, o.g, at, count, u);
        Kernels().typed<T>().add_scaled_by(decay, p, -scale, static_cast<T>(row_factor), g, col_factor_.as<T>() + col,
                                           count);
        StoreParameter<T>(o, at, count, p);
        return;
      }
      Update<T>(i, o, at, count, col, row_factor, u);
      if (m_[i] != nullptr) {
        T* m = m_[i]->template as<T>() + at;
        Kernels().typed<T>().scale_and_add(average.keep, m, average.add * scale, u, count);
        Kernels().typed<T>().scale_and_add(decay, p, T{-1}, m, count);
      } else {
        Kernels().typed<T>().scale_and_add(decay, p, -scale, u, count);
      }
      StoreParameter<T>(o, at, count, p);
    });
  }

  // Sum over tiles of a tensor of n elements.
  template <typename T, typename F>
  double Sum(int64_t n, F f) {
    const int64_t tiles = (n + kTile - 1) / kTile, per_segment = (tiles + kSegments - 1) / kSegments;
#pragma omp parallel for schedule(static) if (n > 4 * kChunk)
    for (int64_t segment = 0; segment < kSegments; ++segment) {
      T tile[kTile];
      double sum = 0;
      for (int64_t k = segment * per_segment; k < std::min(tiles, (segment + 1) * per_segment); ++k) {
        sum += f(k * kTile, std::min(kTile, n - k * kTile), tile);
      }
      partial_[segment] = sum;
    }
    double sum = 0;
    for (double part : partial_) sum += part;
    return sum;
  }

  const double eps1_, beta1_;
  std::vector<StateTensor*> row_, col_, v_, m_;
  std::vector<double> row_factor_, col_sums_, partial_;
  Buffer col_factor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeAdafactor(RuleArgs args) {
  return std::make_unique<AdafactorRule>(std::move(args));
}

}  // namespace optod::optim
