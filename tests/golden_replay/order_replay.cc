#include "golden_replay/order_replay.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "base/status.h"
#include "golden_replay/logistic.h"
#include "optim/order/sample_order.h"
#include "optim/rules/registry.h"

namespace optod {
namespace {

using nlohmann::ordered_json;
using Vector = std::vector<double>;
using Trajectory = std::vector<Vector>;

Vector Data(const ordered_json& tensor) { return tensor.at("data").get<Vector>(); }

class OrderCase {
 public:
  explicit OrderCase(const ordered_json& golden)
      : golden_(golden),
        hyper_(golden.at("hyper")),
        record_(golden.at("steps").at(0)),
        rtol_(golden.at("tolerance").at("rtol").get<double>()),
        atol_(golden.at("tolerance").at("atol").get<double>()) {}

  absl::Status Run() {
    const ordered_json& problem = golden_.at("problem");
    if (problem.at("kind") != "logistic") return FailedPrecondition("problem.kind: must be logistic");
    for (size_t l = 0; l < problem.at("X").size(); ++l) {
      batches_.push_back({Data(problem["X"][l]), Data(problem.at("y").at(l))});
    }
    RETURN_IF_ERROR(MakeReference());
    RETURN_IF_ERROR(CompareTerms());
    for (size_t i = 0; i < record_.at("orders").size(); ++i) {
      const absl::Status status = CompareOrder(record_["orders"][i]);
      if (!status.ok()) return absl::Status(status.code(), Cat("orders[", i, "].", std::string(status.message())));
    }
    return absl::OkStatus();
  }

 private:
  /// Parameters before each step and after the last, trained for real on the batches in `order`.
  absl::StatusOr<Trajectory> Train(const std::vector<int>& order) const {
    optim::Hyper hyper = {{"lr", hyper_.at("lr").get<double>()}};
    if (hyper_.at("optimizer") == "adam") {
      hyper["beta1"] = hyper_.at("betas").at(0).get<double>();
      hyper["beta2"] = hyper_.at("betas").at(1).get<double>();
      hyper["eps"] = hyper_.at("eps").get<double>();
    }
    Vector theta = Data(golden_.at("init").at("theta"));
    const std::vector<optim::TensorSpec> layout = {{"theta", optim::DType::kF64, {static_cast<int64_t>(theta.size())}}};
    ASSIGN_OR_RETURN(const auto rule, optim::MakeRule(hyper_["optimizer"].get<std::string>(), hyper, layout, 0));
    Trajectory run = {theta};
    for (const int batch : order) {
      const Vector gradient = batches_.at(batch).Gradient(theta);
      void* params[] = {theta.data()};
      const void* grads[] = {gradient.data()};
      optim::StepInput input;
      input.grads = grads;
      const auto report = rule->Step(params, input);
      if (!report.ok()) return report.status();
      run.push_back(theta);
    }
    return run;
  }

  absl::Status MakeReference() {
    const size_t positions = batches_.size();
    std::vector<int> identity(positions);
    std::iota(identity.begin(), identity.end(), 0);
    ASSIGN_OR_RETURN(reference_.trajectory, Train(identity));
    RETURN_IF_ERROR(CompareRun("reference", reference_.trajectory, record_.at("reference")));
    reference_.rule = hyper_.at("optimizer") == "adam" ? optim::OrderRule::kAdam : optim::OrderRule::kSgd;
    reference_.beta1 = hyper_.at("betas").at(0).get<double>();
    reference_.beta2 = hyper_.at("betas").at(1).get<double>();
    reference_.eps = hyper_.at("eps").get<double>();
    reference_.lr.assign(positions, hyper_.at("lr").get<double>());
    reference_.terms.resize(positions);
    for (size_t t = 0; t < positions; ++t) {
      const Vector& theta = reference_.trajectory[t];
      for (const LogisticBatch& batch : batches_) {
        Vector hessian = batch.Hessian(theta);
        if (hyper_.at("jacobian") == "diag") hessian = Diagonal(hessian, theta.size());
        reference_.terms[t].push_back({batch.Gradient(theta), std::move(hessian)});
      }
    }
    return absl::OkStatus();
  }

  absl::Status CompareTerms() const {
    for (size_t t = 0; t < batches_.size(); ++t) {
      for (size_t l = 0; l < batches_.size(); ++l) {
        ASSIGN_OR_RETURN(const auto term, optim::ReferenceUpdate(reference_, static_cast<int>(t), static_cast<int>(l)));
        const std::string place = Cat("[", t, "][", l, "]");
        RETURN_IF_ERROR(Compare("update_terms" + place, term.direction, Data(record_.at("update_terms").at(t).at(l))));
        Vector jacobian = reference_.terms[t][l].curvature;  // rows scaled by the slope
        const size_t row = jacobian.size() / term.slope.size();
        for (size_t i = 0; i < jacobian.size(); ++i) jacobian[i] *= term.slope[i / row];
        RETURN_IF_ERROR(Compare("jacobians" + place, jacobian, Data(record_.at("jacobians").at(t).at(l))));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CompareOrder(const ordered_json& recorded) const {
    const auto order = recorded.at("order").get<std::vector<int>>();
    ASSIGN_OR_RETURN(const Trajectory retrained, Train(order));
    RETURN_IF_ERROR(CompareRun("retrained", retrained, recorded.at("retrained")));
    optim::EstimateOptions options;
    options.moments = hyper_.at("moments") == "replay" ? optim::OrderMoments::kReplay : optim::OrderMoments::kReference;
    for (const bool first_order : {true, false}) {
      const std::string name = first_order ? "first" : "zeroth";
      options.first_order = first_order;
      ASSIGN_OR_RETURN(const auto estimate, optim::EstimateOrder(reference_, order, options));
      RETURN_IF_ERROR(
          CompareRun("estimate_" + name + "_order", estimate.parameters, recorded.at("estimate_" + name + "_order")));
      const double error = Distance(estimate.parameters.back(), retrained.back());
      RETURN_IF_ERROR(Compare("final_error_" + name, {error}, {recorded.at("final_error_" + name).get<double>()}));
    }
    return absl::OkStatus();
  }

  static double Distance(const Vector& a, const Vector& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(sum);
  }

  absl::Status CompareRun(const std::string& name, const Trajectory& got, const ordered_json& want) const {
    if (got.size() != want.size()) return FailedPrecondition(name, ": ", got.size(), " vectors, want ", want.size());
    for (size_t t = 0; t < got.size(); ++t) RETURN_IF_ERROR(Compare(Cat(name, "[", t, "]"), got[t], Data(want[t])));
    return absl::OkStatus();
  }

  absl::Status Compare(const std::string& name, const Vector& got, const Vector& want) const {
    if (got.size() != want.size()) return FailedPrecondition(name, ": ", got.size(), " numbers, want ", want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::abs(got[i] - want[i]) <= atol_ + rtol_ * std::abs(want[i])) continue;
      std::ostringstream text;
      text.precision(17);
      text << name << "[" << i << "]: got " << got[i] << ", want " << want[i];
      return FailedPrecondition(text.str());
    }
    return absl::OkStatus();
  }

  const ordered_json &golden_, &hyper_, &record_;
  const double rtol_, atol_;
  std::vector<LogisticBatch> batches_;
  optim::OrderReference reference_;
};

}  // namespace

absl::Status ReplayOrderCase(const ordered_json& golden) { return OrderCase(golden).Run(); }

}  // namespace optod
