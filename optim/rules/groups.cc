#include "optim/rules/groups.h"

#include <algorithm>
#include <map>

#include "base/status.h"
#include "optim/rules/glob.h"

namespace optod::optim {
namespace {

/// One group's rule and where its tensors stand in the whole layout.
struct Part {
  std::unique_ptr<Rule> rule;
  std::vector<size_t> tensors;
  std::string prefix;   ///< "group<k>/"
  double lr_ratio = 1;  ///< the group's lr over the base lr
};

class GroupedRule final : public Rule {
 public:
  explicit GroupedRule(std::vector<Part> parts) : parts_(std::move(parts)) {
    std::map<std::string, int> uses;
    for (const Part& part : parts_) {
      for (const TensorSpec& spec : part.rule->StateSpecs()) ++uses[spec.name];
    }
    for (const auto& [name, count] : uses) {
      if (count > 1) shared_.push_back(name);
    }
  }

  absl::Status CheckStep(std::span<void* const> params, const StepInput& input) const override {
    for (const Part& part : parts_) {
      std::vector<void*> own_params;
      std::vector<const void*> own_grads;
      const StepInput own = Select(part, params, input, &own_params, &own_grads);
      RETURN_IF_ERROR(part.rule->CheckStep(own_params, own));
    }
    return absl::OkStatus();
  }

  /// All groups are checked before the first steps, so that an error leaves every one as it was.
  absl::StatusOr<StepReport> Step(std::span<void* const> params, const StepInput& input) override {
    RETURN_IF_ERROR(CheckStep(params, input));
    StepReport all;
    for (Part& part : parts_) {
      std::vector<void*> own_params;
      std::vector<const void*> own_grads;
      StepInput own = Select(part, params, input, &own_params, &own_grads);
      own.grads_finite = own.extra_finite = true;  // looked at above
      ASSIGN_OR_RETURN(StepReport report, part.rule->Step(own_params, own));
      for (auto& [name, value] : report.figures) {
        const bool taken = all.figures.contains(name);
        all.figures[taken ? part.prefix + name : name] = value;
      }
    }
    return all;
  }

  std::vector<OwnedTensor> ExportState() const override {
    std::vector<OwnedTensor> out;
    for (const Part& part : parts_) {
      for (OwnedTensor& tensor : part.rule->ExportState()) {
        tensor.spec.name = Outside(part, tensor.spec.name);
        out.push_back(std::move(tensor));
      }
    }
    std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
    return out;
  }

  absl::Status ImportState(std::span<const OwnedTensor> state) override {
    std::vector<std::vector<OwnedTensor>> given(parts_.size());
    std::map<std::string, std::pair<size_t, std::string>> owner;  // outside name -> part, inside name
    for (size_t k = 0; k < parts_.size(); ++k) {
      for (const TensorSpec& spec : parts_[k].rule->StateSpecs()) owner[Outside(parts_[k], spec.name)] = {k, spec.name};
    }
    for (const OwnedTensor& tensor : state) {
      const auto it = owner.find(tensor.spec.name);
      if (it == owner.end()) return InvalidArgument("state.", tensor.spec.name, ": unknown to any group");
      OwnedTensor& own = given[it->second.first].emplace_back(tensor);
      own.spec.name = it->second.second;
    }
    std::vector<std::vector<OwnedTensor>> before;
    for (size_t k = 0; k < parts_.size(); ++k) {
      before.push_back(parts_[k].rule->ExportState());
      const absl::Status status = parts_[k].rule->ImportState(given[k]);
      if (status.ok()) continue;
      for (size_t j = 0; j < k; ++j) RETURN_IF_ERROR(parts_[j].rule->ImportState(before[j]));
      return status;
    }
    return absl::OkStatus();
  }

