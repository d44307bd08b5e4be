#include "server/listeners.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/status.h"

namespace optod::server {
namespace {

constexpr int kMaxReceiveBytes = (4 << 20) + (64 << 10);

class Socket {
 public:
  explicit Socket(int domain) : fd_(socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

absl::Status CannotListen(const config::Address& address, const char* reason) {
  return Unavailable("cannot listen on ", address.Text(), ": ", reason);
}

absl::Status CheckTcp(const config::Address& address) {
  sockaddr_storage storage{};
  socklen_t size = 0;
  bool v6 = address.host.find(':') != std::string::npos;
  if (v6) {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(static_cast<uint16_t>(address.port));
    inet_pton(AF_INET6, address.host.c_str(), &in6->sin6_addr);
    size = sizeof(sockaddr_in6);
  } else {
    auto* in = reinterpret_cast<sockaddr_in*>(&storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<uint16_t>(address.port));
    inet_pton(AF_INET, address.host.c_str(), &in->sin_addr);
    size = sizeof(sockaddr_in);
  }
  Socket socket(v6 ? AF_INET6 : AF_INET);
  int yes = 1;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));  // not refused by connections in TIME_WAIT
  if (bind(socket.fd(), reinterpret_cast<sockaddr*>(&storage), size) != 0)
    return CannotListen(address, std::strerror(errno));
  return absl::OkStatus();
}

absl::Status CheckUnix(const config::Address& address) {
  struct stat info {};
  if (lstat(address.path.c_str(), &info) != 0) {
    if (errno == ENOENT) {
      size_t slash = address.path.rfind('/');
      std::string directory = slash == std::string::npos ? "." : address.path.substr(0, slash + 1);
      if (access(directory.c_str(), W_OK | X_OK) != 0) return CannotListen(address, std::strerror(errno));
      return absl::OkStatus();
    }
    return CannotListen(address, std::strerror(errno));
  }
  if (!S_ISSOCK(info.st_mode)) return CannotListen(address, "the path exists and is not a socket");
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, address.path.c_str(), address.path.size() + 1);
  Socket socket(AF_UNIX);
  if (connect(socket.fd(), reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0)
    return CannotListen(address, "another server answers there");
  if (errno != ECONNREFUSED || unlink(address.path.c_str()) != 0) return CannotListen(address, std::strerror(errno));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAddressFree(const config::Address& address) {
  return address.is_unix ? CheckUnix(address) : CheckTcp(address);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const config::Config& config, Fs& fs) {
  if (config.tls_cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options;
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  for (auto [key, path, into] : {std::tuple("tls-cert", &config.tls_cert, &pair.cert_chain),
                                 std::tuple("tls-key", &config.tls_key, &pair.private_key)}) {
    absl::StatusOr<std::string> text = fs.ReadFile(*path);
    if (!text.ok()) return InvalidArgument(key, ": ", *path, ": ", text.status().message());
    if (text->find("-----BEGIN ") == std::string::npos) return InvalidArgument(key, ": ", *path, " is not a PEM file");
    *into = *std::move(text);
  }
  options.pem_key_cert_pairs.push_back(std::move(pair));
  return grpc::SslServerCredentials(options);
}

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);  // reflection is the only service that uses them
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);         // or a second server would share the port
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);  // finds clients that are gone without a word
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 4096);
}

absl::StatusOr<Listening> StartListening(grpc::ServerBuilder& builder, const config::Config& config, Fs& fs) {
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> tcp, TcpCredentials(config, fs));
  std::vector<config::Address> addresses;
  for (const std::string& text : config.listen) {
    ASSIGN_OR_RETURN(config::Address address, config::ParseAddress(text));
    RETURN_IF_ERROR(CheckAddressFree(address));
    addresses.push_back(address);
  }
  std::vector<int> ports(addresses.size(), 0);
  for (size_t i = 0; i < addresses.size(); ++i) {
    builder.AddListeningPort(addresses[i].Text(), addresses[i].is_unix ? grpc::InsecureServerCredentials() : tcp,
                             &ports[i]);
  }
  Listening listening;
  mode_t before = umask(0177);  // the sockets are made private, not made and then locked
  listening.server = builder.BuildAndStart();
  umask(before);
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (listening.server == nullptr || ports[i] == 0) {
      const char* reason = addresses[i].is_unix || config.tls_cert.empty()
                               ? "gRPC could not bind it"
                               : "tls-cert and tls-key are not a usable pair";
      return CannotListen(addresses[i], reason);
    }
    if (!addresses[i].is_unix) addresses[i].port = ports[i];
    listening.addresses.push_back(addresses[i].Text());
  }
  return listening;
}

}  // namespace optod::server
