// Zeroth-order sessions: the way from one version to another as scalars, and the parameters that it leads to.
#include <algorithm>
#include <cstring>
#include <map>

#include "base/status.h"
#include "server/engine/snapshot.h"
#include "server/engine/zeroth_order.h"

namespace optod::engine {

v1::ReplayStep ZerothOrder::StepOf(int64_t number, const v1::Version& version) const {
  v1::ReplayStep step;
  step.set_version(number);
  *step.mutable_queries() = version.queries();
  step.set_weight_decay_rate(version.weight_decay_rate());
  if (!zo::NeedsRule(hyper_) || version.kind() != "step") return step;
  const int64_t t = zo::UpdatesOfBlock(zo_layout_, hyper_, version.rule_step());
  const auto scalars = zo::RuleScalarsFor<float>(hyper_, version.lr(), t);
  v1::ReplayRule* rule = step.mutable_rule();
  rule->set_t(scalars.t);
  rule->set_lr(scalars.lr);
  rule->set_weight_decay(scalars.weight_decay);
  rule->set_bias1(scalars.bias1);
  rule->set_bias2(scalars.bias2);
  return step;
}

absl::StatusOr<std::vector<v1::ReplayStep>> ZerothOrder::ReadSteps(int64_t uid, int64_t from, int64_t to,
                                                                   int64_t max_steps, int64_t max_queries) const {
  std::vector<v1::ReplayStep> out;
  std::vector<VersionTree::Run> runs = tree_.Path(to, from);
  std::reverse(runs.begin(), runs.end());
  int64_t queries = 0;
  for (const VersionTree::Run& run : runs) {
    for (int64_t first = run.first; first <= run.last;) {
      const int64_t limit = std::min<int64_t>(1000, max_steps - static_cast<int64_t>(out.size()));
      if (limit <= 0) return out;
      ASSIGN_OR_RETURN(const auto rows, context_.store->ListVersions(uid, first, run.last + 1, limit));
      if (rows.empty() || rows.front().number != first) return Internal("version ", first, " is missing in the store");
      for (const store::VersionRow& row : rows) {
        v1::Version version;
        if (!version.ParseFromString(row.payload)) return DataLoss("version ", row.number, " cannot be parsed");
        queries += version.queries_size();
        if (queries > max_queries && !out.empty()) return out;
        out.push_back(StepOf(row.number, version));
      }
      first = rows.back().number + 1;
    }
  }
  return out;
}

absl::Status ZerothOrder::AddReplay(LiveSession& session, int64_t known, v1::AskResponse* out) {
  const int64_t head = session.row.head_version;
  if (known == head) return absl::OkStatus();
  if (known < 0 || known > head || !tree_.IsAncestor(known, head)) {
    out->set_resync(true);
    return absl::OkStatus();
  }
  if (known < tail_base_) {
    ASSIGN_OR_RETURN(auto steps, ReadSteps(session.row.uid, known, tail_base_, kReplaySteps, kReplayQueries));
    for (v1::ReplayStep& step : steps) *out->add_replay() = std::move(step);
    if (out->replay().empty() || out->replay(out->replay_size() - 1).version() != tail_base_) return absl::OkStatus();
  }
  int64_t queries = 0;
  for (const v1::ReplayStep& step : out->replay()) queries += step.queries_size();
  auto at = std::upper_bound(tail_.begin(), tail_.end(), known,
                             [](int64_t version, const v1::ReplayStep& step) { return version < step.version(); });
  for (; at != tail_.end(); ++at) {
    queries += at->queries_size();
    const bool full = out->replay_size() >= kReplaySteps || queries > kReplayQueries;
    if (full && out->replay_size() > 0) break;
    *out->add_replay() = *at;
  }
  return absl::OkStatus();
}

// ---- values

absl::Status ZerothOrder::ApplyStep(const v1::ReplayStep& step, Values* values) const {
  zo::UpdateScalars update;
  update.decay_rate = step.weight_decay_rate();
  for (const v1::ReplayQuery& term : step.queries())
    update.terms.push_back({term.step(), term.query(), term.coefficient()});
  if (step.has_rule()) {
    const v1::ReplayRule& rule = step.rule();
    update.rule = {rule.t(), rule.lr(), rule.weight_decay(), rule.bias1(), rule.bias2()};
  }
  return zo::ApplyUpdate(zo_layout_, hyper_, spec_.seed(), update, values->span(), &values->state);
}

// ---- moments

std::vector<optim::OwnedTensor> MomentsToTensors(const Layout& layout, const zo::ZoLayout& zo_layout, const zo::ZoHyper& hyper,
                                                 const zo::ZoState<float>& state) {
  std::vector<optim::OwnedTensor> out;
  const auto add = [&](const char* prefix, const std::vector<float>& values) {
    for (size_t t = 0; t < layout.size() && !values.empty(); ++t) {
      optim::OwnedTensor tensor{{prefix + layout.spec(t).name, optim::DType::kF32, layout.spec(t).shape}, {}};
      const auto bytes = std::as_bytes(std::span(values).subspan(zo_layout.offset(t), zo_layout.tensor(t).size));
      tensor.data.assign(bytes.begin(), bytes.end());
      out.push_back(std::move(tensor));
    }
  };
  if (!ZerothOrder::HasState(hyper)) return out;
  add("m/", state.m);
  // One count for all tensors, or one each where blocks are updated apart.
  std::vector<int64_t> shape;
  if (zo_layout.blocks() > 1) shape.push_back(static_cast<int64_t>(layout.size()));
  optim::OwnedTensor t{{"t", optim::DType::kI64, shape}, {}};
  const auto bytes = std::as_bytes(std::span(state.counts).first(shape.empty() ? 1 : layout.size()));
  t.data.assign(bytes.begin(), bytes.end());
  out.push_back(std::move(t));
  add("v/", state.v);
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
  return out;
}

absl::StatusOr<zo::ZoState<float>> MomentsFromTensors(const Layout& layout, const zo::ZoLayout& zo_layout, const zo::ZoHyper& hyper,
                                                      const std::vector<optim::OwnedTensor>& tensors) {
  zo::ZoState<float> state = zo::InitialState(zo_layout, hyper);
  const std::vector<optim::OwnedTensor> wanted = MomentsToTensors(layout, zo_layout, hyper, state);
  std::map<std::string, const optim::OwnedTensor*> given;
  for (const optim::OwnedTensor& tensor : tensors) given[tensor.spec.name] = &tensor;
  for (const auto& [name, tensor] : given) {
    if (std::none_of(wanted.begin(), wanted.end(), [&](const auto& want) { return want.spec.name == name; }))
      return InvalidArgument("state \"", name, "\" is not kept by this optimizer for this layout");
  }
  for (const optim::OwnedTensor& want : wanted) {
    const std::string& name = want.spec.name;
    const auto found = given.find(name);
    if (found == given.end()) return InvalidArgument("state \"", name, "\" is missing");
    const optim::OwnedTensor& tensor = *found->second;
    if (tensor.spec.dtype != want.spec.dtype || tensor.spec.shape != want.spec.shape)
      return InvalidArgument("state \"", name, "\" is ", optim::DTypeName(tensor.spec.dtype), " ", ShapeText(tensor.spec.shape), "; must be ",
                             optim::DTypeName(want.spec.dtype), " ", ShapeText(want.spec.shape));
    if (name == "t") {
      std::memcpy(state.counts.data(), tensor.data.data(), tensor.data.size());
      if (zo_layout.blocks() == 1) state.counts.assign(layout.size(), state.counts[0]);
      continue;
    }
    std::vector<float>& to = name.starts_with("m/") ? state.m : state.v;
    const auto at = static_cast<size_t>(layout.Find(name.substr(2)));
    if (!tensor.data.empty()) std::memcpy(to.data() + zo_layout.offset(at), tensor.data.data(), tensor.data.size());
  }
  return state;
}

absl::StatusOr<std::string> ZerothOrder::PutValues(const Values& values, int64_t step) const {
  if (!has_state()) return context_.blobs->Put(values.flat->bytes());
  ASSIGN_OR_RETURN(auto file,
                   EncodeSnapshot(*layout_, values.flat->data(), MomentsToTensors(*layout_, zo_layout_, hyper_, values.state),
                                  values.version, step));
  return context_.blobs->Put(file->bytes());
}

absl::StatusOr<std::string> ZerothOrder::Save(LiveSession& session, int64_t version, int64_t step) {
  ASSIGN_OR_RETURN(const Values values, ValuesAt(session, version));
  return PutValues(values, step);
}

absl::StatusOr<std::vector<optim::OwnedTensor>> ZerothOrder::State(LiveSession& session) {
  if (!has_state()) return std::vector<optim::OwnedTensor>{};
  const int64_t head = session.row.head_version;
  RETURN_IF_ERROR(ParametersAt(session, head).status());
  return MomentsToTensors(*layout_, zo_layout_, hyper_, (theta_.version == head ? theta_ : pulled_).state);
}

absl::StatusOr<StateFile> ZerothOrder::Export(LiveSession& session, int64_t version) {
  StateFile out;
  ASSIGN_OR_RETURN(out.params, ParametersAt(session, version));
  out.state = MomentsToTensors(*layout_, zo_layout_, hyper_, (theta_.version == version ? theta_ : pulled_).state);
  out.step = head_step_;
  out.rule_step = head_rule_step_;
  if (version != session.row.head_version) {
    ASSIGN_OR_RETURN(const store::VersionRow row, context_.store->GetVersion(session.row.uid, version));
    v1::Version parsed;
    if (!parsed.ParseFromString(row.payload)) return DataLoss("version ", version, " cannot be parsed");
    out.step = row.step;
    out.rule_step = parsed.rule_step();
  }
  out.first_direction = static_cast<uint32_t>(std::min<int64_t>(UINT32_MAX, DirectionOf(version)));
  out.next_direction = static_cast<uint32_t>(std::min<int64_t>(UINT32_MAX, DirectionOf(session.row.version_count)));
  return out;
}

/// A worker that is behind gets the scalars of the steps since; there are none that lead to a file's values.
absl::Status ZerothOrder::TakeState(LiveSession& session, const StateFile&, const std::string&, Effects*) {
  return FailedPrecondition("session ", session.name().Full(),
                            ": zeroth order; its workers follow the head by scalars and would not learn of the file; "
                            "import it into a new session");
}

// ---- values of a version

/// The newest stored values on the way from `version` to version 0, as a copy that may be changed.
absl::StatusOr<ZerothOrder::Values> ZerothOrder::NearestValues(int64_t uid, int64_t version) const {
  for (const VersionTree::Run& run : tree_.Path(version)) {
    auto row = context_.store->LatestSnapshot(uid, run.last);
    if (absl::IsNotFound(row.status())) continue;
    if (!row.ok()) return row.status();
    if (row->number < run.first) continue;  // of another branch, or of an older run
    ASSIGN_OR_RETURN(const std::string blob, context_.blobs->Get(row->blob));
    ASSIGN_OR_RETURN(Snapshot snapshot, DecodeSnapshot(*layout_, blob));
    Values values{row->number, std::move(snapshot.params), zo::InitialState(zo_layout_, hyper_)};
    if (!snapshot.has_state) return values;
    auto state = MomentsFromTensors(*layout_, zo_layout_, hyper_, snapshot.state);
    if (!state.ok()) return DataLoss("snapshot: ", state.status().message());
    values.state = *std::move(state);
    return values;
  }
  return FailedPrecondition("version ", version, " has no parameters here");
}

absl::StatusOr<std::shared_ptr<const TensorBuffer>> ZerothOrder::ParametersAt(LiveSession& session, int64_t version) {
  if (!session.proto.has_values())
    return FailedPrecondition("session ", session.name().Full(),
                              " has a layout only; its parameters live at the workers");
  if (version < 0 || version >= session.row.version_count)
    return NotFound("version: ", version, " does not exist; the session has versions 0 to ",
                    session.row.version_count - 1);
  if (theta_.version == version) return std::shared_ptr<const TensorBuffer>(theta_.flat);
  if (pulled_.version == version) return std::shared_ptr<const TensorBuffer>(pulled_.flat);
  ASSIGN_OR_RETURN(Values values, ValuesAt(session, version));
  Values& kept = version == session.row.head_version ? theta_ : pulled_;
  kept = std::move(values);
  return std::shared_ptr<const TensorBuffer>(kept.flat);
}

/// A copy of a version's values and moments, rebuilt from the nearest that are at hand.
absl::StatusOr<ZerothOrder::Values> ZerothOrder::ValuesAt(LiveSession& session, int64_t version) {
  WaitForStore(*context_.store);
  Values values;
  if (theta_.version >= 0 && tree_.IsAncestor(theta_.version, version)) {
    values = {theta_.version, TensorBuffer::Copy(*theta_.flat), theta_.state};
    if (values.flat == nullptr)
      return ResourceExhausted("no memory for ", layout_->total_bytes(), " bytes of parameters");
  } else {
    ASSIGN_OR_RETURN(values, NearestValues(session.row.uid, version));
  }
  if (theta_.version < 0 && version == session.row.head_version) stored_version_ = values.version;
  while (values.version < version) {
    ASSIGN_OR_RETURN(const auto steps, ReadSteps(session.row.uid, values.version, version, 1000, kReplayQueries));
    if (steps.empty()) return Internal("version ", values.version, " does not lead to ", version);
    for (const v1::ReplayStep& step : steps) RETURN_IF_ERROR(ApplyStep(step, &values));
    values.version = steps.back().version();
  }
  return values;
}

}  // namespace optod::engine
