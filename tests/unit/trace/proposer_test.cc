// The optimizers as state machines: which calls they make, and what they make of the answers.
#include "trace/optimizers/proposer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "trace/optimizers/constraint_check.h"
#include "trace/optimizers/fit.h"
#include "trace/optimizers/json_schema.h"
#include "trace/optimizers/multi.h"
#include "trace/optimizers/optoprime_v2.h"
#include "trace/optimizers/text_cluster.h"
#include "trace/optimizers/textgrad.h"

namespace optod::trace {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

// a, b parameters; c input; sum = add(a, c); out = multiply(sum, b). Feedback on out.
struct World {
  Graph graph;
  FeedbackStore feedback;
  std::vector<NodeId> parameters;
  NodeId out = kNoNode;

  NodeId Add(const NodeInput& in) { return graph.AddNodes({&in, 1}).value().front(); }
  NodeId Param(std::string_view base, std::string_view text, std::string_view type = "int",
               const Constraint* c = nullptr) {
    parameters.push_back(Add({.base_name = base,
                              .kind = NodeKind::kParameter,
                              .type_name = type,
                              .value_text = text,
                              .constraint = c,
                              .trainable = true}));
    return parameters.back();
  }
  NodeId Call(std::string_view op, const std::vector<NodeId>& parents, std::string_view text = "2") {
    NodeInput in{.base_name = op, .kind = NodeKind::kMessage, .type_name = "int", .value_text = text};
    const char* names[] = {"x", "y", "z"};
    for (size_t i = 0; i < parents.size(); ++i) in.inputs.push_back({names[i], {parents[i]}});
    return Add(in);
  }
  NodeId Root(std::string_view base, std::string_view text = "1") {
    return Add({.base_name = base, .type_name = "int", .value_text = text});
  }

