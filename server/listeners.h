#pragma once
/// The gRPC server on its addresses: probes them first, so that a busy port is one clear line, then builds and starts.
/// Used by App at start only.

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "server/config/config.h"

namespace optod::server {

/// OK when a server could bind here now. UNAVAILABLE naming the reason (in use, permission denied, no such directory).
/// Removes the socket file that a dead server left behind.
absl::Status CheckAddressFree(const config::Address& address);

/// TLS when the configuration names a certificate, plaintext otherwise. INVALID_ARGUMENT when the files cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const config::Config& config, Fs& fs);

/// Limits of messages, connections and pings (max receive message 4 MiB + 64 KiB, keepalive 60 s / 20 s, pings at most
/// every 30 s, no shared ports).
void SetLimits(grpc::ServerBuilder& builder);

struct Listening {
  std::unique_ptr<grpc::Server> server;
  std::vector<std::string> addresses;  ///< as they were bound, in the order of the configuration
};
/// Adds the addresses to a builder that has its services, and starts it. Unix sockets get mode 0600.
absl::StatusOr<Listening> StartListening(grpc::ServerBuilder& builder, const config::Config& config, Fs& fs);

}  // namespace optod::server
