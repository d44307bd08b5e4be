#include "golden_replay/zo_replay.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "base/status.h"
#include "optim/zo/deferred.h"
#include "optim/zo/zo_optimizer.h"

namespace optod {
namespace {

using Json = nlohmann::json;
using Vector = std::vector<double>;
using zo::LossFn;
using zo::ZoLayout;

// Thrown by the checks below and caught in ReplayZoFile: the first difference ends a case.
struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void Flatten(const Json& values, Vector* out) {
  if (values.is_array()) {
    for (const Json& value : values) Flatten(value, out);
  } else {
    out->push_back(values.get<double>());
  }
}

// {tensor: values} as one vector in layout order; a tensor that is absent gives zeros.
Vector FlatTensors(const ZoLayout& layout, const Json& tensors) {
  Vector flat;
  for (size_t i = 0; i < layout.tensors(); ++i) {
    Vector part;
    if (tensors.contains(layout.tensor(i).name)) Flatten(tensors.at(layout.tensor(i).name), &part);
    part.resize(layout.tensor(i).size, 0.0);
    flat.insert(flat.end(), part.begin(), part.end());
  }
  return flat;
}

double Dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The objective of a file: loss and exact gradient on a batch (row numbers; ignored by the quadratic).
class Objective {
 public:
  explicit Objective(const Json& spec) : quadratic_(spec.at("type") == "quadratic") {
    rows_ = spec.at(quadratic_ ? "A" : "X").get<std::vector<Vector>>();
    y_ = spec.at(quadratic_ ? "b" : "y").get<Vector>();
    if (quadratic_) c_ = spec.at("c").get<double>();
  }

  double Loss(std::span<const double> t, const std::vector<size_t>& batch) const {
    if (quadratic_) {
      double loss = c_ - Dot(y_, t);
      for (size_t i = 0; i < t.size(); ++i) loss += 0.5 * t[i] * Dot(rows_[i], t);
      return loss;
    }
    double sum = 0;
    for (size_t row : batch) sum += std::log1p(std::exp(-y_[row] * Dot(rows_[row], t)));
    return sum / static_cast<double>(batch.size());
  }

  void Gradient(std::span<const double> t, const std::vector<size_t>& batch, std::span<double> grad) const {
    if (quadratic_) {
      for (size_t i = 0; i < t.size(); ++i) grad[i] = Dot(rows_[i], t) - y_[i];
      return;
    }
    std::fill(grad.begin(), grad.end(), 0.0);
    for (size_t row : batch) {
      const double weight = -y_[row] / (1 + std::exp(y_[row] * Dot(rows_[row], t))) / static_cast<double>(batch.size());
      for (size_t i = 0; i < t.size(); ++i) grad[i] += weight * rows_[row][i];
    }
  }

