#pragma once
/// The one place where an error becomes a gRPC status. The code numbers are equal; the message is cut to what fits a
/// trailer; the reason, the field and the time to come back travel as trailing metadata. Thread-safe.

#include <map>
#include <string>

#include "absl/status/status.h"

namespace grpc {
class Status;
class ServerContextBase;
}  // namespace grpc

namespace optod::services {

/// `context` gets the trailing metadata; nullptr = code and message only.
grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context);

/// What ToGrpc puts into the trailing metadata, by key:
///   optod-reason    the payload optod/reason, or the code's own name ("INVALID_ARGUMENT")
///   optod-field     the payload optod/field, or the field that an INVALID_ARGUMENT message begins with
///   ("layout.tensors[3].dtype: ...") retry-after-ms  the payload optod/retry-after-ms, or 1000 for UNAVAILABLE
std::map<std::string, std::string> ErrorMetadata(const absl::Status& status);

}  // namespace optod::services
