// Keys of language models through a whole server: a real optod with three endpoints (one from the environment, two from
// files), an endpoint that repeats the key it was sent wherever it can, workflows whose code looks for keys, a
// proposal, an export, kill -9. Then every byte that was left behind or handed out is searched for the keys.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "../unit/base/scripted_http_server.h"
#include "base/http_transport.h"
#include "base/random_id.h"
#include "base/subprocess.h"
#include "clients/cpp/client.h"

namespace optod {
namespace {

using client::Client;

const std::vector<std::string> kKeys = {"sk-canary-default-81b3", "sk-canary-big-4c7e", "sk-canary-small-0d52"};

/// What an endpoint that logs headers into its answers would say.
std::string Echo(const SeenRequest& request) {
  const size_t at = request.head.find("Authorization: ");
  const std::string header =
      at == std::string::npos ? "none" : request.head.substr(at, request.head.find("\r\n", at) - at);
  if (request.body.find("please refuse") != std::string::npos) return HttpAnswer(400, "bad header: " + header);
  return HttpAnswer(200,
                    "{\"model\":\"" + header + "\",\"choices\":[{\"message\":{\"content\":\"you sent " + header +
                        "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}");
}

class CanaryTest : public ::testing::Test {
 protected:
  CanaryTest() : model_(&Echo), folder_("/tmp/optod-canary-" + RandomId(10)) {
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ + "/secrets") << "big: " << kKeys[1] << "\nsmall: \"" << kKeys[2] << "\"\n";
    chmod((folder_ + "/secrets").c_str(), 0600);
    std::ofstream(folder_ + "/endpoints.yaml")
        << "endpoints:\n  big: {url: \"" << model_.url() << "/v1\", fallback: [small]}\n  small: {url: \""
        << model_.url() << "/v1\", cache: true}\nbudgets: {user_day: {calls: 1000}}\n";
    thread_ = std::thread([this] {
      SubprocessOptions options;
      options.argv = {std::string(OPTOD_BIN_DIR) + "/optod",
                      "--data-dir",
                      folder_ + "/data",
                      "--listen",
                      Address(),
                      "--http",
                      "127.0.0.1:0",
                      "--executor",
                      "sandbox",
                      "--llm-endpoints",
                      folder_ + "/endpoints.yaml",
                      "--llm-secrets",
                      folder_ + "/secrets",
                      "--cassette",
                      folder_ + "/cassette.jsonl",
                      "--log-level",
                      "debug"};
      options.environment = {
          {"OPTOD_LLM_URL", model_.url() + "/v1"}, {"OPTOD_LLM_KEY", kKeys[0]}, {"OPTOD_LLM_MODEL", "m"}};
      options.cancelled = &stop_;  // kill -9: the write-ahead log stays as it is
      options.max_output_bytes = 64u << 20;
      auto result = RunSubprocess(options);
      if (result.ok()) log_ = result->out + result->err;
    });
    client::ClientOptions options;
    options.address = Address();
    options.retry.attempts = 100;
    client_ = *Client::Connect(options);
  }
  ~CanaryTest() override {
    Kill();
    std::filesystem::remove_all(folder_);
  }
  void Kill() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  std::string Address() const { return "unix:" + folder_ + "/s"; }

  /// Keeps what the server handed out.
  template <typename Message>
  void Keep(const std::string& what, const absl::StatusOr<Message>& answer) {
    handed_out_ += what + ": " + (answer.ok() ? answer->DebugString() : std::string(answer.status().message())) + "\n";
  }
  static void ExpectClean(const std::string& where, const std::string& bytes) {
    for (const std::string& key : kKeys) EXPECT_EQ(bytes.find(key), std::string::npos) << "a key is in " << where;
  }

  ScriptedHttpServer model_;
  std::string folder_, log_, handed_out_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
  std::unique_ptr<Client> client_;
};

constexpr char kWorkflow[] = R"(
steps:
  seen: {python: {source: "{{look}}", function: look}, timeout: 20s}
  env: {command: "env; cat /proc/1/environ /proc/self/environ 2>&1; ls /"}
  big: {llm: {prompt: "hello", endpoint: big}}
  small: {llm: {prompt: "{{big}}", endpoint: small}}
  again: {llm: {prompt: "{{big}}", endpoint: small}, after: [small]}
  refused: {llm: {prompt: "please refuse", endpoint: big}}
guide: {exact: {got: "{{small}}", want: "x"}}
)";

