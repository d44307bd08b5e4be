// `optoctl optimize` as a whole: the built programs, a real optod that optoctl starts itself, and a language model that
// answers from a table over HTTP.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/random_id.h"
#include "base/subprocess.h"

namespace optod::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// One reply of the model: an HTTP status and the text of the message ("" with 200 = the body below as it is).
struct Reply {
  int status = 200;
  std::string text;
  std::string raw_body{};
};

std::string Suggest(const json& values) {
  return json{{"reasoning", "because"}, {"answer", ""}, {"suggestion", values}}.dump();
}

class FakeModel {
 public:
  explicit FakeModel(std::vector<Reply> replies) : replies_(std::move(replies)) {
    server_.Post("/v1/chat/completions", [this](const httplib::Request& request, httplib::Response& response) {
      std::lock_guard lock(mutex_);
      requests_.push_back(request.body);
      const Reply& reply = replies_[std::min(requests_.size(), replies_.size()) - 1];
      response.status = reply.status;
      const json body = {
          {"choices", {{{"message", {{"role", "assistant"}, {"content", reply.text}}}, {"finish_reason", "stop"}}}},
          {"usage", {{"prompt_tokens", 100}, {"completion_tokens", 10}, {"total_tokens", 110}}}};
      response.set_content(reply.raw_body.empty() ? body.dump() : reply.raw_body, "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();
  }
  ~FakeModel() {
    server_.stop();
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  std::vector<std::string> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  std::vector<Reply> replies_;
  std::vector<std::string> requests_;
  std::mutex mutex_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

constexpr char kYaml[] = R"(parameters:
  text: {file: text.txt}
  k: {value: 5, type: int, range: [1, 20]}
evaluate:
  command: sh eval.sh
  score: {json: score}
  timeout: 30s
budget: {steps: 3}
gate: {min_gain: 1}
)";
// Score = k, and 10 more when the text has the word "please"; the word "crash" ends it.
constexpr char kEval[] = R"(if grep -q crash text.txt; then echo crashed >&2; exit 3; fi
bonus=0; if grep -q please text.txt; then bonus=10; fi
echo "{\"score\": $((OPTOD_PARAM_k + bonus))}"
)";

class Optimize : public testing::Test {
 protected:
  Optimize() : folder_(testing::TempDir() + "optimize-" + RandomId(10)) {
    std::filesystem::create_directories(folder_);
    Write("o.yaml", kYaml);
    Write("eval.sh", kEval);
    Write("text.txt", "Answer.\n");
  }
  ~Optimize() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::remove_all(folder_ + "-data");
  }

  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ + "/" + name) << text; }
  std::string Read(const std::string& name) {
    std::ostringstream out;
    out << std::ifstream(folder_ + "/" + name).rdbuf();
    return out.str();
  }
  void Replace(const std::string& from, const std::string& to) {
    std::string yaml = Read("o.yaml");
    yaml.replace(yaml.find(from), from.size(), to);
    Write("o.yaml", yaml);
  }
  // Runs it with --json and reads the events and the last line.
  SubprocessResult Run(FakeModel* model, std::vector<std::string> flags = {}) {
    SubprocessOptions options;
    options.argv = {std::string(OPTOD_BIN_DIR) + "/optoctl", "--json", "optimize", "o.yaml"};
    options.argv.insert(options.argv.end(), flags.begin(), flags.end());
    options.working_directory = folder_;
    options.timeout = std::chrono::seconds(100);
    options.environment = {{"OPTOD_ADDRESS", ""},
                           {"OPTOD_TOKEN", ""},
                           {"OPTOD_LLM_URL", model ? model->url() : ""},
                           {"OPTOD_LLM_MODEL", model ? "m" : ""},
                           {"OPTOD_LLM_KEY", ""}};
    if (std::find(flags.begin(), flags.end(), "--cassette") == flags.end()) {
      options.argv.push_back("--data-dir");
      options.argv.push_back(folder_ + "-data");  // beside the folder, not in it
    }
    auto result = RunSubprocess(options);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->timed_out) << result->err;
    std::istringstream lines(result->out);
    events_.clear();
    for (std::string line; std::getline(lines, line);) events_.push_back(json::parse(line));
    return *result;
  }
  const json& Last() { return events_.back(); }

  std::string folder_;
  std::vector<json> events_;
};

