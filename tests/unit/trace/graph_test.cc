// Graph: naming, levels, atomic batches, validation, values, stored form, pictures.
#include "trace/graph/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "trace/graph/dot.h"
#include "trace/graph/graph_codec.h"

namespace optod::trace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

NodeInput Root(std::string_view base, std::string_view text = "1") {
  return {.base_name = base, .type_name = "int", .value_text = text, .value_json = text};
}
NodeInput Param(std::string_view base, std::string_view text = "1") {
  NodeInput in = Root(base, text);
  in.kind = NodeKind::kParameter;
  in.trainable = true;
  return in;
}
NodeInput Call(std::string_view op, std::vector<InputArg> inputs) {
  return {
      .base_name = op, .kind = NodeKind::kMessage, .type_name = "int", .value_text = "2", .inputs = std::move(inputs)};
}
NodeId Add(Graph& g, const NodeInput& in) {
  auto ids = g.AddNodes({&in, 1});
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? ids->front() : kNoNode;
}

TEST(Graph, NumbersBasesInCreationOrder) {
  Graph g;
  const NodeInput batch[] = {Root("a"), Root("b"), Root("a"), Param("a")};
  const auto ids = g.AddNodes(batch);
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(g.Name(2), "a:1");
  EXPECT_EQ(g.PyName(3), "a2");
  EXPECT_EQ(g.FindByName("a:2"), 3u);
  EXPECT_EQ(g.FindByPyName("b0"), 1u);
  EXPECT_EQ(g.NextIndex("a"), 3u);
  for (const char* unknown : {"a:3", "c:0", "a", "a:", "a:01", ":0", "a:x", "a:99999999999"})
    EXPECT_EQ(g.FindByName(unknown), kNoNode) << unknown;
  for (const char* unknown : {"a3", "c0", "a", "0", "", "a00"}) EXPECT_EQ(g.FindByPyName(unknown), kNoNode) << unknown;
}

TEST(Graph, AWantedIndexIsGivenWhenItIsFree) {
  Graph g;
  const auto wanted = [](std::optional<uint32_t> index) {
    NodeInput in = Root("a");
    in.index = index;
    return in;
  };
  struct Case {
    std::optional<uint32_t> wanted;
    const char* name;
  };
  const Case cases[] = {{3, "a:3"}, {1, "a:1"}, {3, "a:4"}, {std::nullopt, "a:5"}, {0, "a:0"}, {6 + kMaxIndexGap + 1, "a:6"}};
  for (const Case& c : cases) EXPECT_EQ(g.Name(Add(g, wanted(c.wanted))), c.name);
  EXPECT_EQ(g.FindByName("a:2"), kNoNode);
  EXPECT_EQ(g.FindByPyName("a2"), kNoNode);
  EXPECT_EQ(g.FindByName("a:1"), 1u);
  EXPECT_EQ(g.NextIndex("a"), 7u);
}

TEST(Graph, ScopePrefixesTheBase) {
  Graph g;
  NodeInput in = Root("x");
  in.scope = "outer/inner";
  EXPECT_EQ(g.Name(Add(g, in)), "outer/inner/x:0");
  EXPECT_EQ(g.Name(Add(g, Root("x"))), "x:0");
}

// x1:0 and x:10 would both be x10.
TEST(Graph, PyNamesNeverCollide) {
  for (const bool digit_base_first : {true, false}) {
    Graph g;
    if (digit_base_first) Add(g, Root("x1"));
    for (int i = 0; i < 11; ++i) Add(g, Root("x"));
    if (!digit_base_first) Add(g, Root("x1"));
    const NodeId first = digit_base_first ? g.FindByName("x1:0") : g.FindByName("x:10");
    const NodeId second = digit_base_first ? g.FindByName("x:10") : g.FindByName("x1:0");
    EXPECT_EQ(g.PyName(first), "x10");
    EXPECT_EQ(g.PyName(second), digit_base_first ? "x_10" : "x1_0");
    EXPECT_EQ(g.FindByPyName("x10"), first);
    EXPECT_EQ(g.FindByPyName(g.PyName(second)), second);
  }
}

TEST(Graph, EscapedNamesAreTakenToo) {
  Graph g;
  Add(g, Root("x1"));
  for (int i = 0; i < 11; ++i) Add(g, Root("x"));  // x:10 is x_10
  Add(g, Root("x_"));
  for (int i = 0; i < 12; ++i) Add(g, Root("x_"));  // x_:10 would be x_10
  EXPECT_EQ(g.PyName(g.FindByName("x_:10")), "x__10");
}

