#include "server/engine/state_file.h"

#include <cstring>

#include "base/status.h"
#include "google/protobuf/util/json_util.h"
#include "server/engine/numeric_family.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

constexpr const char* kFormat = "optod-state";

template <typename Message>
std::string ToJson(const Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return json;
}

/// One key of the file's metadata, which must be there.
absl::StatusOr<std::string> Key(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return InvalidArgument("file: __metadata__.", key, ": missing; no state file");
  return found->second;
}

template <typename Message>
absl::Status ReadMessage(const TensorFile& file, const std::string& key, Message* out) {
  ASSIGN_OR_RETURN(const std::string json, Key(file, key));
  const auto status = google::protobuf::util::JsonStringToMessage(json, out);
  if (status.ok()) return absl::OkStatus();
  return InvalidArgument("file: __metadata__.", key, ": ", status.message().ToString());
}

template <typename Int>
absl::Status ReadCounter(const TensorFile& file, const std::string& key, uint64_t max, Int* out) {
  ASSIGN_OR_RETURN(const std::string text, Key(file, key));
  uint64_t value = 0;
  bool good = !text.empty() && text.size() <= 18;
  for (const char c : text) {
    good = good && c >= '0' && c <= '9';
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  if (!good || value > max) return InvalidArgument("file: __metadata__.", key, ": \"", text, "\" is no whole number in [0, ", max, "]");
  *out = static_cast<Int>(value);
  return absl::OkStatus();
}

absl::Status ReadMetadata(const TensorFile& file, StateFile* out) {
  ASSIGN_OR_RETURN(const std::string format, Key(file, "format"));
  if (format != kFormat) return InvalidArgument("file: __metadata__.format: \"", format, "\"; must be \"", kFormat, "\"");
  ASSIGN_OR_RETURN(const std::string version, Key(file, "format_version"));
  if (version != "1") return InvalidArgument("file: __metadata__.format_version: \"", version, "\"; this server reads \"1\"");
  RETURN_IF_ERROR(ReadMessage(file, "optimizer", &out->optimizer));
  RETURN_IF_ERROR(ReadMessage(file, "layout", &out->layout));
  RETURN_IF_ERROR(ReadCounter(file, "step", INT64_MAX >> 1, &out->step));
  RETURN_IF_ERROR(ReadCounter(file, "rule_step", static_cast<uint64_t>(out->step), &out->rule_step));
  RETURN_IF_ERROR(ReadCounter(file, "first_direction", UINT32_MAX, &out->first_direction));
  RETURN_IF_ERROR(ReadCounter(file, "next_direction", UINT32_MAX, &out->next_direction));
  if (absl::Status layout = CheckLayout(&out->layout); !layout.ok())
    return InvalidArgument("file: __metadata__.", layout.message());
  return absl::OkStatus();
}

/// The parameters of the file in layout order. What is not a parameter is left.
absl::StatusOr<std::shared_ptr<TensorBuffer>> ReadParams(const TensorFile& file, const Layout& layout) {
  auto flat = TensorBuffer::Make(layout.total_bytes());
  if (flat == nullptr) return ResourceExhausted("file: no memory for ", layout.total_bytes(), " bytes of parameters");
  std::vector<bool> seen(layout.size());
  for (const TensorFile::Entry& entry : file.entries) {
    if (!entry.spec.name.starts_with("params/")) continue;
    const int64_t found = layout.Find(entry.spec.name.substr(7));
    if (found < 0) return InvalidArgument("file: tensor \"", entry.spec.name, "\" is not in the layout");
    const auto at = static_cast<size_t>(found);
    const optim::TensorSpec& want = layout.spec(at);
    if (entry.spec.dtype != want.dtype || entry.spec.shape != want.shape)
      return InvalidArgument("file: tensor \"", entry.spec.name, "\" is ", optim::DTypeName(entry.spec.dtype), " ",
                             ShapeText(entry.spec.shape), "; the layout has ", optim::DTypeName(want.dtype), " ", ShapeText(want.shape));
    if (!entry.data.empty()) std::memcpy(flat->data() + layout.offset(at), entry.data.data(), entry.data.size());
    seen[at] = true;
  }
  for (size_t i = 0; i < layout.size(); ++i)
    if (!seen[i]) return InvalidArgument("file: tensor \"params/", layout.spec(i).name, "\" is missing");
  return flat;
}

absl::StatusOr<std::vector<optim::OwnedTensor>> ReadState(const TensorFile& file) {
  std::vector<optim::OwnedTensor> out;
  for (const TensorFile::Entry& entry : file.entries) {
    if (entry.spec.name.starts_with("params/")) continue;
    if (!entry.spec.name.starts_with("state/"))
      return InvalidArgument("file: tensor \"", entry.spec.name, "\" is neither \"params/...\" nor \"state/...\"");
    out.push_back(optim::OwnedTensor{entry.spec, {entry.data.begin(), entry.data.end()}});
    out.back().spec.name.erase(0, 6);
  }
  return out;
}

// Bits of the exponent that are all set in NaN and Inf, by dtype; 0: the dtype has neither.
struct FloatBits {
  size_t bytes;
  uint64_t exponent;
};
FloatBits BitsOf(optim::DType dtype) {
  switch (dtype) {
    case optim::DType::kF64: return {8, 0x7FF0000000000000};
    case optim::DType::kF32: return {4, 0x7F800000};
    case optim::DType::kF16: return {2, 0x7C00};
    case optim::DType::kBF16: return {2, 0x7F80};
    case optim::DType::kF8E4M3: return {1, 0x7F};  // NaN is all ones; there is no Inf
    default: return {1, 0};
  }
}

absl::Status CheckFinite(const std::string& name, optim::DType dtype, std::span<const std::byte> data) {
  const FloatBits bits = BitsOf(dtype);
  if (bits.exponent == 0) return absl::OkStatus();
  for (size_t i = 0; i < data.size() / bits.bytes; ++i) {
    uint64_t value = 0;
    std::memcpy(&value, data.data() + i * bits.bytes, bits.bytes);
    if ((value & bits.exponent) == bits.exponent)
      return InvalidArgument("file: tensor \"", name, "\": element ", i, " is NaN or Inf; allow_non_finite lets it in");
  }
  return absl::OkStatus();
}

/// The optimizer that the new session gets: the file's, with what the header asks for.
absl::StatusOr<std::string> Complete(const v1::ImportStateHeader& header, v1::OptimizerSpec* optimizer) {
  if (!header.optimizer().empty() && header.optimizer() != optimizer->name())
    return InvalidArgument("optimizer: the file is of ", optimizer->name(), ", not of ", header.optimizer());
  for (const auto& [name, value] : header.hyperparameters()) (*optimizer->mutable_hyperparameters())[name] = value;
  std::string family;
  std::vector<std::string> inputs;
  RETURN_IF_ERROR(CheckOptimizer(optimizer, &family, &inputs));
  if (family == "trace") return InvalidArgument("file: __metadata__.optimizer: ", optimizer->name(), " has no tensors");
  return family;
}

std::string NoteOf(const StateFile& file) {
  return Cat("imported from ", file.session, "/versions/", file.version);
}

absl::StatusOr<std::pair<StateFile, Adopted>> Adopt(Context& context, const v1::ImportStateHeader& header, const TensorBuffer& bytes) {
  ASSIGN_OR_RETURN(StateFile file, DecodeStateFile(bytes.bytes()));
  ASSIGN_OR_RETURN(const std::string family, Complete(header, &file.optimizer));
  if (!header.allow_non_finite()) RETURN_IF_ERROR(CheckFinite(file));
  ASSIGN_OR_RETURN(Adopted adopted, family == "first-order" ? AdoptFirstOrder(context, file) : AdoptZerothOrder(context, file));
  adopted.initial.set_kind("initial");
  adopted.initial.set_note(NoteOf(file));
  return std::pair(std::move(file), std::move(adopted));
}

/// What the header of an import into a session must not hold: it would be ignored.
absl::Status CheckInto(const v1::ImportStateHeader& header) {
  const std::pair<const char*, bool> fields[] = {
      {"parent", !header.parent().empty()},         {"session_id", !header.session_id().empty()},
      {"hyperparameters", header.hyperparameters_size() > 0}, {"durability", header.has_durability()},
      {"budget", header.has_budget()},              {"labels", header.labels_size() > 0},
      {"display_name", !header.display_name().empty()}};
  for (const auto& [name, given] : fields)
    if (given) return InvalidArgument("header.", name, ": given together with session, which keeps its own");
  return absl::OkStatus();
}

/// Whether the file is of the session's optimizer and tensors.
absl::Status CheckSame(const LiveSession& live, const v1::ImportStateHeader& header, const StateFile& file) {
  const std::string& optimizer = file.optimizer.name();
  if (!header.optimizer().empty() && header.optimizer() != optimizer)
    return InvalidArgument("optimizer: the file is of ", optimizer, ", not of ", header.optimizer());
  if (optimizer != live.proto.optimizer().name())
    return InvalidArgument("file: it is of ", optimizer, "; session ", live.name().Full(), " is of ",
                           live.proto.optimizer().name());
  const Layout theirs(file.layout), own(live.proto.layout());
  if (theirs.size() != own.size())
    return InvalidArgument("file: ", theirs.size(), " tensors; session ", live.name().Full(), " has ", own.size());
  for (size_t i = 0; i < own.size(); ++i) {
    const optim::TensorSpec &a = theirs.spec(i), &b = own.spec(i);
    if (a.name == b.name && a.dtype == b.dtype && a.shape == b.shape) continue;
    return InvalidArgument("file: tensor ", i, " is \"", a.name, "\" ", optim::DTypeName(a.dtype), " ", ShapeText(a.shape),
                           "; session ", live.name().Full(), " has \"", b.name, "\" ", optim::DTypeName(b.dtype), " ",
                           ShapeText(b.shape));
  }
  return absl::OkStatus();
}

/// ImportState with header.session. On the pool.
void ImportInto(Engine& engine, const Caller& caller, const v1::ImportStateHeader& header, const TensorBuffer& bytes,
                const std::string& sha256, Done<v1::Session> done) {
  if (absl::Status status = CheckInto(header); !status.ok()) return done(status);
  auto decoded = DecodeStateFile(bytes.bytes());
  if (!decoded.ok()) return done(decoded.status());
  if (absl::Status finite = header.allow_non_finite() ? absl::OkStatus() : CheckFinite(*decoded); !finite.ok())
    return done(finite);
  engine.Mutate<v1::Session>(
      caller, header.session(), "ImportState", header.request_id(), Cat(CanonicalBytes(header), "\n", sha256),
      [header, file = std::make_shared<const StateFile>(*std::move(decoded))](
          LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        if (!header.etag().empty() && header.etag() != std::to_string(live.row.etag))
          return Aborted("etag: \"", header.etag(), "\" is stale");
        if (live.row.state != v1::Session::ACTIVE)
          return FailedPrecondition("session ", live.name().Full(), " is closed");
        ASSIGN_OR_RETURN(NumericFamily * family, AsNumeric(live));
        RETURN_IF_ERROR(CheckSame(live, header, *file));
        Effects effects;
        RETURN_IF_ERROR(family->TakeState(live, *file, NoteOf(*file), &effects));
        ++live.row.etag;
        *out = live.ToProto();
        return effects;
      },
      std::move(done));
}

v1::CreateSessionRequest CreationOf(const v1::ImportStateHeader& header, const StateFile& file) {
  v1::CreateSessionRequest out;
  out.set_parent(header.parent());
  out.set_session_id(header.session_id());
  *out.mutable_optimizer() = file.optimizer;
  *out.mutable_layout() = file.layout;
  if (header.has_durability()) *out.mutable_durability() = header.durability();
  if (header.has_budget()) *out.mutable_budget() = header.budget();
  *out.mutable_labels() = header.labels();
  out.set_display_name(header.display_name());
  out.set_request_id(header.request_id());
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeStateFile(const StateFile& file) {
  return EncodeTensors(Layout(file.layout), file.params->data(), file.state,
                       {{"format", kFormat},
                        {"format_version", "1"},
                        {"optimizer", ToJson(file.optimizer)},
                        {"layout", ToJson(file.layout)},
                        {"step", std::to_string(file.step)},
                        {"rule_step", std::to_string(file.rule_step)},
                        {"first_direction", std::to_string(file.first_direction)},
                        {"next_direction", std::to_string(file.next_direction)},
                        {"session", file.session},
                        {"version", std::to_string(file.version)}});
}

absl::StatusOr<StateFile> DecodeStateFile(std::span<const std::byte> bytes) {
  StateFile out;
  ASSIGN_OR_RETURN(const TensorFile file, ParseTensorFile(bytes));
  RETURN_IF_ERROR(ReadMetadata(file, &out));
  ASSIGN_OR_RETURN(out.params, ReadParams(file, Layout(out.layout)));
  ASSIGN_OR_RETURN(out.state, ReadState(file));
  if (const auto at = file.metadata.find("session"); at != file.metadata.end()) out.session = at->second;
  (void)ReadCounter(file, "version", INT64_MAX >> 1, &out.version);
  return out;
}

absl::Status CheckFinite(const StateFile& file) {
  const Layout layout(file.layout);
  for (size_t i = 0; i < layout.size(); ++i)
    RETURN_IF_ERROR(CheckFinite("params/" + layout.spec(i).name, layout.spec(i).dtype,
                                file.params->bytes().subspan(layout.offset(i), layout.spec(i).bytes())));
  for (const optim::OwnedTensor& tensor : file.state)
    RETURN_IF_ERROR(CheckFinite("state/" + tensor.spec.name, tensor.spec.dtype, std::as_bytes(std::span(tensor.data))));
  return absl::OkStatus();
}

void ExportState(Engine& engine, const Caller& caller, const v1::ExportStateRequest& request, Done<StateFile> done) {
  engine.Read<StateFile>(
      caller, request.session(),
      [request](LiveSession& live) -> absl::StatusOr<StateFile> {
        ASSIGN_OR_RETURN(NumericFamily * family, AsNumeric(live));
        const int64_t version = request.has_version() ? request.version() : live.row.head_version;
        ASSIGN_OR_RETURN(StateFile out, family->Export(live, version));
        out.optimizer = live.proto.optimizer();
        out.layout = live.proto.layout();
        out.session = live.name().Full();
        out.version = version;
        return out;
      },
      std::move(done));
}

void ImportState(Engine& engine, const Caller& caller, v1::ImportStateHeader header, std::shared_ptr<TensorBuffer> file,
                 std::string sha256, Done<v1::Session> done) {
  Context& context = engine.context();
  context.pool->Post([&engine, &context, caller, header = std::move(header), file = std::move(file), sha256 = std::move(sha256),
                      done = std::move(done)]() mutable {
    if (!header.session().empty()) return ImportInto(engine, caller, header, *file, sha256, std::move(done));
    auto adopted = Adopt(context, header, *file);
    file.reset();
    if (!adopted.ok()) return done(adopted.status());
    const StateFile& from = adopted->first;
    Engine::Origin origin{"ImportState", Cat(CanonicalBytes(header), "\n", sha256), {}};
    origin.fill = [adopted = adopted->second, step = from.step, first = from.first_direction, next = from.next_direction](
                      v1::Session* session, store::VersionRow* version0) {
      session->set_has_values(true);
      session->set_first_direction(first);
      session->set_next_direction(next);
      version0->blob = adopted.blob;
      version0->step = step;  // schedules go on where they were
      version0->payload = adopted.initial.SerializeAsString();
    };
    engine.CreateSession(caller, CreationOf(header, from), std::move(done), std::move(origin));
  });
}

}  // namespace optod::engine
