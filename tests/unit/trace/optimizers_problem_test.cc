// Problem instance, prompt and OptoPrime as pure functions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trace/optimizers/optoprime.h"

namespace optod::trace {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct World {
  Graph graph;
  FeedbackStore feedback;

  NodeId Add(const NodeInput& in) {
    auto ids = graph.AddNodes({&in, 1});
    EXPECT_TRUE(ids.ok()) << ids.status().message();
    return ids->front();
  }
  NodeId Root(std::string_view base, std::string_view text = "1") {
    return Add({.base_name = base, .type_name = "int", .value_text = text});
  }
  NodeId Param(std::string_view base, std::string_view text = "1", std::string_view type = "int",
               const Constraint* constraint = nullptr, bool trainable = true) {
    return Add({.base_name = base,
                .kind = NodeKind::kParameter,
                .type_name = type,
                .value_text = text,
                .constraint = constraint,
                .trainable = trainable});
  }
  NodeId Call(std::string_view op, const std::vector<NodeId>& parents, std::string_view text = "2",
              const std::vector<NodeId>& hidden = {}, std::optional<std::string_view> description = std::nullopt) {
    NodeInput in{.base_name = op,
                 .kind = NodeKind::kMessage,
                 .type_name = "int",
                 .value_text = text,
                 .description = description};
    const char* names[] = {"x", "y", "z"};
    for (size_t i = 0; i < parents.size(); ++i) in.inputs.push_back({names[i], {parents[i]}});
    for (NodeId h : hidden) in.hidden_parameters.push_back({h});
    return Add(in);
  }
  ProblemInstance Problem(NodeId output, std::vector<NodeId> parameters, std::string_view text = "too low",
                          ProblemOptions options = {}) {
    EXPECT_TRUE(feedback.Backward(graph, output, text).ok());
    auto problem = BuildProblem(graph, feedback, parameters, options);
    EXPECT_TRUE(problem.ok()) << problem.status().message();
    return problem.ok() ? *problem : ProblemInstance{};
  }
};

std::vector<std::string> Names(const std::vector<ValueEntry>& values) {
  std::vector<std::string> out;
  for (const ValueEntry& v : values) out.push_back(v.py_name);
  return out;
}
std::vector<std::string> Lines(const ProblemInstance& p) {
  std::vector<std::string> out;
  for (const CodeLine& line : p.code) out.push_back(line.text);
  return out;
}

TEST(Problem, SortsValuesIntoSections) {
  World w;
  const NodeId a = w.Param("a"), other = w.Param("other"), fixed = w.Param("fixed", "1", "int", nullptr, false),
               c = w.Root("c");
  const NodeId s = w.Call("add", {a, other}), t = w.Call("multiply", {s, c, fixed});
  const ProblemInstance p = w.Problem(t, {a, fixed});
  EXPECT_THAT(Names(p.variables), ElementsAre("a0"));
  EXPECT_THAT(Names(p.inputs), ElementsAre("other0", "fixed0", "c0"));  // not ours, not trainable, constant
  EXPECT_THAT(Names(p.others), ElementsAre("add0"));
  EXPECT_THAT(Names(p.outputs), ElementsAre("multiply0"));
  EXPECT_THAT(Lines(p), ElementsAre("add0 = add(x=a0, y=other0)", "multiply0 = multiply(x=add0, y=c0, z=fixed0)"));
  EXPECT_EQ(p.feedback, "too low");
  EXPECT_EQ(p.documentation[0].text, "[add] x + y.");
}

TEST(Problem, LinesOfOneLevelSortAsText) {
  World w;
  const NodeId a = w.Param("a");
  std::vector<NodeId> all;
  for (int i = 0; i < 11; ++i) all.push_back(w.Call("f", {a}));
  const NodeId end = w.Call("g", {all[2], all[10]});
  EXPECT_THAT(Lines(w.Problem(end, {a})), ElementsAre("f10 = f(x=a0)", "f2 = f(x=a0)", "g0 = g(x=f2, y=f10)"));
}

TEST(Problem, RepeatedInputsAndZeroArgumentCalls) {
  World w;
  const NodeId v = w.Param("v"), inner = w.Param("inner");
  const NodeId now = w.Call("now", {}), made = w.Call("make", {}, "2", {inner});
  const NodeId sq = w.Call("multiply", {v, v}), end = w.Call("f", {sq, now, made});
  const ProblemInstance p = w.Problem(end, {v, inner});
  EXPECT_THAT(Lines(p), ElementsAre("make0 = make()", "multiply0 = multiply(x=v0, y=v0)",
                                    "f0 = f(x=multiply0, y=now0, z=make0)"));
  EXPECT_THAT(Names(p.inputs), ElementsAre("now0"));  // no parameter acts in it: a given value
}

TEST(Problem, HiddenParametersAreListed) {
  World w;
  const NodeId inner = w.Param("inner"), u = w.Root("u"), f = w.Call("f", {u}, "2", {inner});
  const ProblemInstance p = w.Problem(f, {inner});
  ASSERT_THAT(Names(p.variables), ElementsAre("inner0"));
  EXPECT_TRUE(p.variables[0].hidden);
  EXPECT_THAT(Names(BuildProblem(w.graph, w.feedback, std::vector<NodeId>{inner}, {.list_hidden = false})->variables),
              ElementsAre());
}

TEST(Problem, AllJudgedNodesAreOutputs) {
  World w;
  const NodeId a = w.Param("a"), f = w.Call("f", {a}), g = w.Call("g", {f});
  w.Problem(f, {a}, "low");
  const ProblemInstance p = w.Problem(g, {a}, "high");
  EXPECT_THAT(Names(p.outputs), ElementsAre("f0", "g0"));
  EXPECT_EQ(p.feedback, "f0: low\n\ng0: high");
  const auto deepest = BuildProblem(w.graph, w.feedback, std::vector<NodeId>{a}, {.deepest_output_only = true});
  EXPECT_THAT(Names(deepest->outputs), ElementsAre("g0"));
  EXPECT_THAT(Names(deepest->others), ElementsAre("f0"));
}

TEST(Problem, DocumentationPrefersTheUsersText) {
  World w;
  const NodeId a = w.Param("a");
  const NodeId f = w.Call("f", {a}), again = w.Call("f", {f}, "2", {}, "[f] doubles"),
               third = w.Call("f", {again}, "2", {}, "[f] triples");
  const NodeId bare = w.Call("g", {third}, "2", {}, "no tag here");
  const ProblemInstance p = w.Problem(bare, {a});
  ASSERT_EQ(p.documentation.size(), 3u);
  EXPECT_EQ(p.documentation[0].text, "[f] doubles");
  EXPECT_EQ(p.documentation[1].text, "[f] triples");  // a second meaning of the name is not lost
  EXPECT_EQ(p.documentation[2].text, "[g] no tag here");
}

TEST(Problem, RefusesWithoutFeedback) {
  World w;
  const NodeId a = w.Param("a");
  EXPECT_EQ(BuildProblem(w.graph, w.feedback, std::vector<NodeId>{a}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Problem, ConstraintTextSpellsOutBounds) {
  EXPECT_EQ(ConstraintText({.text = "be brief", .min = 1, .max = 20}), "be brief; at least 1, at most 20");
  EXPECT_EQ(ConstraintText({.enum_values = {"a", "b"}, .max_length = 9}), "one of: a, b; at most 9 characters");
  EXPECT_EQ(ConstraintText({.text = "only text"}), "only text");
  EXPECT_EQ(ConstraintText({}), "");
}

World Sample(NodeId& a, NodeId& end, const std::string& long_text) {
  World w;
  static const Constraint constraint{.text = "positive", .max = 9};
  a = w.Param("a", "3", "int", &constraint);
  const NodeId c = w.Root("c", long_text);
  end = w.Call("f", {a, c}, "5");
  return w;
}

TEST(Prompt, CarriesEverySection) {
  NodeId a, end;
  World w = Sample(a, end, "7");
  const Prompt p = Render(w.Problem(end, {a}));
  for (const char* part : {"#Instruction\n", "#Code\nf0 = f(x=a0, y=c0)\n", "#Documentation\nf: [f]\n",
                           "#Variables\n(int) a0=3\n", "#Constraints\n(int) a0: positive; at most 9\n",
                           "#Inputs\n(int) c0=7\n", "#Others\n", "#Outputs\n(int) f0=5\n", "#Feedback\ntoo low\n"}) {
    EXPECT_THAT(p.user, HasSubstr(part));
  }
  for (const char* part : {"#Variables", "suggestion", "reasoning", "TERMINATE"})
    EXPECT_THAT(p.system, HasSubstr(part));
  EXPECT_EQ(p.truncated_values, 0u);
}

TEST(Prompt, MaskTitlesExampleAndMemory) {
  NodeId a, end;
  World w = Sample(a, end, "#Inputs");
  RenderOptions o{.mask = {Section::kCode},
                  .titles = {{Section::kInputs, "# Given"}},
                  .include_example = true,
                  .memory = {{{{"a0", "1"}}, "low", 0.25}}};
  const Prompt p = Render(w.Problem(end, {a}), o);
  EXPECT_THAT(p.user, Not(HasSubstr("f0 = f(")));
  EXPECT_THAT(p.user, HasSubstr("#Code\n\n#Documentation"));
  EXPECT_THAT(p.user, HasSubstr("# Given\n(int) c0=#Inputs\n"));  // titles change, values do not
  EXPECT_THAT(p.system, HasSubstr("- # Given: "));
  EXPECT_THAT(p.user, HasSubstr("area0 = multiply"));
  EXPECT_THAT(p.user, HasSubstr("1. score 0.25; a0=1; feedback: low"));
}

TEST(Prompt, CodeVariablesUseAColon) {
  World w;
  const NodeId code = w.Param("__code", "def f(): pass", "str"), end = w.Call("eval", {code});
  EXPECT_THAT(Render(w.Problem(end, {code})).user, HasSubstr("(code) __code0:def f(): pass\n"));
}

TEST(Prompt, CutsLongValuesButNoVariables) {
  World w;
  const std::string text(5000, 'x');
  const NodeId a = w.Param("a", text, "str"), c = w.Root("c", text), end = w.Call("f", {a, c}, text);
  const ProblemInstance problem = w.Problem(end, {a});
  const Prompt p = Render(problem);
  EXPECT_THAT(p.user, HasSubstr("(str) a0=" + text + "\n"));
  EXPECT_THAT(p.user, HasSubstr("c0=" + text.substr(0, 2000) + "...[3000 more characters]"));
  EXPECT_EQ(p.truncated_values, 2u);
  EXPECT_EQ(Render(problem, {.value_limit = 0}).truncated_values, 0u);
}

TEST(Prompt, FitsTheTokenLimit) {
  World w;
  const NodeId a = w.Param("a");
  NodeId last = a;
  const std::string text(300, 'x');
  for (int i = 0; i < 2000; ++i)
    last = w.Call(i % 2 ? "step" : "move", {last}, text);  // no two calls alike: nothing collapses
  const ProblemInstance problem = w.Problem(last, {a});
  const Prompt p = Render(problem, {.max_prompt_tokens = 4000});
  EXPECT_LE(EstimateTokens(p.system) + EstimateTokens(p.user), 4000u);
  EXPECT_FALSE(p.over_limit);
  EXPECT_GT(p.omitted_lines, 0u);
  EXPECT_THAT(p.user, HasSubstr("more lines]"));
  EXPECT_THAT(p.user, HasSubstr("move0 = move(x=a0)"));  // both ends stay
  EXPECT_THAT(p.user, HasSubstr("step999 = "));
  EXPECT_THAT(p.left_out, Contains(HasSubstr("lines:")));
  EXPECT_TRUE(Render(problem, {.max_prompt_tokens = 50}).over_limit);
}

TEST(Prompt, BriefIsTheJudgementAndAQuestion) {
  ProblemInstance problem;
  problem.instruction = std::string(DefaultInstruction());
  problem.variables = {{0, "width0", "int", "6", "at least 1", false}};
  problem.feedback = "width should be 18";
  RenderOptions options;
  options.form = PromptForm::kBrief;
  const Prompt prompt = Render(problem, options);
  EXPECT_EQ(prompt.system, "");
  EXPECT_EQ(prompt.user,
            "Feedback:\nwidth should be 18\n\n"
            "What values does the feedback ask for? Reply as JSON: {\"suggestion\": {name: value}}.");
  problem.instruction = "Make the table readable.";
  options.memory = {{{{"width0", "4"}}, "width should be more", std::nullopt}};
  EXPECT_THAT(Render(problem, options).user,
              testing::StartsWith("Make the table readable.\n\nTried before: width0=4\nwidth should be more\n\n"));
  problem.feedback = std::string(40'000, 'x');
  options.max_prompt_tokens = 500;
  const Prompt cut = Render(problem, options);
  EXPECT_EQ(cut.truncated_values, 1u);
  EXPECT_FALSE(cut.over_limit);
  EXPECT_LE(EstimateTokens(cut.user), 500u);
  EXPECT_THAT(cut.user, testing::HasSubstr("more characters]"));
  options.max_prompt_tokens = 10;
  EXPECT_TRUE(Render(problem, options).over_limit);
}

TEST(Prompt, BriefRepliesAreTheSuggestionAlone) {
  ReplyParameter width;
  width.py_name = "width0";
  width.type_name = "int";
  width.trainable = true;
  EXPECT_EQ(
      ReplySchema({width}, PromptForm::kBrief),
      R"({"type":"object","properties":{"suggestion":{"type":"object","properties":{"width0":{"type":"integer"}},)"
      R"("required":["width0"],"additionalProperties":false}},"required":["suggestion"],"additionalProperties":false})");
}

TEST(Prompt, TokensAndTruncation) {
  struct Row {
    const char* text;
    uint64_t tokens;
  };
  const Row rows[] = {{"", 0},
                      {"hello world", 2},
                      {"optimization", 2},
                      {"12345", 2},
                      {"a=b\n", 4},
                      {"    x", 2},
                      {"\xE4\xBD\xA0\xE5\xA5\xBD", 2}};
  for (const Row& row : rows) EXPECT_EQ(EstimateTokens(row.text), row.tokens) << row.text;
  bool cut = true;
  EXPECT_EQ(TruncateValue("\xC3\xA9\xC3\xA9", 2, &cut), "\xC3\xA9\xC3\xA9");
  EXPECT_FALSE(cut);
  EXPECT_EQ(TruncateValue("\xC3\xA9\xC3\xA9z", 1, &cut), "\xC3\xA9...[2 more characters]");
  EXPECT_TRUE(cut);
}

TEST(Prompt, SectionsParseByTitle) {
  EXPECT_EQ(ParseSection("#Code"), Section::kCode);
  EXPECT_EQ(ParseSection("feedback"), Section::kFeedback);
  EXPECT_EQ(ParseSection("#Nothing"), std::nullopt);
}

TEST(OptoPrime, BuildsOneRequestACandidate) {
  NodeId a, end;
  World w = Sample(a, end, "7");
  w.Problem(end, {a});
  const std::vector<NodeId> parameters = {a};
  const auto one = BuildOptoPrimeRequests(w.graph, w.feedback, parameters, {});
  ASSERT_TRUE(one.ok());
  ASSERT_EQ(one->size(), 1u);
  EXPECT_EQ((*one)[0].temperature, std::nullopt);
  EXPECT_THAT((*one)[0].response_schema, HasSubstr(R"("a0":{"type":"integer","maximum":9.0})"));
  OptoPrimeOptions options;
  options.candidates = 3;
  const auto three =
      BuildOptoPrimeRequests(w.graph, w.feedback, parameters, {{{{"a0", "2"}}, "still low", std::nullopt}}, options);
  ASSERT_EQ(three->size(), 3u);
  EXPECT_EQ((*three)[0].temperature, 1.0);
  EXPECT_EQ((*three)[1].temperature, 0.5);
  EXPECT_EQ((*three)[2].temperature, 0.0);
  EXPECT_THAT((*three)[0].prompt.user, HasSubstr("still low"));
}

TEST(OptoPrime, RefusesWhatCannotWork) {
  World w;
  const NodeId fixed = w.Param("p", "1", "int", nullptr, false), end = w.Call("f", {fixed});
  EXPECT_EQ(BuildOptoPrimeRequests(w.graph, w.feedback, std::vector<NodeId>{fixed}, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  w.Problem(end, {fixed});
  EXPECT_THAT(
      std::string(BuildOptoPrimeRequests(w.graph, w.feedback, std::vector<NodeId>{fixed}, {}).status().message()),
      HasSubstr("none is trainable"));
  OptoPrimeOptions none;
  none.candidates = 0;
  EXPECT_EQ(BuildOptoPrimeRequests(w.graph, w.feedback, std::vector<NodeId>{fixed}, {}, none).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(OptoPrime, AppliesACandidateWhole) {
  NodeId a, end;
  World w = Sample(a, end, "7");
  const std::vector<NodeId> parameters = {a};
  Candidate good = ReadCandidate(R"({"suggestion":{"a0":4}})", w.graph, parameters);
  ASSERT_EQ(good.values.size(), 1u);
  ASSERT_TRUE(ApplyCandidate(w.graph, good).ok());
  EXPECT_EQ(w.graph.ValueText(a), "4");
  EXPECT_EQ(w.graph.ValueJson(a), "4");
  good.values[0].text = "5";
  good.values.push_back({end, "6", std::nullopt});
  EXPECT_FALSE(ApplyCandidate(w.graph, good).ok());
  EXPECT_EQ(w.graph.ValueText(a), "4");                                                           // all or none
  EXPECT_TRUE(ReadCandidate(R"({"suggestion":{"a0":10}})", w.graph, parameters).values.empty());  // above the maximum
}

TEST(OptoPrime, MemoryKeepsTheNewest) {
  NodeId a, end;
  World w = Sample(a, end, "7");
  w.Problem(end, {a});
  std::vector<MemoryRound> memory;
  for (int i = 0; i < 4; ++i) PushMemory(memory, MakeMemoryRound(w.graph, std::vector<NodeId>{a}, w.feedback, i), 2);
  ASSERT_EQ(memory.size(), 2u);
  EXPECT_EQ(memory[1].score, 3.0);
  EXPECT_EQ(memory[1].variables[0], std::pair(std::string("a0"), std::string("3")));
  EXPECT_EQ(memory[1].feedback, "too low");
  PushMemory(memory, {}, 0);
  EXPECT_TRUE(memory.empty());
}

}  // namespace
}  // namespace optod::trace
