#pragma once
/// Runs a workflow: for each row of its data the steps in parallel as far as what they use allows, then the guide; and
/// keeps what happened as nodes of a trace. A step that fails becomes an exception node whose text is the feedback,
/// what uses it does not run, and the row counts 0. Blocks its caller; several runs may go on at once.
///
///   rows ─► ready steps ─► `parallel` attempts at once ─► value | exception ─► guide ─► score, feedback ─► RowRun
///                            (time-out each, retries with 0.1 s, 0.2 s, ... between)

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/http_transport.h"
#include "trace/graph/graph.h"
#include "trace/llm/chat.h"
#include "trace/sandbox/sandbox.h"
#include "trace/workflow/workflow.h"

namespace optod::trace {

/// What steps may reach. What is absent is refused before anything runs.
struct WorkflowServices {
  /// One model call; its time-out is the step's. Null = none.
  std::function<absl::StatusOr<ChatReply>(const std::string& endpoint, const ChatRequest& request,
                                          std::chrono::milliseconds timeout, const std::atomic<bool>* cancelled)>
      complete;
  const Sandbox* sandbox = nullptr;   ///< for Python and commands
  HttpTransport* http = nullptr;      ///< for http steps; null = not here
  bool unprotected_commands = false;  ///< whether `sandbox: false` is obeyed
  std::string folder;                 ///< where commands start: seen read-only in the sandbox; "" = a scratch folder
  Clock* clock = nullptr;             ///< for the waits between attempts; required
  SandboxLimits limits;               ///< of each sandbox; its wall clock is the step's time-out
};

struct WorkflowInput {
  std::map<std::string, std::string> parameters;  ///< JSON texts, by name
  std::vector<std::string> rows;      ///< of the data file (those in the workflow itself are taken when this is empty)
  std::chrono::milliseconds wall{0};  ///< of the whole run; 0 = none
  const std::atomic<bool>* cancelled = nullptr;
};

/// One node as it will be recorded.
struct TraceNode {
  struct Input {
    std::string argument;
    std::string parameter;  ///< the name of a parameter, or
    int node = -1;          ///< a position in the same list
  };
  std::string base;
  NodeKind kind = NodeKind::kMessage;
  std::string op, description, type, text;
  std::optional<std::string> json;
  std::vector<Input> inputs;
};

struct RowRun {
  std::vector<TraceNode> nodes;  ///< in an order in which inputs come first
  int output = -1;  ///< what feedback belongs to: the guide's node, or the first exception; -1 when cancelled before
  std::optional<double> score;  ///< absent: failed, or there is no guide
  std::string feedback;
  bool failed = false;
};

struct WorkflowRun {
  std::vector<RowRun> rows;
  double score = 0;     ///< mean over the rows, failed ones as 0; meaningless when `failure` is set
  std::string failure;  ///< why there is no score: cancelled, out of time, or a failed row under a `score` guide
  int64_t failed_rows = 0;
  int64_t model_calls = 0;
  ChatUsage usage;
  bool cancelled = false;
};

/// What RunWorkflow refuses before anything runs, for whoever takes a workflow long before it runs. Errors as there.
absl::Status CheckServices(const Workflow& workflow, const WorkflowServices& services);

/// Errors: FAILED_PRECONDITION (a step needs a sandbox or a model and there is none), PERMISSION_DENIED (http, or
/// `sandbox: false`, where it is not allowed), INVALID_ARGUMENT (a parameter that the workflow uses is not given, no
/// rows). What a step does is no error of the run.
absl::StatusOr<WorkflowRun> RunWorkflow(const Workflow& workflow, const WorkflowInput& input,
                                        const WorkflowServices& services);

/// What an optimizer is shown: the nodes of at most `workflow.trace_rows` rows (failed ones, then those of the lowest
/// score), joined by one last node, and the feedback with the rows' numbers in it.
struct WorkflowTrace {
  std::vector<TraceNode> nodes;
  int output = -1;
  std::string feedback;
};
WorkflowTrace TraceOf(const Workflow& workflow, const WorkflowRun& run);

/// Puts the nodes into a graph. `parameters`: the graph's node of each name. Returns the ids in order. Errors: those of
/// Graph::AddNodes, and NOT_FOUND for a parameter without a node.
absl::StatusOr<std::vector<NodeId>> AddToGraph(const WorkflowTrace& trace,
                                               const std::map<std::string, NodeId>& parameters, Graph* graph);

}  // namespace optod::trace
