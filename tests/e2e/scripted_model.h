#pragma once
/// An OpenAI-compatible endpoint over HTTP whose answers a function makes from the request. Counts what was asked and
/// what was answered.

#include <httplib.h>

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

namespace optod {

class ScriptedModel {
 public:
  struct Request {
    std::string system, user;
    double temperature = -1;
    int64_t seed = 0;
  };
  using Answer = std::function<std::string(const Request&)>;

  explicit ScriptedModel(Answer answer) : answer_(std::move(answer)) {
    server_.Post("/v1/chat/completions", [this](const httplib::Request& http, httplib::Response& response) {
      const auto body = nlohmann::json::parse(http.body);
      Request request{body["messages"][0]["content"], body["messages"][1]["content"], body.value("temperature", -1.0),
                      body.value("seed", int64_t{0})};
      {
        std::lock_guard lock(mutex_);
        ++asked_[http.body];
        last_.push_back(request);
      }
      if (delay_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
      const nlohmann::json reply = {
          {"choices",
           {{{"message", {{"role", "assistant"}, {"content", answer_(request)}}}, {"finish_reason", "stop"}}}},
          {"usage", {{"prompt_tokens", 100}, {"completion_tokens", 10}, {"total_tokens", 110}}}};
      response.set_content(reply.dump(), "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  ~ScriptedModel() {
    server_.stop();
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  /// How often each distinct request came.
  std::map<std::string, int> asked() const {
    std::lock_guard lock(mutex_);
    return asked_;
  }
  std::vector<Request> requests() const {
    std::lock_guard lock(mutex_);
    return last_;
  }
  std::atomic<int> delay_ms{0};

 private:
  Answer answer_;
  mutable std::mutex mutex_;
  std::map<std::string, int> asked_;
  std::vector<Request> last_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace optod