  static World Small() {
    World w;
    const NodeId a = w.Param("a", "3"), b = w.Param("b", "4");
    const NodeId sum = w.Call("add", {a, w.Root("c", "5")}, "8");
    w.out = w.Call("multiply", {sum, b}, "32");
    EXPECT_TRUE(w.feedback.Backward(w.graph, w.out, "should be 40").ok());
    return w;
  }
};

CallAnswer Text(std::string text) { return {CallAnswer::Kind::kText, std::move(text), ""}; }
std::string Suggest(const std::string& values) {
  return "{\"reasoning\": \"r\", \"answer\": \"\", \"suggestion\": {" + values + "}}";
}

// Runs to the end; `answer` gives the reply to a call.
struct Driven {
  ProposerResult result;
  std::vector<ProposerCall> calls;
  std::vector<size_t> rounds;  // calls of each round
};
Driven Drive(Proposer& proposer, const std::function<CallAnswer(const ProposerCall&, size_t)>& answer) {
  Driven out;
  while (true) {
    std::vector<ProposerCall> calls = proposer.Next();
    if (calls.empty()) break;
    out.rounds.push_back(calls.size());
    std::vector<CallAnswer> answers;
    for (ProposerCall& call : calls) {
      answers.push_back(answer(call, out.calls.size()));
      out.calls.push_back(std::move(call));
    }
    proposer.Answer(std::move(answers));
    if (out.rounds.size() > 100) {
      ADD_FAILURE() << "never ends";
      break;
    }
  }
  out.result = proposer.Take();
  return out;
}

Driven RunOn(const World& w, ProposerSpec spec, const std::function<CallAnswer(const ProposerCall&, size_t)>& answer) {
  auto proposer = MakeProposer(spec, w.graph, w.feedback, w.parameters);
  EXPECT_TRUE(proposer.ok()) << proposer.status();
  return proposer.ok() ? Drive(**proposer, answer) : Driven{};
}

TEST(Proposer, OneRoundOfKCandidatesAtFallingTemperatures) {
  const World w = World::Small();
  for (const char* optimizer : {"optoprime", "optoprime-multi", "opro"}) {
    SCOPED_TRACE(optimizer);
    ProposerSpec spec{.optimizer = optimizer, .candidates = 3, .temperature = 1.3};
    const Driven d = RunOn(
        w, spec, [](const ProposerCall&, size_t i) { return Text(Suggest("\"a0\": " + std::to_string(10 + i))); });
    EXPECT_THAT(d.rounds, ElementsAre(3));
    EXPECT_DOUBLE_EQ(*d.calls[0].temperature, 1.3);
    EXPECT_DOUBLE_EQ(*d.calls[1].temperature, 0.65);
    EXPECT_DOUBLE_EQ(*d.calls[2].temperature, 0);
    ASSERT_THAT(d.result.candidates, SizeIs(3));
    EXPECT_EQ(d.result.candidates[1].outcome.keys[0].new_text, "11");
    EXPECT_EQ(d.result.selected, 0u);
  }
}

TEST(Proposer, TaggedRepliesForV2) {
  const World w = World::Small();
  const Driven d = RunOn(w, {.optimizer = "optoprime-v2"}, [](const ProposerCall& call, size_t) {
    EXPECT_THAT(call.prompt.user, HasSubstr("<variable name=\"a0\" type=\"int\">"));
    EXPECT_EQ(call.response_schema, "");
    return Text("<reasoning>x</reasoning><variable><name>a0</name><value>\n5\n</value></variable>");
  });
  ASSERT_THAT(d.result.candidates, SizeIs(1));
  EXPECT_EQ(d.result.candidates[0].outcome.kind, ReplyKind::kApplied);
  EXPECT_EQ(d.result.candidates[0].outcome.keys[0].new_text, "5");
}

TEST(Proposer, EmptyAndFailedAnswersAreOutcomesOfTheirOwn) {
  const World w = World::Small();
  const Driven d = RunOn(w, {.candidates = 3}, [](const ProposerCall&, size_t i) {
    if (i == 0) return CallAnswer{CallAnswer::Kind::kEmpty, "", "an empty reply"};
    if (i == 1) return CallAnswer{CallAnswer::Kind::kFailed, "", "no connection"};
    return Text(Suggest("\"a0\": 7"));
  });
  EXPECT_EQ(d.result.candidates[0].outcome.kind, ReplyKind::kEmpty);
  EXPECT_FALSE(d.result.candidates[0].call_failed);
  EXPECT_TRUE(d.result.candidates[1].call_failed);
  EXPECT_EQ(d.result.candidates[1].outcome.reason, "no connection");
  EXPECT_EQ(d.result.selected, 2u);
}

struct SelectionCase {
  const char* selection;
  size_t want;
  size_t calls;
};
TEST(Multi, SelectionsChoose) {
  const World w = World::Small();
  // Candidates 0..3 propose 10, 20, 20, 30; the third call of the judge says 1.
  static const SelectionCase kCases[] = {
      {"first", 0, 4}, {"last_of_n", 3, 4}, {"best_of_n", 0, 5}, {"majority", 1, 4}, {"mixture", 4, 5}};
  for (const SelectionCase& c : kCases) {
    SCOPED_TRACE(c.selection);
    ProposerSpec spec{.optimizer = "optoprime-multi", .candidates = 4, .selection = *ParseSelection(c.selection)};
    const Driven d = RunOn(w, spec, [](const ProposerCall& call, size_t i) {
      static const char* values[] = {"10", "20", "20", "30"};
      if (i < 4) return Text(Suggest(std::string("\"a0\": ") + values[i]));
      EXPECT_THAT(call.prompt.user, HasSubstr("[4] a0 = 30"));
      return call.label == "choice" ? Text("{\"reason\": \"it is 3 or\", \"best\": 1}") : Text(Suggest("\"a0\": 15"));
    });
    EXPECT_EQ(d.calls.size(), c.calls);
    EXPECT_EQ(d.result.selected, c.want);
  }
}

TEST(Multi, GenerationsSeeWhatTheyShould) {
  const World w = World::Small();
  const auto run = [&](const char* generation) {
    ProposerSpec spec{.optimizer = "optoprime-multi", .candidates = 3, .generation = *ParseGeneration(generation)};
    return RunOn(w, spec, [](const ProposerCall& call, size_t i) {
      if (call.label == "experts") return Text("1. A chef\n2. A pilot\n");
      return Text(Suggest("\"a0\": " + std::to_string(100 + i)));
    });
  };
  Driven d = run("self_refinement");
  EXPECT_THAT(d.rounds, ElementsAre(1, 1, 1));
  EXPECT_THAT(d.calls[2].prompt.user, HasSubstr("101"));
  EXPECT_THAT(d.calls[2].prompt.user, Not(HasSubstr("\"a0\": 100")));
  d = run("alternatives");
  EXPECT_THAT(d.calls[2].prompt.user, HasSubstr("101"));
  EXPECT_THAT(d.calls[2].prompt.user, HasSubstr("\"a0\": 100"));
  d = run("experts");
  EXPECT_THAT(d.rounds, ElementsAre(1, 3));
  EXPECT_THAT(d.calls[1].prompt.system, HasSubstr("A chef"));
  EXPECT_THAT(d.calls[3].prompt.system, HasSubstr("expert 3"));  // the model named only two
  EXPECT_THAT(d.result.candidates, SizeIs(3));
}

TEST(Multi, AllUnusableSelectsNothing) {
  const World w = World::Small();
  for (const char* selection : {"first", "last_of_n", "best_of_n", "majority", "mixture"}) {
    const Driven d =
        RunOn(w, {.optimizer = "optoprime-multi", .candidates = 3, .selection = *ParseSelection(selection)},
              [](const ProposerCall&, size_t) { return Text("no idea"); });
    EXPECT_EQ(d.result.selected, std::nullopt);
    EXPECT_EQ(d.calls.size(), 3u);
  }
}

TEST(TextGrad, OneCallAnEdgeAMergeAndAParameter) {
  // a feeds two calls that meet: edges out->l, out->r, l->a, r->a; one merge at a; one rewrite of a.
  World w;
  const NodeId a = w.Param("a", "3");
  w.out = w.Call("join", {w.Call("left", {a}), w.Call("right", {a, w.Root("c")})});
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.out, "too low").ok());
  const Driven d =
      RunOn(w, {.optimizer = "textgrad", .candidates = 2, .temperature = 0.8}, [](const ProposerCall& call, size_t) {
        if (call.label.starts_with("variable")) {
          EXPECT_THAT(call.prompt.user, HasSubstr("merged"));
          return Text("better: <IMPROVED_VARIABLE>\n9\n</IMPROVED_VARIABLE>");
        }
        if (call.label.starts_with("merge")) return Text("merged");
        return Text("criticism from " + call.label);
      });
  EXPECT_THAT(d.rounds, ElementsAre(2, 2, 1, 2));
  ASSERT_THAT(d.result.candidates, SizeIs(2));
  EXPECT_EQ(d.result.candidates[0].outcome.keys[0].new_text, "9");
  EXPECT_EQ(d.result.candidates[0].calls.size(), 6u);
  EXPECT_EQ(d.result.selected, 0u);
}

