#include "golden_replay/optim_vocabulary.h"

#include <map>

#include "base/status.h"

namespace optod {
namespace {

using nlohmann::ordered_json;
using optim::Hyper;
using optim::HyperValue;

// Words that differ, or that say nothing about the update ("" drops them).
const std::map<std::string, std::string>& HyperNames() {
  static const std::map<std::string, std::string> names = {
      {"adam_betas", "beta1,beta2"},
      {"betas", "beta1,beta2"},
      {"clipping_value", "clipping"},
      {"inv_every", "inv_every"},
      {"half_precision", ""},
      {"proj_type", ""},
      {"proj", ""},
      {"alpha", "scale"},
      {"n_samples", ""},
      {"ns_dtype", "ns_dtype"},
      {"backend_args", "*"},
  };
  return names;
}

HyperValue ValueOf(const ordered_json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_string()) return value.get<std::string>();
  return value.get<double>();
}

void Put(const std::string& key, const ordered_json& value, Hyper& hyper) {
  const auto it = HyperNames().find(key);
  const std::string name = it == HyperNames().end() ? key : it->second;
  if (name.empty() || value.is_null()) return;
  if (name == "*") {
    for (const auto& [inner, inner_value] : value.items()) Put(inner, inner_value, hyper);
  } else if (name == "beta1,beta2") {
    hyper["beta1"] = value[0].get<double>();
    hyper["beta2"] = value[1].get<double>();
  } else {
    hyper[name] = ValueOf(value);
  }
}

// Block lengths are recorded per rank; [-1, ...] is the natural block of each rank, [1, b, null, null] the variant for
// sequence models.
void PutBlock(const ordered_json& block, Hyper& hyper) {
  const bool sequence = block[2].is_null();
  if (sequence) hyper["variant"] = std::string("fairseq");
  hyper["block"] = block[sequence ? 1 : 0].get<double>();
}

// Layers whose factors are recorded as 0 were left to the backend.
std::string BackendLayers(const ordered_json& golden) {
  std::string names;
  for (const auto& [layer, state] : golden["steps"][0]["state"].items()) {
    if (state.contains("A_inv") && state["A_inv"].is_number()) names += (names.empty() ? "" : ",") + layer;
  }
  return names;
}

void PutSystem(const std::string& system, const ordered_json& golden, RuleChoice& choice) {
  const ordered_json& given = golden["hyper"];
  Hyper& hyper = choice.hyper;
  if (system == "adahessian" && given.contains("block")) PutBlock(given["block"], hyper);
  if (system == "adafactor") {
    hyper["eps1"] = given["eps"][0].get<double>();
    hyper["eps2"] = given["eps"][1].get<double>();
  }
  if (system == "muon") {
    if (given["ns_dtype"] != "bfloat16") hyper["ns_dtype"] = std::string("parameter");
    hyper["aux_tensors"] = std::string();
  }
  if (system == "mkor" || system == "kfac") hyper["sgd_layers"] = BackendLayers(golden);
  if (system == "mkor" && !given.contains("clipping_value")) hyper["clipping"] = 0.0;
  if (system == "mkor" && !hyper.count("momentum")) hyper["momentum"] = 0.0;
}

}  // namespace

absl::StatusOr<RuleChoice> ChooseRule(const ordered_json& golden) {
  const std::string system = golden["system"].get<std::string>();
  RuleChoice choice;
  choice.name = system == "sgd_sai" ? "sgd-sai" : system;
  if (system == "apollo" && golden["hyper"]["scale_type"] == "tensor") choice.name = "apollo-mini";
  for (const auto& [key, value] : golden["hyper"].items()) {
    const bool special = key == "block" || (system == "adafactor" && key == "eps");
    if (!special) Put(key, value, choice.hyper);
  }
  PutSystem(system, golden, choice);
  return choice;
}

std::string StateName(const std::string& rule, const std::string& owner, const std::string& key, bool factored) {
  static const std::map<std::string, std::string> names = {
      {"momentum_buffer", "m"},
      {"exp_avg", "m"},
      {"exp_avg_sq", "v"},
      {"step", "t"},
      {"exp_hessian_diag_sq", "s"},
      {"hessian step", "t"},
      {"moment1", "m"},
      {"moment2", "v"},
      {"exp_avg_sq_row", "row"},
      {"exp_avg_sq_col", "col"},
      {"RMS", "rms"},
      {"weight_norm", "weight_norm"},
      {"adam_norm", "update_norm"},
      {"trust_ratio", "trust_ratio"},
      {"gsnr", "gsnr"},
      {"projector", "projector"},
      {"scaling_grad", "limit"},
      {"scaled_grad", "limit"},
      {"a", "a"},
      {"g", "g"},
      {"A_inv", "A_inv"},
      {"G_inv", "G_inv"},
      {"A", "A"},
      {"G", "G"},
  };
  const bool of_layer = key == "a" || key == "g";
  if (of_layer && !factored) return "";
  const auto it = names.find(key);
  return it == names.end() ? "" : it->second + "/" + owner;
}

}  // namespace optod
