#pragma once
/// The recorded computation graph of one session: flat arrays indexed by NodeId (creation order), repeated strings
/// interned.
///
/// Owned by one session and not thread-safe: one writer, no reader beside it. Parents always have smaller ids than
/// their children, so ascending id is a topological order and nothing here recurses. Views returned by accessors stay
/// valid until the graph dies, except ValueText/ValueJson of a parameter, which end at its next SetValue.
///
/// Names. The graph gives each node an index per base name in creation order, from 0 (or the wanted one): name
/// `base:index`. py_name is the name without the colon (`a:0` -> `a0`), unique in the graph: where base `x1` index 0
/// and base `x` index 10 would both be `x10`, the later node puts underscores between base and index (`x1_0`). Levels.
/// max(parents' level) + 1, or 0 without parents; an explicit level may raise it, never lower it. Memory. About 80
/// bytes a node beside values, names and 8 bytes an input; see BytesUsed().

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trace/graph/constraint.h"

namespace optod::trace {

using NodeId = uint32_t;  ///< position in creation order, from 0
inline constexpr NodeId kNoNode = UINT32_MAX;

enum class NodeKind : uint8_t {
  kNode,       ///< a value that is not optimized: constant, input
  kParameter,  ///< a root that an optimizer may own
  kMessage,    ///< result of an operator
  kException   ///< result of an operator that failed; value text is `(ErrorType) message`
};

/// `node`, `parameter`, `message`, `exception`.
std::string_view NodeKindName(NodeKind kind);
std::optional<NodeKind> ParseNodeKind(std::string_view name);

/// A node named by its id, or by its position in the batch being added (must be an earlier entry).
struct ParentRef {
  uint32_t index = kNoNode;
  bool in_batch = false;
};

struct InputArg {
  std::string_view argument;  ///< name printed in the code line, not empty
  ParentRef parent;
};

/// What a client sends for one node. All views are copied by AddNodes and need to live only until it returns.
struct NodeInput {
  std::string_view base_name{};  ///< required; no ':' in it
  std::string_view scope{};      ///< if not empty the base becomes `scope/base_name`; no ':' in it
  NodeKind kind = NodeKind::kNode;
  std::string_view type_name{};                  ///< declared type, e.g. int float str bool list dict code; required
  std::string_view value_text{};                 ///< rendering shown to the model
  std::optional<std::string_view> value_json{};  ///< absent: the value has no JSON form
  std::string_view op{};             ///< operator tag; empty: from `[tag]` in the description, else by kind/base
  std::string_view function_name{};  ///< printed in the code line; empty: op
  std::optional<std::string_view> description{};  ///< the user's own text; absent: none
  std::vector<InputArg> inputs{};          ///< messages and exceptions only, in order; may be empty; parents may repeat
  const Constraint* constraint = nullptr;  ///< parameters only
  bool trainable = false;                  ///< parameters only
  std::optional<uint32_t> level{};         ///< absent: by rule; else >= that of the rule (detached copies keep theirs)
  std::vector<ParentRef> hidden_parameters{};  ///< parameters used inside a traceable body, not among the inputs
  std::optional<uint32_t> index{};  ///< wanted index of the name; absent, taken or kMaxIndexGap past the last: the next
};

/// How far a wanted index may lie behind the base's last one; the gap costs 4 bytes an index.
inline constexpr uint32_t kMaxIndexGap = 1u << 20;

struct GraphLimits {
  uint32_t max_nodes = 64u << 20;
  uint64_t max_bytes = uint64_t{16} << 30;  ///< of BytesUsed(), checked before each batch
};

class Graph {
 public:
  explicit Graph(GraphLimits limits = {});
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  /// Adds all nodes of the batch or none. Returns their ids in order (consecutive, from size()).
  /// Errors: INVALID_ARGUMENT `nodes[3].inputs[0]: ...` for a malformed entry; RESOURCE_EXHAUSTED over the limits.
  absl::StatusOr<std::vector<NodeId>> AddNodes(std::span<const NodeInput> batch);

  /// Replaces the value of a parameter (a new version was accepted, or rolled back). The declared type stays.
  /// Errors: NOT_FOUND for an unknown id; FAILED_PRECONDITION when the node is no parameter.
  absl::Status SetValue(NodeId id, std::string_view text, std::optional<std::string_view> json);

  uint32_t size() const;
  bool Contains(NodeId id) const { return id < size(); }

  // Accessors; `id` must be contained.
  std::string Name(NodeId id) const;           ///< `base:index`
  std::string PyName(NodeId id) const;         ///< unique identifier used in prompts and replies
  std::string_view BaseName(NodeId id) const;  ///< with its scope
  uint32_t Index(NodeId id) const;
  NodeKind Kind(NodeId id) const;
  uint32_t Level(NodeId id) const;
  bool Trainable(NodeId id) const;
  bool IsParameter(NodeId id) const { return Kind(id) == NodeKind::kParameter; }
  /// True for a parameter that holds source text: declared type `code`, or a base name that contains `__code`.
  bool IsCode(NodeId id) const;
  std::string_view TypeName(NodeId id) const;
  std::string_view ValueText(NodeId id) const;
  std::optional<std::string_view> ValueJson(NodeId id) const;
  std::string_view Op(NodeId id) const;
  std::string_view FunctionName(NodeId id) const;
  std::optional<std::string_view> Description(NodeId id) const;
  const Constraint* ConstraintOf(NodeId id) const;   ///< nullptr: none
  std::span<const NodeId> Parents(NodeId id) const;  ///< one per input, in order, repeats kept
  std::string_view Argument(NodeId id, size_t input) const;
  std::span<const NodeId> HiddenParameters(NodeId id) const;

  /// Looks up `base:index` (with scope) or a py_name; kNoNode when there is none.
  NodeId FindByName(std::string_view name) const;
  NodeId FindByPyName(std::string_view py_name) const;
  /// The index that the next node of this base (with scope) will get.
  uint32_t NextIndex(std::string_view base_name) const;

  /// Bytes held in all, and the part of it that is value texts and their JSON.
  uint64_t BytesUsed() const;
  uint64_t ValueBytes() const;

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

}  // namespace optod::trace
