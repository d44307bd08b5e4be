#include "server/web/http_server.h"

#include <httplib.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/status.h"

namespace optod::web {
namespace {

constexpr int kThreads = 2;  // workers, beside the one that accepts
constexpr time_t kIdleSeconds = 5;

/// httplib sets SO_REUSEPORT by itself, with which two servers could share a port unseen.
void ReuseAddressOnly(int socket) {
  int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

}  // namespace

struct HttpServer::Impl {
  httplib::Server server;
  std::thread thread;
  int port = 0;
  std::atomic<bool> ended{false};
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& host, int port,
                                                              std::map<std::string, std::function<Page()>> pages) {
  auto impl = std::make_unique<Impl>();
  httplib::Server& server = impl->server;
  server.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  server.set_socket_options(ReuseAddressOnly);
  server.set_tcp_nodelay(true);
  server.set_read_timeout(kIdleSeconds);
  server.set_write_timeout(kIdleSeconds);
  server.set_keep_alive_timeout(1);  // an idle connection holds one of the few threads
  server.set_payload_max_length(4096);
  server.set_default_headers({{"X-Content-Type-Options", "nosniff"},
                              {"Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"},
                              {"Cache-Control", "no-store"}});
  for (auto& [path, make] : pages) {
    server.Get(path, [make = std::move(make)](const httplib::Request&, httplib::Response& response) {
      Page page = make();
      response.status = page.status;
      response.set_content(page.body, page.content_type);
    });
  }
  server.set_error_handler([](const httplib::Request&, httplib::Response& response) {
    if (response.body.empty()) response.set_content(std::to_string(response.status) + "\n", "text/plain");
  });
  errno = 0;
  impl->port = port == 0 ? server.bind_to_any_port(host) : server.bind_to_port(host, port) ? port : -1;
  if (impl->port <= 0) {
    return Unavailable("http: cannot listen on ", host, ":", port, ": ",
                       errno == 0 ? "address in use" : std::strerror(errno));
  }
  impl->thread = std::thread([raw = impl.get()] {
    raw->server.listen_after_bind();
    raw->ended = true;
  });
  // stop() before the loop runs would be lost.
  while (!server.is_running() && !impl->ended) std::this_thread::yield();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::~HttpServer() {
  impl_->server.stop();
  impl_->thread.join();
}

int HttpServer::port() const { return impl_->port; }

}  // namespace optod::web
