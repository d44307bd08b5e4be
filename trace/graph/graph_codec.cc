#include "trace/graph/graph_codec.h"

#include <bit>
#include <cstring>
#include <deque>

#include "base/status.h"

namespace optod::trace {
namespace {

constexpr uint8_t kVersion = 1;
constexpr uint8_t kHasJson = 1, kHasDescription = 2, kHasConstraint = 4, kTrainable = 8;

class Writer {
 public:
  void Byte(uint8_t v) { out_.push_back(static_cast<char>(v)); }
  void Varint(uint64_t v) {
    for (; v >= 0x80; v >>= 7) Byte(static_cast<uint8_t>(v | 0x80));
    Byte(static_cast<uint8_t>(v));
  }
  void Text(std::string_view v) {
    Varint(v.size());
    out_.append(v);
  }
  void Double(double v) {
    const uint64_t bits = std::bit_cast<uint64_t>(v);
    for (int i = 0; i < 8; ++i) Byte(static_cast<uint8_t>(bits >> (8 * i)));
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads what Writer wrote. After the first cut or malformed item every read returns zero or empty and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  bool ok() const { return ok_; }
  bool AtEnd() const { return in_.empty(); }
  uint8_t Byte() {
    if (in_.empty()) return Fail();
    const uint8_t v = static_cast<uint8_t>(in_[0]);
    in_.remove_prefix(1);
    return v;
  }
  uint64_t Varint() {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t b = Byte();
      if (!ok_) return 0;
      v |= static_cast<uint64_t>(b & 0x7f) << shift;
      if (b < 0x80) return v;
    }
    return Fail();
  }
  uint32_t Varint32() {
    const uint64_t v = Varint();
    return v <= UINT32_MAX ? static_cast<uint32_t>(v) : Fail();
  }
  std::string_view Text() {
    const uint64_t size = Varint();
    if (!ok_ || size > in_.size()) {
      Fail();
      return {};
    }
    const std::string_view v = in_.substr(0, size);
    in_.remove_prefix(size);
    return v;
  }
  double Double() {
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<uint64_t>(Byte()) << (8 * i);
    return std::bit_cast<double>(bits);
  }
  // A count of items that take at least one byte each: never more than what is left.
  uint64_t Count() {
    const uint64_t n = Varint();
    return n <= in_.size() ? n : Fail();
  }

 private:
  uint8_t Fail() {
    ok_ = false;
    in_ = {};
    return 0;
  }
  std::string_view in_;
  bool ok_ = true;
};

void WriteConstraint(Writer& w, const Constraint& c) {
  w.Text(c.text);
  w.Byte(static_cast<uint8_t>((c.min ? 1 : 0) | (c.max ? 2 : 0) | (c.max_length ? 4 : 0)));
  if (c.min) w.Double(*c.min);
  if (c.max) w.Double(*c.max);
  if (c.max_length) w.Varint(*c.max_length);
  w.Varint(c.enum_values.size());
  for (const std::string& v : c.enum_values) w.Text(v);
  w.Text(c.regex);
  w.Text(c.json_schema);
  w.Text(c.python_signature);
  w.Byte(c.python ? 1 : 0);
}

Constraint ReadConstraint(Reader& r) {
  Constraint c;
  c.text = r.Text();
  const uint8_t has = r.Byte();
  if (has & 1) c.min = r.Double();
  if (has & 2) c.max = r.Double();
  if (has & 4) c.max_length = r.Varint();
  for (uint64_t n = r.Count(); n > 0 && r.ok(); --n) c.enum_values.emplace_back(r.Text());
  c.regex = r.Text();
  c.json_schema = r.Text();
  c.python_signature = r.Text();
  c.python = r.Byte() != 0;
  return c;
}

}  // namespace

std::string EncodeNode(const Graph& g, NodeId id) {
  const auto json = g.ValueJson(id);
  const auto description = g.Description(id);
  const Constraint* constraint = g.ConstraintOf(id);
  Writer w;
  w.Byte(kVersion);
  w.Byte(static_cast<uint8_t>(g.Kind(id)));
  w.Byte(static_cast<uint8_t>((json ? kHasJson : 0) | (description ? kHasDescription : 0) |
                              (constraint ? kHasConstraint : 0) | (g.Trainable(id) ? kTrainable : 0)));
  w.Text(g.BaseName(id));
  w.Varint(g.Index(id));
  w.Varint(g.Level(id));
  w.Text(g.TypeName(id));
  w.Text(g.ValueText(id));
  if (json) w.Text(*json);
  w.Text(g.Op(id));
  w.Text(g.FunctionName(id));
  if (description) w.Text(*description);
  const auto parents = g.Parents(id);
  w.Varint(parents.size());
  for (size_t i = 0; i < parents.size(); ++i) {
    w.Text(g.Argument(id, i));
    w.Varint(parents[i]);
  }
  const auto hidden = g.HiddenParameters(id);
  w.Varint(hidden.size());
  for (NodeId h : hidden) w.Varint(h);
  if (constraint) WriteConstraint(w, *constraint);
  return w.Take();
}

absl::StatusOr<NodeId> RestoreNode(Graph& graph, std::string_view bytes) {
  Reader r(bytes);
  if (const uint8_t version = r.Byte(); version != kVersion) {
    return DataLoss("node ", graph.size(), ": format version ", int{version}, " is not known");
  }
  NodeInput in;
  const uint8_t kind = r.Byte();
  if (kind > static_cast<uint8_t>(NodeKind::kException)) return DataLoss("node ", graph.size(), ": kind ", int{kind});
  in.kind = static_cast<NodeKind>(kind);
  const uint8_t has = r.Byte();
  in.trainable = has & kTrainable;
  in.base_name = r.Text();  // scope included: the base is what was numbered
  const uint32_t index = r.Varint32();
  in.level = r.Varint32();
  in.type_name = r.Text();
  in.value_text = r.Text();
  if (has & kHasJson) in.value_json = r.Text();
  in.op = r.Text();
  in.function_name = r.Text();
  if (has & kHasDescription) in.description = r.Text();
  for (uint64_t n = r.Count(); n > 0 && r.ok(); --n) {
    const std::string_view argument = r.Text();
    in.inputs.push_back({argument, {r.Varint32(), false}});
  }
  for (uint64_t n = r.Count(); n > 0 && r.ok(); --n) in.hidden_parameters.push_back({r.Varint32(), false});
  Constraint constraint;
  if (has & kHasConstraint) {
    constraint = ReadConstraint(r);
    in.constraint = &constraint;
  }
  if (!r.ok() || !r.AtEnd()) return DataLoss("node ", graph.size(), ": the record is cut or too long");
  if (const uint32_t expected = graph.NextIndex(in.base_name); expected != index) {
    return DataLoss("node ", graph.size(), ": is ", in.base_name, ":", index, " but the next free one is ", expected);
  }
  auto ids = graph.AddNodes({&in, 1});
  if (!ids.ok()) return DataLoss("node ", graph.size(), ": ", std::string(ids.status().message()));
  return ids->front();
}

}  // namespace optod::trace
