#include "trace/optimizers/problem.h"

#include <algorithm>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "trace/optimizers/builtin_ops.h"
#include "trace/optimizers/collapse.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

ValueEntry MakeEntry(const Graph& g, NodeId id) {
  ValueEntry e;
  e.node = id;
  e.py_name = g.PyName(id);
  e.type = g.IsCode(id) ? "code" : g.TypeName(id);
  e.text = g.ValueText(id);
  if (const Constraint* c = g.ConstraintOf(id)) e.constraint = ConstraintText(*c);
  return e;
}

// `c0 = add(x=a0, y=b0)`; without inputs `c0 = now()`.
std::string CallText(const Graph& g, NodeId id) {
  std::string line = g.PyName(id) + " = ";
  line += g.FunctionName(id);
  line += '(';
  const auto parents = g.Parents(id);
  for (size_t i = 0; i < parents.size(); ++i) {
    if (i > 0) line += ", ";
    line += g.Argument(id, i);
    line += '=';
    line += g.PyName(parents[i]);
  }
  return line + ")";
}

class Builder {
 public:
  Builder(const Graph& graph, std::span<const NodeId> outputs, const Subgraph& sub, ProblemInstance& out)
      : g_(graph), sub_(sub), out_(out) {
    outputs_.insert(outputs.begin(), outputs.end());
    variables_.insert(sub.parameters.begin(), sub.parameters.end());
    in_graph_.assign(graph.size(), false);
  }

  void Run(const ProblemOptions& options) {
    for (NodeId id : sub_.nodes) in_graph_[id] = true;
    const std::vector<NodeRole> roles = Roles(options);
    Collapsed collapsed;
    collapsed.left_out.assign(sub_.nodes.size(), false);
    if (options.collapse) collapsed = CollapseSubgraph(g_, sub_, roles);
    for (size_t i = 0; i < sub_.nodes.size(); ++i) {
      const NodeId id = sub_.nodes[i];
      std::vector<ValueEntry>& section = *SectionOf(roles[i]);
      section.push_back(MakeEntry(g_, id));
      section.back().collapsed = collapsed.left_out[i];
      if (roles[i] != NodeRole::kIntermediate && roles[i] != NodeRole::kOutput) continue;
      out_.code.push_back({g_.Level(id), CallText(g_, id), id, collapsed.left_out[i]});
      Document(id);
    }
    out_.collapse_notes = std::move(collapsed.notes);
    SortCode();
    if (options.list_hidden) ListHidden();
  }

 private:
  std::vector<NodeRole> Roles(const ProblemOptions& options) const {
    const uint32_t depth = sub_.nodes.empty() ? 0 : g_.Level(sub_.nodes.back());
    std::vector<NodeRole> roles;
    roles.reserve(sub_.nodes.size());
    for (NodeId id : sub_.nodes) {
      if (!IsIntermediate(id)) {
        const bool variable = variables_.contains(id) && g_.Trainable(id);
        roles.push_back(variable ? NodeRole::kVariable : NodeRole::kInput);
        continue;
      }
      const bool output = options.deepest_output_only ? g_.Level(id) == depth : outputs_.contains(id);
      roles.push_back(output ? NodeRole::kOutput : NodeRole::kIntermediate);
    }
    return roles;
  }
  std::vector<ValueEntry>* SectionOf(NodeRole role) {
    switch (role) {
      case NodeRole::kInput:
        return &out_.inputs;
      case NodeRole::kVariable:
        return &out_.variables;
      case NodeRole::kIntermediate:
        return &out_.others;
      case NodeRole::kOutput:
        return &out_.outputs;
    }
    return &out_.others;
  }

  // A node whose inputs are all in the graph. One without inputs counts when parameters act inside it: else it is a
  // given value.
  bool IsIntermediate(NodeId id) const {
    const auto parents = g_.Parents(id);
    if (parents.empty()) {
      const auto hidden = g_.HiddenParameters(id);
      return std::any_of(hidden.begin(), hidden.end(), [&](NodeId h) { return variables_.contains(h); });
    }
    return std::all_of(parents.begin(), parents.end(), [&](NodeId p) { return in_graph_[p]; });
  }

