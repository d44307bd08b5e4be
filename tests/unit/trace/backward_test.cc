// Feedback store and subgraph, the latter against a slow reference that follows the definition.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <set>

#include "trace/backward/feedback.h"
#include "trace/backward/subgraph.h"

namespace optod::trace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

NodeId Root(Graph& g, std::string_view base) {
  const NodeInput in{.base_name = base, .type_name = "int", .value_text = "1"};
  return g.AddNodes({&in, 1})->front();
}
NodeId Param(Graph& g, std::string_view base) {
  const NodeInput in{
      .base_name = base, .kind = NodeKind::kParameter, .type_name = "int", .value_text = "1", .trainable = true};
  return g.AddNodes({&in, 1})->front();
}
NodeId Call(Graph& g, std::string_view op, const std::vector<NodeId>& parents, const std::vector<NodeId>& hidden = {}) {
  NodeInput in{.base_name = op, .kind = NodeKind::kMessage, .type_name = "int", .value_text = "1"};
  for (NodeId p : parents) in.inputs.push_back({"x", {p}});
  for (NodeId p : hidden) in.hidden_parameters.push_back({p});
  return g.AddNodes({&in, 1})->front();
}
Subgraph Compute(const Graph& g, std::vector<NodeId> outputs, std::vector<NodeId> parameters) {
  auto sub = ComputeSubgraph(g, outputs, parameters);
  EXPECT_TRUE(sub.ok()) << sub.status().message();
  return sub.ok() ? *sub : Subgraph{};
}

TEST(FeedbackStore, KeepsOrderAndAllowsRepeats) {
  Graph g;
  Root(g, "a");
  Root(g, "b");
  FeedbackStore f;
  EXPECT_TRUE(f.empty());
  ASSERT_TRUE(f.Backward(g, 1, "low").ok());
  ASSERT_TRUE(f.Backward(g, 0, "low").ok());
  EXPECT_EQ(f.JoinedText(g), "low");  // they agree
  ASSERT_TRUE(f.Backward(g, 1, "high").ok());
  EXPECT_THAT(f.Outputs(), ElementsAre(1, 0));
  EXPECT_EQ(f.entries().size(), 3u);
  EXPECT_EQ(f.JoinedText(g), "b0: low\n\na0: low\n\nb0: high");
  EXPECT_EQ(f.Backward(g, 2, "x").code(), absl::StatusCode::kNotFound);
  f.ZeroFeedback();
  EXPECT_TRUE(f.empty());
  EXPECT_EQ(f.JoinedText(g), "");
}

TEST(Subgraph, HoldsPathsAndTheirParentsOnly) {
  Graph g;
  const NodeId t = Param(g, "t"), u = Root(g, "u");
  const NodeId pre = Call(g, "pre", {u}), left = Call(g, "left", {t}), merged = Call(g, "merge", {left, pre});
  Call(g, "unused", {left});
  const Subgraph sub = Compute(g, {merged}, {t});
  EXPECT_THAT(sub.nodes, ElementsAre(t, pre, left, merged));  // by level, then creation; u is above a blanket node
  EXPECT_THAT(sub.parameters, ElementsAre(t));
}

TEST(Subgraph, EmptyWithoutInfluence) {
  Graph g;
  const NodeId p = Param(g, "p"), u = Root(g, "u"), f = Call(g, "f", {u});
  EXPECT_THAT(Compute(g, {f}, {p}).nodes, IsEmpty());
  EXPECT_THAT(Compute(g, {f}, {p}).parameters, IsEmpty());
  EXPECT_THAT(Compute(g, {u}, {p}).nodes, IsEmpty());
  EXPECT_THAT(Compute(g, {}, {p}).nodes, IsEmpty());
  EXPECT_THAT(Compute(g, {f}, {}).nodes, IsEmpty());
}

TEST(Subgraph, ParameterItselfAsOutput) {
  Graph g;
  const NodeId p = Param(g, "p");
  EXPECT_THAT(Compute(g, {p}, {p}).nodes, ElementsAre(p));
}

TEST(Subgraph, RepeatedInputsCountOnce) {
  Graph g;
  const NodeId v = Param(g, "v"), sq = Call(g, "multiply", {v, v}), fourth = Call(g, "multiply", {sq, sq});
  EXPECT_THAT(Compute(g, {fourth, fourth}, {v, v}).nodes, ElementsAre(v, sq, fourth));
  EXPECT_THAT(Compute(g, {fourth}, {v, v}).parameters, ElementsAre(v));
}

TEST(Subgraph, SeveralOutputsMerge) {
  Graph g;
  const NodeId p = Param(g, "p"), q = Param(g, "q"), f = Call(g, "f", {p}), h = Call(g, "h", {q});
  EXPECT_THAT(Compute(g, {h, f}, {p, q}).nodes, ElementsAre(p, q, f, h));
}

