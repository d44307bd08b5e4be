#pragma once
/// A problem instance: what an optimizer's model is told about one recorded run (paper: arXiv 2406.16218, section 4;
/// the OPTO problem with its minimal subgraph as pseudo-code). Built from graph and feedback by a pure function;
/// prompt.h renders it.

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/backward/feedback.h"
#include "trace/backward/subgraph.h"
#include "trace/graph/graph.h"

namespace optod::trace {

struct CodeLine {
  uint32_t level = 0;
  std::string text;  ///< `py_name = function(arg=py_name, ...)`
  NodeId node = kNoNode;
  bool collapsed = false;  ///< another line stands for it (collapse.h)
};

struct DocumentationEntry {
  std::string function;    ///< name printed in code lines
  std::string text;        ///< `[tag] text`
  bool from_user = false;  ///< false: our own text for a built-in operator, or the bare tag
};

struct ValueEntry {
  NodeId node = kNoNode;
  std::string py_name;
  std::string type;  ///< declared type; `code` for source text
  std::string text;
  std::string constraint;  ///< constraint text for the prompt, with the enforced bounds spelled out; empty: none
  bool hidden = false;     ///< a variable that acts only inside traceable bodies: appears in no code line
  bool collapsed = false;  ///< of a call, or an input of calls, that other lines stand for
};

struct ProblemInstance {
  std::string instruction;
  std::vector<CodeLine> code;                     ///< sorted by (level, text)
  std::vector<DocumentationEntry> documentation;  ///< one an operator text, in order of first use
  std::vector<ValueEntry>
      variables;                    ///< trainable parameters of the optimizer, sorted by (level, id); hidden ones last
  std::vector<ValueEntry> inputs;   ///< other roots, and nodes computed from no parameter
  std::vector<ValueEntry> others;   ///< intermediate values
  std::vector<ValueEntry> outputs;  ///< nodes that received feedback
  std::string feedback;
  /// What is said behind a line, by its node (ascending), when collapsed lines are left out.
  std::vector<std::pair<NodeId, std::string>> collapse_notes;
};

/// The default objective.
std::string_view DefaultInstruction();

struct ProblemOptions {
  std::string instruction{};  ///< empty: DefaultInstruction()
  bool list_hidden = true;    ///< list parameters that act only inside traceable bodies under variables
  bool deepest_output_only =
      false;             ///< show only outputs at the greatest level as outputs (the reference library's rule)
  bool collapse = true;  ///< find out which lines a short prompt may leave out; nothing is left out here
};

/// Errors: FAILED_PRECONDITION when there is no feedback; those of ComputeSubgraph.
absl::StatusOr<ProblemInstance> BuildProblem(const Graph& graph, const FeedbackStore& feedback,
                                             std::span<const NodeId> parameters, const ProblemOptions& options = {});

/// Constraint as one line of text: its own text, then what is enforced (`at least 1, at most 20`).
std::string ConstraintText(const Constraint& constraint);

}  // namespace optod::trace
