#pragma once
/// Internal to clients/cpp: the channel of a client.

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/status/statusor.h"
#include "clients/cpp/client.h"

namespace optod::client {

/// Connects when first used. INVALID_ARGUMENT: an address that is neither HOST:PORT nor unix:PATH; what reading the CA
/// file says.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ClientOptions& options);

}  // namespace optod::client
