#include "server/engine/trace_values.h"

#include <cmath>

#include "base/status.h"
#include "trace/optimizers/cast.h"
#include "trace/optimizers/constraint_check.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_text.h"

namespace optod::engine {

using trace::JsonValue;

v1::Value ToWire(const std::string& type, const TraceValue& value) {
  v1::Value out;
  if (type == "int") {
    auto digits = trace::ParsePythonInt(value.text);
    if (digits && digits->size() <= 18) {
      out.set_integer(std::stoll(*digits));
      return out;
    }
  } else if (type == "float") {
    if (auto number = trace::ParsePythonFloat(value.text)) {
      out.set_number(*number);
      return out;
    }
  } else if (type == "bool") {
    out.set_flag(value.text == "True" || value.text == "true");
    return out;
  } else if ((type == "list" || type == "dict") && value.json) {
    out.set_json(*value.json);
    return out;
  }
  out.set_text(value.text);
  return out;
}

absl::StatusOr<TraceValue> FromWire(const v1::Value& value, const std::string& type, const std::string& field) {
  std::optional<JsonValue> json;
  switch (value.kind_case()) {
    case v1::Value::kText:
      if (value.text().size() > (1u << 20)) return InvalidArgument(field, ": ", value.text().size(), " bytes; at most 1 MiB");
      json = JsonValue::String(value.text());
      break;
    case v1::Value::kNumber:
      if (!std::isfinite(value.number())) return TraceValue{trace::FloatRepr(value.number()), std::nullopt};
      json = trace::ParseJson(trace::FloatRepr(value.number()));
      break;
    case v1::Value::kInteger: json = trace::ParseJson(std::to_string(value.integer())); break;
    case v1::Value::kFlag: json = trace::ParseJson(value.flag() ? "true" : "false"); break;
    case v1::Value::kJson:
      json = trace::ParseJson(value.json());
      if (!json) return InvalidArgument(field, ".json: is no JSON document");
      break;
    case v1::Value::KIND_NOT_SET: return InvalidArgument(field, ": missing; set text, number, integer, flag or json");
  }
  if (!json) return InvalidArgument(field, ": cannot be read");
  trace::CastResult cast = trace::CastValue(*json, type);
  if (!cast.ok) return InvalidArgument(field, ": ", cast.reason);
  return TraceValue{std::move(cast.text), std::move(cast.json)};
}

std::string TypeOf(const v1::Value& value) {
  switch (value.kind_case()) {
    case v1::Value::kNumber: return "float";
    case v1::Value::kInteger: return "int";
    case v1::Value::kFlag: return "bool";
    case v1::Value::kJson: {
      auto json = trace::ParseJson(value.json());
      return json && json->kind == JsonValue::Kind::kArray ? "list" : "dict";
    }
    default: return "str";
  }
}

absl::StatusOr<trace::Constraint> ToConstraint(const v1::ParameterSpec& spec, const std::string& told, const std::string& field) {
  trace::Constraint out;
  out.text = told;
  if (spec.has_min()) out.min = spec.min();
  if (spec.has_max()) out.max = spec.max();
  out.enum_values.assign(spec.choices().begin(), spec.choices().end());
  out.regex = spec.pattern();
  if (spec.max_length() < 0) return InvalidArgument(field, ".max_length: ", spec.max_length(), " is negative");
  out.json_schema = spec.json_schema();
  out.python_signature = spec.python_signature();
  out.python = spec.python();
  if (spec.max_length() > 0) out.max_length = static_cast<uint64_t>(spec.max_length());
  if (absl::Status valid = trace::ValidateConstraint(out); !valid.ok()) return InvalidArgument(field, ": ", std::string(valid.message()));
  return out;
}

absl::Status CheckAllowed(const trace::Constraint& constraint, const std::string& type, const TraceValue& value, const std::string& field) {
  const std::string broken = trace::CheckConstraint(constraint, type, value.text, value.json);
  return broken.empty() ? absl::OkStatus() : InvalidArgument(field, ": ", broken);
}

absl::StatusOr<v1::Node> NodeOfParameter(const v1::ParameterSpec& spec, const std::string& field) {
  const std::string type = spec.type().empty() ? TypeOf(spec.initial()) : spec.type();
  ASSIGN_OR_RETURN(TraceValue value, FromWire(spec.initial(), type, field + ".initial"));
  v1::Node node;
  node.set_base(spec.name());
  node.set_kind(v1::Node::PARAMETER);
  node.set_type(type);
  node.set_text(value.text);
  if (value.json) node.set_json(*value.json);
  node.set_trainable(true);
  std::string told = spec.description();
  if (!spec.constraint().empty()) told += (told.empty() ? "" : "; ") + spec.constraint();
  node.set_constraint(told);
  *node.mutable_enforce() = spec;
  node.mutable_enforce()->clear_initial();
  ASSIGN_OR_RETURN(trace::Constraint constraint, ToConstraint(spec, told, field));
  RETURN_IF_ERROR(CheckAllowed(constraint, type, value, field + ".initial"));
  return node;
}

namespace {

/// Everything a batch of NodeInputs points to.
struct Borrowed {
  std::vector<trace::NodeInput> inputs;
  std::vector<trace::Constraint> constraints;
};

absl::StatusOr<trace::ParentRef> ParentOf(int64_t node, size_t batch_position, const std::string& field) {
  if (node >= 0) {
    if (node >= trace::kNoNode) return InvalidArgument(field, ": node ", node, " does not exist");
    return trace::ParentRef{static_cast<uint32_t>(node), false};
  }
  const int64_t in_batch = -1 - node;
  if (in_batch >= static_cast<int64_t>(batch_position))
    return InvalidArgument(field, ": ", node, " means nodes[", in_batch, "], which is not before this one");
  return trace::ParentRef{static_cast<uint32_t>(in_batch), true};
}

absl::Status Borrow(const v1::Node& node, size_t i, Borrowed* out) {
  const std::string field = Cat("nodes[", i, "]");
  trace::NodeInput input;
  input.base_name = node.base().empty() ? node.type() : node.base();
  input.scope = node.scope();
  switch (node.kind()) {
    case v1::Node::KIND_UNSPECIFIED:
    case v1::Node::NODE: input.kind = trace::NodeKind::kNode; break;
    case v1::Node::PARAMETER: input.kind = trace::NodeKind::kParameter; break;
    case v1::Node::MESSAGE: input.kind = trace::NodeKind::kMessage; break;
    case v1::Node::EXCEPTION: input.kind = trace::NodeKind::kException; break;
    default: return InvalidArgument(field, ".kind: ", static_cast<int>(node.kind()), " is unknown");
  }
  input.type_name = node.type();
  input.value_text = node.text();
  if (!node.json().empty()) input.value_json = node.json();
  input.op = node.op();
  input.function_name = node.function();
  if (!node.description().empty()) input.description = node.description();
  input.trainable = node.trainable();
  if (node.has_level()) {
    if (node.level() < 0 || node.level() > INT32_MAX) return InvalidArgument(field, ".level: ", node.level(), " is out of range");
    input.level = static_cast<uint32_t>(node.level());
  }
  if (node.has_index()) {
    if (node.index() < 0 || node.index() > INT32_MAX) return InvalidArgument(field, ".index: ", node.index(), " is out of range");
    input.index = static_cast<uint32_t>(node.index());
  }
  for (int k = 0; k < node.inputs_size(); ++k) {
    ASSIGN_OR_RETURN(trace::ParentRef parent, ParentOf(node.inputs(k).node(), i, Cat(field, ".inputs[", k, "].node")));
    input.inputs.push_back({node.inputs(k).argument(), parent});
  }
  for (int64_t hidden : node.hidden_parameters()) {
    ASSIGN_OR_RETURN(trace::ParentRef parent, ParentOf(hidden, i, field + ".hidden_parameters"));
    input.hidden_parameters.push_back(parent);
  }
  if (input.kind == trace::NodeKind::kParameter && (node.has_enforce() || !node.constraint().empty())) {
    ASSIGN_OR_RETURN(trace::Constraint constraint, ToConstraint(node.enforce(), node.constraint(), field + ".enforce"));
    out->constraints.push_back(std::move(constraint));
    input.constraint = &out->constraints.back();
  }
  out->inputs.push_back(std::move(input));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<trace::NodeId>> AddWireNodes(trace::Graph& graph, std::vector<v1::Node>& nodes) {
  Borrowed borrowed;
  borrowed.inputs.reserve(nodes.size());
  borrowed.constraints.reserve(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) RETURN_IF_ERROR(Borrow(nodes[i], i, &borrowed));
  ASSIGN_OR_RETURN(std::vector<trace::NodeId> ids, graph.AddNodes(borrowed.inputs));
  auto absolute = [&](int64_t node) { return node >= 0 ? node : static_cast<int64_t>(ids[static_cast<size_t>(-1 - node)]); };
  for (v1::Node& node : nodes) {
    for (auto& input : *node.mutable_inputs()) input.set_node(absolute(input.node()));
    for (auto& hidden : *node.mutable_hidden_parameters()) hidden = absolute(hidden);
  }
  return ids;
}

v1::Node NodeToWire(const trace::Graph& graph, trace::NodeId id) {
  v1::Node out;
  out.set_id(id);
  out.set_name(graph.Name(id));
  out.set_py_name(graph.PyName(id));
  out.set_base(std::string(graph.BaseName(id)));
  switch (graph.Kind(id)) {
    case trace::NodeKind::kNode: out.set_kind(v1::Node::NODE); break;
    case trace::NodeKind::kParameter: out.set_kind(v1::Node::PARAMETER); break;
    case trace::NodeKind::kMessage: out.set_kind(v1::Node::MESSAGE); break;
    case trace::NodeKind::kException: out.set_kind(v1::Node::EXCEPTION); break;
  }
  out.set_op(std::string(graph.Op(id)));
  out.set_function(std::string(graph.FunctionName(id)));
  out.set_description(std::string(graph.Description(id).value_or("")));
  out.set_type(std::string(graph.TypeName(id)));
  out.set_text(std::string(graph.ValueText(id)));
  out.set_json(std::string(graph.ValueJson(id).value_or("")));
  if (const trace::Constraint* constraint = graph.ConstraintOf(id)) out.set_constraint(constraint->text);
  out.set_trainable(graph.Trainable(id));
  out.set_level(graph.Level(id));
  const auto parents = graph.Parents(id);
  for (size_t i = 0; i < parents.size(); ++i) {
    v1::NodeInput* input = out.add_inputs();
    input->set_argument(std::string(graph.Argument(id, i)));
    input->set_node(parents[i]);
  }
  for (trace::NodeId hidden : graph.HiddenParameters(id)) out.add_hidden_parameters(hidden);
  return out;
}

}  // namespace optod::engine
