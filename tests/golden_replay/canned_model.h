#pragma once
/// A language model that answers from a queue, over HTTP: the OpenAI-compatible `chat/completions`. For one replay at a
/// time.

#include <httplib.h>

#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace optod {

class CannedModel {
 public:
  /// Listens on 127.0.0.1; port 0 picks a free one.
  explicit CannedModel(int port = 0) {
    server_.Post("/v1/chat/completions", [this](const httplib::Request& request, httplib::Response& response) {
      std::lock_guard lock(mutex_);
      requests_.push_back(request.body);
      const nlohmann::json body = {
          {"choices", {{{"message", {{"role", "assistant"}, {"content", reply_}}}, {"finish_reason", "stop"}}}},
          {"usage", {{"prompt_tokens", 100}, {"completion_tokens", 10}, {"total_tokens", 110}}}};
      response.set_content(body.dump(), "application/json");
    });
    port_ = port == 0 ? server_.bind_to_any_port("127.0.0.1") : (server_.bind_to_port("127.0.0.1", port) ? port : -1);
    if (port_ > 0) thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  ~CannedModel() {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }
  bool listening() const { return port_ > 0; }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  /// What every request gets from now on.
  void Answer(std::string reply) {
    std::lock_guard lock(mutex_);
    reply_ = std::move(reply);
  }
  std::vector<std::string> requests() const {
    std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  httplib::Server server_;
  int port_ = -1;
  mutable std::mutex mutex_;
  std::string reply_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

}  // namespace optod
