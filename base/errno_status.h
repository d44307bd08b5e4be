#pragma once
/// errno as a status. One table for files, pipes and processes, so that a full disk is RESOURCE_EXHAUSTED wherever it
/// is met.

#include <string>

#include "absl/status/status.h"

namespace optod {

/// "WHAT: TEXT OF ERRNO" with the code that fits: ENOENT NOT_FOUND; EACCES, EPERM, EROFS PERMISSION_DENIED; ENOSPC,
/// EDQUOT, EFBIG, EMFILE, ENFILE, ENOMEM RESOURCE_EXHAUSTED; EEXIST ALREADY_EXISTS; ENOTDIR, EISDIR, ENAMETOOLONG,
/// EINVAL, ELOOP INVALID_ARGUMENT; ENOTEMPTY, EBUSY FAILED_PRECONDITION; EIO DATA_LOSS; anything else INTERNAL. `what`
/// names the thing, not its path.
absl::Status ErrnoStatus(int error, const std::string& what);

}  // namespace optod