// Random bases with trailing digits against the obvious check: all names differ, and each is found again.
TEST(Graph, PyNamesAreUniqueForRandomBases) {
  std::mt19937 random(7);
  const std::string bases[] = {"x", "x1", "x11", "x1_", "x_", "x_1", "y", "x111", "x0"};
  Graph g;
  std::set<std::string> names;
  for (int i = 0; i < 3000; ++i) {
    const NodeId id = Add(g, Root(bases[random() % std::size(bases)]));
    EXPECT_TRUE(names.insert(g.PyName(id)).second) << g.Name(id);
  }
  for (NodeId id = 0; id < g.size(); ++id) {
    EXPECT_EQ(g.FindByPyName(g.PyName(id)), id);
    EXPECT_EQ(g.FindByName(g.Name(id)), id);
  }
}

TEST(Graph, LevelsFollowParents) {
  Graph g;
  Add(g, Root("a"));
  NodeInput copy = Root("copy");
  copy.level = 5;
  Add(g, copy);
  const NodeId f = Add(g, Call("f", {{"x", {0}}, {"y", {1}}}));
  EXPECT_EQ(g.Level(0), 0u);
  EXPECT_EQ(g.Level(1), 5u);
  EXPECT_EQ(g.Level(f), 6u);
  EXPECT_EQ(g.Level(Add(g, Call("now", {}))), 0u);
}

TEST(Graph, BatchMayReferToItsEarlierEntries) {
  Graph g;
  Add(g, Root("before"));
  const NodeInput batch[] = {Param("a"), Call("f", {{"x", {0, true}}, {"y", {0}}, {"z", {0, true}}}),
                             Call("g", {{"x", {1, true}}})};
  ASSERT_TRUE(g.AddNodes(batch).ok());
  EXPECT_THAT(g.Parents(2), ElementsAre(1, 0, 1));  // repeated inputs stay
  EXPECT_EQ(g.Argument(2, 2), "z");
  EXPECT_THAT(g.Parents(3), ElementsAre(2));
}

TEST(Graph, TagComesFromOpDescriptionOrKind) {
  Graph g;
  NodeInput f = Call("f", {});
  f.description = "[scale] multiplies";
  f.function_name = "rescale";
  const NodeId id = Add(g, f);
  EXPECT_EQ(g.Op(id), "scale");
  EXPECT_EQ(g.FunctionName(id), "rescale");
  EXPECT_EQ(g.Op(Add(g, Call("h", {}))), "h");
  EXPECT_EQ(g.FunctionName(Add(g, Call("h", {}))), "h");
  EXPECT_EQ(g.Op(Add(g, Root("a"))), "Node");
  EXPECT_EQ(g.Op(Add(g, Param("a"))), "ParameterNode");
  EXPECT_EQ(g.Description(Add(g, Root("a"))), std::nullopt);
}

struct BadCase {
  const char* name;
  NodeInput input;
  const char* message;
};

TEST(Graph, RefusesBadBatchesWhole) {
  static const Constraint constraint{.text = "short"};
  NodeInput trainable = Root("a"), constrained = Root("a"), low = Call("f", {{"x", {0}}}), deep = Root("a");
  trainable.trainable = true;
  constrained.constraint = &constraint;
  low.level = 0;
  NodeInput root_with_inputs = Root("a"), hidden = Call("f", {}), untyped = Root("a"), scoped = Root("a");
  root_with_inputs.inputs = {{"x", {0}}};
  hidden.hidden_parameters = {{9}};
  untyped.type_name = "";
  scoped.scope = "s:t";
  const BadCase cases[] = {
      {"empty_base", Root(""), "nodes[1].base_name: is empty"},
      {"colon", Root("a:b"), "nodes[1].base_name: 'a:b' contains ':'"},
      {"scope", scoped, "nodes[1].scope: 's:t' contains ':'"},
      {"type", untyped, "nodes[1].type_name: is empty"},
      {"parent", Call("f", {{"x", {7}}}), "nodes[1].inputs[0].parent: node 7 does not exist; the graph has 1 nodes"},
      {"self", Call("f", {{"x", {1, true}}}), "entry 1 of the batch is not before entry 1"},
      {"argument", Call("f", {{"", {0}}}), "nodes[1].inputs[0].argument: is empty"},
      {"trainable", trainable, "nodes[1].trainable: only a parameter can be trainable"},
      {"constraint", constrained, "nodes[1].constraint: only a parameter"},
      {"level", low, "nodes[1].level: 0 is below 1"},
      {"inputs", root_with_inputs, "nodes[1].inputs: a node has none"},
      {"hidden", hidden, "nodes[1].hidden_parameters[0]: node 9 does not exist"},
  };
  for (const BadCase& c : cases) {
    Graph g;
    Add(g, Root("a"));
    const uint64_t bytes = g.BytesUsed();
    const NodeInput batch[] = {Root("good"), c.input, Root("good")};
    const auto ids = g.AddNodes(batch);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr(c.message)) << c.name;
    EXPECT_EQ(g.size(), 1u) << c.name;
    EXPECT_EQ(g.BytesUsed(), bytes) << c.name;
    EXPECT_EQ(g.FindByName("good:0"), kNoNode) << c.name;
  }
}

