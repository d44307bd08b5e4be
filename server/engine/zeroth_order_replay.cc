// Zeroth-order sessions: the way from one version to another as scalars, and the parameters that it leads to.
#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "optim/zo/stream.h"
#include "server/engine/zeroth_order.h"

namespace optod::engine {

v1::ReplayStep ZerothOrder::StepOf(int64_t number, const v1::Version& version) const {
  v1::ReplayStep step;
  step.set_version(number);
  *step.mutable_queries() = version.queries();
  const float factor = DecayFactor(version.lr());
  if (factor != 1.0f && version.kind() != "skipped") step.set_weight_decay_factor(factor);
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

absl::Status ZerothOrder::ApplyStep(const v1::ReplayStep& step, TensorBuffer* flat) const {
  const float factor = step.weight_decay_factor();
  for (size_t t = 0; t < layout_->size(); ++t) {
    const std::span<float> values(reinterpret_cast<float*>(flat->data() + layout_->offset(t)),
                                  static_cast<size_t>(layout_->spec(t).elements()));
    if (factor != 0 && factor != 1 && !layout_->no_decay(t)) {
      for (float& value : values) value *= factor;
    }
    for (const v1::ReplayQuery& term : step.queries())
      zo::AddScaledNormal({spec_.seed(), term.step(), term.query()}, static_cast<uint32_t>(t), 0, -term.coefficient(),
                          values);
  }
  return absl::OkStatus();
}

/// The newest stored values on the way from `version` to version 0, as a copy that may be changed.
absl::StatusOr<ZerothOrder::Values> ZerothOrder::NearestValues(int64_t uid, int64_t version) const {
  for (const VersionTree::Run& run : tree_.Path(version)) {
    auto row = context_.store->LatestSnapshot(uid, run.last);
    if (absl::IsNotFound(row.status())) continue;
    if (!row.ok()) return row.status();
    if (row->number < run.first) continue;  // of another branch, or of an older run
    ASSIGN_OR_RETURN(const std::string blob, context_.blobs->Get(row->blob));
    if (blob.size() != layout_->total_bytes())
      return DataLoss("values of version ", row->number, " have ", blob.size(), " bytes");
    auto flat = TensorBuffer::Make(blob.size());
    if (flat == nullptr) return ResourceExhausted("no memory for ", blob.size(), " bytes of parameters");
    if (!blob.empty()) std::memcpy(flat->data(), blob.data(), blob.size());
    return Values{row->number, std::move(flat)};
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
  WaitForStore(*context_.store);
  Values values;
  if (theta_.version >= 0 && tree_.IsAncestor(theta_.version, version)) {
    values = {theta_.version, TensorBuffer::Copy(*theta_.flat)};
    if (values.flat == nullptr)
      return ResourceExhausted("no memory for ", layout_->total_bytes(), " bytes of parameters");
  } else {
    ASSIGN_OR_RETURN(values, NearestValues(session.row.uid, version));
  }
  const int64_t stored = values.version;
  while (values.version < version) {
    ASSIGN_OR_RETURN(const auto steps, ReadSteps(session.row.uid, values.version, version, 1000, kReplayQueries));
    if (steps.empty()) return Internal("version ", values.version, " does not lead to ", version);
    for (const v1::ReplayStep& step : steps) RETURN_IF_ERROR(ApplyStep(step, values.flat.get()));
    values.version = steps.back().version();
  }
  if (version == session.row.head_version) {
    if (theta_.version < 0) stored_version_ = stored;
    theta_ = values;
  } else {
    pulled_ = values;
  }
  return std::shared_ptr<const TensorBuffer>(values.flat);
}

}  // namespace optod::engine
