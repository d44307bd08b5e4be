#include <algorithm>
#include <cmath>

#include "reference.h"

namespace optod::optim::testing {

Mat Identity(int64_t n, double value) {
  Mat m(n, n);
  for (int64_t i = 0; i < n; ++i) m(i, i) = value;
  return m;
}
Mat Times(const Mat& a, const Mat& b) {
  Mat c(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < b.cols; ++j) {
      for (int64_t k = 0; k < a.cols; ++k) c(i, j) += a(i, k) * b(k, j);
    }
  }
  return c;
}
Mat Transposed(const Mat& a) {
  Mat t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  }
  return t;
}
Mat Plus(double alpha, const Mat& a, double beta, const Mat& b) {
  Mat c = a;
  for (size_t i = 0; i < c.x.size(); ++i) c.x[i] = alpha * a.x[i] + beta * b.x[i];
  return c;
}
Mat Inverse(Mat a) {
  const int64_t n = a.rows;
  Mat inverse = Identity(n);
  for (int64_t c = 0; c < n; ++c) {
    int64_t pivot = c;
    for (int64_t r = c; r < n; ++r) {
      if (std::abs(a(r, c)) > std::abs(a(pivot, c))) pivot = r;
    }
    for (int64_t k = 0; k < n; ++k) {
      std::swap(a(c, k), a(pivot, k));
      std::swap(inverse(c, k), inverse(pivot, k));
    }
    const double d = a(c, c);
    for (int64_t k = 0; k < n; ++k) {
      a(c, k) /= d;
      inverse(c, k) /= d;
    }
    for (int64_t r = 0; r < n; ++r) {
      const double f = r == c ? 0 : a(r, c);
      for (int64_t k = 0; k < n; ++k) {
        a(r, k) -= f * a(c, k);
        inverse(r, k) -= f * inverse(c, k);
      }
    }
  }
  return inverse;
}
double Norm(const Vec& x) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return std::sqrt(sum);
}
void JacobiSvd(const Mat& a, Mat& u, Vec& s, Mat& v) {
  Mat w = a;
  Mat rotations = Identity(a.cols);
  for (int sweep = 0; sweep < 60; ++sweep) {
    for (int64_t p = 0; p < a.cols; ++p) {
      for (int64_t q = p + 1; q < a.cols; ++q) {
        double pp = 0, qq = 0, pq = 0;
        for (int64_t k = 0; k < a.rows; ++k) {
          pp += w(k, p) * w(k, p);
          qq += w(k, q) * w(k, q);
          pq += w(k, p) * w(k, q);
        }
        if (std::abs(pq) < 1e-300) continue;
        const double angle = 0.5 * std::atan2(2 * pq, pp - qq), c = std::cos(angle), sn = std::sin(angle);
        for (Mat* m : {&w, &rotations}) {
          for (int64_t k = 0; k < m->rows; ++k) {
            const double x = (*m)(k, p), y = (*m)(k, q);
            (*m)(k, p) = c * x + sn * y;
            (*m)(k, q) = c * y - sn * x;
          }
        }
      }
    }
  }
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t j = 0; j < a.cols; ++j) {
    Vec column(a.rows);
    for (int64_t k = 0; k < a.rows; ++k) column[k] = w(k, j);
    order.emplace_back(-Norm(column), j);
  }
  std::sort(order.begin(), order.end());
  u = Mat(a.rows, a.cols);
  v = Mat(a.cols, a.cols);
  s.clear();
  for (int64_t j = 0; j < a.cols; ++j) {
    s.push_back(-order[j].first);
    for (int64_t k = 0; k < a.rows; ++k) u(k, j) = w(k, order[j].second) / s[j];
    for (int64_t k = 0; k < a.cols; ++k) v(k, j) = rotations(k, order[j].second);
  }
}

