#pragma once
/// The tables, as numbered migrations. PRAGMA user_version says how many have run; a file of a newer program is
/// refused.

#include "absl/status/status.h"
#include "server/store/sqlite_connection.h"

namespace optod::store {

/// How many migrations this program knows.
int SchemaVersion();

/// Makes a new file ours or brings an old one up to date, each migration in a transaction of its own.
/// FAILED_PRECONDITION when the file belongs to another program or a newer schema; DATA_LOSS when it is no database.
absl::Status Migrate(Connection& connection);

}  // namespace optod::store
