#include "optim/order/builtin_models.h"

#include <algorithm>
#include <cmath>

#include "base/sha256.h"
#include "base/status.h"
#include "optim/zo/stream.h"

namespace optod::order {
namespace {

std::vector<double> Normals(uint64_t seed, uint32_t what, uint32_t which, size_t count) {
  std::vector<float> z(count);
  zo::FillNormal({seed, what, which}, 0, 0, z);
  return {z.begin(), z.end()};
}

// What the stream's `step` word says the numbers are for.
enum Purpose : uint32_t { kTeacher = 1, kFeatures, kNoise, kDrift, kMixture, kStart };

absl::Status CheckData(const LabelledData& data) {
  if (data.features == 0) return InvalidArgument("features: 0; must be >= 1");
  if (data.batches.empty()) return InvalidArgument("batches: none; must be >= 1");
  const auto check = [&](const std::vector<LabelledRows>& sets, const char* name) -> absl::Status {
    for (size_t b = 0; b < sets.size(); ++b) {
      const LabelledRows& rows = sets[b];
      if (rows.label.empty()) return InvalidArgument(name, "[", b, "]: no rows");
      if (rows.x.size() != rows.label.size() * data.features) {
        return InvalidArgument(name, "[", b, "].x: ", rows.x.size(), " numbers; must be ",
                               rows.label.size() * data.features);
      }
      for (const int label : rows.label) {
        if (label < 0 || label >= data.classes) {
          return InvalidArgument(name, "[", b, "].label: ", label, " is not in 0..", data.classes - 1);
        }
      }
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(check(data.batches, "batches"));
  return check(data.evaluations, "evaluations");
}

std::string Digest(const LabelledData& data, std::span<const double> theta0) {
  Sha256 sha;
  const auto add = [&](const std::vector<LabelledRows>& sets) {
    for (const LabelledRows& rows : sets) {
      sha.Update(std::as_bytes(std::span(rows.x)));
      sha.Update(std::as_bytes(std::span(rows.label)));
    }
  };
  add(data.batches);
  add(data.evaluations);
  sha.Update(std::as_bytes(theta0));
  return sha.FinishHex().substr(0, 16);
}

/// Rounding to the model's precision at its edges; the arithmetic between is double.
class BuiltinModel : public Model {
 public:
  BuiltinModel(LabelledData data, std::vector<double> theta0, Precision precision)
      : data_(std::move(data)), theta0_(std::move(theta0)), precision_(precision) {}

  size_t size() const override { return theta0_.size(); }
  int batches() const override { return static_cast<int>(data_.batches.size()); }
  int evaluations() const override { return static_cast<int>(data_.evaluations.size()); }
  Precision precision() const override { return precision_; }
  int concurrency() const override { return 1 << 16; }
  double length(int batch) const override { return static_cast<double>(data_.batches[batch].label.size()); }
  absl::Status Initial(std::span<double> theta) const override {
    std::copy(theta0_.begin(), theta0_.end(), theta.begin());
    return absl::OkStatus();
  }
  absl::StatusOr<double> Loss(DataRef data, std::span<const double> theta) const override {
    return Evaluate(Rows(data), theta, {}, {}, {});
  }
  absl::StatusOr<double> Gradient(DataRef data, std::span<const double> theta,
                                  std::span<double> gradient) const override {
    const double loss = Evaluate(Rows(data), theta, gradient, {}, {});
    Round(gradient);
    return loss;
  }
  absl::Status HessianVector(DataRef data, std::span<const double> theta, std::span<const double> v,
                             std::span<double> out) const override {
    Evaluate(Rows(data), theta, {}, v, out);
    Round(out);
    return absl::OkStatus();
  }

 protected:
  /// The loss; the gradient when `gradient` is not empty; H v in `product` when `v` is not empty.
  virtual double Evaluate(const LabelledRows& rows, std::span<const double> theta, std::span<double> gradient,
                          std::span<const double> v, std::span<double> product) const = 0;

  const LabelledRows& Rows(DataRef data) const {
    return data.part == DataRef::Part::kBatch ? data_.batches[data.index] : data_.evaluations[data.index];
  }
  void Round(std::span<double> x) const {
    if (precision_ == Precision::kFloat64) return;
    for (double& value : x) value = static_cast<float>(value);
  }

  const LabelledData data_;
  const std::vector<double> theta0_;
  const Precision precision_;
};

class Logistic final : public BuiltinModel {
 public:
  using BuiltinModel::BuiltinModel;
  std::string fingerprint() const override {
    return Cat("logistic features=", size(), " batches=", batches(), " data=", Digest(data_, theta0_));
  }

 private:
  double Evaluate(const LabelledRows& rows, std::span<const double> theta, std::span<double> gradient,
                  std::span<const double> v, std::span<double> product) const override {
    const size_t n = theta.size();
    const double scale = 1.0 / static_cast<double>(rows.label.size());
    std::fill(gradient.begin(), gradient.end(), 0.0);
    std::fill(product.begin(), product.end(), 0.0);
    double loss = 0.0;
    for (size_t row = 0; row < rows.label.size(); ++row) {
      const double* x = rows.x.data() + row * n;
      double s = 0.0, xv = 0.0;
      for (size_t i = 0; i < n; ++i) s += x[i] * theta[i];
      for (size_t i = 0; i < v.size(); ++i) xv += x[i] * v[i];
      loss += std::max(s, 0.0) + std::log1p(std::exp(-std::abs(s))) - rows.label[row] * s;
      const double p = 1.0 / (1.0 + std::exp(-s));
      for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += scale * (p - rows.label[row]) * x[i];
      for (size_t i = 0; i < product.size(); ++i) product[i] += scale * p * (1.0 - p) * xv * x[i];
    }
    return loss * scale;
  }
};

/// Views into the flat parameter vector; all null when there is none.
template <typename T>
struct Layers {
  T *w1 = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
  Layers(T* p, size_t features, size_t hidden, size_t classes) {
    if (p == nullptr) return;
    w1 = p;
    b1 = w1 + hidden * features;
    w2 = b1 + hidden;
    b2 = w2 + classes * hidden;
  }
};

class TanhMlp final : public BuiltinModel {
 public:
  TanhMlp(LabelledData data, int hidden, std::vector<double> theta0, Precision precision)
      : BuiltinModel(std::move(data), std::move(theta0), precision), hidden_(hidden) {}
  std::string fingerprint() const override {
    return Cat("tanh-mlp features=", data_.features, " hidden=", hidden_, " classes=", data_.classes,
               " batches=", batches(), " data=", Digest(data_, theta0_));
  }

 private:
  /// One row's activations and their derivatives along v (Pearlmutter, 1994).
  struct Row {
    std::vector<double> z, rz, p, rp;
  };

  double Evaluate(const LabelledRows& rows, std::span<const double> theta, std::span<double> gradient,
                  std::span<const double> v, std::span<double> product) const override {
    std::fill(gradient.begin(), gradient.end(), 0.0);
    std::fill(product.begin(), product.end(), 0.0);
    Row row{std::vector<double>(hidden_), std::vector<double>(hidden_), std::vector<double>(data_.classes),
            std::vector<double>(data_.classes)};
    double loss = 0.0;
    for (size_t r = 0; r < rows.label.size(); ++r) {
      const double* x = rows.x.data() + r * data_.features;
      Forward(x, theta, v, row);
      loss -= std::log(row.p[rows.label[r]]);
      if (gradient.empty() && v.empty()) continue;
      Backward(x, rows.label[r], 1.0 / static_cast<double>(rows.label.size()), theta, v, row, gradient, product);
    }
    return loss / static_cast<double>(rows.label.size());
  }

  void Forward(const double* x, std::span<const double> theta, std::span<const double> v, Row& row) const {
    const size_t features = data_.features, classes = data_.classes;
    const Layers<const double> w(theta.data(), features, hidden_, classes);
    const Layers<const double> d(v.empty() ? theta.data() : v.data(), features, hidden_, classes);
    for (size_t h = 0; h < hidden_; ++h) {
      double a = w.b1[h], ra = d.b1[h];
      for (size_t i = 0; i < features; ++i) a += w.w1[h * features + i] * x[i];
      if (!v.empty()) {
        for (size_t i = 0; i < features; ++i) ra += d.w1[h * features + i] * x[i];
      }
      row.z[h] = std::tanh(a);
      row.rz[h] = (1.0 - row.z[h] * row.z[h]) * ra;
    }
    double top = -1e300, sum = 0.0, mean = 0.0;
    for (size_t c = 0; c < classes; ++c) {
      row.p[c] = w.b2[c];
      row.rp[c] = d.b2[c];
      for (size_t h = 0; h < hidden_; ++h) {
        row.p[c] += w.w2[c * hidden_ + h] * row.z[h];
        row.rp[c] += d.w2[c * hidden_ + h] * row.z[h] + w.w2[c * hidden_ + h] * row.rz[h];
      }
      top = std::max(top, row.p[c]);
    }
    for (double& p : row.p) sum += (p = std::exp(p - top));
    for (size_t c = 0; c < classes; ++c) mean += (row.p[c] /= sum) * row.rp[c];
    for (size_t c = 0; c < classes; ++c) row.rp[c] = row.p[c] * (row.rp[c] - mean);
  }

  void Backward(const double* x, int label, double scale, std::span<const double> theta, std::span<const double> v,
                const Row& row, std::span<double> gradient, std::span<double> product) const {
    const size_t features = data_.features, classes = data_.classes;
    const bool second = !v.empty();
    const Layers<const double> w(theta.data(), features, hidden_, classes);
    const Layers<const double> d(second ? v.data() : theta.data(), features, hidden_, classes);
    Layers<double> g(gradient.data(), features, hidden_, classes), r(product.data(), features, hidden_, classes);
    for (size_t h = 0; h < hidden_; ++h) {
      double dz = 0.0, rdz = 0.0;
      for (size_t c = 0; c < classes; ++c) {
        const double out = scale * (row.p[c] - (static_cast<int>(c) == label)), rout = scale * row.rp[c];
        dz += w.w2[c * hidden_ + h] * out;
        if (!gradient.empty()) g.w2[c * hidden_ + h] += out * row.z[h];
        if (!second) continue;
        rdz += d.w2[c * hidden_ + h] * out + w.w2[c * hidden_ + h] * rout;
        r.w2[c * hidden_ + h] += rout * row.z[h] + out * row.rz[h];
      }
      const double slope = 1.0 - row.z[h] * row.z[h];
      const double da = dz * slope, rda = rdz * slope - 2.0 * dz * row.z[h] * row.rz[h];
      if (!gradient.empty()) AddRow(g.w1 + h * features, g.b1 + h, da, x);
      if (second) AddRow(r.w1 + h * features, r.b1 + h, rda, x);
    }
    for (size_t c = 0; c < classes; ++c) {
      if (!gradient.empty()) g.b2[c] += scale * (row.p[c] - (static_cast<int>(c) == label));
      if (second) r.b2[c] += scale * row.rp[c];
    }
  }

  void AddRow(double* weights, double* bias, double factor, const double* x) const {
    for (size_t i = 0; i < data_.features; ++i) weights[i] += factor * x[i];
    *bias += factor;
  }

  const size_t hidden_;
};

LabelledRows DrawRows(const SyntheticOptions& o, const std::vector<double>& teacher,
                      const std::vector<std::vector<double>>& drifts, uint32_t set, int rows, int drift_of) {
  LabelledRows out;
  out.x = Normals(o.seed, kFeatures, set, rows * o.features);
  const std::vector<double> noise = Normals(o.seed, kNoise, set, static_cast<size_t>(rows) * o.classes);
  const std::vector<double> mixture = Normals(o.seed, kMixture, set, rows);
  for (int row = 0; row < rows; ++row) {
    const int of = drift_of >= 0 ? drift_of : static_cast<int>(std::abs(mixture[row]) * 1e4) % o.batches;
    double* x = out.x.data() + row * o.features;
    for (size_t i = 0; i < o.features; ++i) x[i] += o.drift * drifts[of][i];
    int best = 0;
    double top = -1e300;
    for (int c = 0; c < o.classes; ++c) {
      double score = noise[row * o.classes + c];
      for (size_t i = 0; i < o.features; ++i) score += teacher[c * o.features + i] * x[i];
      if (score > top) top = score, best = c;
    }
    out.label.push_back(best);
  }
  return out;
}

absl::StatusOr<std::vector<double>> Start(size_t n, const BuiltinOptions& options) {
  if (!(options.initial_scale >= 0.0 && std::isfinite(options.initial_scale))) {
    return InvalidArgument("initial_scale: ", options.initial_scale, "; must be >= 0");
  }
  std::vector<double> theta = Normals(options.seed, kStart, 0, n);
  for (double& value : theta) value *= options.initial_scale;
  return theta;
}

}  // namespace

absl::StatusOr<LabelledData> MakeSynthetic(const SyntheticOptions& o) {
  if (o.features == 0 || o.features > (1u << 20)) return InvalidArgument("features: ", o.features, "; must be 1..2^20");
  if (o.classes < 2) return InvalidArgument("classes: ", o.classes, "; must be >= 2");
  if (o.batches < 1) return InvalidArgument("batches: ", o.batches, "; must be >= 1");
  if (o.rows < 1) return InvalidArgument("rows: ", o.rows, "; must be >= 1");
  if (o.evaluation_rows < 1) return InvalidArgument("evaluation_rows: ", o.evaluation_rows, "; must be >= 1");
  std::vector<double> teacher = Normals(o.seed, kTeacher, 0, o.classes * o.features);
  std::vector<std::vector<double>> drifts;
  for (int b = 0; b < o.batches; ++b) drifts.push_back(Normals(o.seed, kDrift, b, o.features));
  LabelledData data{o.features, o.classes, {}, {}};
  for (int b = 0; b < o.batches; ++b) {
    data.batches.push_back(DrawRows(o, teacher, drifts, b + 1, o.rows + (o.ragged ? b % 3 : 0), b));
  }
  data.evaluations.push_back(DrawRows(o, teacher, drifts, 0, o.evaluation_rows, -1));
  return data;
}

absl::StatusOr<std::shared_ptr<const Model>> MakeLogistic(LabelledData data, std::vector<double> theta0,
                                                          Precision precision) {
  RETURN_IF_ERROR(CheckData(data));
  if (data.classes != 2) return InvalidArgument("classes: ", data.classes, "; logistic regression has 2");
  if (theta0.size() != data.features) {
    return InvalidArgument("theta0: ", theta0.size(), " numbers; must be ", data.features);
  }
  return std::make_shared<Logistic>(std::move(data), std::move(theta0), precision);
}

absl::StatusOr<std::shared_ptr<const Model>> MakeLogistic(LabelledData data, const BuiltinOptions& options) {
  ASSIGN_OR_RETURN(std::vector<double> theta0, Start(data.features, options));
  return MakeLogistic(std::move(data), std::move(theta0), options.precision);
}

absl::StatusOr<std::shared_ptr<const Model>> MakeTanhMlp(LabelledData data, int hidden, const BuiltinOptions& options) {
  RETURN_IF_ERROR(CheckData(data));
  if (hidden < 1) return InvalidArgument("hidden: ", hidden, "; must be >= 1");
  const size_t n = hidden * (data.features + 1) + data.classes * (static_cast<size_t>(hidden) + 1);
  ASSIGN_OR_RETURN(std::vector<double> theta0, Start(n, options));
  return std::make_shared<TanhMlp>(std::move(data), hidden, std::move(theta0), options.precision);
}

}  // namespace optod::order
