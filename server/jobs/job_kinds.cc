#include "server/jobs/job_kinds.h"

#include <nlohmann/json.hpp>

#include "base/status.h"
#include "optim/order_job/spec.h"
#include "optim/train/spec.h"

namespace optod::jobs {
namespace {

absl::StatusOr<CheckedSpec> CheckFinetune(const std::string& spec_json) {
  ASSIGN_OR_RETURN(const train::TrainSpec spec, train::ParseTrainSpec(spec_json));
  return CheckedSpec{spec.kind, spec.steps, train::PathsOf(spec), spec.parallel.workers, spec.parallel.share};
}
absl::StatusOr<CheckedSpec> CheckSampleOrder(const std::string& spec_json) {
  ASSIGN_OR_RETURN(const order::SampleOrderSpec spec, order::ParseSampleOrderSpec(spec_json));
  return CheckedSpec{"sample_order", order::TotalUnits(spec), order::PathsOf(spec), 1, ""};
}

constexpr struct {
  const char* kind;
  absl::StatusOr<CheckedSpec> (*check)(const std::string&);
} kKinds[] = {{"finetune", &CheckFinetune}, {"sample_order", &CheckSampleOrder}};

}  // namespace

absl::StatusOr<CheckedSpec> CheckJobSpec(const std::string& spec_json) {
  const auto json = nlohmann::json::parse(spec_json, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("kind")) return CheckFinetune(spec_json);
  std::string known;
  for (const auto& row : kKinds) {
    if (json["kind"] == row.kind) return row.check(spec_json);
    known += (known.empty() ? "" : ", ") + std::string(row.kind);
  }
  return InvalidArgument("kind: ", json["kind"].dump(), " is not one of ", known);
}

}  // namespace optod::jobs