TEST(Graph, LimitsHold) {
  Graph g({.max_nodes = 2});
  const NodeInput three[] = {Root("a"), Root("a"), Root("a")};
  EXPECT_EQ(g.AddNodes(three).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(g.size(), 0u);
  EXPECT_TRUE(g.AddNodes({three, 2}).ok());
  EXPECT_EQ(g.AddNodes({three, 1}).status().code(), absl::StatusCode::kResourceExhausted);
  Graph small({.max_bytes = 1 << 16});
  const std::string big(1 << 16, 'x');
  const NodeInput in = Root("a", big);
  EXPECT_EQ(small.AddNodes({&in, 1}).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Graph, SetValueIsForParameters) {
  Graph g;
  Add(g, Param("p", "1"));
  Add(g, Root("r", "1"));
  ASSERT_TRUE(g.SetValue(0, "22", "22").ok());
  EXPECT_EQ(g.ValueText(0), "22");
  EXPECT_EQ(g.ValueJson(0), "22");
  ASSERT_TRUE(g.SetValue(0, "nan", std::nullopt).ok());
  EXPECT_EQ(g.ValueText(0), "nan");
  EXPECT_EQ(g.ValueJson(0), std::nullopt);
  EXPECT_EQ(g.SetValue(1, "2", "2").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(g.SetValue(2, "2", "2").code(), absl::StatusCode::kNotFound);
}

TEST(Graph, ReplacingAValueOftenDoesNotGrow) {
  Graph g;
  Add(g, Param("p"));
  const std::string text(100000, 'x');
  ASSERT_TRUE(g.SetValue(0, text, text).ok());
  const uint64_t bytes = g.BytesUsed();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(g.SetValue(0, text, text).ok());
  EXPECT_EQ(g.BytesUsed(), bytes);
}

TEST(Graph, CodeParametersAreKnownByTypeOrBase) {
  Graph g;
  NodeInput by_type = Param("solve", "def f(): pass");
  by_type.type_name = "code";
  NodeInput by_base = Param("__code", "def f(): pass");
  by_base.type_name = "str";
  NodeInput text = Param("prompt", "def");
  text.type_name = "str";
  EXPECT_TRUE(g.IsCode(Add(g, by_type)));
  EXPECT_TRUE(g.IsCode(Add(g, by_base)));
  EXPECT_FALSE(g.IsCode(Add(g, text)));
}

// All fields set, so that each is seen to survive.
NodeInput Full(const Constraint& constraint) {
  NodeInput in = Param("code", "def f():\n  \"\xC3\xA9\"\n");
  in.scope = "s";
  in.type_name = "code";
  in.value_json = "\"x\"";
  in.op = "tag";
  in.function_name = "fun";
  in.description = "[tag] text";
  in.constraint = &constraint;
  in.level = 3;
  return in;
}

TEST(GraphCodec, RestoresEveryField) {
  const Constraint constraint{
      .text = "t", .min = -1.5, .max = 2, .enum_values = {"a", ""}, .regex = "a+", .max_length = 7};
  Graph g;
  Add(g, Full(constraint));
  NodeInput f = Call("f", {{"x", {0}}, {"y", {0}}});
  f.kind = NodeKind::kException;
  f.hidden_parameters = {{0}};
  f.value_json.reset();
  Add(g, f);
  Graph back;
  for (NodeId id = 0; id < g.size(); ++id) ASSERT_TRUE(RestoreNode(back, EncodeNode(g, id)).ok());
  EXPECT_EQ(back.Name(0), "s/code:0");
  EXPECT_EQ(back.TypeName(0), "code");
  EXPECT_EQ(back.ValueText(0), g.ValueText(0));
  EXPECT_EQ(back.ValueJson(0), "\"x\"");
  EXPECT_EQ(back.Op(0), "tag");
  EXPECT_EQ(back.FunctionName(0), "fun");
  EXPECT_EQ(back.Description(0), "[tag] text");
  EXPECT_EQ(*back.ConstraintOf(0), constraint);
  EXPECT_TRUE(back.Trainable(0));
  EXPECT_EQ(back.Level(0), 3u);
  EXPECT_EQ(back.Kind(1), NodeKind::kException);
  EXPECT_THAT(back.Parents(1), ElementsAre(0, 0));
  EXPECT_THAT(back.HiddenParameters(1), ElementsAre(0));
  EXPECT_EQ(back.ValueJson(1), std::nullopt);
  EXPECT_EQ(back.Level(1), 4u);
}

TEST(GraphCodec, EveryCutAndEveryFlippedByteIsRefusedOrHarmless) {
  const Constraint constraint{.text = "t", .min = 1, .enum_values = {"a"}};
  Graph g;
  Add(g, Full(constraint));
  const std::string bytes = EncodeNode(g, 0);
  for (size_t n = 0; n < bytes.size(); ++n) {
    Graph back;
    EXPECT_EQ(RestoreNode(back, bytes.substr(0, n)).status().code(), absl::StatusCode::kDataLoss) << n;
    EXPECT_EQ(back.size(), 0u);
  }
  for (size_t n = 0; n < bytes.size(); ++n) {
    for (int value = 0; value < 256; ++value) {
      std::string bad = bytes;
      bad[n] = static_cast<char>(value);
      Graph back;
      const auto id = RestoreNode(back, bad);
      EXPECT_EQ(back.size(), id.ok() ? 1u : 0u);
    }
  }
  Graph back;
  EXPECT_FALSE(RestoreNode(back, bytes + "x").ok());
}

TEST(GraphCodec, RefusesNodesOutOfOrder) {
  Graph g;
  Add(g, Root("a"));
  Add(g, Root("a"));
  Graph back;
  const auto id = RestoreNode(back, EncodeNode(g, 1));
  EXPECT_EQ(id.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(id.status().message()), HasSubstr("a:1"));
}

TEST(Graph, StaysUnderOneKibibyteANode) {
  Graph g;
  Add(g, Param("p"));
  for (NodeId i = 0; i < 20000; ++i) Add(g, Call("f", {{"x", {i}}, {"y", {0}}}));
  EXPECT_LT((g.BytesUsed() - g.ValueBytes()) / g.size(), 200u);
}

TEST(Dot, ShowsKindsAndSkipsCopies) {
  Graph g;
  Add(g, Param("p", "say \"hi\"\nand a much longer text"));
  Add(g, Call("identity", {{"x", {0}}}));
  Add(g, Call("clone", {{"x", {1}}}));
  NodeInput bad = Call("exception_f", {{"x", {2}}, {"y", {2}}});
  bad.kind = NodeKind::kException;
  Add(g, bad);
  const std::string simple = ToDot(g, {.print_limit = 10});
  EXPECT_THAT(simple, HasSubstr("n0 [label=\"p0\\nsay \\\"hi\\\"\\na...\", shape=box]"));
  EXPECT_THAT(simple, HasSubstr("color=red"));
  EXPECT_THAT(simple, HasSubstr("n0 -> n3;"));
  EXPECT_EQ(simple.find("n0 -> n3;"), simple.rfind("n0 -> n3;"));  // one edge for a repeated input
  EXPECT_EQ(simple.find("n1"), std::string::npos);
  EXPECT_THAT(ToDot(g, {.simple = false, .reverse = true}), HasSubstr("n1 -> n0;"));
  const NodeId some[] = {1, 2};
  EXPECT_EQ(ToDot(g, some, {.simple = false}).find("n0"), std::string::npos);
}

}  // namespace
}  // namespace optod::trace
