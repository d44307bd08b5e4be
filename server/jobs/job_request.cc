#include "server/jobs/job_request.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "server/jobs/job_kinds.h"

namespace optod::jobs {
namespace {

using v1::Job;

constexpr size_t kMaxSpecBytes = 1 << 20;

/// 2GiB, 512MiB, 1000000.
absl::StatusOr<int64_t> Bytes(const nlohmann::json& value) {
  if (value.is_number_integer() && value.get<int64_t>() > 0) return value.get<int64_t>();
  if (value.is_string()) {
    const std::string text = value.get<std::string>();
    size_t used = 0;
    double number = 0;
    try {
      number = std::stod(text, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    const std::string unit = text.substr(used);
    const double factor = unit == "GiB" || unit == "G"   ? 1073741824.0
                          : unit == "MiB" || unit == "M" ? 1048576.0
                          : unit.empty()                 ? 1.0
                                                         : 0.0;
    if (used > 0 && factor > 0 && number > 0 && number * factor < 9e15) return static_cast<int64_t>(number * factor);
  }
  return InvalidArgument("limits.memory: ", value.dump(), " is not a size like 2GiB");
}

/// 90s, 15m, 2h, or seconds.
absl::StatusOr<int64_t> Seconds(const nlohmann::json& value) {
  if (value.is_number() && value.get<double>() > 0) return static_cast<int64_t>(std::max(1.0, value.get<double>()));
  if (value.is_string()) {
    const std::string text = value.get<std::string>();
    const double factor = text.ends_with("h") ? 3600 : text.ends_with("m") ? 60 : text.ends_with("s") ? 1 : 0;
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (factor > 0 && end == text.c_str() + text.size() - 1 && number > 0 && number < 1e9)
      return static_cast<int64_t>(std::max(1.0, number * factor));
  }
  return InvalidArgument("limits.wall: ", value.dump(), " is not a time like 90s, 15m, 2h");
}

/// Parts of the spec that are the queue's.
absl::Status ReadQueueFields(const std::string& spec_json, Job* job) {
  const auto json = nlohmann::json::parse(spec_json, nullptr, false);
  if (json.contains("priority")) {
    if (!json["priority"].is_number_integer() || std::abs(json["priority"].get<double>()) > 100)
      return InvalidArgument("priority: ", json["priority"].dump(), " must lie in -100 to 100");
    job->set_priority(json["priority"].get<int32_t>());
  }
  if (json.contains("after")) {
    const auto list = json["after"].is_array() ? json["after"] : nlohmann::json::array({json["after"]});
    for (const auto& name : list) {
      if (!name.is_string()) return InvalidArgument("after: not a list of jobs");
      const std::string text = name.get<std::string>();
      job->add_after(text.substr(text.rfind('/') + 1));
    }
  }
  if (!json.contains("limits") || json["limits"].is_null()) return absl::OkStatus();
  if (!json["limits"].is_object()) return InvalidArgument("limits: not a mapping");
  for (const auto& [key, value] : json["limits"].items()) {
    if (key == "memory") {
      ASSIGN_OR_RETURN(const int64_t bytes, Bytes(value));
      job->mutable_placement()->set_memory_bytes(bytes);
    } else if (key == "wall") {
      ASSIGN_OR_RETURN(const int64_t seconds, Seconds(value));
      job->mutable_placement()->mutable_max_wall()->set_seconds(seconds);
    } else if (key == "cpus") {
      if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > 4096)
        return InvalidArgument("limits.cpus: ", value.dump(), " must lie in 1 to 4096");
      job->mutable_placement()->set_cpus(value.get<int32_t>());
    } else {
      return InvalidArgument("limits: unknown field \"", key, "\" (memory, wall, cpus)");
    }
  }
  return absl::OkStatus();
}

/// "/data/x/../y" is judged as "/data/y"; links are followed as far as they exist.
bool IsBelow(const std::string& path, const std::string& root) {
  std::error_code ignored;
  const std::string real = std::filesystem::weakly_canonical(path, ignored).string(),
                    top = std::filesystem::weakly_canonical(root, ignored).string();
  return real == top || real.starts_with(top + "/");
}

/// What a request may say beside the job file: nothing that the job would then not do.
absl::Status CheckPlacement(const v1::Placement& asked, const v1::Placement& limits) {
  for (const auto& [field, value, known] : {std::tuple("backend", asked.backend(), "cpu"), {"engine", asked.engine(), "local"}}) {
    if (!value.empty() && value != known)
      return Unimplemented("job.placement.", field, ": \"", value, "\" is not part of this release; use \"", known, "\"");
  }
  if (asked.gpus() != 0) return Unimplemented("job.placement.gpus: ", asked.gpus(), "; jobs of this release run on CPUs");
  if (!asked.partition().empty()) return Unimplemented("job.placement.partition: \"", asked.partition(), "\"; there are none here");
  for (const auto& [field, value, limit, key] :
       {std::tuple("cpus", int64_t{asked.cpus()}, int64_t{limits.cpus()}, "limits.cpus"),
        {"memory_bytes", asked.memory_bytes(), limits.memory_bytes(), "limits.memory"},
        {"max_wall", asked.max_wall().seconds(), limits.max_wall().seconds(), "limits.wall"},
        {"workers", int64_t{asked.workers()}, int64_t{limits.workers()}, "parallel.workers"}}) {
    if (value != 0 && value != limit)
      return InvalidArgument("job.placement.", field, ": ", value, " is not the job file's ", key, " (", limit, ")");
  }
  return absl::OkStatus();
}

absl::Status CheckPath(const std::string& path, const std::vector<std::string>& roots) {
  if (!path.starts_with("/"))
    return InvalidArgument("job: path \"", path, "\" is relative; the server needs absolute ones");
  const auto below = [&](const std::string& root) { return IsBelow(path, root); };
  if (roots.empty() || std::any_of(roots.begin(), roots.end(), below)) return absl::OkStatus();
  return absl::PermissionDeniedError("job: path \"" + path +
                                     "\" is outside the folders that this server opens to jobs (--job-files)");
}

}  // namespace

bool IsJobId(const std::string& id) {
  if (id.empty() || id.size() > 63 || !(id[0] >= 'a' && id[0] <= 'z') || id.back() == '-') return false;
  return std::all_of(id.begin(), id.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

absl::Status CheckJobRequest(const Job& request, const RequestRules& rules, Job* job) {
  if (request.spec_json().size() > kMaxSpecBytes) return ResourceExhausted("job.spec_json: over 1 MiB");
  ASSIGN_OR_RETURN(const CheckedSpec spec, CheckJobSpec(request.spec_json()));
  RETURN_IF_ERROR(ReadQueueFields(request.spec_json(), job));
  if (!request.kind().empty() && request.kind() != spec.kind)
    return InvalidArgument("job.kind: \"", request.kind(), "\" is not the spec's \"", spec.kind, "\"");
  if (request.has_budget())
    return Unimplemented("job.budget: jobs have limits.wall and steps in the job file instead");
  if (spec.workers > rules.max_job_workers)
    return ResourceExhausted("parallel.workers: ", spec.workers, " is over the ", rules.max_job_workers,
                             " processes that a job of this server may have (--max-job-workers)");
  for (const std::string& path : spec.paths) RETURN_IF_ERROR(CheckPath(path, rules.file_roots));
  job->set_kind(spec.kind);
  job->set_spec_json(request.spec_json());
  job->set_total_steps(spec.total_steps);
  job->mutable_placement()->set_backend("cpu");
  job->mutable_placement()->set_engine("local");
  job->mutable_placement()->set_workers(static_cast<int32_t>(spec.workers));
  return CheckPlacement(request.placement(), job->placement());
}

}  // namespace optod::jobs
