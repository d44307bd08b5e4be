// OPRO and the tagged OptoPrime.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trace/optimizers/opro.h"
#include "trace/optimizers/optoprime_v2.h"

namespace optod::trace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct World {
  Graph graph;
  FeedbackStore feedback;
  std::vector<NodeId> parameters{0, 1};

  World() {
    static const Constraint constraint{.text = "short", .max = 9};
    const NodeInput batch[] = {
        {.base_name = "a",
         .kind = NodeKind::kParameter,
         .type_name = "int",
         .value_text = "3",
         .constraint = &constraint,
         .trainable = true},
        {.base_name = "s", .kind = NodeKind::kParameter, .type_name = "str", .value_text = "hi", .trainable = true},
        {.base_name = "f",
         .kind = NodeKind::kMessage,
         .type_name = "int",
         .value_text = "5",
         .inputs = {{"x", {0, true}}, {"y", {1, true}}}}};
    EXPECT_TRUE(graph.AddNodes(batch).ok());
  }
  void Judge() { EXPECT_TRUE(feedback.Backward(graph, 2, "too low").ok()); }
};

TEST(Opro, ShowsRoundsAndNoTrace) {
  World w;
  EXPECT_EQ(BuildOproRequests(w.graph, w.feedback, w.parameters, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  w.Judge();
  std::vector<MemoryRound> memory(60, MemoryRound{{{"a0", "1"}}, "older", 0.5});
  const auto requests =
      BuildOproRequests(w.graph, w.feedback, w.parameters, memory, {.objective = "Win.", .candidates = 2});
  ASSERT_TRUE(requests.ok());
  ASSERT_EQ(requests->size(), 2u);
  const std::string& user = (*requests)[0].prompt.user;
  EXPECT_THAT(user, HasSubstr("Objective:\nWin."));
  EXPECT_THAT(user, HasSubstr("(int) a0: short; at most 9\n"));
  EXPECT_THAT(user, HasSubstr("...[10 earlier rounds]"));
  EXPECT_THAT(user, HasSubstr(R"({"variables": {"a0": "1"}, "feedback": "older", "score": 0.5})"));
  EXPECT_THAT(user, HasSubstr(R"({"variables": {"a0": "3", "s0": "hi"}, "feedback": "too low"})"));
  EXPECT_THAT(user, Not(HasSubstr("f0 = f(")));
  EXPECT_EQ((*requests)[1].temperature, 0.0);
  EXPECT_EQ(BuildOproRequests(w.graph, w.feedback, std::vector<NodeId>{2}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(OptoPrimeV2, RendersTags) {
  World w;
  w.Judge();
  const auto requests =
      BuildOptoPrimeV2Requests(w.graph, w.feedback, w.parameters, {{{{"a0", "1"}}, "older", std::nullopt}});
  ASSERT_TRUE(requests.ok());
  const Prompt& p = (*requests)[0].prompt;
  EXPECT_THAT(p.user, HasSubstr("<variable name=\"a0\" type=\"int\">\n<value>\n3\n</value>\n<constraint>\nshort; at "
                                "most 9\n</constraint>\n</variable>"));
  EXPECT_THAT(p.user, HasSubstr("<node name=\"f0\" type=\"int\">\n<value>\n5\n</value>\n</node>"));
  EXPECT_THAT(p.user, HasSubstr("f0 = f(x=a0, y=s0)"));
  EXPECT_THAT(p.user, HasSubstr("Variables you may change: a0 s0\n"));
  EXPECT_THAT(p.user, HasSubstr("<round 1>\na0=1\nfeedback: older\n</round>"));
  EXPECT_EQ((*requests)[0].response_schema, "");
}

TEST(OptoPrimeV2, ReadsReplies) {
  struct Row {
    const char *name, *reply, *a, *s;  // new texts; nullptr: unchanged
    ReplyKind kind;
  };
  const Row rows[] = {
      {"plain", "<reasoning>r</reasoning><variable><name> a0 </name><value>\n7\n</value></variable>", "7", nullptr,
       ReplyKind::kApplied},
      {"no_reasoning", "<variable><name>a0</name><value>7</value></variable>", "7", nullptr, ReplyKind::kApplied},
      {"unclosed_reasoning", "<reasoning>r<variable><name>a0</name><value>7</value></variable>", nullptr, nullptr,
       ReplyKind::kUnparsable},
      {"inside_reasoning", "<reasoning><variable><name>a0</name><value>7</value></variable></reasoning>", nullptr,
       nullptr, ReplyKind::kUnparsable},
      {"last_wins",
       "<variable><name>a0</name><value>7</value></variable><variable><name>a0</name><value>8</value></variable>", "8",
       nullptr, ReplyKind::kApplied},
      {"empty_value", "<variable><name>s0</name><value></value></variable>", nullptr, "", ReplyKind::kApplied},
      {"no_value", "<variable><name>s0</name></variable>", nullptr, nullptr, ReplyKind::kUnparsable},
      {"tags_in_value", "<variable><name>s0</name><value>a <value>b</value> <variable>c</variable></value></variable>",
       nullptr, "a <value>b</value> <variable>c</variable>", ReplyKind::kApplied},
      {"cut", "<variable><name>s0</name><value>a</value>", nullptr, nullptr, ReplyKind::kUnparsable},
      {"constraint", "<variable><name>a0</name><value>10</value></variable>", nullptr, nullptr,
       ReplyKind::kNothingApplied},
      {"cast", "<variable><name>a0</name><value>ten</value></variable>", nullptr, nullptr, ReplyKind::kNothingApplied},
      {"think",
       "<think><variable><name>a0</name><value>6</value></variable></think><variable><name>a0</name><value>7</value></"
       "variable>",
       "7", nullptr, ReplyKind::kApplied},
      {"terminate", "TERMINATE", nullptr, nullptr, ReplyKind::kNoUpdateRequested},
      {"blank", " ", nullptr, nullptr, ReplyKind::kEmpty},
  };
  for (const Row& row : rows) {
    World w;
    const Candidate c = ReadTaggedCandidate(row.reply, w.graph, w.parameters);
    EXPECT_EQ(c.outcome.kind, row.kind) << row.name << ": " << c.outcome.reason;
    ASSERT_TRUE(ApplyCandidate(w.graph, c).ok());
    EXPECT_EQ(w.graph.ValueText(0), row.a ? row.a : "3") << row.name;
    EXPECT_EQ(w.graph.ValueText(1), row.s ? row.s : "hi") << row.name;
  }
}

TEST(OptoPrimeV2, HostileInputsStayLinear) {
  World w;
  for (const char* piece : {"<variable>", "</variable>", "<reasoning>", "<name>", "<variable><name>"}) {
    std::string reply;
    for (int i = 0; i < 200000; ++i) reply += piece;
    EXPECT_TRUE(ReadTaggedCandidate(reply, w.graph, w.parameters).values.empty());
    EXPECT_TRUE(ReadTaggedCandidate(reply + "</variable>", w.graph, w.parameters).values.empty());
  }
}

}  // namespace
}  // namespace optod::trace