TEST(TextGrad, SeveralFeedbacksOnOneOutputMergeAndFailuresAreTyped) {
  World w = World::Small();
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.out, "and shorter").ok());
  const Driven d = RunOn(w, {.optimizer = "textgrad"}, [](const ProposerCall& call, size_t) {
    if (call.label == "variable a0, candidate 1 of 1") return CallAnswer{CallAnswer::Kind::kEmpty, "", "empty"};
    if (call.label.starts_with("variable")) return Text("<IMPROVED_VARIABLE>seven</IMPROVED_VARIABLE>");
    return Text("c");
  });
  // merge at out; out->sum, out->b; sum->a; rewrites of a and b.
  EXPECT_THAT(d.rounds, ElementsAre(1, 2, 1, 2));
  const ReplyOutcome& outcome = d.result.candidates[0].outcome;
  EXPECT_EQ(outcome.kind, ReplyKind::kNothingApplied);
  EXPECT_THAT(outcome.keys, SizeIs(2));
  EXPECT_THAT(outcome.keys, Each(testing::Field(&KeyResult::outcome, KeyOutcome::kCastFailed)));
}

TEST(TextGrad, RefusesWhatItCannotDo) {
  World w;
  w.Param("a", "3");
  w.out = w.Call("f", {w.Root("c")});
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.out, "x").ok());
  EXPECT_EQ(MakeProposer({.optimizer = "textgrad"}, w.graph, w.feedback, w.parameters).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Memory, ByRecencyScoreAndBoth) {
  std::vector<MemoryRound> rounds;
  for (double score : {5.0, 1.0, 4.0, 2.0, 3.0}) rounds.push_back({.score = score});
  rounds[3].score.reset();
  const auto choose = [&](size_t size, MemoryBy by, bool maximize = true) {
    return ChooseMemory(rounds, {size, by, maximize});
  };
  EXPECT_THAT(choose(2, MemoryBy::kRecency), ElementsAre(3, 4));
  EXPECT_THAT(choose(2, MemoryBy::kScore), ElementsAre(0, 2));
  EXPECT_THAT(choose(2, MemoryBy::kScore, false), ElementsAre(1, 4));
  EXPECT_THAT(choose(3, MemoryBy::kBoth), ElementsAre(0, 2, 4));
  EXPECT_THAT(choose(9, MemoryBy::kScore), SizeIs(5));
}

