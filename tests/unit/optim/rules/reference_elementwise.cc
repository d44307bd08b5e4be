#include <algorithm>
#include <cmath>

#include "reference.h"

namespace optod::optim::testing {
namespace {

void Decay(Vec& s, const Vec& x, double beta) {
  s.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) s[i] = beta * s[i] + (1 - beta) * x[i];
}
Vec Squared(const Vec& x) {
  Vec y = x;
  for (double& v : y) v *= v;
  return y;
}
Vec& Zeros(Vec& s, size_t n) {
  s.resize(n);
  return s;
}

/// Rules that treat each tensor by itself.
class PerTensor : public Reference {
 public:
  explicit PerTensor(const Hyper& hyper) : h(hyper) {}
  void Step(std::vector<RefTensor>& tensors, const RefStep& step) override {
    for (RefTensor& x : tensors) {
      if (x.g && !x.p.empty()) Update(x, step);
    }
  }
  virtual void Update(RefTensor& x, const RefStep& step) = 0;
  const Hyper h;
};

class Sgd : public PerTensor {
 public:
  using PerTensor::PerTensor;
  void Update(RefTensor& x, const RefStep& step) override {
    const double mu = Num(h, "momentum");
    Vec d = *x.g;
    for (size_t i = 0; i < d.size(); ++i) d[i] += Num(h, "weight_decay") * x.p[i];
    if (mu > 0) {
      Vec& b = x.state["b"];
      if (x.t == 1) {
        b = d;
      } else {
        for (size_t i = 0; i < d.size(); ++i) b[i] = mu * b[i] + (1 - Num(h, "dampening")) * d[i];
      }
      for (size_t i = 0; i < d.size(); ++i) d[i] = Switch(h, "nesterov") ? d[i] + mu * b[i] : b[i];
    }
    for (size_t i = 0; i < d.size(); ++i) x.p[i] -= step.lr * d[i];
  }
};

void AdamUpdate(RefTensor& x, double eta, double beta1, double beta2, double eps, bool inside, Vec g, Vec& update,
                bool amsgrad = false) {
  Decay(x.state["m"], g, beta1);
  Decay(x.state["v"], Squared(g), beta2);
  const Vec &m = x.state["m"], &v = x.state["v"];
  Vec& largest = Zeros(x.state["vmax"], g.size());
  update.resize(g.size());
  const double t = static_cast<double>(x.t), c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(beta2, t);
  for (size_t i = 0; i < g.size(); ++i) {
    largest[i] = std::max(largest[i], v[i]);
    const double second = amsgrad ? largest[i] : v[i];
    update[i] = inside ? eta * std::sqrt(c2) / c1 * m[i] / (std::sqrt(second) + eps)
                       : eta * (m[i] / c1) / (std::sqrt(second / c2) + eps);
  }
}

class Adam : public PerTensor {
 public:
  Adam(const Hyper& hyper, bool decoupled) : PerTensor(hyper), decoupled_(decoupled) {}
  void Update(RefTensor& x, const RefStep& step) override {
    const double lambda = Num(h, "weight_decay");
    Vec g = *x.g, update;
    for (size_t i = 0; i < g.size(); ++i) {
      if (decoupled_) {
        x.p[i] -= step.lr * lambda * x.p[i];
      } else {
        g[i] += lambda * x.p[i];
      }
    }
    const bool amsgrad = h.count("amsgrad") && Switch(h, "amsgrad");
    AdamUpdate(x, step.lr, Num(h, "beta1"), Num(h, "beta2"), Num(h, "eps"), false, g, update, amsgrad);
    for (size_t i = 0; i < g.size(); ++i) x.p[i] -= update[i];
  }
  const bool decoupled_;
};

class Sai : public Reference {
 public:
  explicit Sai(const Hyper& hyper) : h(hyper) {}
  void Step(std::vector<RefTensor>& tensors, const RefStep& step) override {
    double largest = 0;
    for (RefTensor& x : tensors) {
      if (!x.g || x.t != 1 || x.p.empty()) continue;
      const double n = static_cast<double>(x.p.size());
      double mean = 0, deviations = 0;
      for (double g : *x.g) mean += g / n;
      for (double g : *x.g) deviations += (g - mean) * (g - mean);
      double std = n > 1 ? std::sqrt(deviations / (n - 1)) : 0;
      std = std::max(std, Num(h, "min_std") * Norm(*x.g) / std::sqrt(n));
      x.state["gsnr"] = {Norm(*x.g) / (std + Num(h, "eps"))};
      largest = std::max(largest, x.state["gsnr"][0]);
    }
    if (largest_ == 0) largest_ = largest;
    for (RefTensor& x : tensors) {
      if (!x.g || x.p.empty()) continue;
      Vec& b = x.state["b"];
      if (x.t == 1) {
        b = *x.g;
      } else {
        Decay(b, *x.g, Num(h, "momentum"));
      }
      const double gsnr = x.state["gsnr"][0] / (Word(h, "normalise") == "max" ? largest_ : 1);
      for (size_t i = 0; i < b.size(); ++i)
        x.p[i] = x.p[i] * (1 - step.lr * Num(h, "weight_decay")) - step.lr * gsnr * b[i];
    }
  }
  const Hyper h;
  double largest_ = 0;
};

class AdaHessian : public PerTensor {
 public:
  using PerTensor::PerTensor;
  void Update(RefTensor& x, const RefStep& step) override {
    if ((x.t - 1) % static_cast<int64_t>(Num(h, "update_each")) == 0)
      x.state["d"] = Averaged(x, step.extra.at("hessian_z/" + x.name));
    const double b1 = Num(h, "beta1"), b2 = Num(h, "beta2"), t = static_cast<double>(x.t);
    Decay(x.state["m"], *x.g, b1);
    Decay(x.state["s"], Squared(x.state["d"]), b2);
    for (size_t i = 0; i < x.p.size(); ++i) {
      const double root = std::sqrt(x.state["s"][i]) / std::sqrt(1 - std::pow(b2, t));
      const double v = std::pow(root, Num(h, "hessian_power")) + Num(h, "eps");
      x.p[i] -= step.lr * (x.state["m"][i] / (1 - std::pow(b1, t)) / v + Num(h, "weight_decay") * x.p[i]);
    }
  }
  // By coordinates: which entries share a mean.
  Vec Averaged(const RefTensor& x, const Vec& zhv) const {
    const std::string& variant = Word(h, "variant");
    const size_t rank = x.shape.size();
    int64_t run = 1;
    if (variant == "image" && rank == 4) run = x.shape[2] * x.shape[3];
    if (variant == "lazy" && rank == 4 && Switch(h, "average_conv_kernel")) run = x.shape[2] * x.shape[3];
    if (variant == "block") {
      const int64_t b = static_cast<int64_t>(Num(h, "block"));
      run = b > 0 ? b : rank == 4 ? x.shape[2] * x.shape[3] : rank == 3 ? x.shape[2] : rank == 2 ? x.shape[1] : 1;
    }
    if (variant == "fairseq" && rank == 2)
      run = static_cast<int64_t>(Num(h, "block")) > 0 ? static_cast<int64_t>(Num(h, "block")) : x.shape[1];
    Vec d(zhv.size());
    for (size_t i = 0; i < d.size(); ++i) {
      const size_t first = i / run * run;
      for (int64_t k = 0; k < run; ++k) d[i] += std::abs(zhv[first + k]) / static_cast<double>(run);
    }
    return d;
  }
};

class Lamb : public PerTensor {
 public:
  using PerTensor::PerTensor;
  void Update(RefTensor& x, const RefStep& step) override {
    const double b1 = Num(h, "beta1"), b2 = Num(h, "beta2"), t = static_cast<double>(x.t);
    Decay(x.state["m"], *x.g, b1);
    Decay(x.state["v"], Squared(*x.g), b2);
    const bool correct = Switch(h, "bias_correction");
    Vec u(x.p.size());
    for (size_t i = 0; i < u.size(); ++i) {
      const double m = x.state["m"][i] / (correct ? 1 - std::pow(b1, t) : 1),
                   v = x.state["v"][i] / (correct ? 1 - std::pow(b2, t) : 1);
      u[i] = m / (std::sqrt(v) + Num(h, "eps")) + Num(h, "weight_decay") * x.p[i];
    }
    const double clamp = Num(h, "clamp"), weight = clamp > 0 ? std::min(clamp, Norm(x.p)) : Norm(x.p);
    const double ratio = weight == 0 || Norm(u) == 0 ? 1 : weight / Norm(u);
    for (size_t i = 0; i < u.size(); ++i) x.p[i] -= step.lr * ratio * u[i];
  }
};

class Scale : public PerTensor {
 public:
  using PerTensor::PerTensor;
  void Update(RefTensor& x, const RefStep& step) override {
    if (x.shape.size() < 2) {
      const double eta = step.lr * Num(h, "adam_lr") / Num(h, "lr");
      Vec update;
      for (double& p : x.p) p *= 1 - eta * Num(h, "weight_decay");
      AdamUpdate(x, eta, Num(h, "beta1"), Num(h, "beta2"), Num(h, "adam_eps"), true, *x.g, update);
      for (size_t i = 0; i < update.size(); ++i) x.p[i] -= update[i];
      return;
    }
    const bool embedding = x.name.find("embed_tokens") != std::string::npos;
    const bool hidden = x.name.find("attn") != std::string::npos || x.name.find("attention") != std::string::npos ||
                        x.name.find("mlp") != std::string::npos;
    Vec source = *x.g;
    if (!embedding && !hidden) {
      Decay(x.state["m"], *x.g, Num(h, "momentum"));
      source = x.state["m"];
    }
    const int64_t rows = x.shape[0], cols = static_cast<int64_t>(x.p.size()) / rows;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        double squares = 0;
        for (int64_t k = 0; k < (embedding ? rows : cols); ++k)
          squares += std::pow(source[embedding ? k * cols + c : r * cols + k], 2);
        const double rms = std::max(1e-8, std::sqrt(squares / static_cast<double>(embedding ? rows : cols)));
        double& p = x.p[r * cols + c];
        p = p * (1 - step.lr * Num(h, "weight_decay")) - step.lr * source[r * cols + c] / rms;
      }
    }
  }
};

