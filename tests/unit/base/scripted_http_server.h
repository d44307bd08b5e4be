#pragma once
/// An HTTP/1.1 server for tests that can misbehave: what it sends is raw bytes from a function, so it can also drop,
/// hang or send nonsense. It listens on a free port of 127.0.0.1, answers each connection on a thread of its own, and
/// keeps connections alive.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace optod {

struct SeenRequest {
  std::string head;  ///< request line and headers
  std::string body;
  int connection = 0;  ///< 0 for the first connection accepted, ...
};

/// An answer with its Content-Length.
inline std::string HttpAnswer(int status, const std::string& body, const std::string& headers = "") {
  return "HTTP/1.1 " + std::to_string(status) + " Status\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         headers + "\r\n" + body;
}

inline const std::string kDrop = "";        ///< close without a byte
inline const std::string kHang = "<hang>";  ///< say nothing until the client goes away

class ScriptedHttpServer {
 public:
  using Handler = std::function<std::string(const SeenRequest&)>;

  explicit ScriptedHttpServer(Handler handler) : handler_(std::move(handler)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 64) != 0) std::abort();
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }

  /// Answers the n-th request (over all connections) with the n-th text; the last one repeats.
  explicit ScriptedHttpServer(std::vector<std::string> answers)
      : ScriptedHttpServer([this, answers](const SeenRequest&) {
          const size_t n = next_answer_.fetch_add(1);
          return answers[std::min(n, answers.size() - 1)];
        }) {}

  ~ScriptedHttpServer() {
    stopping_ = true;
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      std::lock_guard lock(mutex_);
      for (int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    for (auto& worker : workers_) worker.join();
    close(listener_);
  }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::vector<SeenRequest> seen() const {
    std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  void Accept() {
    while (!stopping_) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      std::lock_guard lock(mutex_);
      open_.push_back(fd);
      workers_.emplace_back([this, fd, n = static_cast<int>(open_.size()) - 1] { Serve(fd, n); });
    }
  }

  void Serve(int fd, int connection) {
    SeenRequest request;
    request.connection = connection;
    while (Read(fd, &request)) {
      {
        std::lock_guard lock(mutex_);
        seen_.push_back(request);
      }
      const std::string answer = handler_(request);
      if (answer == kHang) {
        char byte;
        while (recv(fd, &byte, 1, 0) > 0) {
        }
        break;
      }
      if (answer.empty() || !Send(fd, answer)) break;
      if (answer.find("Content-Length") == std::string::npos) break;  // its end is the end of the connection
    }
    shutdown(fd, SHUT_RDWR);
    std::lock_guard lock(mutex_);
    close(fd);
    std::erase(open_, fd);
    open_.push_back(-1);  // keeps the numbering of connections
  }

  static bool Send(int fd, const std::string& bytes) {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += static_cast<size_t>(sent);
    }
    return true;
  }

  static bool Read(int fd, SeenRequest* request) {
    std::string data;
    size_t end = std::string::npos, length = 0;
    while (true) {
      if (end == std::string::npos && (end = data.find("\r\n\r\n")) != std::string::npos) {
        request->head = data.substr(0, end);
        const size_t at = request->head.find("Content-Length: ");
        length = at == std::string::npos ? 0 : std::stoul(request->head.substr(at + 16));
      }
      if (end != std::string::npos && data.size() >= end + 4 + length) {
        request->body = data.substr(end + 4, length);
        return true;
      }
      char buffer[16384];
      const ssize_t got = recv(fd, buffer, sizeof buffer, 0);
      if (got <= 0) return false;
      data.append(buffer, static_cast<size_t>(got));
    }
  }

  Handler handler_;
  std::atomic<size_t> next_answer_{0};
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  mutable std::mutex mutex_;
  std::vector<int> open_;
  std::vector<SeenRequest> seen_;
  std::vector<std::thread> workers_;
  std::thread acceptor_;
};

}  // namespace optod
