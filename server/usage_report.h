#pragma once
/// The answer of AdminService.GetUsage: whose days may be seen, which days those are, and what was used on them.

#include "absl/status/status.h"
#include "optod/v1/admin.pb.h"
#include "server/engine/engine.h"
#include "server/spending.h"

namespace optod::server {

inline constexpr int kMaxUsageDays = 366;

/// INVALID_ARGUMENT naming the field (a day that is none, the last before the first, too many days), NOT_FOUND for a user
/// that the caller may not see.
absl::Status ReportUsage(Spending& spending, const engine::Caller& caller, const v1::GetUsageRequest& request,
                         v1::GetUsageResponse* response);

}  // namespace optod::server