namespace {

class Muon : public Reference {
 public:
  explicit Muon(const Hyper& hyper) : h(hyper) {}
  void Step(std::vector<RefTensor>& tensors, const RefStep& step) override {
    for (RefTensor& x : tensors) {
      if (!x.g || x.p.empty()) continue;
      if (x.shape.size() < 2 || x.name.find("embed") != std::string::npos || x.name.find("head") != std::string::npos) {
        Aux(x, step.lr * Num(h, "adam_lr") / Num(h, "lr"));
      } else {
        Matrix(x, step.lr);
      }
    }
  }
  void Matrix(RefTensor& x, double eta) {
    const double mu = Num(h, "momentum");
    Vec& m = x.state["m"];
    m.resize(x.p.size());
    Mat u(x.shape[0], static_cast<int64_t>(x.p.size()) / x.shape[0]);
    for (size_t i = 0; i < m.size(); ++i) {
      m[i] = mu * m[i] + (1 - mu) * (*x.g)[i];
      u.x[i] = Switch(h, "nesterov") ? (1 - mu) * (*x.g)[i] + mu * m[i] : m[i];
    }
    const bool tall = u.rows > u.cols;
    Mat o = tall ? Transposed(u) : u;
    const double norm = Norm(o.x) + 1e-7;
    for (double& v : o.x) v /= norm;
    for (int k = 0; k < Num(h, "ns_steps"); ++k) {
      const Mat a = Times(o, Transposed(o));
      o = Plus(3.4445, o, 1, Times(Plus(-4.7750, a, 2.0315, Times(a, a)), o));
    }
    if (tall) o = Transposed(o);
    const double ratio = static_cast<double>(x.shape[x.shape.size() - 2]) / static_cast<double>(x.shape.back());
    for (size_t i = 0; i < m.size(); ++i)
      x.p[i] = x.p[i] * (1 - eta * Num(h, "weight_decay")) - eta * std::sqrt(std::max(1.0, ratio)) * o.x[i];
  }
  void Aux(RefTensor& x, double eta) {
    const double b1 = Num(h, "adam_beta1"), b2 = Num(h, "adam_beta2"), t = static_cast<double>(x.t);
    x.state["m"].resize(x.p.size());
    x.state["v"].resize(x.p.size());
    for (size_t i = 0; i < x.p.size(); ++i) {
      double &m = x.state["m"][i], &v = x.state["v"][i], g = (*x.g)[i];
      m = b1 * m + (1 - b1) * g;
      v = b2 * v + (1 - b2) * g * g;
      x.p[i] -= eta * Num(h, "weight_decay") * x.p[i];
      x.p[i] -= eta * (m / (1 - std::pow(b1, t))) / (std::sqrt(v / (1 - std::pow(b2, t))) + Num(h, "adam_eps"));
    }
  }
  const Hyper h;
};

/// The projection is computed here and handed to the rule under test (the test passes it on as projector/<tensor>).
class LowRank : public Reference {
 public:
  LowRank(const Hyper& hyper, std::string kind) : h(hyper), kind_(std::move(kind)) {}
  void Step(std::vector<RefTensor>& tensors, const RefStep& step) override {
    for (RefTensor& x : tensors) {
      if (x.g && !x.p.empty()) Update(x, step);
    }
  }
  void Update(RefTensor& x, const RefStep& step) {
    const bool full =
        x.shape.size() != 2 || x.name.find("embed") != std::string::npos || x.name.find("head") != std::string::npos;
    const double b1 = Num(h, "beta1"), b2 = Num(h, "beta2"), t = static_cast<double>(x.t);
    const double eta = step.lr * std::sqrt(1 - std::pow(b2, t)) / (1 - std::pow(b1, t));
    Vec direction, update;
    if (full) {
      update = Direction(x, *x.g);
    } else {
      const Mat g(x.shape[0], x.shape[1], *x.g);
      const Mat p = Projector(x, g, step);
      const bool right = g.rows >= g.cols;
      const Mat r = right ? Times(g, Transposed(p)) : Times(Transposed(p), g);
      const Mat n(r.rows, r.cols, Direction(x, r.x));
      const auto back = [&](const Mat& low) { return right ? Times(low, p) : Times(p, low); };
      const double scale = Num(h, "scale");
      if (kind_ == "galore") update = Plus(scale, back(n), 0, g).x;
      if (kind_ == "fira") {
        Mat s = Scaled(Plus(1, g, -scale, back(r)), n, r, right, false);
        Limit(x, s);
        update = Plus(scale, back(n), 1, s).x;
      }
      if (kind_ == "apollo") {
        Mat s = Scaled(g, n, r, right, Word(h, "scale_type") == "tensor");
        const bool front = Switch(h, "scale_front");
        if (front) s = Plus(std::sqrt(scale), s, 0, s);
        Limit(x, s);
        update = front ? s.x : Plus(std::sqrt(scale), s, 0, s).x;
      }
    }
    for (size_t i = 0; i < x.p.size(); ++i)
      x.p[i] = (x.p[i] - eta * update[i]) * (1 - step.lr * Num(h, "weight_decay"));
  }
  Vec Direction(RefTensor& x, const Vec& g) {
    const double b1 = Num(h, "beta1"), b2 = Num(h, "beta2");
    x.state["m"].resize(g.size());
    x.state["v"].resize(g.size());
    Vec n(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      double &m = x.state["m"][i], &v = x.state["v"][i];
      m = b1 * m + (1 - b1) * g[i];
      v = b2 * v + (1 - b2) * g[i] * g[i];
      n[i] = m / (std::sqrt(v) + Num(h, "eps"));
    }
    return n;
  }
  Mat Projector(RefTensor& x, const Mat& g, const RefStep& step) {
    const bool right = g.rows >= g.cols;
    const int64_t rank = std::min({static_cast<int64_t>(Num(h, "rank")), g.rows, g.cols});
    if ((x.t - 1) % static_cast<int64_t>(Num(h, "update_proj_gap")) == 0) {
      if (kind_ == "apollo") {
        x.state["projector"] = step.extra.at("projector/" + x.name);
      } else {
        Mat u(0, 0), v(0, 0);
        Vec s;
        JacobiSvd(right ? g : Transposed(g), u, s, v);
        Vec& p = x.state["projector"];
        p.clear();
        const int64_t length = std::min(g.rows, g.cols);
        if (right) {
          for (int64_t k = 0; k < rank; ++k) {
            for (int64_t e = 0; e < length; ++e) p.push_back(v(e, k));
          }
        } else {
          for (int64_t e = 0; e < length; ++e) {
            for (int64_t k = 0; k < rank; ++k) p.push_back(v(e, k));
          }
        }
      }
    }
    return right ? Mat(rank, g.cols, x.state["projector"]) : Mat(g.rows, rank, x.state["projector"]);
  }
  Mat Scaled(Mat s, const Mat& n, const Mat& r, bool right, bool whole) {
    const auto channel = [&](const Mat& m, int64_t c) {
      Vec v;
      for (int64_t k = 0; k < (right ? m.cols : m.rows); ++k) v.push_back(right ? m(c, k) : m(k, c));
      return Norm(v);
    };
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = 0; j < s.cols; ++j) {
        const int64_t c = right ? i : j;
        s(i, j) *= whole ? Norm(n.x) / (Norm(r.x) + 1e-8) : channel(n, c) / (channel(r, c) + 1e-8);
      }
    }
    return s;
  }
  void Limit(RefTensor& x, Mat& s) {
    Vec& last = x.state["limit"];
    if (!last.empty() && last[0] > 0) {
      const double limiter = Num(h, "limiter"), l = std::max(Norm(s.x) / (last[0] + 1e-8), limiter) / limiter;
      for (double& v : s.x) v /= l;
    }
    last = {Norm(s.x)};
  }
  const Hyper h;
  const std::string kind_;
};