 private:
  bool quadratic_;
  std::vector<Vector> rows_;
  Vector y_;
  double c_ = 0;
};

ZoLayout ReadLayout(const Json& file) {
  const Json none = Json::array();
  const Json& no_decay = file.at("hyper").contains("no_decay") ? file.at("hyper").at("no_decay") : none;
  std::vector<zo::ZoTensor> tensors;
  for (const Json& name : file.at("tensor_order")) {
    Vector values;
    Flatten(file.at("params0").at(name.get<std::string>()), &values);
    tensors.push_back({name, values.size(), std::find(no_decay.begin(), no_decay.end(), name) == no_decay.end()});
  }
  return ZoLayout(std::move(tensors));
}

zo::ZoHyper ReadHyper(const Json& file, zo::Residue residue) {
  const Json& in = file.at("hyper");
  zo::ZoHyper hyper;
  hyper.residue = residue;
  if (file.at("rule") == "cons") hyper.rule = zo::Rule::kConservative;
  if (file.at("rule") == "forward_grad") hyper.rule = zo::Rule::kForwardGrad;
  hyper.base = in.at("base") == "adam" ? zo::Base::kAdam : zo::Base::kSgd;
  hyper.sides = in.at("perturbation_mode") == "one_side" ? zo::Sides::kOne : zo::Sides::kTwo;
  const std::string sign = in.value("sign", "none");
  hyper.sign = sign == "scalar" ? zo::Sign::kScalar : sign == "element" ? zo::Sign::kElement : zo::Sign::kNone;
  hyper.lr = in.at("lr");
  hyper.eps = in.at("eps");
  hyper.queries = std::max(1, in.at("q").get<int>());
  hyper.momentum = in.value("momentum", 0.0);
  hyper.beta1 = in.value("beta1", hyper.beta1);
  hyper.beta2 = in.value("beta2", hyper.beta2);
  hyper.adam_eps = in.value("adam_eps", hyper.adam_eps);
  hyper.weight_decay = in.value("weight_decay", 0.0);
  return hyper;
}

// One file on its way through the library.
class Replay {
 public:
  Replay(const Json& file, zo::Residue residue)
      : file_(file),
        layout_(ReadLayout(file)),
        hyper_(ReadHyper(file, residue)),
        objective_(file.at("objective")),
        optimizer_(layout_, hyper_),
        theta_(FlatTensors(layout_, file.at("params0"))),
        tolerance_(hyper_.base == zo::Base::kAdam ? 1e-8 : 1e-9) {
    if (absl::Status status = zo::CheckZoHyper(hyper_); !status.ok()) throw Difference(std::string(status.message()));
    if (file.at("rule") == "zo2") {
      auto deferred = zo::DeferredUpdate<double>::Create(layout_, hyper_);
      if (!deferred.ok()) throw Difference(std::string(deferred.status().message()));
      deferred_ = std::make_unique<zo::DeferredUpdate<double>>(*std::move(deferred));
    }
  }

  void Run() {
    for (const Json& step : file_.at("steps")) {
      RunStep(step);
      ++step_;
    }
    if (step_ == 0) throw Difference("the file has no steps");
  }

 private:
  void RunStep(const Json& step) {
    const std::string rule = file_.at("rule");
    const auto z = ReadDirections(step);
    const auto batch = step.value("batch", std::vector<size_t>{});
    const LossFn<double> loss = [&](std::span<const double> t) { return objective_.Loss(t, batch); };
    const Json& expect = step.at("expect");
    if (rule == "zo2") return Deferred(z, loss, expect);
    if (rule == "fo") {
      Scalar("loss", loss(theta_), expect.at("loss"), tolerance_);
      Vector grad(theta_.size());
      objective_.Gradient(theta_, batch, grad);
      optimizer_.update().ApplyGradient(theta_, grad, layout_.All());
    } else {
      CheckScalars(Zeroth(rule, step, *z, batch, loss), expect);
    }
    CheckTensors("params_after", theta_, expect.at("params_after"));
    CheckState(expect.value("state_after", Json::object()));
  }

  zo::StepResult Zeroth(const std::string& rule, const Json& step, const zo::DirectionSource<double>& z,
                        const std::vector<size_t>& batch, const LossFn<double>& loss) {
    if (rule == "zo" || rule == "cons") return optimizer_.StepByRule(theta_, z, loss);
    if (rule == "forward_grad") {
      return optimizer_.StepForwardGrad(theta_, z, [&](std::span<const double> t, std::span<const double> v) {
        Vector grad(t.size());
        objective_.Gradient(t, batch, grad);
        return zo::Jvp{objective_.Loss(t, batch), Dot(grad, v)};
      });
    }
    if (rule == "blockwise") {
      const bool joint = file_.at("hyper").at("block_schedule") == "joint";
      return optimizer_.StepBlockwise(theta_, z, loss, Blocks(),
                                      joint ? zo::BlockSchedule::kJoint : zo::BlockSchedule::kCoordinate);
    }
    if (rule == "hybrid") {
      const auto gradient = [&](std::span<const double> t, std::span<double> grad) {
        objective_.Gradient(t, batch, grad);
      };
      return optimizer_.StepHybrid(theta_, z, loss, gradient, Numbers(file_.at("hyper").at("zo_tensors")));
    }
    if (rule == "dp") {
      std::vector<LossFn<double>> losses;
      for (const Json& rows : step.at("worker_batches")) {
        losses.push_back([this, rows = rows.get<std::vector<size_t>>()](std::span<const double> t) {
          return objective_.Loss(t, rows);
        });
      }
      return optimizer_.StepDataParallel(theta_, z, losses);
    }
    throw Difference("rule \"" + rule + "\" is unknown");
  }

