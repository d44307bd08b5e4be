// Cost of traces: nodes/s recorded, seconds of backward + problem instance, bytes a node, for four shapes of graph at
// four sizes. Usage: trace_bench [largest size, default 1000000]. One run each after a warm-up of the smallest size;
// prints a table.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "trace/optimizers/prompt.h"

namespace {

using namespace optod::trace;
using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Parents of message `i` (ids count from 1; 0 is the parameter).
std::vector<NodeId> ParentsOf(const std::string& shape, NodeId i) {
  if (shape == "chain") return {i - 1};
  if (shape == "tree") return {(i - 1) / 2};  // grows from the parameter; leaves are joined at the end
  if (shape == "diamond") {                   // 1 -> 2,3 -> 4 -> 5,6 -> 7 ...
    return i % 3 == 1 ? (i == 1 ? std::vector<NodeId>{0} : std::vector<NodeId>{i - 2, i - 1})
                      : std::vector<NodeId>{i - (i % 3 == 2 ? 1 : 2)};
  }
  // layered: rows of 16, each node on four of the row before
  if (i <= 16) return {0};
  const NodeId row = (i - 1) / 16, column = (i - 1) % 16;
  std::vector<NodeId> parents;
  for (NodeId k = 0; k < 4; ++k) parents.push_back((row - 1) * 16 + 1 + (column + k * 5) % 16);
  return parents;
}

struct Cost {
  double record = 0, backward = 0, problem = 0, render = 0;  // seconds
  double bytes_per_node = 0;                                 // beside values
  size_t subgraph = 0;

  void KeepBest(const Cost& o) {
    record = std::min(record, o.record);
    backward = std::min(backward, o.backward);
    problem = std::min(problem, o.problem);
    render = std::min(render, o.render);
  }
};

// Seconds of the recording alone, the batches prepared before.
double Record(Graph& graph, const std::string& shape, NodeId size) {
  static const char* kArguments[] = {"x", "y", "z", "w"};
  std::vector<NodeInput> batch;
  double seconds = 0;
  for (NodeId next = 1; next < size;) {
    batch.clear();
    for (; next < size && batch.size() < 1000; ++next) {
      NodeInput in{.base_name = "step",
                   .kind = NodeKind::kMessage,
                   .type_name = "int",
                   .value_text = "12345",
                   .value_json = "12345",
                   .op = "step",
                   .function_name = "step",
                   .description = "[step] one step"};
      const std::vector<NodeId> parents = ParentsOf(shape, next);
      for (size_t k = 0; k < parents.size(); ++k) {
        const bool in_batch = parents[k] >= graph.size();
        in.inputs.push_back({kArguments[k], {in_batch ? parents[k] - graph.size() : parents[k], in_batch}});
      }
      batch.push_back(std::move(in));
    }
    const auto begin = Clock::now();
    if (!graph.AddNodes(batch).ok()) std::abort();
    seconds += Seconds(begin);
  }
  return seconds;
}

Cost Measure(const std::string& shape, NodeId size) {
  Graph graph;
  const NodeInput parameter{.base_name = "p",
                            .kind = NodeKind::kParameter,
                            .type_name = "int",
                            .value_text = "1",
                            .value_json = "1",
                            .trainable = true};
  if (!graph.AddNodes({&parameter, 1}).ok()) std::abort();
  Cost cost;
  cost.record = Record(graph, shape, size);
  // What is judged joins the tree's leaves, the last row of layers, or just the last node.
  NodeInput join{.base_name = "join", .kind = NodeKind::kMessage, .type_name = "int", .value_text = "1"};
  const NodeId first = shape == "tree" ? size / 2 : size - (shape == "layered" ? std::min<NodeId>(16, size - 1) : 1);
  for (NodeId i = first; i < size; ++i) join.inputs.push_back({"x", {i}});
  const NodeId output = graph.AddNodes({&join, 1})->front();

  FeedbackStore feedback;
  const NodeId parameters[] = {0};
  auto begin = Clock::now();
  if (!feedback.Backward(graph, output, "too low").ok()) std::abort();
  const auto sub = ComputeSubgraph(graph, feedback.Outputs(), parameters);
  cost.backward = Seconds(begin);
  begin = Clock::now();
  const auto problem = BuildProblem(graph, feedback, parameters);
  cost.problem = Seconds(begin);
  begin = Clock::now();
  const Prompt prompt = Render(*problem);
  cost.render = Seconds(begin);
  cost.bytes_per_node = static_cast<double>(graph.BytesUsed() - graph.ValueBytes()) / graph.size();
  cost.subgraph = sub->nodes.size();
  return cost;
}

}  // namespace

int main(int argc, char** argv) {
  const long largest = argc > 1 ? std::atol(argv[1]) : 1000000;
  std::printf("%-8s %9s %12s %12s %12s %12s %10s %9s\n", "shape", "nodes", "M nodes/s", "backward ms", "problem ms",
              "render ms", "B/node", "subgraph");
  for (const char* shape : {"chain", "tree", "layered", "diamond"}) {
    for (long size = 100; size <= largest; size *= 10) {
      Cost best = Measure(shape, static_cast<NodeId>(size));
      for (int i = 0; i < 4; ++i) best.KeepBest(Measure(shape, static_cast<NodeId>(size)));
      std::printf("%-8s %9ld %12.2f %12.3f %12.3f %12.3f %10.1f %9zu\n", shape, size,
                  static_cast<double>(size) / best.record / 1e6, best.backward * 1e3, best.problem * 1e3,
                  best.render * 1e3, best.bytes_per_node, best.subgraph);
      std::fflush(stdout);
    }
  }
  return 0;
}