class Adafactor : public PerTensor {
 public:
  using PerTensor::PerTensor;
  void Update(RefTensor& x, const RefStep& step) override {
    const double t = static_cast<double>(x.t), n = static_cast<double>(x.p.size()),
                 b2 = 1 - std::pow(t, Num(h, "decay_rate"));
    double eta = step.given_lr                ? *step.given_lr
                 : Switch(h, "relative_step") ? std::min(1e-2, 1 / std::sqrt(t))
                                              : Num(h, "lr");
    if (Switch(h, "scale_parameter")) eta *= std::max(Num(h, "eps2"), Norm(x.p) / std::sqrt(n));
    Vec squares = Squared(*x.g), u = *x.g;
    for (double& s : squares) s += Num(h, "eps1");
    if (x.shape.size() < 2) {
      Decay(x.state["v"], squares, b2);
      for (size_t i = 0; i < u.size(); ++i) u[i] /= std::sqrt(x.state["v"][i]);
    } else {
      const int64_t cols = x.shape.back(), rows = x.shape[x.shape.size() - 2],
                    matrices = static_cast<int64_t>(x.p.size()) / rows / cols;
      Vec row(matrices * rows), col(matrices * cols);
      for (size_t i = 0; i < u.size(); ++i) {
        row[i / cols] += squares[i] / static_cast<double>(cols);
        col[i / (rows * cols) * cols + i % cols] += squares[i] / static_cast<double>(rows);
      }
      Decay(x.state["row"], row, b2);
      Decay(x.state["col"], col, b2);
      for (size_t i = 0; i < u.size(); ++i) {
        const int64_t b = static_cast<int64_t>(i) / (rows * cols);
        double mean = 0;
        for (int64_t r = 0; r < rows; ++r) mean += x.state["row"][b * rows + r] / static_cast<double>(rows);
        u[i] /= std::sqrt(x.state["row"][i / cols] * x.state["col"][b * cols + i % cols] / mean);
      }
    }
    const double clip = std::max(1.0, Norm(u) / std::sqrt(n) / Num(h, "clip_threshold"));
    for (double& value : u) value *= eta / clip;
    if (Num(h, "beta1") > 0) {
      Decay(x.state["m"], u, Num(h, "beta1"));
      u = x.state["m"];
    }
    for (size_t i = 0; i < u.size(); ++i) x.p[i] = x.p[i] - eta * Num(h, "weight_decay") * x.p[i] - u[i];
  }
};

}  // namespace

std::unique_ptr<Reference> MakeElementwiseReference(const std::string& rule, const Hyper& hyper) {
  if (rule == "sgd") return std::make_unique<Sgd>(hyper);
  if (rule == "adam") return std::make_unique<Adam>(hyper, false);
  if (rule == "adamw" || rule == "adamw-8bit") return std::make_unique<Adam>(hyper, true);
  if (rule == "sgd-sai") return std::make_unique<Sai>(hyper);
  if (rule == "adahessian") return std::make_unique<AdaHessian>(hyper);
  if (rule == "lamb") return std::make_unique<Lamb>(hyper);
  if (rule == "scale") return std::make_unique<Scale>(hyper);
  if (rule == "adafactor") return std::make_unique<Adafactor>(hyper);
  return nullptr;
}

std::unique_ptr<Reference> MakeReference(const std::string& rule, const Hyper& hyper) {
  auto reference = MakeElementwiseReference(rule, hyper);
  return reference != nullptr ? std::move(reference) : MakeMatrixReference(rule, hyper);
}

}  // namespace optod::optim::testing
