#pragma once
/// A consistent copy of a database that is in use.

#include <string>

#include "absl/status/status.h"
#include "server/store/sqlite_connection.h"

namespace optod::store {

/// Copies the database that `source` names to `path`: one snapshot, checked, in a single file (no WAL beside it),
/// fsynced, then renamed into place. ALREADY_EXISTS, RESOURCE_EXHAUSTED; DATA_LOSS when the copy fails its check. On an
/// error nothing is left at `path`.
absl::Status BackupDatabase(const Connection::Options& source, const std::string& path);

}  // namespace optod::store
