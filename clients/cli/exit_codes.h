#pragma once
/// Exit codes of optoctl. Fixed: scripts branch on them.

#include "absl/status/status.h"

namespace optod::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitGateNotMet = 1;
inline constexpr int kExitUsage = 2;        ///< wrong flags, unreadable or wrong input files
inline constexpr int kExitUnreachable = 3;  ///< nobody answers at the address, or not in time
inline constexpr int kExitRefused = 4;      ///< the server said no
inline constexpr int kExitJobFailed = 5;

/// Of an error that a call to the server ended in.
inline int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kExitDone;
  const bool silent =
      status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kDeadlineExceeded;
  return silent ? kExitUnreachable : kExitRefused;
}

}  // namespace optod::cli