  size_t StateBytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) bytes += part.rule->StateBytes();
    return bytes;
  }
  size_t TransientBytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) bytes += part.rule->TransientBytes();
    return bytes;
  }
  std::vector<size_t> TransientBytesOfTensors() const override {
    size_t tensors = 0;
    for (const Part& part : parts_) tensors += part.tensors.size();
    std::vector<size_t> bytes(tensors);
    for (const Part& part : parts_) {
      const std::vector<size_t> own = part.rule->TransientBytesOfTensors();
      for (size_t i = 0; i < own.size(); ++i) bytes[part.tensors[i]] = own[i];
    }
    return bytes;
  }
  size_t SharedTransientBytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) bytes += part.rule->SharedTransientBytes();
    return bytes;
  }
  std::vector<TensorSpec> StateSpecs() const override {
    std::vector<TensorSpec> out;
    for (const Part& part : parts_) {
      for (TensorSpec& spec : part.rule->StateSpecs()) {
        spec.name = Outside(part, spec.name);
        out.push_back(std::move(spec));
      }
    }
    std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return out;
  }

 private:
  static StepInput Select(const Part& part, std::span<void* const> params, const StepInput& input,
                          std::vector<void*>* own_params, std::vector<const void*>* own_grads) {
    for (const size_t i : part.tensors) {
      if (i < params.size()) own_params->push_back(params[i]);
      if (i < input.grads.size()) own_grads->push_back(input.grads[i]);
    }
    StepInput own = input;
    own.grads = *own_grads;
    if (own.lr && part.lr_ratio != 1) own.lr = *own.lr * part.lr_ratio;
    return own;
  }
  std::string Outside(const Part& part, const std::string& name) const {
    return std::binary_search(shared_.begin(), shared_.end(), name) ? part.prefix + name : name;
  }

  std::vector<Part> parts_;
  std::vector<std::string> shared_;  ///< state names that more than one group has, sorted
};

double LrOf(const Hyper& hyper) {
  const auto it = hyper.find("lr");
  const double* lr = it == hyper.end() ? nullptr : std::get_if<double>(&it->second);
  return lr == nullptr ? 0 : *lr;
}

absl::StatusOr<Hyper> Merged(const RuleInfo& info, const Hyper& base, const ParameterGroup& group, size_t number) {
  const auto own = CheckHyper(info, group.hyper);  // alone first, so that the message names the group
  if (!own.ok())
    return absl::Status(own.status().code(), Cat("groups[", number, "].", std::string(own.status().message())));
  Hyper merged = base;
  for (const auto& [name, value] : group.hyper) merged[name] = value;
  return CheckHyper(info, merged);
}

}  // namespace

absl::StatusOr<std::vector<size_t>> AssignGroups(std::span<const ParameterGroup> groups,
                                                 std::span<const TensorSpec> layout) {
  std::vector<size_t> of(layout.size(), groups.size());
  for (size_t k = 0; k < groups.size(); ++k) {
    bool any = false;
    std::string patterns;
    for (const std::string& pattern : groups[k].tensors) {
      patterns += (patterns.empty() ? "\"" : ", \"") + pattern + "\"";
      for (size_t i = 0; i < layout.size(); ++i) {
        if (!GlobMatch(pattern, layout[i].name)) continue;
        any = true;
        of[i] = std::min(of[i], k);
      }
    }
    if (!any)
      return InvalidArgument("groups[", k, "].tensors: nothing in the layout matches ",
                             patterns.empty() ? "an empty list" : patterns);
  }
  return of;
}

absl::StatusOr<std::unique_ptr<Rule>> MakeGroupedRule(const std::string& name, const Hyper& base,
                                                      std::span<const ParameterGroup> groups,
                                                      std::span<const TensorSpec> layout, uint64_t seed) {
  if (groups.empty()) return MakeRule(name, base, layout, seed);
  ASSIGN_OR_RETURN(const RuleInfo* info, FindRule(name));
  ASSIGN_OR_RETURN(const Hyper complete, CheckHyper(*info, base));
  ASSIGN_OR_RETURN(const std::vector<size_t> of, AssignGroups(groups, layout));
  std::vector<Part> parts;
  for (size_t k = 0; k <= groups.size(); ++k) {
    Part part;
    std::vector<TensorSpec> own;
    for (size_t i = 0; i < layout.size(); ++i) {
      if (of[i] != k) continue;
      part.tensors.push_back(i);
      own.push_back(layout[i]);
    }
    Hyper hyper = complete;
    if (k < groups.size()) {
      ASSIGN_OR_RETURN(hyper, Merged(*info, complete, groups[k], k));
    }
    if (own.empty()) continue;
    part.prefix = Cat("group", k, "/");
    part.lr_ratio = LrOf(complete) == 0 ? 1 : LrOf(hyper) / LrOf(complete);
    // Another stream a group: tensor numbers begin anew in each.
    ASSIGN_OR_RETURN(part.rule, MakeRule(name, hyper, own, seed + k * 0x9E3779B97F4A7C15u));
    parts.push_back(std::move(part));
  }
  return std::make_unique<GroupedRule>(std::move(parts));
}

}  // namespace optod::optim
