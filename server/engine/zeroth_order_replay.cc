// Zeroth-order sessions: the way from one version to another as scalars, and the parameters that it leads to.
#include <algorithm>
#include <cstring>

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
  const auto scalars = zo::RuleScalarsFor<float>(hyper_, version.lr(), version.rule_step());
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

/// "m/<tensor>", "v/<tensor>" of the tensors' shapes and "t", in the order of their names.
std::vector<optim::OwnedTensor> ZerothOrder::ExportState(const zo::ZoState<float>& state) const {
  std::vector<optim::OwnedTensor> out;
  const auto add = [&](const char* prefix, const std::vector<float>& values) {
    for (size_t t = 0; t < layout_->size() && !values.empty(); ++t) {
      optim::OwnedTensor tensor{{prefix + layout_->spec(t).name, optim::DType::kF32, layout_->spec(t).shape}, {}};
      const auto bytes = std::as_bytes(std::span(values).subspan(zo_layout_.offset(t), zo_layout_.tensor(t).size));
      tensor.data.assign(bytes.begin(), bytes.end());
      out.push_back(std::move(tensor));
    }
  };
  if (!has_state()) return out;
  add("m/", state.m);
  const int64_t count = state.counts.empty() ? 0 : state.counts[0];
  optim::OwnedTensor t{{"t", optim::DType::kI64, {}}, {}};
  const auto bytes = std::as_bytes(std::span(&count, 1));
  t.data.assign(bytes.begin(), bytes.end());
  out.push_back(std::move(t));
  add("v/", state.v);
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
  return out;
}

namespace {

absl::Status ImportState(const Layout& layout, const zo::ZoLayout& zo_layout, const std::vector<optim::OwnedTensor>& from,
                         zo::ZoState<float>* state) {
  for (const optim::OwnedTensor& tensor : from) {
    const std::string& name = tensor.spec.name;
    if (name == "t" && tensor.data.size() == sizeof(int64_t)) {
      int64_t count = 0;
      std::memcpy(&count, tensor.data.data(), sizeof(count));
      state->counts.assign(layout.size(), count);
      continue;
    }
    std::vector<float>* const to = name.starts_with("m/") ? &state->m : &state->v;
    const int64_t at = name.size() > 2 ? layout.Find(name.substr(2)) : -1;
    const size_t first = at < 0 ? 0 : zo_layout.offset(static_cast<size_t>(at));
    if (at < 0 || tensor.data.size() != zo_layout.tensor(static_cast<size_t>(at)).size * sizeof(float) ||
        first + tensor.data.size() / sizeof(float) > to->size())
      return DataLoss("snapshot: state ", name, " does not fit the session");
    if (!tensor.data.empty()) std::memcpy(to->data() + first, tensor.data.data(), tensor.data.size());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ZerothOrder::PutValues(const Values& values, int64_t step) const {
  if (!has_state()) return context_.blobs->Put(values.flat->bytes());
  ASSIGN_OR_RETURN(auto file,
                   EncodeSnapshot(*layout_, values.flat->data(), ExportState(values.state), values.version, step));
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
  return ExportState(theta_.version == head ? theta_.state : pulled_.state);
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
    RETURN_IF_ERROR(ImportState(*layout_, zo_layout_, snapshot.state, &values.state));
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