  void Deferred(const std::shared_ptr<zo::DirectionSource<double>>& z, const LossFn<double>& loss, const Json& expect) {
    Vector plus(theta_.size()), minus(theta_.size());
    deferred_->BeginStep(z);
    for (const std::vector<size_t>& block : Blocks()) deferred_->Block(block, theta_, plus, minus);
    const double loss_plus = loss(plus), loss_minus = loss(minus);
    const zo::ProjectedGradients projected = deferred_->EndStep(loss_plus, loss_minus);
    Scalars("loss_plus", {loss_plus}, expect.at("loss_plus"), tolerance_);
    Scalars("loss_minus", {loss_minus}, expect.at("loss_minus"), tolerance_);
    Scalars("projected_grad", projected.g, expect.at("projected_grad"), 1e-6);
    CheckTensors("params_after", theta_, expect.at("params_after"));
    Vector flushed = theta_;
    zo::DeferredUpdate<double> copy = *deferred_;
    copy.Flush(flushed);
    CheckTensors("params_after_flush", flushed, expect.at("params_after_flush"));
  }

  std::shared_ptr<zo::DirectionSource<double>> ReadDirections(const Json& step) const {
    std::vector<Vector> z;
    for (const Json& query : step.value("z", Json::array())) z.push_back(FlatTensors(layout_, query));
    auto source = std::make_shared<zo::ExplicitDirection<double>>(std::move(z));
    if (!step.contains("mask")) return source;
    const Vector flat = FlatTensors(layout_, step.at("mask"));
    auto mask = std::make_shared<zo::BitMask>(flat.size());
    mask->Set(0, std::vector<uint8_t>(flat.begin(), flat.end()));
    return std::make_shared<zo::MaskedDirection<double>>(source, mask);
  }

  std::vector<size_t> Numbers(const Json& names) const {
    std::vector<size_t> numbers;
    for (size_t i = 0; i < layout_.tensors(); ++i) {
      if (std::find(names.begin(), names.end(), layout_.tensor(i).name) != names.end()) numbers.push_back(i);
    }
    return numbers;
  }

  std::vector<std::vector<size_t>> Blocks() const {
    std::vector<std::vector<size_t>> blocks;
    for (const Json& names : file_.at("blocks")) blocks.push_back(Numbers(names));
    return blocks;
  }

  void CheckScalars(const zo::StepResult& got, const Json& expect) const {
    if (got.skipped) throw Difference(Cat("step ", step_, " was skipped: ", got.reason));
    if (expect.contains("loss_plus")) Scalars("loss_plus", got.loss_plus, expect.at("loss_plus"), tolerance_);
    if (expect.contains("loss_minus")) Scalars("loss_minus", got.loss_minus, expect.at("loss_minus"), tolerance_);
    if (expect.contains("projected_grad"))
      Scalars("projected_grad", got.projected_grad, expect.at("projected_grad"), 1e-6);
    if (expect.contains("projected_grad_mean"))
      Scalar("projected_grad_mean", got.mean_g.at(0), expect.at("projected_grad_mean"), 1e-6);
    if (expect.contains("jvp")) Scalar("jvp", got.jvp.at(0), expect.at("jvp"), tolerance_);
    if (expect.contains("loss")) Scalar("loss", got.loss, expect.at("loss"), tolerance_);
    if (!expect.contains("chosen")) return;
    Scalar("loss_stay", got.loss_stay, expect.at("loss_stay"), tolerance_);
    Scalar("loss_descent", got.loss_descent, expect.at("loss_descent"), tolerance_);
    Scalar("loss_ascent", got.loss_ascent, expect.at("loss_ascent"), tolerance_);
    const std::string chosen = zo::CandidateName(*got.chosen);
    if (chosen != expect.at("chosen")) {
      throw Difference(Cat("step ", step_, " chosen: got ", chosen, ", want ", expect.at("chosen").get<std::string>()));
    }
  }