TEST(TextCluster, BitParallelLcsAgreesWithTheTable) {
  const auto slow = [](const std::string& a, const std::string& b) {
    std::vector<std::vector<size_t>> t(a.size() + 1, std::vector<size_t>(b.size() + 1, 0));
    for (size_t i = 0; i < a.size(); ++i)
      for (size_t j = 0; j < b.size(); ++j)
        t[i + 1][j + 1] = a[i] == b[j] ? t[i][j] + 1 : std::max(t[i][j + 1], t[i + 1][j]);
    return t[a.size()][b.size()];
  };
  std::mt19937 rng(7);
  for (int trial = 0; trial < 300; ++trial) {
    std::string a, b;
    for (size_t i = rng() % 200; i > 0; --i) a += static_cast<char>('a' + rng() % 3);
    for (size_t i = rng() % 200; i > 0; --i) b += static_cast<char>('a' + rng() % 3);
    if (a.empty() && b.empty()) continue;
    ASSERT_NEAR(TextSimilarity(a, b), 2.0 * static_cast<double>(slow(a, b)) / static_cast<double>(a.size() + b.size()),
                1e-12)
        << a << " " << b;
  }
  EXPECT_EQ(MajorityText({"alpha", "zzzz", "alphb", "alphc"}), 0u);
  EXPECT_EQ(MajorityText({}), std::nullopt);
}

// ---- prompts within a limit

TEST(Collapse, LongChainsAndRepeatsAreSummedUpAndSaid) {
  World w;
  const NodeId a = w.Param("a", "1");
  std::vector<NodeId> ends;
  for (int i = 0; i < 50; ++i) {
    NodeId last = w.Call("start", {a, w.Root("item", std::to_string(i))});
    for (int k = 0; k < 20; ++k) last = w.Call("step", {last});
    ends.push_back(last);
  }
  NodeId total = ends[0];
  for (size_t i = 1; i < ends.size(); ++i) total = w.Call("add", {total, ends[i]});
  ASSERT_TRUE(w.feedback.Backward(w.graph, total, "too low").ok());
  const ProblemInstance problem = BuildProblem(w.graph, w.feedback, w.parameters).value();
  const Prompt whole = Render(problem);
  EXPECT_TRUE(whole.left_out.empty());
  EXPECT_THAT(whole.user, HasSubstr("step999 = step(x=step998)"));
  const Prompt cut = Render(problem, {.max_prompt_tokens = 2500});
  EXPECT_LE(PromptTokens(cut), 2500u);
  EXPECT_FALSE(cut.over_limit);
  EXPECT_EQ(cut.omitted_lines, 0u);  // nothing is dropped blindly
  EXPECT_THAT(cut.left_out, Contains(HasSubstr("repeats:")));
  EXPECT_THAT(cut.user, HasSubstr("17 more calls of step, each on the result of the one before"));
  EXPECT_THAT(cut.user, HasSubstr("48 more calls of start, of the same form: start2 ... start49"));
  EXPECT_THAT(cut.user, HasSubstr("a0=1"));
  for (const char* optimizer : {"optoprime-v2", "opro", "optoprime"}) {
    const auto prompt =
        FirstPrompt({.optimizer = optimizer, .render = {.max_prompt_tokens = 2500}}, w.graph, w.feedback, w.parameters);
    ASSERT_TRUE(prompt.ok());
    EXPECT_LE(PromptTokens(*prompt), 2500u) << optimizer;
  }
}

