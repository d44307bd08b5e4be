#include "trace/graph/graph.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "trace/graph/string_pool.h"
#include "trace/graph/text_arena.h"

namespace optod::trace {
namespace {

constexpr std::string_view kKindNames[] = {"node", "parameter", "message", "exception"};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The operator tag at the head of a description, `[tag] text`; empty when there is none.
std::string_view TagOf(std::string_view description) {
  if (description.empty() || description[0] != '[') return {};
  const size_t close = description.find(']');
  return close == std::string_view::npos ? std::string_view() : description.substr(1, close - 1);
}

template <typename T>
uint64_t CapacityBytes(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

// Makes room for `extra` more elements while growing geometrically, so that appending cannot fail half-way.
template <typename T>
void Grow(std::vector<T>& v, size_t extra) {
  if (v.size() + extra > v.capacity()) v.reserve(std::max(v.size() + extra, v.capacity() + v.capacity() / 2));
}

}  // namespace

std::string_view NodeKindName(NodeKind kind) { return kKindNames[static_cast<int>(kind)]; }

std::optional<NodeKind> ParseNodeKind(std::string_view name) {
  for (int i = 0; i < 4; ++i) {
    if (kKindNames[i] == name) return static_cast<NodeKind>(i);
  }
  return std::nullopt;
}

struct Graph::Rep {
  struct ParameterValue {
    std::string text;
    std::optional<std::string> json;
  };
  static constexpr uint8_t kKindMask = 3, kTrainable = 4, kHasJson = 8, kEscapedName = 16, kReplaced = 32;

  explicit Rep(GraphLimits l) : limits(l) { input_begin.push_back(0); }

  GraphLimits limits;
  StringPool strings;  // bases, types, tags, functions, descriptions, arguments
  TextArena values;

  // One element a node.
  std::vector<uint8_t> flags;
  std::vector<uint32_t> base, index, level, type, op, function, description;
  std::vector<const char*> text, json;
  std::vector<uint32_t> text_size, json_size;
  std::vector<uint32_t> input_begin;  // one more than nodes

  // One element an input.
  std::vector<NodeId> parents;
  std::vector<uint32_t> arguments;

  // Nodes of each base, in index order; indexed by the string id of the base (sparse: most strings are no bases).
  absl::flat_hash_map<uint32_t, std::vector<NodeId>> by_base;
  uint64_t by_base_elements = 0;

  // Few nodes have these.
  absl::flat_hash_map<NodeId, Constraint> constraints;
  absl::flat_hash_map<NodeId, std::vector<NodeId>> hidden;
  absl::flat_hash_map<NodeId, ParameterValue> replaced;
  uint64_t replaced_bytes = 0;
  absl::flat_hash_map<NodeId, std::string> escaped_name;
  absl::flat_hash_map<std::string, NodeId, std::hash<std::string>> by_escaped_name;
  // Bases cut before some of their trailing digits: only their nodes, and those of bases that end in a digit, can
  // collide.
  absl::flat_hash_set<std::string, std::hash<std::string>> digit_stems;

  uint32_t size() const { return static_cast<uint32_t>(flags.size()); }