  // state_after: `m.<tensor>`, `v.<tensor>`, `t.<tensor>`.
  void CheckState(const Json& expect) const {
    const zo::ZoState<double>& state = optimizer_.update().state();
    for (size_t i = 0; i < layout_.tensors(); ++i) {
      const std::string& name = layout_.tensor(i).name;
      if (expect.contains("t." + name))
        Scalar("t." + name, static_cast<double>(state.counts[i]), expect.at("t." + name), 0);
      for (const auto& [prefix, values] : {std::pair{"m.", &state.m}, std::pair{"v.", &state.v}}) {
        if (!expect.contains(prefix + name)) continue;
        if (values->size() != layout_.size()) throw Difference(Cat("state ", prefix, name, " is missing"));
        Vector want;
        Flatten(expect.at(prefix + name), &want);
        Values(prefix + name, std::span(*values).subspan(layout_.offset(i), want.size()), want, tolerance_);
      }
    }
  }

  void CheckTensors(const std::string& what, const Vector& flat, const Json& expect) const {
    for (size_t i = 0; i < layout_.tensors(); ++i) {
      Vector want;
      Flatten(expect.at(layout_.tensor(i).name), &want);
      Values(what + "." + layout_.tensor(i).name, std::span(flat).subspan(layout_.offset(i), layout_.tensor(i).size),
             want, tolerance_);
    }
  }

  void Scalar(const std::string& what, double got, const Json& want, double relative) const {
    Values(what, std::span(&got, 1), {want.get<double>()}, relative);
  }

  void Scalars(const std::string& what, const Vector& got, const Json& want, double relative) const {
    Values(what, got, want.get<Vector>(), relative);
  }

  void Values(const std::string& what, std::span<const double> got, const Vector& want, double relative) const {
    if (got.size() != want.size())
      throw Difference(Cat("step ", step_, " ", what, ": ", got.size(), " values, want ", want.size()));
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::fabs(got[i] - want[i]) <= relative * std::fabs(want[i]) + 1e-12) continue;
      std::ostringstream text;
      text.precision(17);
      text << "step " << step_ << " " << what << "[" << i << "]: got " << got[i] << ", want " << want[i];
      throw Difference(text.str());
    }
  }

  const Json& file_;
  ZoLayout layout_;
  zo::ZoHyper hyper_;
  Objective objective_;
  zo::ZoOptimizer<double> optimizer_;
  std::unique_ptr<zo::DeferredUpdate<double>> deferred_;
  Vector theta_;
  double tolerance_;
  int step_ = 0;
};

}  // namespace

CaseResult ReplayZoFile(const std::string& path) {
  CaseResult result;
  result.name = std::filesystem::path(path).stem().string();
  try {
    std::ifstream in(path);
    const Json file = Json::parse(in);
    for (zo::Residue residue : {zo::Residue::kMezo, zo::Residue::kNone}) Replay(file, residue).Run();
    result.passed = true;
  } catch (const std::exception& error) {  // a Difference, or a file that is not of the schema
    result.first_difference = error.what();
  }
  return result;
}

std::vector<CaseResult> ReplayZoGolden(const std::string& dir) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<CaseResult> results;
  for (const auto& file : files) results.push_back(ReplayZoFile(file.string()));
  return results;
}

}  // namespace optod
