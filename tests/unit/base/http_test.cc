#include <atomic>
#include <thread>

#include "base/http_transport.h"
#include "gtest/gtest.h"
#include "scripted_http_server.h"

namespace optod {
namespace {

using std::chrono::milliseconds;

HttpRequest Request(const std::string& url) {
  HttpRequest request;
  request.url = url;
  request.timeout = milliseconds(20'000);
  return request;
}

TEST(CurlTransport, SendsWhatItIsGiven) {
  ScriptedHttpServer server({HttpAnswer(200, "hello", "X-Thing:  some value \r\n")});
  const auto http = MakeCurlTransport();
  auto request = Request(server.url() + "/v1/x");
  request.headers = {{"Content-Type", "application/json"}, {"X-Empty", ""}};
  request.body = std::string("{\"a\":1}\0tail", 12);
  const auto response = http->Perform(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->body, "hello");
  EXPECT_EQ(response->Header("x-thing"), "some value");
  EXPECT_EQ(response->Header("absent"), "");
  const SeenRequest seen = server.seen().at(0);
  EXPECT_EQ(seen.head.substr(0, 19), "POST /v1/x HTTP/1.1");
  EXPECT_NE(seen.head.find("Content-Type: application/json"), std::string::npos);
  EXPECT_NE(seen.head.find("X-Empty:"), std::string::npos);
  EXPECT_EQ(seen.head.find("Expect:"), std::string::npos);
  EXPECT_EQ(seen.body, request.body);
}

TEST(CurlTransport, OneConnectionServesManyRequestsOfAnyMethod) {
  ScriptedHttpServer server({HttpAnswer(200, "ok")});
  const auto http = MakeCurlTransport();
  for (const char* method : {"POST", "GET", "DELETE", "POST"}) {
    auto request = Request(server.url());
    request.method = method;
    ASSERT_TRUE(http->Perform(request).ok());
  }
  for (const SeenRequest& seen : server.seen()) EXPECT_EQ(seen.connection, 0);
  EXPECT_EQ(server.seen().at(1).head.substr(0, 4), "GET ");
  EXPECT_EQ(server.seen().at(2).head.substr(0, 7), "DELETE ");
}

TEST(CurlTransport, EveryHttpStatusIsAResponse) {
  for (int status : {204, 301, 400, 401, 404, 429, 500, 503}) {
    ScriptedHttpServer server({HttpAnswer(status, status == 204 ? "" : "why", "Location: http://127.0.0.1:1/\r\n")});
    const auto response = MakeCurlTransport()->Perform(Request(server.url()));
    ASSERT_TRUE(response.ok()) << status << response.status();
    EXPECT_EQ(response->status, status);
    EXPECT_EQ(server.seen().size(), 1u) << "a redirect is not followed";
  }
}

struct Failure {
  const char* name;
  std::string answer;
  absl::StatusCode want;
};

class CurlFailures : public testing::TestWithParam<Failure> {};

TEST_P(CurlFailures, HaveTheirCode) {
  ScriptedHttpServer server({GetParam().answer});
  auto request = Request(server.url());
  if (GetParam().answer == kHang) request.timeout = milliseconds(150);
  request.max_response_bytes = 1'000;
  request.headers = {{"Authorization", "Bearer canary-key"}};
  const auto response = MakeCurlTransport()->Perform(request);
  EXPECT_EQ(response.status().code(), GetParam().want) << response.status();
  EXPECT_EQ(std::string(response.status().message()).find("canary"), std::string::npos);
}

std::string HeaderLines(int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) lines += "X-Line: " + std::string(1'000, 'x') + "\r\n";
  return lines;
}

const Failure kFailures[] = {
    {"dropped", kDrop, absl::StatusCode::kUnavailable},
    {"hang", kHang, absl::StatusCode::kDeadlineExceeded},
    {"no_http", "SSH-2.0-hello\r\n\r\n", absl::StatusCode::kUnavailable},
    {"cut_body", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-length: 100\r\n\r\nshort",
     absl::StatusCode::kUnavailable},
    {"too_large", HttpAnswer(200, std::string(1'001, 'x')), absl::StatusCode::kResourceExhausted},
    {"too_large_without_length", "HTTP/1.1 200 OK\r\n\r\n" + std::string(5'000, 'x'),
     absl::StatusCode::kResourceExhausted},
    {"headers_too_large", "HTTP/1.1 200 OK\r\n" + HeaderLines(300), absl::StatusCode::kResourceExhausted},
};
INSTANTIATE_TEST_SUITE_P(Base, CurlFailures, testing::ValuesIn(kFailures),
                         [](const auto& info) { return info.param.name; });

TEST(CurlTransport, LargestAllowedBodyPasses) {
  ScriptedHttpServer server({HttpAnswer(200, std::string(1'000, 'x'))});
  auto request = Request(server.url());
  request.max_response_bytes = 1'000;
  EXPECT_EQ(MakeCurlTransport()->Perform(request)->body.size(), 1'000u);
}

TEST(CurlTransport, NobodyListens) {
  std::string url;
  {
    ScriptedHttpServer gone({kDrop});
    url = gone.url();
  }
  EXPECT_EQ(MakeCurlTransport()->Perform(Request(url)).status().code(), absl::StatusCode::kUnavailable);
}

TEST(CurlTransport, BadRequestsAreRefusedUnsent) {
  const auto http = MakeCurlTransport();
  for (const char* url : {"", "127.0.0.1:80", "ftp://host/", "file:///etc/passwd", "gopher://x", "http://"}) {
    EXPECT_EQ(http->Perform(Request(url)).status().code(), absl::StatusCode::kInvalidArgument) << url;
  }
  auto request = Request("http://127.0.0.1:1/");
  request.headers = {{"X", "a\r\nInjected: yes"}};
  EXPECT_EQ(http->Perform(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CurlTransport, ManyThreadsShareOneTransport) {
  ScriptedHttpServer server([](const SeenRequest& request) { return HttpAnswer(200, request.body); });
  const auto http = MakeCurlTransport();
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        auto request = Request(server.url());
        request.body = std::to_string(t * 100 + i);
        const auto response = http->Perform(request);
        good += response.ok() && response->body == request.body;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 160);
}

}  // namespace
}  // namespace optod