TEST(Subgraph, HiddenParametersAreReportedNotDrawn) {
  Graph g;
  const NodeId inner = Param(g, "inner"), u = Root(g, "u"), other = Param(g, "other");
  const NodeId f = Call(g, "f", {u}, {inner}), h = Call(g, "h", {f});
  const Subgraph sub = Compute(g, {h}, {other, inner});
  EXPECT_THAT(sub.nodes, ElementsAre(u, f, h));
  EXPECT_THAT(sub.parameters, ElementsAre(inner));
  EXPECT_THAT(sub.hidden, ElementsAre(inner));
  // Also an explicit input elsewhere: then it is drawn, not hidden.
  const NodeId k = Call(g, "k", {h, inner});
  EXPECT_THAT(Compute(g, {k}, {inner}).hidden, IsEmpty());
}

TEST(Subgraph, RefusesWhatIsNoParameter) {
  Graph g;
  const NodeId u = Root(g, "u");
  EXPECT_EQ(ComputeSubgraph(g, std::vector<NodeId>{u}, std::vector<NodeId>{u}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ComputeSubgraph(g, std::vector<NodeId>{9}, std::vector<NodeId>{}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ComputeSubgraph(g, std::vector<NodeId>{u}, std::vector<NodeId>{9}).status().code(),
            absl::StatusCode::kNotFound);
}

// The definition, node by node, with recursion: on a path = reached from an output, and reaches a parameter.
std::set<NodeId> SlowSubgraph(const Graph& g, const std::vector<NodeId>& outputs,
                              const std::vector<NodeId>& parameters) {
  std::function<bool(NodeId)> reaches = [&](NodeId id) {
    if (std::count(parameters.begin(), parameters.end(), id)) return true;
    for (NodeId h : g.HiddenParameters(id)) {
      if (std::count(parameters.begin(), parameters.end(), h)) return true;
    }
    return std::any_of(g.Parents(id).begin(), g.Parents(id).end(), reaches);
  };
  std::set<NodeId> out;
  std::function<void(NodeId)> walk = [&](NodeId id) {
    if (!reaches(id)) return;
    out.insert(id);
    for (NodeId p : g.Parents(id)) {
      out.insert(p);
      walk(p);
    }
  };
  for (NodeId id : outputs) walk(id);
  return out;
}

TEST(Subgraph, AgreesWithTheDefinitionOnRandomGraphs) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    Graph g;
    std::vector<NodeId> parameters;
    const int size = 2 + static_cast<int>(random() % 90);  // more than one 64-bit word
    for (int i = 0; i < size; ++i) {
      const auto any = [&] { return static_cast<NodeId>(random() % g.size()); };
      if (g.size() == 0 || random() % 4 == 0) {
        if (random() % 2) {
          const NodeId p = Param(g, "p");
          if (random() % 2) parameters.push_back(p);
        } else {
          Root(g, "c");
        }
      } else {
        std::vector<NodeId> hidden;
        if (!parameters.empty() && random() % 8 == 0) hidden.push_back(parameters[random() % parameters.size()]);
        // Mostly recent parents, so that the slow walk stays small.
        std::vector<NodeId> parents = {any()};
        if (random() % 2) parents.push_back(any());
        Call(g, "f", parents, hidden);
      }
    }
    const std::vector<NodeId> outputs = {g.size() - 1, static_cast<NodeId>(random() % g.size())};
    const Subgraph sub = Compute(g, outputs, parameters);
    EXPECT_EQ(std::set<NodeId>(sub.nodes.begin(), sub.nodes.end()), SlowSubgraph(g, outputs, parameters))
        << "round " << round;
    EXPECT_EQ(std::set<NodeId>(sub.nodes.begin(), sub.nodes.end()).size(), sub.nodes.size());
    EXPECT_TRUE(std::is_sorted(sub.nodes.begin(), sub.nodes.end(), [&](NodeId a, NodeId b) {
      return std::pair(g.Level(a), a) < std::pair(g.Level(b), b);
    }));
  }
}

TEST(Subgraph, MillionNodeChainNeedsNoStack) {
  Graph g;
  NodeId last = Param(g, "p");
  const NodeInput step{.base_name = "step", .kind = NodeKind::kMessage, .type_name = "int", .value_text = "1"};
  std::vector<NodeInput> batch;
  for (uint32_t done = 0; done < 1000000; done += 10000) {
    batch.assign(10000, step);
    for (uint32_t i = 0; i < batch.size(); ++i)
      batch[i].inputs = {{"x", i == 0 ? ParentRef{last} : ParentRef{i - 1, true}}};
    last = g.AddNodes(batch)->back();
  }
  const Subgraph sub = Compute(g, {last}, {0});
  EXPECT_EQ(sub.nodes.size(), 1000001u);
  EXPECT_EQ(g.Level(sub.nodes.back()), 1000000u);
}

TEST(Subgraph, HugeExplicitLevelsCostNothing) {
  Graph g;
  const NodeId p = Param(g, "p");
  NodeInput far{.base_name = "far", .type_name = "int", .value_text = "1", .level = 4000000000u};
  const NodeId copy = g.AddNodes({&far, 1})->front();
  const NodeId f = Call(g, "f", {copy, p});
  EXPECT_THAT(Compute(g, {f}, {p}).nodes, ElementsAre(p, copy, f));
}

}  // namespace
}  // namespace optod::trace
