#include "golden_replay/optim_replay.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/status.h"
#include "golden_replay/optim_vocabulary.h"
#include "golden_replay/order_replay.h"
#include "optim/rules/registry.h"

namespace optod {
namespace {

using nlohmann::ordered_json;
using optim::DType;
using optim::OwnedTensor;

OwnedTensor MakeTensor(const std::string& name, DType dtype, std::vector<int64_t> shape,
                       const std::vector<double>& values) {
  OwnedTensor tensor;
  tensor.spec = {name, dtype, std::move(shape)};
  tensor.data.resize(tensor.spec.bytes());
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF64) {
      std::memcpy(&tensor.data[8 * i], &values[i], 8);
    } else {
      const float value = static_cast<float>(values[i]);
      std::memcpy(&tensor.data[4 * i], &value, 4);
    }
  }
  return tensor;
}

std::vector<double> Values(const ordered_json& json) {
  if (json.is_number()) return {json.get<double>()};
  return json.at("data").get<std::vector<double>>();
}

OwnedTensor FromJson(const std::string& name, DType dtype, const ordered_json& json) {
  return MakeTensor(name, dtype, json.at("shape").get<std::vector<int64_t>>(), Values(json));
}

std::vector<double> Values(const OwnedTensor& tensor) {
  std::vector<double> values(tensor.spec.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    const std::byte* at = tensor.data.data() + i * DTypeSize(tensor.spec.dtype);
    if (tensor.spec.dtype == DType::kF64) {
      std::memcpy(&values[i], at, 8);
    } else if (tensor.spec.dtype == DType::kI64) {
      int64_t value;
      std::memcpy(&value, at, 8);
      values[i] = static_cast<double>(value);
    } else {
      float value;
      std::memcpy(&value, at, 4);
      values[i] = value;
    }
  }
  return values;
}

