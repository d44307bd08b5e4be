/// The log, /metrics, the status page and the HTTP port.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "base/http_transport.h"
#include "server/log/log.h"
#include "server/web/http_server.h"
#include "server/web/metrics.h"
#include "server/web/status_page.h"

namespace optod::web {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(Log, OneLineAnEventSessionFirst) {
  EXPECT_EQ(log::FormatText("told", {{"seq", 7}, {"session", "users/a/sessions/s"}, {"ok", true}}),
            "session=users/a/sessions/s event=told seq=7 ok=true");
  EXPECT_EQ(log::FormatText("e", {{"a", "two words"}, {"b", "x=\"1\"\nevent=forged"}, {"c", ""}}),
            "event=e a=\"two words\" b=\"x=\\\"1\\\"\\nevent=forged\" c=\"\"");
  EXPECT_EQ(log::FormatJson("T", "INFO", "told", {{"seq", 7}, {"session", "s\x01"}, {"ok", false}}),
            "{\"session\":\"s\\u0001\",\"time\":\"T\",\"level\":\"INFO\",\"event\":\"told\",\"seq\":7,\"ok\":false}");
}

TEST(Log, LevelsBelowAreLeftOut) {
  std::vector<std::string> lines;
  log::Init(log::Level::kWarn, log::Format::kText, [&](const std::string& line) { lines.push_back(line); });
  log::Info("quiet");
  log::Warn("loud", {{"n", 1}});
  log::Init(log::Level::kInfo, log::Format::kText);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("Z WARN event=loud n=1"));
}

TEST(Metrics, CountsByMethodAndCode) {
  Metrics metrics({"/p.S/Known", "/p.S/Silent"});
  metrics.RequestStarted("/p.S/Known");
  metrics.RequestStarted("/p.S/Known");
  metrics.RequestDone("/p.S/Known", 0, std::chrono::microseconds(150));
  metrics.RequestStarted("/p.S/Unheard");
  metrics.RequestDone("/p.S/Unheard", 12, std::chrono::seconds(1));
  metrics.AddGauge("g", "a gauge", [] { return 2.5; });
  metrics.AddCounters("c", "counters", "endpoint", [] { return std::vector<Sample>{{"default", 3}, {"other", 4}}; });
  std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("optod_requests_total{code=\"OK\",method=\"p.S/Known\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("optod_requests_total{code=\"UNIMPLEMENTED\",method=\"other\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("optod_request_seconds_bucket{method=\"p.S/Known\",le=\"0.0001\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("optod_request_seconds_bucket{method=\"p.S/Known\",le=\"0.0002\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("optod_requests_running 1\n"));
  EXPECT_THAT(text, HasSubstr("\ng 2.5\n"));
  EXPECT_THAT(text, HasSubstr("c{endpoint=\"other\"} 4\n"));
  EXPECT_THAT(text, Not(HasSubstr("Silent")));
  EXPECT_EQ(metrics.RequestsTotal(), 2);
}

TEST(Metrics, ManyThreadsLoseNothing) {
  Metrics metrics({"/p.S/M"});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&metrics, t] {
      for (int i = 0; i < 1000; ++i) {
        metrics.RequestStarted("/p.S/M");
        metrics.RequestDone("/p.S/M", t % 2 == 0 ? 0 : 3, std::chrono::microseconds(i));
        if (i % 500 == 0) metrics.Text();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(metrics.Text(), HasSubstr("optod_requests_total{code=\"INVALID_ARGUMENT\",method=\"p.S/M\"} 4000\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("optod_request_seconds_count{method=\"p.S/M\"} 8000\n"));
}

TEST(Metrics, ThisProcessHasMemoryAndFiles) {
  EXPECT_GT(ProcessResidentBytes(), 1 << 20);
  EXPECT_GT(ProcessOpenFiles(), 2);
}

TEST(StatusPage, EscapesAndNeedsNothingFromOutside) {
  StatusPage page;
  page.version = "<script>alert('1')</script>";
  page.services = {{"optod.v1.JobService", false}};
  std::string html = RenderStatusPage(page);
  EXPECT_THAT(html, StartsWith("<!doctype html>"));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(&#39;1&#39;)"));
  EXPECT_THAT(html, HasSubstr("optod.v1.JobService (not in this release)"));
  for (const char* outside : {"<script", "http://", "https://", "src="}) EXPECT_THAT(html, Not(HasSubstr(outside)));
}

class HttpTest : public ::testing::Test {
 protected:
  HttpResponse Get(const std::string& path, const std::string& method = "GET") {
    HttpRequest request;
    request.method = method;
    request.url = "http://127.0.0.1:" + std::to_string(server_->port()) + path;
    auto response = transport_->Perform(request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : HttpResponse{};
  }
  std::unique_ptr<HttpTransport> transport_ = MakeCurlTransport();
  std::unique_ptr<HttpServer> server_ = *HttpServer::Start("127.0.0.1", 0,
                                                           {{"/ok",
                                                             [] {
                                                               return Page{200, "text/plain", "fine\n"};
                                                             }},
                                                            {"/busy", [] {
                                                               return Page{503, "text/plain", "no\n"};
                                                             }}});
};

TEST_F(HttpTest, ServesItsPagesAndNothingElse) {
  const struct {
    const char *path, *method;
    int status;
    const char* body;
  } cases[] = {{"/ok", "GET", 200, "fine\n"},
               {"/busy", "GET", 503, "no\n"},
               {"/none", "GET", 404, "404\n"},
               {"/../etc/passwd", "GET", 404, "404\n"},
               {"/ok", "POST", 404, "404\n"}};
  for (const auto& c : cases) {
    HttpResponse response = Get(c.path, c.method);
    EXPECT_EQ(response.status, c.status) << c.method << " " << c.path;
    EXPECT_EQ(response.body, c.body);
  }
  EXPECT_EQ(Get("/ok").Header("x-content-type-options"), "nosniff");
}

TEST_F(HttpTest, ABusyPortIsOneClearError) {
  auto second = HttpServer::Start("127.0.0.1", server_->port(), {});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("http: cannot listen on 127.0.0.1:" + std::to_string(server_->port()) + ": "));
}

TEST(HttpServer, StopsAtOnceWhetherOrNotItWasUsed) {
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(HttpServer::Start("127.0.0.1", 0, {}).ok());
}

}  // namespace
}  // namespace optod::web