TEST(Fit, MemoryAndFeedbackGiveWayLastAndAreSaid) {
  World w = World::Small();
  w.feedback.ZeroFeedback();
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.out, std::string(40'000, 'f') + " END").ok());
  ProposerSpec spec;
  spec.render.max_prompt_tokens = 1200;
  for (int i = 0; i < 50; ++i)
    spec.memory.push_back({.variables = {{"a0", std::string(200, 'v')}}, .feedback = std::string(300, 'm')});
  for (const char* optimizer : {"optoprime", "optoprime-v2", "opro"}) {
    SCOPED_TRACE(optimizer);
    spec.optimizer = optimizer;
    const auto prompt = FirstPrompt(spec, w.graph, w.feedback, w.parameters);
    ASSERT_TRUE(prompt.ok());
    EXPECT_LE(PromptTokens(*prompt), 1200u);
    EXPECT_THAT(prompt->left_out, Contains(HasSubstr("memory:")));
    EXPECT_THAT(prompt->left_out, Contains(HasSubstr("feedback:")));
    EXPECT_THAT(prompt->user, HasSubstr("END"));
  }
}

TEST(Fit, VariablesAreNeverCut) {
  World w;
  const NodeId a = w.Param("a", std::string(50'000, 'x') + " y", "str");
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.Call("f", {a}), "x").ok());
  for (const char* optimizer : {"optoprime", "optoprime-v2", "opro"}) {
    const auto proposer = MakeProposer({.optimizer = optimizer, .render = {.max_prompt_tokens = 1000}}, w.graph,
                                       w.feedback, w.parameters);
    EXPECT_EQ(proposer.status().code(), absl::StatusCode::kFailedPrecondition) << optimizer;
    EXPECT_THAT(std::string(proposer.status().message()), HasSubstr("1000 tokens"));
  }
}

TEST(Fit, DefaultObjectiveNamesTheTitlesInUse) {
  const World w = World::Small();
  ProposerSpec spec;
  spec.render.titles = {{Section::kFeedback, "#Verdict"}};
  const auto prompt = FirstPrompt(spec, w.graph, w.feedback, w.parameters);
  ASSERT_TRUE(prompt.ok());
  EXPECT_THAT(prompt->user, HasSubstr("where #Verdict says"));
  EXPECT_THAT(prompt->user, HasSubstr("#Verdict\nshould be 40"));
  EXPECT_THAT(prompt->user + prompt->system, Not(HasSubstr("#Feedback")));
}

// ---- constraints

struct SchemaCase {
  const char* schema;
  const char* value;
  const char* broken;  // "" = allowed
};
class Schema : public testing::TestWithParam<SchemaCase> {};
TEST_P(Schema, Says) {
  ASSERT_TRUE(ValidateJsonSchema(GetParam().schema).ok()) << ValidateJsonSchema(GetParam().schema);
  const std::string broken = CheckJsonSchema(GetParam().schema, *ParseJson(GetParam().value));
  if (*GetParam().broken == '\0') {
    EXPECT_EQ(broken, "");
  } else {
    EXPECT_THAT(broken, HasSubstr(GetParam().broken));
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, Schema,
    testing::Values(
        SchemaCase{R"({"type":"integer"})", "3.0", ""},
        SchemaCase{R"({"type":"integer"})", "3.5", "not of type integer"},
        SchemaCase{R"({"type":["string","null"]})", "null", ""}, SchemaCase{R"({"enum":[1,"a"]})", "\"b\"", "none of"},
        SchemaCase{R"({"const":{"a":1}})", R"({"a":1.0})", ""},
        SchemaCase{R"({"minimum":2})", "1", "below the minimum 2"},
        SchemaCase{R"({"exclusiveMaximum":2})", "2", "must be below 2"}, SchemaCase{R"({"multipleOf":0.1})", "0.3", ""},
        SchemaCase{R"({"multipleOf":2})", "3", "no multiple"},
        SchemaCase{R"({"maxLength":2})", "\"äöü\"", "has 3 characters"},
        SchemaCase{R"({"pattern":"^a+$"})", "\"aab\"", "does not match"},
        SchemaCase{R"({"items":{"type":"number"}})", "[1,\"x\"]", "[1]: "},
        SchemaCase{R"({"maxItems":1})", "[1,2]", "at most 1"},
        SchemaCase{R"({"uniqueItems":true})", "[1,2,1]", "stands twice"},
        SchemaCase{R"({"required":["a"]})", "{}", "member a is missing"},
        SchemaCase{R"({"properties":{"a":{"properties":{"b":{"type":"null"}}}}})", R"({"a":{"b":1}})", ".a.b: "},
        SchemaCase{R"({"properties":{"a":true},"additionalProperties":false})", R"({"a":1,"c":2})",
                   ".c: is not allowed"},
        SchemaCase{R"({"anyOf":[{"type":"null"},{"minimum":5}]})", "3", "anyOf"},
        SchemaCase{R"({"oneOf":[{"minimum":1},{"minimum":2}]})", "3", "fits 2 schemas"},
        SchemaCase{R"({"allOf":[{"minimum":1},{"maximum":2}]})", "3", "above the maximum"},
        SchemaCase{R"({"not":{"type":"string"}})", "\"x\"", "not"}, SchemaCase{"false", "1", "is not allowed"},
        SchemaCase{"true", "1", ""}, SchemaCase{R"({"maxLength":2})", "\"äö\"", ""},
        SchemaCase{R"({"uniqueItems":true})", "[1,{\"a\":1},{\"a\":1.0}]", "stands twice"},
        SchemaCase{R"({"minimum":5,"minLength":3})", "[]", ""},
        SchemaCase{R"({"title":"t","minimum":1})", "1", ""}));

TEST(SchemaItself, TheRootHasANameWhereOneIsGiven) {
  const char* schema = R"({"properties":{"a":{"items":{"minimum":0}}}})";
  EXPECT_EQ(CheckJsonSchema(schema, *ParseJson(R"({"a":[1,-1]})"), "$"), "$.a[1]: -1 is below the minimum 0");
  EXPECT_EQ(CheckJsonSchema("false", *ParseJson("1"), "$"), "$: is not allowed");
}

TEST(SchemaItself, WhatIsNotEnforcedIsRefused) {
  for (const char* schema :
       {"{", "[]", R"({"$ref":"#/a"})", R"({"properties":{"a":{"patternProperties":{}}}})", R"({"type":"text"})",
        R"({"pattern":"("})", R"({"enum":[]})", R"({"minLength":-1})", R"({"items":[{}]})"}) {
    EXPECT_EQ(ValidateJsonSchema(schema).code(), absl::StatusCode::kInvalidArgument) << schema;
  }
}

struct SignatureCase {
  const char* signature;
  const char* source;
  const char* broken;
};
TEST(Signature, NamesKindsAndOrderMustStay) {
  static const SignatureCase kCases[] = {
      {"def f(x, y=1)", "import re\ndef f(x: int, y=2) -> int:\n  return x\n", ""},
      {"def f(x, y=1)", "def f(x):\n  return x\n", "arguments are (x), must be (x, y=)"},
      {"def f(x, y=1)", "def f(x, y):\n  return x\n", "must be (x, y=)"},
      {"def f(x)", "def g(x):\n  return x\n", "does not define the function f"},
      {"def f(*args, k=(1, 2), **kw)", "def f(*args, k=[3, {}], **kw):\n  pass\n", ""},
      {"def f(x)", "def g(x): pass\ndef f(x): pass\n", ""},
      {"def f(a, /, b, *, c)", "def f(a, /, b, *, c): pass", ""},
  };
  for (const SignatureCase& c : kCases) {
    const std::string broken = CheckSignature(c.signature, c.source);
    if (*c.broken == '\0') {
      EXPECT_EQ(broken, "") << c.source;
    } else {
      EXPECT_THAT(broken, HasSubstr(c.broken)) << c.source;
    }
  }
  EXPECT_FALSE(ValidateConstraint({.python_signature = "f(x)"}).ok());
}

TEST(Constraints, AreTypedRejectionsForEveryForm) {
  World w;
  Constraint list, source;
  list.json_schema = R"({"type":"array","items":{"type":"integer"},"minItems":2})";
  source.python_signature = "def f(x)";
  w.Param("l", "[1, 2]", "list", &list);
  w.Param("s", "def f(x):\n  return x\n", "str", &source);
  const std::vector<ReplyParameter> all = ReplyParameters(w.graph, w.parameters);
  const ReplyOutcome bad = ParseReply(Suggest(R"("l0": [1], "s0": "def f(y): return y")"), all);
  EXPECT_THAT(bad.keys, Each(testing::Field(&KeyResult::outcome, KeyOutcome::kConstraintRejected)));
  const ReplyOutcome good = ParseReply(Suggest(R"("l0": [1, 5], "s0": "def f(x): return 2 * x")"), all);
  EXPECT_EQ(good.kind, ReplyKind::kApplied);
  // A stricter parser is asked last.
  const ReplyOutcome strict = ParseReply(Suggest(R"("s0": "def f(x): return 2 * x")"), all,
                                         {.check_python = [](std::string_view) { return "no"; }});
  EXPECT_EQ(strict.keys[0].outcome, KeyOutcome::kConstraintRejected);
  EXPECT_EQ(strict.keys[0].reason, "no");
}

// ---- mutated replies: nothing crashes, every outcome is consistent

std::string Mutated(std::string text, std::mt19937& rng) {
  static const std::vector<std::string> kPieces = {"{",
                                                   "}",
                                                   "\"",
                                                   "\\",
                                                   "<variable>",
                                                   "</variable>",
                                                   "<name>",
                                                   "</value>",
                                                   "<think>",
                                                   "</think>",
                                                   "TERMINATE",
                                                   "\n",
                                                   "\0",
                                                   "null",
                                                   "1e999",
                                                   "[[[[",
                                                   "def f(",
                                                   "```",
                                                   "<IMPROVED_VARIABLE>",
                                                   "</IMPROVED_VARIABLE>",
                                                   "\xff",
                                                   "\xf0\x9f",
                                                   ",",
                                                   ":",
                                                   "//",
                                                   "/*",
                                                   "'",
                                                   "-"};
  for (int n = 1 + static_cast<int>(rng() % 6); n > 0; --n) {
    const size_t at = text.empty() ? 0 : rng() % (text.size() + 1);
    switch (rng() % 6) {
      case 0:
        text.insert(at, kPieces[rng() % kPieces.size()]);
        break;
      case 1:
        text.erase(at, rng() % 12);
        break;
      case 2:
        if (at < text.size()) text[at] = static_cast<char>(rng());
        break;
      case 3:
        text.insert(at, text.substr(rng() % (text.size() + 1), rng() % 60));
        break;
      case 4:
        text.resize(at);
        break;
      case 5:
        text.insert(at, std::string(rng() % 40, kPieces[rng() % kPieces.size()].empty() ? 'x' : '{'));
        break;
    }
  }
  return text;
}

TEST(MutatedReplies, TenThousandCrashNothingAndStayConsistent) {
  World w;
  Constraint code, number;
  code.python_signature = "def f(x)";
  number.min = 0;
  number.json_schema = R"({"type":"integer","maximum":100})";
  w.Param("int", "1", "int", &number);
  w.Param("text", "old", "str");
  w.Param("list", "[1]", "list");
  w.Param("flag", "True", "bool");
  w.Param("code", "def f(x):\n  return x\n", "code", &code);
  w.out = w.Call("f", {w.parameters[0], w.parameters[1], w.parameters[2]});
  ASSERT_TRUE(w.feedback.Backward(w.graph, w.out, "x").ok());
  const std::vector<ReplyParameter> all = ReplyParameters(w.graph, w.parameters);
  const std::vector<std::string> seeds = {
      Suggest(
          R"("int0": 5, "text0": "new", "list0": [1, 2], "flag0": "False", "code0": "def f(x):\n    return x + 1\n")"),
      "<think>{\"suggestion\": {}}</think>\n```json\n" + Suggest(R"("int:0": "7", "unknown": 1)") + "\n```",
      "<reasoning>r</reasoning><variable><name>int0</name><value>5</value></variable><variable><name>code0</"
      "name><value>def f(x):\n  return 1\n</value></variable>",
      "words <IMPROVED_VARIABLE>\n12\n</IMPROVED_VARIABLE> words",
      "TERMINATE",
      "1. A chef\n2. A pilot\n",
      "{\"reason\": \"r\", \"best\": 2}"};
  std::mt19937 rng(20240601);
  int applied = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string reply = Mutated(seeds[static_cast<size_t>(i) % seeds.size()], rng);
    for (const char* optimizer : {"optoprime", "optoprime-v2"}) {
      const ReplyOutcome outcome = ReadReply(optimizer, reply, all);
      bool any = false;
      for (const KeyResult& key : outcome.keys) {
        any = any || key.outcome == KeyOutcome::kApplied;
        ASSERT_EQ(key.parameter < 0, key.outcome == KeyOutcome::kUnknownKey) << reply;
        if (key.outcome == KeyOutcome::kApplied) {
          ASSERT_EQ(CheckConstraint(all[static_cast<size_t>(key.parameter)].constraint,
                                    all[static_cast<size_t>(key.parameter)].type_name, key.new_text, key.new_json),
                    "")
              << reply;
          if (key.new_json) {
            ASSERT_TRUE(ParseJson(*key.new_json)) << *key.new_json;
          }
        }
      }
      ASSERT_EQ(any, outcome.kind == ReplyKind::kApplied) << reply;
      applied += any;
    }
    // The other readers, and whole proposals fed with nothing but mutated replies.
    (void)ReadExperts(reply, 5);
    if (auto choice = ReadChoice(reply, 3)) {
      ASSERT_TRUE(*choice >= 1 && *choice <= 3);
    }
    (void)ImprovedVariable(reply);
    if (i % 50 == 0) {
      for (ProposerSpec spec :
           {ProposerSpec{.optimizer = "textgrad", .candidates = 2}, ProposerSpec{.optimizer = "opro"},
            ProposerSpec{.optimizer = "optoprime-multi",
            .candidates = 3,
            .generation = Generation::kExperts,
            .selection = Selection::kBestOfN},
            ProposerSpec{.optimizer = "optoprime-multi",
            .candidates = 3,
            .generation = Generation::kAlternatives,
            .selection = Selection::kMixture}}) {
        const Driven d = RunOn(
            w, spec, [&](const ProposerCall&, size_t) { return Text(Mutated(seeds[rng() % seeds.size()], rng)); });
        ASSERT_FALSE(d.result.candidates.empty());
        if (d.result.selected) {
          ASSERT_EQ(d.result.candidates[*d.result.selected].outcome.kind, ReplyKind::kApplied);
        }
      }
    }
  }
  EXPECT_GT(applied, 500);  // the mutations are not all nonsense
}

}  // namespace
}  // namespace optod::trace
