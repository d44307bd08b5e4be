#pragma once
/// Tensors, random numbers and steps for tests of rules.

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "optim/rules/kernels.h"
#include "optim/rules/registry.h"

namespace optod::optim::testing {

inline OwnedTensor MakeTensor(const std::string& name, DType dtype, std::vector<int64_t> shape,
                              const std::vector<double>& values) {
  OwnedTensor tensor;
  tensor.spec = {name, dtype, std::move(shape)};
  tensor.data.resize(tensor.spec.bytes());
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* at = tensor.data.data() + i * DTypeSize(dtype);
    const float single = static_cast<float>(values[i]);
    const uint16_t half = DTypeSize(dtype) == 2 ? NarrowOne(dtype, single) : 0;
    if (dtype == DType::kF64) std::memcpy(at, &values[i], 8);
    if (dtype == DType::kF32) std::memcpy(at, &single, 4);
    if (DTypeSize(dtype) == 2) std::memcpy(at, &half, 2);
  }
  return tensor;
}

inline std::vector<double> Values(const OwnedTensor& tensor) {
  std::vector<double> values(tensor.spec.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    const std::byte* at = tensor.data.data() + i * DTypeSize(tensor.spec.dtype);
    float single = 0;
    uint16_t half = 0;
    if (tensor.spec.dtype == DType::kF64) std::memcpy(&values[i], at, 8);
    if (tensor.spec.dtype == DType::kF32) {
      std::memcpy(&single, at, 4);
      values[i] = single;
    }
    if (DTypeSize(tensor.spec.dtype) == 2) {
      std::memcpy(&half, at, 2);
      values[i] = WidenOne(tensor.spec.dtype, half);
    }
  }
  return values;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double Uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool Chance(double p) { return Uniform(0, 1) < p; }
  std::vector<double> Normals(int64_t n, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    std::vector<double> values(n);
    for (double& value : values) value = normal(engine_);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

/// Everything one step is given, owned.
struct StepData {
  std::vector<std::optional<OwnedTensor>> grads;
  std::vector<OwnedTensor> extra;
  std::optional<double> lr, loss;
};

/// Layers need names that end in .weight, kfac and mkor rows of statistics; adahessian hessian_z; mkor-h a loss.
inline StepData RandomStep(const RuleInfo& info, const std::vector<TensorSpec>& layout, Random& random,
                           double missing = 0) {
  StepData step;
  const auto needs = [&](const char* name) {
    for (const std::string& input : info.tell_inputs) {
      if (input == name) return true;
    }
    return false;
  };
  for (const TensorSpec& spec : layout) {
    const bool absent = random.Chance(missing);
    step.grads.emplace_back();
    if (!absent) step.grads.back() = MakeTensor(spec.name, spec.dtype, spec.shape, random.Normals(spec.elements()));
    const DType wide = spec.dtype == DType::kF64 ? DType::kF64 : DType::kF32;
    if (needs("hessian_z"))
      step.extra.push_back(MakeTensor("hessian_z/" + spec.name, wide, spec.shape, random.Normals(spec.elements())));
    if (needs("act") && spec.name.ends_with(".weight") && spec.shape.size() >= 2) {
      const std::string layer = spec.name.substr(0, spec.name.size() - 7);
      const int64_t rows = random.Int(1, 6), in = spec.elements() / std::max<int64_t>(1, spec.shape[0]);
      step.extra.push_back(MakeTensor("act/" + layer, wide, {rows, in}, random.Normals(rows * in)));
      step.extra.push_back(
          MakeTensor("pgrad/" + layer, wide, {rows, spec.shape[0]}, random.Normals(rows * spec.shape[0])));
    }
  }
  if (needs("loss")) step.loss = random.Uniform(0.5, 2);
  return step;
}

inline absl::StatusOr<StepReport> TakeStep(Rule& rule, std::vector<OwnedTensor>& params, const StepData& data) {
  std::vector<void*> at;
  std::vector<const void*> grads;
  for (OwnedTensor& tensor : params) at.push_back(tensor.data.data());
  for (const auto& grad : data.grads) grads.push_back(grad ? grad->data.data() : nullptr);
  StepInput input;
  input.grads = grads;
  input.lr = data.lr;
  input.loss = data.loss;
  for (const OwnedTensor& tensor : data.extra) input.extra[tensor.spec.name] = &tensor;
  return rule.Step(at, input);
}

inline std::vector<OwnedTensor> RandomParams(const std::vector<TensorSpec>& layout, Random& random) {
  std::vector<OwnedTensor> params;
  for (const TensorSpec& spec : layout)
    params.push_back(MakeTensor(spec.name, spec.dtype, spec.shape, random.Normals(spec.elements())));
  return params;
}

/// Name and bytes.
inline bool Same(const std::vector<OwnedTensor>& a, const std::vector<OwnedTensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].spec.name != b[i].spec.name || a[i].spec.dtype != b[i].spec.dtype || a[i].spec.shape != b[i].spec.shape ||
        a[i].data != b[i].data)
      return false;
  }
  return true;
}

}  // namespace optod::optim::testing