/// Layers named "<layer>.weight" (and "<layer>.bias") with statistics; the reference of the backend steps on what
/// Replace returns.
class Layered : public Reference {
 public:
  Layered(const Hyper& hyper, std::unique_ptr<Reference> backend) : h(hyper), backend_(std::move(backend)) {}
  void Step(std::vector<RefTensor>& tensors, const RefStep& step) override {
    std::vector<std::optional<Vec>> given;
    for (RefTensor& x : tensors) given.push_back(x.g);
    Begin(step);
    for (RefTensor& x : tensors) {
      const size_t dot = x.name.rfind(".weight");
      if (dot == std::string::npos || x.shape.size() < 2 || x.p.empty() || !x.g || !Active()) continue;
      const std::string layer = x.name.substr(0, dot);
      if (layer.find("embed") != std::string::npos) continue;
      RefTensor* bias = nullptr;
      for (RefTensor& y : tensors) {
        if (y.name == layer + ".bias") bias = &y;
      }
      if (bias != nullptr && !bias->g) continue;
      Gather(layer, x, bias, step);
    }
    Finish(step);
    backend_->Step(tensors, step);
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i].g = given[i];
  }

 protected:
  struct Entry {
    RefTensor *weight, *bias;
    Mat gradient, result, act, pgrad;
  };
  virtual void Begin(const RefStep&) { entries_.clear(); }
  virtual void Finish(const RefStep& step) = 0;
  virtual bool Active() const { return true; }
  virtual Mat Result(const std::string& layer, Entry& entry) = 0;

  void Gather(const std::string& layer, RefTensor& x, RefTensor* bias, const RefStep& step) {
    const int64_t out = x.shape[0], in = static_cast<int64_t>(x.p.size()) / out, wide = in + (bias != nullptr);
    const int64_t rows = step.rows.at("act/" + layer);
    Entry e{&x, bias, Mat(out, wide), Mat(out, wide), Mat(rows, wide), Mat(rows, out, step.extra.at("pgrad/" + layer))};
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) e.gradient(o, i) = (*x.g)[o * in + i];
      if (bias != nullptr) e.gradient(o, in) = (*bias->g)[o];
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < in; ++i) e.act(r, i) = step.extra.at("act/" + layer)[r * in + i];
      if (bias != nullptr) e.act(r, in) = 1;
    }
    e.result = Result(layer, e);
    entries_.push_back(std::move(e));
  }
  void Replace(Entry& e, double scale) {
    const int64_t in = e.gradient.cols - (e.bias != nullptr);
    for (int64_t o = 0; o < e.gradient.rows; ++o) {
      for (int64_t i = 0; i < in; ++i) (*e.weight->g)[o * in + i] = scale * e.result(o, i);
      if (e.bias != nullptr) (*e.bias->g)[o] = scale * e.result(o, in);
    }
  }

  const Hyper h;
  std::unique_ptr<Reference> backend_;
  std::vector<Entry> entries_;
};

