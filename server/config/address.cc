#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <charconv>

#include "base/status.h"
#include "server/config/config.h"

namespace optod::config {

std::string Address::Text() const {
  if (is_unix) return "unix:" + path;
  if (host.find(':') != std::string::npos) return "[" + host + "]:" + std::to_string(port);
  return host + ":" + std::to_string(port);
}

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  Address address;
  if (text.starts_with("unix:")) {
    address.is_unix = address.loopback = true;
    address.path = text.substr(5);
    if (address.path.starts_with("//")) address.path = address.path.substr(2);
    if (address.path.empty()) return InvalidArgument('"', text, "\" has no path after unix:");
    if (address.path.size() >= sizeof(sockaddr_un::sun_path)) {
      return InvalidArgument("the path of the socket has ", address.path.size(), " bytes; at most ",
                             sizeof(sockaddr_un::sun_path) - 1, " are possible");
    }
    return address;
  }
  size_t colon = text.rfind(':');
  if (colon == std::string::npos) return InvalidArgument('"', text, "\" is not HOST:PORT or unix:PATH");
  std::string host = text.substr(0, colon);
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || rest != end || address.port < 0 || address.port > 65535) {
    return InvalidArgument('"', text, "\": the port must be a number from 0 to 65535");
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  in_addr v4;
  in6_addr v6;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    address.loopback = (ntohl(v4.s_addr) >> 24) == 127;
  } else if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
    address.loopback = IN6_IS_ADDR_LOOPBACK(&v6);
  } else {
    return InvalidArgument('"', text, "\": the host must be an IP address or localhost");
  }
  address.host = host;
  return address;
}

}  // namespace optod::config