class Case {
 public:
  explicit Case(const ordered_json& golden)
      : golden_(golden),
        dtype_(golden.at("dtype") == "float64" ? DType::kF64 : DType::kF32),
        rtol_(golden.at("tolerance").at("rtol").get<double>()),
        atol_(golden.at("tolerance").at("atol").get<double>()) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(choice_, ChooseRule(golden_));
    std::vector<optim::TensorSpec> layout;
    for (const auto& [name, init] : golden_.at("init").items()) {
      params_.push_back(FromJson(name, dtype_, init));
      layout.push_back(params_.back().spec);
    }
    ASSIGN_OR_RETURN(rule_, optim::MakeRule(choice_.name, choice_.hyper, layout, 0));
    for (const ordered_json& step : golden_.at("steps")) {
      absl::Status status = Step(step);
      if (!status.ok()) {
        return absl::Status(status.code(), Cat("step ", step.at("t").get<int>(), " ", std::string(status.message())));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Step(const ordered_json& step) {
    extra_.clear();
    grads_.assign(params_.size(), std::nullopt);
    CollectExtras(step);
    for (size_t i = 0; i < params_.size(); ++i) {
      const std::string& name = params_[i].spec.name;
      if (step.contains("grads")) {
        if (!step["grads"].at(name).is_null()) grads_[i] = FromJson(name, dtype_, step["grads"][name]);
      } else {
        grads_[i] = LayerGradient(step, name);
      }
    }
    std::vector<void*> params;
    std::vector<const void*> grads;
    for (OwnedTensor& tensor : params_) params.push_back(tensor.data.data());
    for (const auto& grad : grads_) grads.push_back(grad ? grad->data.data() : nullptr);
    optim::StepInput input;
    input.grads = grads;
    if (step.contains("lr")) input.lr = step["lr"].get<double>();
    if (step.contains("loss")) input.loss = step["loss"].get<double>();
    for (const OwnedTensor& tensor : extra_) input.extra[tensor.spec.name] = &tensor;
    ASSIGN_OR_RETURN(const optim::StepReport report, rule_->Step(params, input));
    return Compare(step, report);
  }

  void CollectExtras(const ordered_json& step) {
    if (step.contains("z") && !step["z"].empty()) {
      for (const auto& [name, init] : golden_.at("init").items()) CollectHessian(step, name, init);
    }
    for (size_t l = 0; step.contains("inputs") && l < step["inputs"].size(); ++l) {
      extra_.push_back(FromJson(Cat("act/l.", l), dtype_, step["inputs"][l]));
      extra_.push_back(FromJson(Cat("pgrad/l.", l), dtype_, step["grad_outputs"][l]));
    }
    for (const auto& [name, state] : step.at("state").items()) {
      if (state.is_object() && state.contains("projector"))
        extra_.push_back(FromJson("projector/" + name, dtype_, state["projector"]));
    }
  }

  void CollectHessian(const ordered_json& step, const std::string& name, const ordered_json& init) {
    std::vector<int64_t> shape = init.at("shape").get<std::vector<int64_t>>();
    shape.insert(shape.begin(), static_cast<int64_t>(step["z"].size()));
    std::vector<double> products;
    for (size_t sample = 0; sample < step["z"].size(); ++sample) {
      const auto z = Values(step["z"][sample].at(name)), hv = Values(step["hv"][sample].at(name));
      for (size_t i = 0; i < z.size(); ++i) products.push_back(z[i] * hv[i]);
    }
    extra_.push_back(MakeTensor("hessian_z/" + name, dtype_, shape, products));
  }

  // Files without gradients hold layer inputs X and output gradients D: weight gradient D'X, bias gradient the column
  // sums of D.
  OwnedTensor LayerGradient(const ordered_json& step, const std::string& name) const {
    const size_t l = std::stoul(name.substr(2));
    const auto x = Values(step.at("inputs").at(l)), d = Values(step.at("grad_outputs").at(l));
    const int64_t rows = step["inputs"][l]["shape"][0], in = step["inputs"][l]["shape"][1],
                  out = step["grad_outputs"][l]["shape"][1];
    const bool bias = name.ends_with("bias");
    std::vector<double> grad(bias ? out : out * in, 0.0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < out; ++o) {
        if (bias) grad[o] += d[r * out + o];
        for (int64_t i = 0; i < in && !bias; ++i) grad[o * in + i] += d[r * out + o] * x[r * in + i];
      }
    }
    return MakeTensor(name, dtype_, bias ? std::vector<int64_t>{out} : std::vector<int64_t>{out, in}, grad);
  }

  absl::Status Compare(const ordered_json& step, const optim::StepReport& report) const {
    for (const OwnedTensor& tensor : params_) {
      RETURN_IF_ERROR(
          CompareValues("params." + tensor.spec.name, Values(tensor), Values(step.at("params").at(tensor.spec.name))));
    }
    if (step.contains("kl_scale")) {
      RETURN_IF_ERROR(CompareValues("kl_scale", {Figure(report, "kl_scale")}, Values(step["kl_scale"])));
    }
    std::map<std::string, std::vector<double>> ours;
    for (const OwnedTensor& tensor : rule_->ExportState()) ours[tensor.spec.name] = Values(tensor);
    for (const auto& [name, value] : report.figures) ours[name] = {value};
    for (const auto& [owner, entries] : step.at("state").items()) {
      const bool factored = !entries.contains("A_inv") || entries["A_inv"].is_object();
      for (const auto& [key, value] : entries.items()) {
        const std::string name = StateName(choice_.name, owner, key, factored);
        if (name.empty() || (!factored && value.is_number()) || (key == "step" && golden_["system"] == "scale"))
          continue;
        const auto it = ours.find(name);
        if (it == ours.end()) return FailedPrecondition("state.", name, ": the rule has none");
        RETURN_IF_ERROR(CompareValues("state." + name, it->second, Values(value)));
      }
    }
    return absl::OkStatus();
  }

  static double Figure(const optim::StepReport& report, const std::string& name) {
    const auto it = report.figures.find(name);
    return it == report.figures.end() ? std::nan("") : it->second;
  }

  absl::Status CompareValues(const std::string& name, const std::vector<double>& got,
                             const std::vector<double>& want) const {
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

  const ordered_json& golden_;
  const DType dtype_;
  const double rtol_, atol_;
  RuleChoice choice_;
  std::unique_ptr<optim::Rule> rule_;
  std::vector<OwnedTensor> params_, extra_;
  std::vector<std::optional<OwnedTensor>> grads_;
};

}  // namespace

CaseResult ReplayOptimFile(const std::string& path) {
  CaseResult result;
  result.name = std::filesystem::path(path).stem().string();
  try {
    std::ifstream file(path);
    const ordered_json golden = ordered_json::parse(file);
    const absl::Status status = golden.at("system") == "fut" ? ReplayOrderCase(golden) : Case(golden).Run();
    result.passed = status.ok();
    result.first_difference = std::string(status.message());
  } catch (const std::exception& error) {
    result.first_difference = Cat("cannot be read: ", error.what());
  }
  return result;
}

std::vector<CaseResult> ReplayOptimGolden(const std::string& dir) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".json") paths.push_back(entry.path().string());
  }
  if (error) return {{dir, false, "cannot be read: " + error.message()}};
  std::sort(paths.begin(), paths.end());
  std::vector<CaseResult> results;
  for (const std::string& path : paths) results.push_back(ReplayOptimFile(path));
  return results;
}

}  // namespace optod