  NodeId FindByBase(std::string_view base_name, std::string_view digits) const;
  NodeId FindPlainPyName(std::string_view py_name) const;
  NodeId FindPyName(std::string_view py_name) const;
  void RegisterName(NodeId id, std::string_view base_name, std::optional<uint32_t> wanted);
  absl::StatusOr<uint32_t> CheckNode(const NodeInput& in, size_t at, std::span<const uint32_t> batch_levels) const;
  absl::StatusOr<NodeId> Resolve(ParentRef ref, size_t at) const;
  void Append(const NodeInput& in, NodeId first, uint32_t node_level);
};

NodeId Graph::Rep::FindByBase(std::string_view base_name, std::string_view digits) const {
  if (digits.empty() || digits.size() > 10 || (digits.size() > 1 && digits[0] == '0')) return kNoNode;
  uint64_t value = 0;
  for (char c : digits) {
    if (!IsDigit(c)) return kNoNode;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  const uint32_t id = strings.Find(base_name);
  if (id == StringPool::kNone) return kNoNode;
  auto found = by_base.find(id);
  if (found == by_base.end() || value >= found->second.size()) return kNoNode;
  return found->second[value];
}

// The node whose unescaped py_name is `py_name`: tries every split into base and index.
NodeId Graph::Rep::FindPlainPyName(std::string_view py_name) const {
  for (size_t split = py_name.size(); split > 1 && IsDigit(py_name[split - 1]);) {
    --split;
    const NodeId id = FindByBase(py_name.substr(0, split), py_name.substr(split));
    if (id != kNoNode && !(flags[id] & kEscapedName)) return id;
  }
  return kNoNode;
}

NodeId Graph::Rep::FindPyName(std::string_view py_name) const {
  auto escaped = by_escaped_name.find(std::string(py_name));
  return escaped != by_escaped_name.end() ? escaped->second : FindPlainPyName(py_name);
}

// Appends `id` to its base's list and gives it an escaped py_name if the plain one is taken.
void Graph::Rep::RegisterName(NodeId id, std::string_view base_name, std::optional<uint32_t> wanted) {
  auto [nodes, is_new] = by_base.try_emplace(base[id]);
  const bool ends_in_digit = IsDigit(base_name.back());
  if (is_new && ends_in_digit) {
    for (size_t n = base_name.size(); n > 1 && IsDigit(base_name[n - 1]);)
      digit_stems.emplace(base_name.substr(0, --n));
  }
  std::vector<NodeId>& of_base = nodes->second;
  const uint32_t end = static_cast<uint32_t>(of_base.size());
  const bool usable = wanted && (*wanted < end ? of_base[*wanted] == kNoNode : *wanted - end <= kMaxIndexGap);
  const uint32_t next = usable ? *wanted : end;
  if (next >= end) {
    of_base.resize(next + 1, kNoNode);
    by_base_elements += next + 1 - end;
  }
  index.push_back(next);
  const bool can_collide = ends_in_digit || !by_escaped_name.empty() ||
                           (!digit_stems.empty() && digit_stems.contains(std::string(base_name)));
  if (can_collide) {
    const std::string digits = std::to_string(next);
    std::string name = std::string(base_name) + digits;
    if (FindPyName(name) != kNoNode) {
      std::string separator;
      do {
        separator += '_';
        name = std::string(base_name) + separator + digits;
      } while (FindPyName(name) != kNoNode);
      flags[id] |= kEscapedName;
      escaped_name.emplace(id, name);
      by_escaped_name.emplace(std::move(name), id);
    }
  }
  of_base[next] = id;
}

absl::StatusOr<NodeId> Graph::Rep::Resolve(ParentRef ref, size_t at) const {
  if (!ref.in_batch) {
    if (ref.index < size()) return ref.index;
    return InvalidArgument("node ", ref.index, " does not exist; the graph has ", size(), " nodes");
  }
  if (ref.index < at) return size() + ref.index;
  return InvalidArgument("entry ", ref.index, " of the batch is not before entry ", at, "; parents come first");
}

// The node's level, or what is wrong with it.
absl::StatusOr<uint32_t> Graph::Rep::CheckNode(const NodeInput& in, size_t at,
                                               std::span<const uint32_t> batch_levels) const {
  auto bad = [&](const auto&... what) { return InvalidArgument("nodes[", at, "].", what...); };
  if (in.base_name.empty()) return bad("base_name: is empty");
  if (in.base_name.find(':') != std::string_view::npos) return bad("base_name: '", in.base_name, "' contains ':'");
  if (in.scope.find(':') != std::string_view::npos) return bad("scope: '", in.scope, "' contains ':'");
  if (in.type_name.empty()) return bad("type_name: is empty");
  if (in.value_text.size() >= UINT32_MAX || (in.value_json && in.value_json->size() >= UINT32_MAX)) {
    return bad("value: is 4 GiB or more");
  }
  const bool computed = in.kind == NodeKind::kMessage || in.kind == NodeKind::kException;
  if (!computed && !in.inputs.empty()) return bad("inputs: a ", NodeKindName(in.kind), " has none");
  if (!computed && !in.hidden_parameters.empty())
    return bad("hidden_parameters: a ", NodeKindName(in.kind), " has none");
  if (in.kind != NodeKind::kParameter && in.trainable) return bad("trainable: only a parameter can be trainable");
  if (in.kind != NodeKind::kParameter && in.constraint) return bad("constraint: only a parameter can have one");

  uint32_t level = 0;
  for (size_t i = 0; i < in.inputs.size(); ++i) {
    if (in.inputs[i].argument.empty()) return bad("inputs[", i, "].argument: is empty");
    const absl::StatusOr<NodeId> parent = Resolve(in.inputs[i].parent, at);
    if (!parent.ok()) return bad("inputs[", i, "].parent: ", std::string(parent.status().message()));
    const uint32_t above = *parent < size() ? this->level[*parent] : batch_levels[*parent - size()];
    if (above == UINT32_MAX) return bad("inputs[", i, "].parent: has the greatest level there is");
    level = std::max(level, above + 1);
  }
  for (size_t i = 0; i < in.hidden_parameters.size(); ++i) {
    const absl::StatusOr<NodeId> parent = Resolve(in.hidden_parameters[i], at);
    if (!parent.ok()) return bad("hidden_parameters[", i, "]: ", std::string(parent.status().message()));
  }
  if (in.level && *in.level < level)
    return bad("level: ", *in.level, " is below ", level, ", one more than its parents'");
  return in.level.value_or(level);
}

void Graph::Rep::Append(const NodeInput& in, NodeId first, uint32_t node_level) {
  const NodeId id = size();
  auto resolve = [first](ParentRef ref) { return ref.in_batch ? first + ref.index : ref.index; };
  std::string scoped;
  std::string_view base_name = in.base_name;
  if (!in.scope.empty()) base_name = scoped = Cat(in.scope, "/", in.base_name);

  std::string_view tag = in.op;
  if (tag.empty() && in.description) tag = TagOf(*in.description);
  if (tag.empty()) {
    tag = in.kind == NodeKind::kNode ? "Node" : in.kind == NodeKind::kParameter ? "ParameterNode" : in.base_name;
  }
  flags.push_back(static_cast<uint8_t>(static_cast<uint8_t>(in.kind) | (in.trainable ? kTrainable : 0) |
                                       (in.value_json ? kHasJson : 0)));
  base.push_back(strings.Intern(base_name));
  level.push_back(node_level);
  type.push_back(strings.Intern(in.type_name));
  op.push_back(strings.Intern(tag));
  function.push_back(in.function_name.empty() ? op.back() : strings.Intern(in.function_name));
  description.push_back(in.description ? strings.Intern(*in.description) : StringPool::kNone);
  const std::string_view stored = values.Add(in.value_text);
  text.push_back(stored.data());
  text_size.push_back(static_cast<uint32_t>(stored.size()));
  // Many values are their own JSON (numbers): keep one copy.
  std::string_view stored_json;
  if (in.value_json) stored_json = *in.value_json == in.value_text ? stored : values.Add(*in.value_json);
  json.push_back(stored_json.data());
  json_size.push_back(static_cast<uint32_t>(stored_json.size()));
  for (const InputArg& input : in.inputs) {
    parents.push_back(resolve(input.parent));
    arguments.push_back(strings.Intern(input.argument));
  }
  input_begin.push_back(static_cast<uint32_t>(parents.size()));
  if (in.constraint) constraints.emplace(id, *in.constraint);
  if (!in.hidden_parameters.empty()) {
    std::vector<NodeId>& list = hidden[id];
    for (ParentRef ref : in.hidden_parameters) list.push_back(resolve(ref));
  }
  RegisterName(id, base_name, in.index);
}

Graph::Graph(GraphLimits limits) : rep_(std::make_unique<Rep>(limits)) {}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

absl::StatusOr<std::vector<NodeId>> Graph::AddNodes(std::span<const NodeInput> batch) {
  Rep& r = *rep_;
  if (batch.size() > r.limits.max_nodes - std::min(r.limits.max_nodes, size())) {
    return ResourceExhausted("nodes: ", size(), " + ", batch.size(), " exceeds the limit of ", r.limits.max_nodes,
                             " nodes a graph");
  }
  uint64_t value_bytes = 0, inputs = 0;
  std::vector<uint32_t> levels;
  levels.reserve(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    ASSIGN_OR_RETURN(const uint32_t level, r.CheckNode(batch[i], i, levels));
    levels.push_back(level);
    value_bytes += batch[i].value_text.size() + (batch[i].value_json ? batch[i].value_json->size() : 0);
    inputs += batch[i].inputs.size();
  }
  if (BytesUsed() + value_bytes > r.limits.max_bytes) {
    return ResourceExhausted("nodes: ", value_bytes, " more bytes of values exceed the limit of ", r.limits.max_bytes,
                             " bytes a graph");
  }
  if (r.parents.size() + inputs >= UINT32_MAX) return ResourceExhausted("nodes: more than 2^32 inputs a graph");

  const NodeId first = size();
  for (auto* v : {&r.base, &r.index, &r.level, &r.type, &r.op, &r.function, &r.description, &r.text_size, &r.json_size,
                  &r.input_begin}) {
    Grow(*v, batch.size());
  }
  Grow(r.flags, batch.size());
  Grow(r.text, batch.size());
  Grow(r.json, batch.size());
  Grow(r.parents, inputs);
  Grow(r.arguments, inputs);
  std::vector<NodeId> ids(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    r.Append(batch[i], first, levels[i]);
    ids[i] = first + static_cast<NodeId>(i);
  }
  return ids;
}

absl::Status Graph::SetValue(NodeId id, std::string_view text, std::optional<std::string_view> json) {
  if (!Contains(id)) return NotFound("node ", id, ": does not exist; the graph has ", size(), " nodes");
  if (!IsParameter(id))
    return FailedPrecondition("node ", Name(id), ": is a ", NodeKindName(Kind(id)), ", not a parameter");
  Rep::ParameterValue value{std::string(text), std::nullopt};
  if (json) value.json.emplace(*json);
  auto bytes = [](const Rep::ParameterValue& v) { return v.text.capacity() + (v.json ? v.json->capacity() : 0); };
  Rep::ParameterValue& slot = rep_->replaced[id];
  rep_->replaced_bytes += bytes(value);
  if (rep_->flags[id] & Rep::kReplaced) rep_->replaced_bytes -= bytes(slot);
  slot = std::move(value);
  rep_->flags[id] |= Rep::kReplaced;
  return absl::OkStatus();
}

uint32_t Graph::size() const { return rep_->size(); }
std::string Graph::Name(NodeId id) const { return std::string(BaseName(id)) + ":" + std::to_string(Index(id)); }
std::string Graph::PyName(NodeId id) const {
  if (rep_->flags[id] & Rep::kEscapedName) return rep_->escaped_name.at(id);
  return std::string(BaseName(id)) + std::to_string(Index(id));
}
std::string_view Graph::BaseName(NodeId id) const { return rep_->strings[rep_->base[id]]; }
uint32_t Graph::Index(NodeId id) const { return rep_->index[id]; }
NodeKind Graph::Kind(NodeId id) const { return static_cast<NodeKind>(rep_->flags[id] & Rep::kKindMask); }
uint32_t Graph::Level(NodeId id) const { return rep_->level[id]; }
bool Graph::Trainable(NodeId id) const { return rep_->flags[id] & Rep::kTrainable; }
bool Graph::IsCode(NodeId id) const {
  return IsParameter(id) && (TypeName(id) == "code" || BaseName(id).find("__code") != std::string_view::npos);
}
std::string_view Graph::TypeName(NodeId id) const { return rep_->strings[rep_->type[id]]; }

std::string_view Graph::ValueText(NodeId id) const {
  if (rep_->flags[id] & Rep::kReplaced) return rep_->replaced.at(id).text;
  return {rep_->text[id], rep_->text_size[id]};
}

std::optional<std::string_view> Graph::ValueJson(NodeId id) const {
  if (rep_->flags[id] & Rep::kReplaced) {
    const std::optional<std::string>& json = rep_->replaced.at(id).json;
    return json ? std::optional<std::string_view>(*json) : std::nullopt;
  }
  if (!(rep_->flags[id] & Rep::kHasJson)) return std::nullopt;
  return std::string_view(rep_->json[id], rep_->json_size[id]);
}

std::string_view Graph::Op(NodeId id) const { return rep_->strings[rep_->op[id]]; }
std::string_view Graph::FunctionName(NodeId id) const { return rep_->strings[rep_->function[id]]; }
std::optional<std::string_view> Graph::Description(NodeId id) const {
  if (rep_->description[id] == StringPool::kNone) return std::nullopt;
  return rep_->strings[rep_->description[id]];
}
const Constraint* Graph::ConstraintOf(NodeId id) const {
  if (!IsParameter(id)) return nullptr;
  auto found = rep_->constraints.find(id);
  return found == rep_->constraints.end() ? nullptr : &found->second;
}
std::span<const NodeId> Graph::Parents(NodeId id) const {
  const uint32_t begin = rep_->input_begin[id];
  return {rep_->parents.data() + begin, rep_->input_begin[id + 1] - begin};
}
std::string_view Graph::Argument(NodeId id, size_t input) const {
  return rep_->strings[rep_->arguments[rep_->input_begin[id] + input]];
}
std::span<const NodeId> Graph::HiddenParameters(NodeId id) const {
  if (rep_->hidden.empty()) return {};
  auto found = rep_->hidden.find(id);
  return found == rep_->hidden.end() ? std::span<const NodeId>() : std::span<const NodeId>(found->second);
}

NodeId Graph::FindByName(std::string_view name) const {
  const size_t colon = name.rfind(':');
  if (colon == std::string_view::npos) return kNoNode;
  return rep_->FindByBase(name.substr(0, colon), name.substr(colon + 1));
}
NodeId Graph::FindByPyName(std::string_view py_name) const { return rep_->FindPyName(py_name); }

uint32_t Graph::NextIndex(std::string_view base_name) const {
  auto found = rep_->by_base.find(rep_->strings.Find(base_name));
  return found == rep_->by_base.end() ? 0 : static_cast<uint32_t>(found->second.size());
}

uint64_t Graph::ValueBytes() const { return rep_->values.BytesUsed() + rep_->replaced_bytes; }

uint64_t Graph::BytesUsed() const {
  const Rep& r = *rep_;
  uint64_t bytes = sizeof(Rep) + ValueBytes() + r.strings.BytesUsed() + CapacityBytes(r.flags) + CapacityBytes(r.text) +
                   CapacityBytes(r.json) + CapacityBytes(r.parents) + CapacityBytes(r.arguments);
  for (const auto* v : {&r.base, &r.index, &r.level, &r.type, &r.op, &r.function, &r.description, &r.text_size,
                        &r.json_size, &r.input_begin}) {
    bytes += CapacityBytes(*v);
  }
  // Hash tables by their slots; per-base lists at worst twice their elements.
  bytes += r.by_base.capacity() * (sizeof(std::pair<uint32_t, std::vector<NodeId>>) + 1) +
           r.by_base_elements * 2 * sizeof(NodeId);
  bytes += r.constraints.capacity() * (sizeof(std::pair<NodeId, Constraint>) + 1);
  bytes += r.hidden.capacity() * (sizeof(std::pair<NodeId, std::vector<NodeId>>) + 1);
  bytes += r.replaced.capacity() * (sizeof(std::pair<NodeId, Rep::ParameterValue>) + 1);
  bytes += 2 * r.escaped_name.capacity() * (sizeof(std::pair<NodeId, std::string>) + 1);
  return bytes;
}

}  // namespace optod::trace