class Kfac : public Layered {
 public:
  using Layered::Layered;
  Mat Result(const std::string& layer, Entry& e) override {
    const double n = static_cast<double>(e.act.rows), xi = Num(h, "decay"), mu = Num(h, "damping");
    auto [a, fresh_a] = a_.try_emplace(layer, Identity(e.act.cols));
    auto [g, fresh_g] = g_.try_emplace(layer, Identity(e.pgrad.cols));
    const int64_t t = e.weight->t;
    if ((t - 1) % static_cast<int64_t>(Num(h, "factor_every")) == 0) {
      a->second = Plus(xi, a->second, (1 - xi) / n, Times(Transposed(e.act), e.act));
      g->second = Plus(xi, g->second, (1 - xi) * n, Times(Transposed(e.pgrad), e.pgrad));
    }
    if ((t - 1) % static_cast<int64_t>(Num(h, "inv_every")) == 0) {
      used_a_.insert_or_assign(layer, a->second);
      used_g_.insert_or_assign(layer, g->second);
    }
    const Mat& ua = used_a_.try_emplace(layer, Identity(e.act.cols)).first->second;  // before the first inversion: I
    const Mat& ug = used_g_.try_emplace(layer, Identity(e.pgrad.cols)).first->second;
    if (Word(h, "method") == "inverse") {
      return Times(Times(Inverse(Plus(1, ug, mu, Identity(ug.rows))), e.gradient),
                   Inverse(Plus(1, ua, mu, Identity(ua.rows))));
    }
    // (G (x) A + mu I) vec(P) = vec(gradient), as one dense system.
    const int64_t size = ug.rows * ua.rows;
    Mat system = Identity(size, mu);
    for (int64_t r = 0; r < size; ++r) {
      for (int64_t c = 0; c < size; ++c) system(r, c) += ug(r / ua.rows, c / ua.rows) * ua(r % ua.rows, c % ua.rows);
    }
    return Mat(ug.rows, ua.rows, Times(Inverse(system), Mat(size, 1, e.gradient.x)).x);
  }
  void Finish(const RefStep& step) override {
    double inner = 0;
    for (Entry& e : entries_) {
      for (size_t i = 0; i < e.result.x.size(); ++i) inner += e.result.x[i] * e.gradient.x[i];
    }
    const double kappa = Num(h, "kl_clip"),
                 clip = kappa > 0 ? std::min(1.0, std::sqrt(kappa / std::abs(step.lr * step.lr * inner))) : 1;
    for (Entry& e : entries_) Replace(e, clip);
  }
  std::map<std::string, Mat> a_, g_, used_a_, used_g_;
};

