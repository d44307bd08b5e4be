#pragma once
/// Names of jobs in requests.

#include <string>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "server/auth/authenticator.h"

namespace optod::services {

struct JobName {
  std::string user, id;
};

/// users/U/jobs/J, jobs/J or J (of the caller). INVALID_ARGUMENT: none of these; NOT_FOUND: another user's, unless the
/// caller is an admin.
inline absl::StatusOr<JobName> ParseJobName(const std::string& name, const engine::Caller& caller) {
  JobName parsed{caller.user, name};
  if (const size_t at = name.find("jobs/"); at != std::string::npos) {
    parsed.id = name.substr(at + 5);
    if (at > 0) {
      if (name[at - 1] != '/') return InvalidArgument("name: \"", name, "\" is not users/USER/jobs/JOB");
      ASSIGN_OR_RETURN(parsed.user, auth::ResolveUser(name.substr(0, at - 1), caller, "name"));
    }
  }
  if (parsed.id.empty() || parsed.id.find('/') != std::string::npos)
    return InvalidArgument("name: \"", name, "\" is not users/USER/jobs/JOB");
  return parsed;
}

}  // namespace optod::services