  void Document(NodeId id) {
    const std::string_view function = g_.FunctionName(id), op = g_.Op(id);
    const std::optional<std::string_view> user = g_.Description(id);
    // Interned texts: equal content has equal address, so a repeated operator costs one lookup.
    if (!seen_.insert({function.data(), user ? user->data() : op.data()}).second) return;
    DocumentationEntry entry{std::string(function), {}, user.has_value()};
    if (user) {
      const bool tagged = !user->empty() && user->front() == '[';
      entry.text = tagged ? std::string(*user) : Cat("[", op, "] ", *user);
    } else {
      const std::string_view builtin = BuiltinOpText(op);
      entry.text = builtin.empty() ? Cat("[", op, "]") : Cat("[", op, "] ", builtin, ".");
    }
    auto [place, is_new] = documented_.try_emplace(function, out_.documentation.size());
    // A text of ours gives way to the user's; two of the user's are both kept.
    if (!is_new) {
      if (!entry.from_user) return;
      if (!out_.documentation[place->second].from_user) {
        out_.documentation[place->second] = std::move(entry);
        return;
      }
    }
    out_.documentation.push_back(std::move(entry));
  }

  // (level, text): levels already ascend, so only lines inside one level are sorted.
  void SortCode() {
    auto& code = out_.code;
    for (size_t begin = 0; begin < code.size();) {
      size_t end = begin + 1;
      while (end < code.size() && code[end].level == code[begin].level) ++end;
      std::sort(code.begin() + static_cast<std::ptrdiff_t>(begin), code.begin() + static_cast<std::ptrdiff_t>(end),
                [](const CodeLine& a, const CodeLine& b) { return a.text < b.text; });
      begin = end;
    }
  }

  void ListHidden() {
    for (NodeId id : sub_.hidden) {
      if (!g_.Trainable(id) || in_graph_[id]) continue;
      out_.variables.push_back(MakeEntry(g_, id));
      out_.variables.back().hidden = true;
    }
  }

  struct PairHash {
    size_t operator()(const std::pair<const void*, const void*>& p) const {
      return std::hash<const void*>()(p.first) * 31 + std::hash<const void*>()(p.second);
    }
  };

  const Graph& g_;
  const Subgraph& sub_;
  ProblemInstance& out_;
  absl::flat_hash_set<NodeId> outputs_, variables_;
  std::vector<bool> in_graph_;
  absl::flat_hash_set<std::pair<const void*, const void*>, PairHash> seen_;
  absl::flat_hash_map<std::string_view, size_t, std::hash<std::string_view>> documented_;
};

}  // namespace

std::string_view DefaultInstruction() {
  return "Find values for the variables in #Variables that move the result in #Outputs where #Feedback says it should "
         "go.";
}

// Whole bounds without a decimal point.
static std::string Bound(double value) {
  std::string text = FloatRepr(value);
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

std::string ConstraintText(const Constraint& c) {
  std::string out = c.text;
  auto add = [&](const std::string& rule, std::string_view glue) {
    if (!out.empty()) out += out == c.text && !c.text.empty() ? std::string_view("; ") : glue;
    out += rule;
  };
  if (c.min) add("at least " + Bound(*c.min), "; ");
  if (c.max) add("at most " + Bound(*c.max), ", ");
  if (!c.enum_values.empty()) {
    std::string list;
    for (const std::string& v : c.enum_values) list += (list.empty() ? "" : ", ") + v;
    add("one of: " + list, "; ");
  }
  if (!c.regex.empty()) add("matches " + c.regex, "; ");
  if (!c.json_schema.empty()) add("obeys the JSON schema " + c.json_schema, "; ");
  if (!c.python_signature.empty()) {
    add("Python source that defines " + c.python_signature, "; ");
  } else if (c.python) {
    add("Python source", "; ");
  }
  if (c.max_length) add("at most " + std::to_string(*c.max_length) + " characters", "; ");
  return out;
}

absl::StatusOr<ProblemInstance> BuildProblem(const Graph& graph, const FeedbackStore& feedback,
                                             std::span<const NodeId> parameters, const ProblemOptions& options) {
  if (feedback.empty()) return FailedPrecondition("feedback: none was given since the last step; call backward first");
  const std::vector<NodeId> outputs = feedback.Outputs();
  ASSIGN_OR_RETURN(const Subgraph sub, ComputeSubgraph(graph, outputs, parameters));
  ProblemInstance out;
  out.instruction = options.instruction.empty() ? std::string(DefaultInstruction()) : options.instruction;
  out.feedback = feedback.JoinedText(graph);
  Builder(graph, outputs, sub, out).Run(options);
  return out;
}

}  // namespace optod::trace
