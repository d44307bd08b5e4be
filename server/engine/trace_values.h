#pragma once
/// Between the wire's Value / ParameterSpec / Node and the trace library's texts, constraints and inputs. Pure functions.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optod/v1/session.pb.h"
#include "optod/v1/trace.pb.h"
#include "trace/graph/graph.h"

namespace optod::engine {

/// A value as the graph holds it.
struct TraceValue {
  std::string text;
  std::optional<std::string> json;
  bool operator==(const TraceValue&) const = default;
};

/// The wire form by declared type: int -> integer, float -> number, bool -> flag, list and dict -> json, everything else -> text.
v1::Value ToWire(const std::string& type, const TraceValue& value);
/// The value cast to `type`. INVALID_ARGUMENT `<field>: "abc" is no int`.
absl::StatusOr<TraceValue> FromWire(const v1::Value& value, const std::string& type, const std::string& field);
/// "str", "float", "int", "bool", "list" or "dict".
std::string TypeOf(const v1::Value& value);

/// The enforced and told constraint of a declared parameter. INVALID_ARGUMENT when it cannot be enforced (pattern does not compile, min > max).
absl::StatusOr<trace::Constraint> ToConstraint(const v1::ParameterSpec& spec, const std::string& told, const std::string& field);
/// OK, or INVALID_ARGUMENT naming the broken rule.
absl::Status CheckAllowed(const trace::Constraint& constraint, const std::string& type, const TraceValue& value, const std::string& field);

/// A declared parameter as the node that stands for it.
absl::StatusOr<v1::Node> NodeOfParameter(const v1::ParameterSpec& spec, const std::string& field);

/// Adds wire nodes to the graph, all or none; inputs -1-i mean the i-th node of the batch. On success the nodes hold their absolute input ids.
absl::StatusOr<std::vector<trace::NodeId>> AddWireNodes(trace::Graph& graph, std::vector<v1::Node>& nodes);
/// A node as the API shows it.
v1::Node NodeToWire(const trace::Graph& graph, trace::NodeId id);

}  // namespace optod::engine
