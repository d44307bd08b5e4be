// Trace sessions through a real optod and a scripted language model over HTTP: every optimizer, typed outcomes, prompts
// within the context, enforced constraints, search with kill -9, the C++ tracing API.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "base/subprocess.h"
#include "clients/cpp/tracing.h"
#include "e2e/live_server.h"
#include "e2e/scripted_model.h"

namespace optod {
namespace {

using client::Client;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

std::string Suggest(const std::string& values) {
  return "{\"reasoning\": \"r\", \"answer\": \"\", \"suggestion\": {" + values + "}}";
}

TEST(TraceGolden, PassesThroughARealServer) {
  SubprocessOptions options;
  options.argv = {std::string(OPTOD_BIN_DIR) + "/optod-golden", "trace", std::string(OPTOD_GOLDEN_DIR) + "/trace",
                  "--server", "own"};
  options.timeout = std::chrono::seconds(100);
  const auto result = RunSubprocess(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_code, 0) << result->out << result->err;
  EXPECT_THAT(result->out, HasSubstr("9 passed, 0 failed"));
}

v1::ParameterSpec IntParameter(const std::string& name, int64_t value) {
  v1::ParameterSpec spec;
  spec.set_name(name);
  spec.set_type("int");
  spec.mutable_initial()->set_integer(value);
  return spec;
}

// A session with `parameters`, one call on all of them, and feedback on it.
std::string Prepared(Client& client, v1::OptimizerSpec optimizer, const std::vector<v1::ParameterSpec>& parameters,
                     const std::string& feedback = "should be higher") {
  v1::CreateSessionRequest create;
  *create.mutable_optimizer() = std::move(optimizer);
  for (const auto& p : parameters) *create.add_parameters() = p;
  const auto session = client.CreateSession(create);
  EXPECT_TRUE(session.ok()) << session.status();
  if (!session.ok()) return "";
  v1::RecordNodesRequest record;
  record.set_session(session->name());
  v1::Node* call = record.add_nodes();
  call->set_base("f");
  call->set_kind(v1::Node::MESSAGE);
  call->set_op("f");
  call->set_type("int");
  call->set_text("1");
  for (size_t i = 0; i < parameters.size(); ++i) {
    call->add_inputs()->set_argument("x" + std::to_string(i));
    call->mutable_inputs(static_cast<int>(i))->set_node(static_cast<int64_t>(i));
  }
  const auto nodes = client.RecordNodes(record);
  EXPECT_TRUE(nodes.ok()) << nodes.status();
  v1::BackwardRequest backward;
  backward.set_session(session->name());
  backward.set_output_node(nodes->nodes(0).id());
  backward.set_feedback(feedback);
  EXPECT_TRUE(client.Backward(backward).ok());
  return session->name();
}

v1::OptimizerSpec Optimizer(const std::string& name, const std::map<std::string, double>& numbers = {},
                            const std::map<std::string, std::string>& texts = {}) {
  v1::OptimizerSpec out;
  out.set_name(name);
  for (const auto& [key, value] : numbers) (*out.mutable_hyperparameters())[key].set_number(value);
  for (const auto& [key, value] : texts) (*out.mutable_hyperparameters())[key].set_text(value);
  return out;
}

absl::StatusOr<v1::ProposeResponse> Propose(Client& client, const std::string& session, int candidates = 0) {
  v1::ProposeRequest request;
  request.set_session(session);
  request.set_candidates(candidates);
  request.set_apply(true);
  return client.ProposeAndWait(request);
}

TEST(Optimizers, EveryOneIsServedAndSaysSo) {
  ScriptedModel model([](const ScriptedModel::Request& r) -> std::string {
    if (r.user.find("What should change in") != std::string::npos) return "k must rise";
    if (r.system.find("IMPROVED_VARIABLE") != std::string::npos) return "<IMPROVED_VARIABLE>8</IMPROVED_VARIABLE>";
    if (r.system.find("<reasoning>") != std::string::npos)
      return "<reasoning>r</reasoning><variable><name>k0</name><value>8</value></variable>";
    return Suggest("\"k0\": 8");
  });
  LiveServer server(model.url());
  ASSERT_TRUE(server.ready());
  const auto table = server.client().ListOptimizers({});
  ASSERT_TRUE(table.ok());
  for (const v1::OptimizerInfo& row : table->optimizers()) {
    if (row.family() != "trace") continue;
    EXPECT_TRUE(row.available()) << row.name();
    const std::string session = Prepared(server.client(), Optimizer(row.name()), {IntParameter("k", 5)});
    const auto response = Propose(server.client(), session);
    ASSERT_TRUE(response.ok()) << row.name() << response.status();
    ASSERT_TRUE(response->has_selected()) << row.name() << response->ShortDebugString();
    const v1::CandidateOutcome& chosen = response->candidates(response->selected());
    EXPECT_EQ(chosen.kind(), v1::REPLY_APPLIED) << row.name();
    EXPECT_EQ(response->head_version(), chosen.version()) << row.name();
    EXPECT_EQ(chosen.llm_calls(), row.name() == "textgrad" ? 2 : 1) << row.name();
    v1::GetVersionRequest get;
    get.set_name(session + "/versions/" + std::to_string(response->head_version()));
    EXPECT_EQ(server.client().GetVersion(get)->values().at("k").integer(), 8) << row.name();
    v1::GetSessionRequest get_session;
    get_session.set_name(session);
    EXPECT_EQ(server.client().GetSession(get_session)->usage().llm_calls(), response->usage().llm_calls())
        << row.name();
  }
}

TEST(Optimizers, MultiSpreadsTemperaturesAndSelects) {
  std::atomic<int> number{0};
  ScriptedModel model([&](const ScriptedModel::Request& r) -> std::string {
    if (r.user.find("say which of these") != std::string::npos) return "{\"reason\": \"r\", \"best\": 2}";
    return Suggest("\"k0\": " + std::to_string(10 + number++));
  });
  LiveServer server(model.url());
  const std::string session = Prepared(
      server.client(),
      Optimizer("optoprime-multi", {{"candidates", 3}, {"temperature_max", 1.2}}, {{"selection", "best_of_n"}}),
      {IntParameter("k", 5)});
  const auto response = Propose(server.client(), session);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->candidates_size(), 3);
  EXPECT_EQ(response->selected(), 1);
  EXPECT_EQ(response->usage().llm_calls(), 4);
  std::multiset<double> temperatures;
  for (const auto& r : model.requests()) temperatures.insert(r.temperature);
  EXPECT_THAT(temperatures, testing::ElementsAre(testing::DoubleNear(0, 1e-9), testing::DoubleNear(0, 1e-9),
                                                 testing::DoubleNear(0.6, 1e-9), testing::DoubleNear(1.2, 1e-9)));
}

TEST(Optimizers, AnEmptyReplyIsAnOutcomeAndPaidFor) {
  ScriptedModel model([](const ScriptedModel::Request&) { return std::string(); });
  LiveServer server(model.url());
  const std::string session = Prepared(server.client(), Optimizer("optoprime"), {IntParameter("k", 5)});
  const auto response = Propose(server.client(), session);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->candidates(0).kind(), v1::REPLY_EMPTY);
  EXPECT_FALSE(response->has_selected());
  EXPECT_EQ(response->usage().llm_prompt_tokens(), 100);
}