constexpr char kLook[] = R"(def look():
    import os, glob
    found = dict(os.environ)
    for path in glob.glob('/proc/*/environ') + glob.glob('/tmp/**', recursive=True):
        try: found[path] = open(path).read()
        except OSError as error: found[path] = str(error)
    return found
)";

TEST_F(CanaryTest, KeysAreFoundNowhere) {
  v1::CreateSessionRequest create;
  create.mutable_optimizer()->set_name("optoprime");
  v1::ParameterSpec* look = create.add_parameters();
  look->set_name("look");
  look->set_type("code");
  look->mutable_initial()->set_text(kLook);
  const auto session = client_->CreateSession(create);
  ASSERT_TRUE(session.ok()) << session.status();

  v1::ExecuteRunRequest run;
  run.set_session(session->name());
  run.set_text(kWorkflow);
  const auto started = client_->ExecuteRun(run);
  ASSERT_TRUE(started.ok()) << started.status();
  const auto ended = client_->Wait(started->name());
  ASSERT_TRUE(ended.ok()) << ended.status();
  Keep("run", ended);
  v1::ExecuteRunResponse response;
  ASSERT_TRUE(ended->response().UnpackTo(&response));
  EXPECT_EQ(response.usage().llm_calls(), 3) << response.DebugString();  // a cassette is in use, so the cache is not
  ASSERT_TRUE(response.has_output_node()) << response.DebugString();

  v1::CompleteRequest complete;
  complete.set_session(session->name());
  complete.add_messages()->set_role("user");
  complete.mutable_messages(0)->set_content("a program printed " + kKeys[1]);
  Keep("complete", client_->Complete(complete));
  complete.mutable_messages(0)->set_content("please refuse");
  Keep("refused", client_->Complete(complete));

  v1::BackwardRequest backward;
  backward.set_session(session->name());
  backward.set_output_node(response.output_node());
  backward.set_feedback("be better");
  Keep("backward", client_->Backward(backward));
  v1::ProposeRequest propose;
  propose.set_session(session->name());
  Keep("propose", client_->ProposeAndWait(propose));
  v1::GetProblemRequest problem;
  problem.set_session(session->name());
  Keep("problem", client_->GetProblem(problem));
  v1::ListNodesRequest nodes;
  nodes.set_session(session->name());
  const auto listed = client_->ListNodes(nodes);
  Keep("nodes", listed);
  Keep("info", client_->GetServerInfo({}));
  // The code did look, and found what there is.
  ASSERT_TRUE(listed.ok());
  EXPECT_NE(listed->DebugString().find("LANG"), std::string::npos);
  EXPECT_NE(listed->DebugString().find("you sent Authorization: Bearer [redacted]"), std::string::npos);

  SubprocessOptions exported;
  exported.argv = {std::string(OPTOD_BIN_DIR) + "/optoctl", "session", "export", session->name()};
  exported.environment = {{"OPTOD_ADDRESS", Address()}};
  const auto text = RunSubprocess(exported);
  ASSERT_TRUE(text.ok() && text->exit_code == 0) << text->err;
  EXPECT_GT(text->out.size(), 1000u);
  ExpectClean("the export", text->out + text->err);
  ExpectClean("an answer", handed_out_);

  Kill();
  ExpectClean("the log", log_);
  EXPECT_NE(log_.find("optod ready"), std::string::npos);
  bool wal = false;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
    if (!entry.is_regular_file() || entry.path().filename() == "secrets") continue;
    std::stringstream bytes;
    bytes << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    ExpectClean(entry.path().filename().string(), bytes.str());
    wal = wal || (entry.path().filename() == "optod.db-wal" && !bytes.str().empty());
  }
  EXPECT_TRUE(wal);
  // Each endpoint got its own key, and no other.
  size_t default_key = 0, big_key = 0, small_key = 0;
  for (const SeenRequest& request : model_.seen()) {
    default_key += request.head.find(kKeys[0]) != std::string::npos;
    big_key += request.head.find(kKeys[1]) != std::string::npos;
    small_key += request.head.find(kKeys[2]) != std::string::npos;
    ExpectClean("a prompt", request.body);
  }
  EXPECT_EQ(default_key, 3u);  // complete, refused, propose
  EXPECT_EQ(big_key, 2u);
  EXPECT_EQ(small_key, 2u);
}

}  // namespace
}  // namespace optod