TEST_F(Optimize, KeepsTheBestVersionAndWritesEveryReport) {
  FakeModel model({{200, Suggest({{"k0", 8}})},
                   {200, Suggest({{"k0", 3}})},  // worse: not kept
                   {200, Suggest({{"text0", "Answer, please."}, {"k0", 9}})}});
  const SubprocessResult result =
      Run(&model, {"--patch", "p.diff", "--summary", "s.md", "--junit", "j.xml", "--write"});
  EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
  EXPECT_EQ(Last()["start_score"], 5);
  EXPECT_EQ(Last()["best_score"], 19);
  EXPECT_EQ(Last()["gate"], "passed");
  EXPECT_EQ(Last()["version"], 3);
  EXPECT_EQ(Last()["usage"]["llm_calls"], 3);
  EXPECT_EQ(Last()["usage"]["evaluations"], 4);
  EXPECT_EQ(Read("text.txt"), "Answer, please.\n");
  EXPECT_THAT(Read("o.yaml"), HasSubstr("k: {value: 9, type: int"));
  EXPECT_THAT(Read("p.diff"), HasSubstr("-Answer.\n+Answer, please.\n"));
  EXPECT_THAT(Read("s.md"), HasSubstr("**5 → 19**"));
  EXPECT_THAT(Read("j.xml"), HasSubstr("failures=\"0\""));
  // The third question starts from k = 8 and tells what was tried in vain.
  EXPECT_THAT(model.requests()[2], HasSubstr("k0=8"));
  EXPECT_THAT(model.requests()[2], HasSubstr("- k = 3 (score 3)"));
}

TEST_F(Optimize, IsNeverWorseThanTheStart) {
  FakeModel model({{200, Suggest({{"k0", 4}})}, {200, Suggest({{"text0", "crash"}})}, {200, Suggest({{"k0", 2}})}});
  const SubprocessResult result = Run(&model, {"--write"});
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_EQ(Last()["best_score"], 5);
  EXPECT_EQ(Last()["version"], 0);
  EXPECT_EQ(Read("text.txt"), "Answer.\n");
  EXPECT_EQ(Read("o.yaml"), kYaml);
  EXPECT_THAT(model.requests()[2], HasSubstr("failed: the command exited with code 3"));
}

TEST_F(Optimize, AFailingStartIsFeedbackAndAnyScoreIsBetter) {
  Write("text.txt", "crash\n");
  FakeModel model({{200, Suggest({{"text0", "calm"}})}, {200, "TERMINATE"}});
  const SubprocessResult result = Run(&model);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(Last()["start_score"].is_null());
  EXPECT_EQ(Last()["best_score"], 5);
  EXPECT_THAT(model.requests()[0], HasSubstr("The evaluation failed: the command exited with code 3."));
  EXPECT_THAT(model.requests()[0], HasSubstr("crashed"));
  EXPECT_EQ(model.requests().size(), 2u) << "TERMINATE ends the run";
}

struct ModelCase {
  const char* name;
  Reply reply;
  int exit_code;
  const char* err;  // contained in stderr
  const char* out;  // contained in stdout
};
const ModelCase kModels[] = {
    {"refuses",
     {400, "", "{\"error\":{\"message\":\"no such model\"}}"},
     4,
     "not one proposal could be made",
     "\"gate\":\"failed\""},
    {"forbids",
     {401, "", "{\"error\":{\"message\":\"bad key\"}}"},
     4,
     "not one proposal could be made",
     "\"best_score\":5"},
    {"not_json", {200, "", "<html>hello</html>"}, 4, "not one proposal could be made", "\"best_score\":5"},
    {"chatter", {200, "I would rather talk about the weather."}, 1, "", "\"outcome\":\"unparsable\""},
    {"empty", {200, ""}, 1, "", "\"outcome\":\"empty\""},
    {"unchanged", {200, Suggest({{"k0", 5}})}, 1, "", "\"outcome\":\"unchanged\""},
    {"unknown_name", {200, Suggest({{"zz", 5}})}, 1, "", "\"best_score\":5"},
    {"out_of_range", {200, Suggest({{"k0", 21}})}, 1, "", "\"best_score\":5"},
    {"wrong_type", {200, Suggest({{"k0", "many"}})}, 1, "", "\"best_score\":5"},
    {"huge", {200, Suggest({{"text0", std::string(1 << 20, 'x')}})}, 1, "", "\"best_score\":5"},
};
TEST_F(Optimize, EndsInOrderWhateverTheModelSays) {
  for (const ModelCase& c : kModels) {
    FakeModel model({c.reply});
    const SubprocessResult result = Run(&model);
    EXPECT_EQ(result.exit_code, c.exit_code) << c.name << result.err << result.out;
    EXPECT_THAT(result.err, HasSubstr(c.err)) << c.name;
    EXPECT_THAT(result.out, HasSubstr(c.out)) << c.name;
  }
}