TEST(Optimizers, MemoryTitlesMasksAndObjectiveReachThePrompt) {
  ScriptedModel model([](const ScriptedModel::Request&) { return Suggest("\"k0\": 8"); });
  LiveServer server(model.url());
  const std::string session = Prepared(server.client(),
                                       Optimizer("optoprime", {{"memory", 2}},
                                                 {{"objective", "Make it sing."},
                                                  {"titles", "Feedback=#Verdict; Code=#Program"},
                                                  {"mask", "Inputs"},
                                                  {"memory_by", "score"}}),
                                       {IntParameter("k", 5)});
  ASSERT_TRUE(Propose(server.client(), session).ok());
  v1::BackwardRequest again;
  again.set_session(session);
  again.set_output_node(1);
  again.set_feedback("still too low");
  ASSERT_TRUE(server.client().Backward(again).ok());
  v1::GetProblemRequest get;
  get.set_session(session);
  get.add_mask("#Documentation");
  (*get.mutable_titles())["#Variables"] = "#Knobs";
  const auto problem = server.client().GetProblem(get);
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_THAT(problem->user_prompt(), HasSubstr("Make it sing."));
  EXPECT_THAT(problem->user_prompt(), HasSubstr("#Verdict\nstill too low"));
  EXPECT_THAT(problem->user_prompt(), HasSubstr("#Program\nf0 = f(x0=k0)"));
  EXPECT_THAT(problem->user_prompt(), HasSubstr("#Knobs\n(int) k0=8"));
  EXPECT_THAT(problem->user_prompt(), HasSubstr("k0=5; feedback: should be higher"));  // memory
  EXPECT_GT(problem->token_limit(), 0);
  (*get.mutable_titles())["#Nonsense"] = "x";
  EXPECT_EQ(server.client().GetProblem(get).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Prompts, StayWithinTheContextAndSayWhatIsLeftOut) {
  ScriptedModel model([](const ScriptedModel::Request&) { return Suggest("\"k0\": 8"); });
  LiveServer server(model.url());
  const std::string session =
      Prepared(server.client(), Optimizer("optoprime"), {IntParameter("k", 5)}, std::string(100'000, 'f') + " the end");
  v1::GetProblemRequest get;
  get.set_session(session);
  const auto problem = server.client().GetProblem(get);
  ASSERT_TRUE(problem.ok());
  EXPECT_LE(problem->estimated_tokens(), problem->token_limit());
  EXPECT_THAT(problem->left_out(), Contains(HasSubstr("feedback:")));
  EXPECT_FALSE(problem->over_limit());
  EXPECT_EQ(problem->feedback().size(), 100'008u);  // the lists are whole
  ASSERT_TRUE(Propose(server.client(), session).ok());

  v1::ParameterSpec huge;
  huge.set_name("k");
  std::string words;
  for (int i = 0; i < 20'000; ++i) words += "word ";
  huge.mutable_initial()->set_text(words);
  const std::string too_long = Prepared(server.client(), Optimizer("optoprime-v2"), {huge});
  const auto refused = Propose(server.client(), too_long);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  get.set_session(too_long);
  EXPECT_TRUE(server.client().GetProblem(get)->over_limit());
}

TEST(Constraints, AreEnforcedOnRepliesAndOnValuesSetByHand) {
  ScriptedModel model([](const ScriptedModel::Request&) {
    return Suggest(
        R"("j0": [1, 2, 3], "s0": "def f(y):\n    return y", "p0": "def g(x):\n    return (x", "r0": "abc", "e0": "blue", "k0": 99)");
  });
  LiveServer server(model.url());
  v1::ParameterSpec j = IntParameter("j", 0), s = j, p = j, r = j, e = j, k = IntParameter("k", 5);
  j.set_name("j"), j.set_type("list"), j.mutable_initial()->set_json("[1]"),
      j.set_json_schema(R"({"type":"array","maxItems":2})");
  s.set_name("s"), s.set_type("code"), s.mutable_initial()->set_text("def f(x):\n    return x\n"),
      s.set_python_signature("def f(x)");
  p.set_name("p"), p.set_type("str"), p.mutable_initial()->set_text("x = 1\n"), p.set_python(true);
  r.set_name("r"), r.set_type("str"), r.mutable_initial()->set_text("12"), r.set_pattern("[0-9]+");
  e.set_name("e"), e.set_type("str"), e.mutable_initial()->set_text("red"), e.add_choices("red"),
      e.add_choices("green");
  k.set_max(10);
  const std::string session = Prepared(server.client(), Optimizer("optoprime"), {j, s, p, r, e, k});
  const auto response = Propose(server.client(), session);
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->candidates(0).keys_size(), 6);
  for (const auto& key : response->candidates(0).keys())
    EXPECT_EQ(key.kind(), v1::KEY_CONSTRAINT_REJECTED) << key.ShortDebugString();
  EXPECT_EQ(response->candidates(0).kind(), v1::REPLY_UNCHANGED);

  v1::SetValuesRequest set;
  set.set_session(session);
  (*set.mutable_values())["j"].set_json("[1, 2, 3]");
  EXPECT_THAT(std::string(server.client().SetValues(set).status().message()), HasSubstr("at most 2"));
  v1::CreateSessionRequest create;
  *create.mutable_optimizer() = Optimizer("optoprime");
  j.set_json_schema(R"({"$ref":"x"})");
  *create.add_parameters() = j;
  EXPECT_THAT(std::string(server.client().CreateSession(create).status().message()),
              HasSubstr("$ref: is not supported"));
}

// ---- search

// score of k on task t: higher k is better up to 12; every task likes its own k a little.
double ScoreOf(int64_t k, int task) {
  return std::max(0.0, 1.0 - std::abs(static_cast<double>(k - 12 - task % 2)) / 20.0);
}

std::string NextK(const ScriptedModel::Request& r) {
  const size_t at = r.user.find("(int) k0=");
  const int64_t k = std::stoll(r.user.substr(at + 9));
  return Suggest("\"k0\": " + std::to_string(k + 1 + r.seed % 3));
}

absl::StatusOr<v1::Search> RunSearch(LiveServer& server, const std::string& name,
                                     std::map<std::pair<int64_t, int>, int>* evaluated, int stop_after = -1) {
  for (int told = 0;;) {
    v1::AskSearchRequest ask;
    ask.set_name(name);
    ask.set_count(3);
    ask.mutable_wait()->set_seconds(20);
    ASSIGN_OR_RETURN(const v1::AskSearchResponse asked, server.client().AskSearch(ask));
    if (asked.search().state() == v1::Search::DONE || asked.search().state() == v1::Search::PAUSED)
      return asked.search();
    for (const v1::SearchEvaluation& e : asked.evaluations()) {
      ++(*evaluated)[{e.values().at("k").integer(), e.task()}];
      v1::TellSearchRequest tell;
      tell.set_name(name);
      tell.set_evaluation_id(e.evaluation_id());
      tell.set_score(ScoreOf(e.values().at("k").integer(), e.task()));
      tell.set_feedback("k should be near 12");
      ASSIGN_OR_RETURN(const v1::TellSearchResponse answer, server.client().TellSearch(tell));
      if (stop_after >= 0 && ++told >= stop_after) return answer.search();
    }
  }
}

v1::CreateSearchRequest SearchOn(const std::string& session, v1::SearchSpec::Algorithm algorithm) {
  v1::CreateSearchRequest create;
  create.set_session(session);
  create.mutable_spec()->set_algorithm(algorithm);
  create.mutable_spec()->set_tasks(4);
  create.mutable_spec()->set_batch(2);
  create.mutable_spec()->set_max_steps(6);
  create.mutable_spec()->set_proposals(2);
  if (algorithm == v1::SearchSpec::MINIBATCH) create.mutable_spec()->set_ensure_improvement(true);
  return create;
}

class AnyAlgorithm : public testing::TestWithParam<v1::SearchSpec::Algorithm> {};
TEST_P(AnyAlgorithm, FindsBetterVersionsAndSurvivesKill9WithoutAskingTwice) {
  ScriptedModel model(NextK);
  LiveServer server(model.url());
  ASSERT_TRUE(server.ready());
  const std::string session = Prepared(server.client(), Optimizer("optoprime"), {IntParameter("k", 5)});
  const auto search = server.client().CreateSearch(SearchOn(session, GetParam()));
  ASSERT_TRUE(search.ok()) << search.status();
  std::map<std::pair<int64_t, int>, int> evaluated;
  // Killed again and again, at other places each time, also while the model works.
  absl::StatusOr<v1::Search> done = absl::UnknownError("not run");
  for (int round = 0; round < 12; ++round) {
    done = RunSearch(server, search->name(), &evaluated, 1 + round % 4);
    ASSERT_TRUE(done.ok()) << done.status();
    if (done->state() == v1::Search::DONE) break;
    server.KillAndRestart();
    ASSERT_TRUE(server.ready());
  }
  if (done->state() != v1::Search::DONE) done = RunSearch(server, search->name(), &evaluated);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->state(), v1::Search::DONE) << done->ShortDebugString();
  EXPECT_GT(done->best_score(), ScoreOf(5, 0));
  // Equal values on a task are evaluated once, whatever version holds them (an evaluation handed out but not told
  // before a kill is asked again).
  for (const auto& [what, times] : evaluated) EXPECT_EQ(times, 1) << what.first << " on " << what.second;
  // The best version is the head, and every reply was used once: one call a proposal.
  v1::GetSessionRequest get;
  get.set_name(session);
  EXPECT_EQ(server.client().GetSession(get)->head_version(), done->best_version());
  v1::GetSearchRequest whole;
  whole.set_name(search->name());
  EXPECT_GT(server.client().GetSearch(whole)->candidates_size(), 2);
}
INSTANTIATE_TEST_SUITE_P(All, AnyAlgorithm,
                         testing::Values(v1::SearchSpec::MINIBATCH, v1::SearchSpec::BEAM, v1::SearchSpec::UCB,
                                         v1::SearchSpec::PRIORITY, v1::SearchSpec::PARETO),
                         [](const auto& info) { return v1::SearchSpec::Algorithm_Name(info.param); });

// A kill while several calls of the model are under way: those that were answered are not asked again.
TEST(Search, ReceivedRepliesArePaidForOnce) {
  std::atomic<int> number{0};
  ScriptedModel model([&](const ScriptedModel::Request& r) -> std::string {
    if (number++ > 0) std::this_thread::sleep_for(std::chrono::seconds(2));  // the first is quick, the others are slow
    return NextK(r);
  });
  LiveServer server(model.url());
  const std::string session = Prepared(server.client(), Optimizer("optoprime"), {IntParameter("k", 5)});
  auto create = SearchOn(session, v1::SearchSpec::BEAM);
  create.mutable_spec()->set_proposals(4);
  create.mutable_spec()->set_max_steps(1);
  const auto search = server.client().CreateSearch(create);
  ASSERT_TRUE(search.ok());
  std::map<std::pair<int64_t, int>, int> evaluated;
  ASSERT_TRUE(RunSearch(server, search->name(), &evaluated, 4).ok());  // all of the start: the model is asked now
  while (model.requests().size() < 4) std::this_thread::yield();
  v1::GetSessionRequest get;
  get.set_name(session);
  while (server.client().GetSession(get)->usage().llm_calls() < 1) std::this_thread::yield();
  server.KillAndRestart();
  const auto done = RunSearch(server, search->name(), &evaluated);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->state(), v1::Search::DONE);
  int once = 0, twice = 0;
  for (const auto& [request, times] : model.asked()) ++(times == 1 ? once : twice);
  EXPECT_EQ(once, 1);   // the one that was answered before the kill
  EXPECT_EQ(twice, 3);  // those whose answers died with the server
  EXPECT_EQ(server.client().GetSession(get)->usage().llm_calls(), 4);
}

TEST(Search, PausesWithoutAModelAndRefusesBadSpecs) {
  LiveServer server("http://127.0.0.1:9/v1");  // nobody listens there
  const std::string session = Prepared(server.client(), Optimizer("optoprime"), {IntParameter("k", 5)});
  auto create = SearchOn(session, v1::SearchSpec::UCB);
  create.mutable_spec()->set_batch(9);
  EXPECT_THAT(std::string(server.client().CreateSearch(create).status().message()),
              HasSubstr("spec.batch: 9 is outside"));
  create.mutable_spec()->set_algorithm(v1::SearchSpec::ALGORITHM_UNSPECIFIED);
  EXPECT_THAT(std::string(server.client().CreateSearch(create).status().message()),
              HasSubstr("spec.algorithm: missing"));
  v1::TellSearchRequest tell;
  tell.set_name(session + "/searches/7");
  tell.set_evaluation_id("0-0");
  EXPECT_EQ(server.client().TellSearch(tell).status().code(), absl::StatusCode::kNotFound);
}

// ---- the C++ tracing API

TEST(Tracing, OperatorsBundlesErrorsAndSteps) {
  ScriptedModel model([](const ScriptedModel::Request& r) {
    EXPECT_THAT(r.user, HasSubstr("scale0 = scale(x=add0, factor=rate0)"));
    EXPECT_THAT(r.user, HasSubstr("(int) add0=4"));  // computed from constants alone: an input
    EXPECT_THAT(r.user, HasSubstr("greeting0"));
    return Suggest("\"rate0\": 2.5, \"greeting0\": \"Good day, {}!\"");
  });
  LiveServer server(model.url());
  auto tracer = client::Tracer::Create(server.client(), {.objective = "reach 10"});
  ASSERT_TRUE(tracer.ok()) << tracer.status();
  client::Tracer& t = **tracer;
  const auto rate = t.Parameter(1.5, "rate", {.description = "factor", .min = 0, .max = 5});
  const auto greeting = t.Parameter("Hi {}", "greeting");
  const auto scale = t.Bundle("scale", "x times factor", {"x", "factor"},
                              [](int64_t x, double factor) { return static_cast<double>(x) * factor; });
  const auto scaled = scale(t.Constant<int64_t>(3) + 1, rate);
  EXPECT_DOUBLE_EQ(scaled.value(), 6);
  const auto text = client::Format(greeting, scaled);
  EXPECT_EQ(text.value(), "Hi 6.0");
  EXPECT_TRUE((scaled > 5.0).value());

  // A failure is a node, and what depends on it hands it on.
  const auto risky = t.Bundle("risky", "may fail", {"x"}, [](double x) -> absl::StatusOr<double> {
    if (x > 5) return absl::InvalidArgumentError("too big");
    return x;
  });
  const auto failed = risky(scaled) + 1.0;
  EXPECT_FALSE(failed.ok());
  EXPECT_EQ(failed.error(), "(INVALID_ARGUMENT) too big");
  const auto thrown =
      t.Bundle("thrower", "throws", {"x"}, [](double) -> double { throw std::runtime_error("boom"); })(scaled);
  EXPECT_EQ(thrown.error(), "(Exception) boom");

  ASSERT_TRUE(t.Backward(text, "be polite and reach 10", 0.6).ok()) << t.status();
  ASSERT_TRUE(t.Backward(failed, "must not fail").ok());
  const auto step = t.Step();
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_TRUE(step->changed) << step->response.ShortDebugString();
  EXPECT_DOUBLE_EQ(rate.value(), 2.5);
  EXPECT_EQ(greeting.value(), "Good day, {}!");
  ASSERT_TRUE(t.GoTo(0).ok());
  EXPECT_DOUBLE_EQ(rate.value(), 1.5);
}

TEST(Tracing, TheExampleTunesItself) {
  ScriptedModel model([](const ScriptedModel::Request&) {
    return Suggest(
        "\"caps0\": 1.0, \"marks0\": 2.0, \"limit0\": 5.0, \"sentence0\": \"An urgent notice, please read: {}\"");
  });
  LiveServer server(model.url());
  SubprocessOptions options;
  options.argv = {std::string(OPTOD_BIN_DIR) + "/optod-example-tune-prompt", "--steps", "2"};
  options.environment = {{"OPTOD_ADDRESS", server.address()}};
  options.timeout = std::chrono::seconds(60);
  const auto result = RunSubprocess(options);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->exit_code, 0) << result->err;
  EXPECT_THAT(result->out, HasSubstr("best_score=1.00"));
}

}  // namespace
}  // namespace optod