class Mkor : public Layered {
 public:
  Mkor(const Hyper& hyper, std::unique_ptr<Reference> backend, bool hybrid)
      : Layered(hyper, std::move(backend)), hybrid_(hybrid) {}
  bool Active() const override { return !switched_; }
  void Begin(const RefStep& step) override {
    Layered::Begin(step);
    if (!hybrid_ || switched_) return;
    const double beta = Num(h, "beta"), w = Num(h, "window");
    ++steps_;
    average_ = beta * average_ + (1 - beta) * step.loss;
    if (std::fmod(steps_, w) != 0) return;
    smoothed_.push_back(average_ / (1 - std::pow(beta, steps_)));
    if (smoothed_.size() < 2) return;
    const double now = smoothed_.back(), rate = (smoothed_[smoothed_.size() - 2] - now) / (w * std::max(now, 1e-12));
    below_ = rate < Num(h, "fraction") * best_ ? below_ + 1 : 0;
    best_ = std::max(best_, rate);
    switched_ = below_ >= Num(h, "patience");
  }
  Mat Result(const std::string& layer, Entry& e) override {
    const std::string& rule = Word(h, "rule");
    auto a = a_.try_emplace(layer, Identity(e.act.cols)).first, g = g_.try_emplace(layer, Identity(e.pgrad.cols)).first;
    const int64_t t = e.weight->t;
    if (t <= Num(h, "warmup_steps") || (t - 1) % static_cast<int64_t>(Num(h, "inv_freq")) == 0) {
      const bool first = updates_[layer]++ == 0;
      Advance(a->second, Mean(e.act, 1), first);
      Advance(g->second, Mean(e.pgrad, static_cast<double>(e.pgrad.rows)), first);
    }
    Mat d = Times(Times(g->second, e.gradient), a->second);
    const auto size = [&](const Mat& m) {
      if (rule != "release" || e.bias == nullptr) return Norm(m.x);
      Vec weight, bias;
      for (int64_t r = 0; r < m.rows; ++r) {
        for (int64_t c = 0; c < m.cols; ++c) (c + 1 < m.cols ? weight : bias).push_back(m(r, c));
      }
      return Norm(weight) + Norm(bias);
    };
    return Plus(size(e.gradient) / size(d), d, 0, d);
  }
  Vec Mean(const Mat& rows, double scale) const {
    const double bound = Num(h, "clipping");
    Vec mean(rows.cols);
    for (int64_t r = 0; r < rows.rows; ++r) {
      for (int64_t c = 0; c < rows.cols; ++c) {
        const double value = scale * rows(r, c);
        mean[c] += (bound > 0 ? std::clamp(value, -bound, bound) : value) / static_cast<double>(rows.rows);
      }
    }
    return mean;
  }
  void Advance(Mat& k, const Vec& v, bool first) const {
    const std::string& rule = Word(h, "rule");
    const int64_t n = k.rows;
    if (rule == "release" && first) return;
    double largest = 0, s = 1;
    for (double value : k.x) largest = std::max(largest, std::abs(value));
    if (rule == "release") s = Num(h, "keep");
    if (rule != "release" && largest > Num(h, "threshold")) s = Num(h, "zeta");
    const Mat hat = Plus(s, k, 1 - s, Identity(n)), column(n, 1, v), w = Times(hat, column),
              outer = Times(w, Transposed(w));
    const double q = Times(Transposed(column), w).x[0], gamma = Num(h, "gamma");
    if (rule == "release") k = Plus(1, hat, -1 / (1 + q), outer);
    if (rule == "paper") k = Plus(gamma, hat, (1 - gamma) / (gamma * gamma * (1 + gamma * (1 - gamma) * q)), outer);
    if (rule == "exact") k = Inverse(Plus(gamma, Inverse(hat), 1 - gamma, Times(column, Transposed(column))));
  }
  void Finish(const RefStep&) override {
    for (Entry& e : entries_) Replace(e, 1);
  }
  const bool hybrid_;
  double steps_ = 0, average_ = 0, best_ = 0, below_ = 0;
  bool switched_ = false;
  Vec smoothed_;
  std::map<std::string, Mat> a_, g_;
  std::map<std::string, int> updates_;
};

}  // namespace

std::unique_ptr<Reference> MakeMatrixReference(const std::string& rule, const Hyper& hyper) {
  if (rule == "muon") return std::make_unique<Muon>(hyper);
  if (rule == "galore" || rule == "fira") return std::make_unique<LowRank>(hyper, rule);
  if (rule == "apollo" || rule == "apollo-mini") return std::make_unique<LowRank>(hyper, "apollo");
  if (rule != "kfac" && rule != "mkor" && rule != "mkor-h") return nullptr;
  Hyper behind = hyper;
  behind["dampening"] = 0.0;
  behind["nesterov"] = behind["amsgrad"] = behind["bias_correction"] = false;
  behind["clamp"] = 10.0;
  if (rule == "kfac") return std::make_unique<Kfac>(hyper, MakeElementwiseReference("sgd", behind));
  return std::make_unique<Mkor>(hyper, MakeElementwiseReference(Word(hyper, "backend"), behind), rule == "mkor-h");
}

}  // namespace optod::optim::testing