struct BudgetCase {
  const char* name;
  const char* budget;
  int64_t steps, evaluations;
};
TEST_F(Optimize, EndsWithItsBudget) {
  const BudgetCase cases[] = {{"steps", "steps: 2", 2, 3},
                              {"evaluations", "steps: 9, evaluations: 2", 1, 2},
                              {"tokens", "steps: 9, llm_tokens: 200", 2, 3}};
  for (const BudgetCase& c : cases) {
    Write("o.yaml", kYaml);
    Replace("steps: 3", c.budget);
    std::vector<Reply> replies;
    for (int k = 6; k < 20; ++k) replies.push_back({200, Suggest({{"k0", k}})});
    FakeModel model(replies);
    const SubprocessResult result = Run(&model);
    EXPECT_EQ(result.exit_code, 0) << c.name << result.err << result.out;
    EXPECT_EQ(Last()["usage"]["steps"], c.steps) << c.name;
    EXPECT_EQ(Last()["usage"]["evaluations"], c.evaluations) << c.name;
  }
}

TEST_F(Optimize, ReplaysFromItsCassetteWithoutAModel) {
  const auto events = [this] {
    std::vector<json> out;
    for (json event : events_) {
      for (const char* varies : {"seconds", "session", "usage"}) event.erase(varies);
      out.push_back(event);
    }
    return out;
  };
  std::vector<json> recorded;
  {
    FakeModel model({{200, Suggest({{"k0", 8}})}, {200, Suggest({{"k0", 7}})}, {200, Suggest({{"k0", 12}})}});
    EXPECT_EQ(Run(&model, {"--cassette", "c", "--cassette-mode", "record"}).exit_code, 0);
    recorded = events();
  }
  const SubprocessResult replayed = Run(nullptr, {"--cassette", "c", "--cassette-mode", "replay"});
  EXPECT_EQ(replayed.exit_code, 0) << replayed.err;
  EXPECT_EQ(events(), recorded);
  // Another start asks another question, which was not recorded.
  Replace("value: 5", "value: 6");
  EXPECT_EQ(Run(nullptr, {"--cassette", "c", "--cassette-mode", "replay"}).exit_code, 4);
}

TEST_F(Optimize, ResumesASessionFromItsBestVersion) {
  FakeModel model({{200, Suggest({{"k0", 8}})}, {200, "TERMINATE"}, {200, Suggest({{"k0", 15}})}, {200, "TERMINATE"}});
  ASSERT_EQ(Run(&model).exit_code, 0);
  const std::string session = Last()["session"];
  const SubprocessResult result = Run(&model, {"--resume", session});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Last()["session"], session);
  EXPECT_EQ(Last()["start_score"], 5);
  EXPECT_EQ(Last()["best_score"], 15);
  EXPECT_THAT(model.requests()[2], HasSubstr("k0=8"));
}

// A workflow instead of a command: its model calls and the proposals go to the same model, its Python runs in the sandbox, and a replay repeats it.
TEST_F(Optimize, AWorkflowIsRunRecordedAndReplayed) {
  Write("o.yaml", R"(parameters:
  text: {value: "say it"}
  loud: {file: loud.py, function: loud}
workflow:
  parallel: 1
  data: {file: cases.jsonl}
  steps:
    answer: {llm: {prompt: "{{text}}: {{item.word}}", max_tokens: 8}}
    final: {python: {source: "{{loud}}", function: loud, arguments: ["{{answer}}"]}}
  guide: {exact: {got: "{{final}}", want: "{{item.want}}"}}
budget: {steps: 1}
gate: {min_score: 1}
)");
  Write("loud.py", "def loud(text):\n    return text.upper()\n");
  Write("cases.jsonl", "{\"word\": \"a\", \"want\": \"A!\"}\n{\"word\": \"b\", \"want\": \"B\"}\n");
  SubprocessOptions which;
  which.argv = {"bwrap", "--version"};
  if (!RunSubprocess(which).ok()) GTEST_SKIP() << "bubblewrap is not installed";
  {
    // Answers of the two rows, the proposal, and the rows again with its code.
    FakeModel model({{200, "a"}, {200, "b"}, {200, Suggest({{"__code0", "def loud(text):\n    return text.upper() + '!' * (text == 'a')\n"}, {"loud0", "def loud(text):\n    return text.upper() + '!' * (text == 'a')\n"}})},
                     {200, "a"}, {200, "b"}});
    const SubprocessResult result = Run(&model, {"--cassette", "c", "--cassette-mode", "record"});
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    EXPECT_EQ(Last()["start_score"], 0.5);
    EXPECT_EQ(Last()["best_score"], 1);
    ASSERT_GE(model.requests().size(), 3u);
    // The model sees the steps of the run and what was wrong.
    EXPECT_THAT(model.requests()[2], HasSubstr("final0 = python(answer=answer0, loud=loud0)"));
    EXPECT_THAT(model.requests()[2], HasSubstr("row 0: wrong: got"));
  }
  const SubprocessResult replayed = Run(nullptr, {"--cassette", "c", "--cassette-mode", "replay"});
  EXPECT_EQ(replayed.exit_code, 0) << replayed.out << replayed.err;
  EXPECT_EQ(Last()["best_score"], 1);
}

}  // namespace
}  // namespace optod::cli
