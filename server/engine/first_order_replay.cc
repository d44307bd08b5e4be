// First-order sessions: creation, loading from what is durable, rebuilding other versions, rollback and fork.
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

#include "base/status.h"
#include "optim/rules/groups.h"
#include "optim/rules/rule_memory.h"
#include "server/engine/first_order.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

optim::Hyper HyperOf(const google::protobuf::Map<std::string, v1::HyperValue>& values) {
  optim::Hyper out;
  for (const auto& [name, value] : values) {
    if (value.has_number()) out[name] = value.number();
    if (value.has_flag()) out[name] = value.flag();
    if (value.has_text()) out[name] = value.text();
  }
  return out;
}

absl::StatusOr<std::unique_ptr<optim::Rule>> RuleFor(const v1::OptimizerSpec& spec, const Layout& layout) {
  std::vector<optim::ParameterGroup> groups;
  for (const v1::ParameterGroup& group : spec.groups())
    groups.push_back({{group.tensors().begin(), group.tensors().end()}, HyperOf(group.hyperparameters())});
  // A layout may claim more memory than there is; rules allocate with new.
  try {
    auto rule =
        optim::MakeGroupedRule(spec.name(), HyperOf(spec.hyperparameters()), groups, layout.specs(), spec.seed());
    const std::string message(rule.status().message());
    if (message.starts_with("groups[")) return absl::Status(rule.status().code(), "optimizer." + message);
    return rule;
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("layout: no memory for the optimizer state of ", layout.total_bytes(),
                             " bytes of parameters");
  } catch (const std::length_error&) {
    return ResourceExhausted("layout: no memory for the optimizer state of ", layout.total_bytes(),
                             " bytes of parameters");
  }
}

absl::Status Create(Context& context, const v1::CreateSessionRequest& request, v1::Session* session,
                    store::VersionRow* version0, Effects*) {
  const Layout layout(session->layout());
  RETURN_IF_ERROR(RuleFor(session->optimizer(), layout).status());
  if (session->durability().mode() == v1::Durability::MODE_UNSPECIFIED)
    session->mutable_durability()->set_mode(v1::Durability::EVERY_STEP);
  if (session->durability().snapshot_every() == 0) session->mutable_durability()->set_snapshot_every(100);
  return StoreInitial(context, request, layout, session, version0);
}

absl::Status Fork(Context&, LiveSession& source, int64_t version, LiveSession&, store::VersionRow* version0,
                  Effects* effects) {
  ASSIGN_OR_RETURN(const FirstOrder::Saved saved,
                   static_cast<FirstOrder*>(source.family.get())->Save(source, version, effects));
  v1::Version initial;
  initial.set_kind("initial");
  initial.set_note(Cat("forked from ", source.name().Full(), "/versions/", version));
  version0->payload = initial.SerializeAsString();
  version0->step = saved.step;  // schedules go on where they were
  version0->blob = saved.blob;
  return absl::OkStatus();
}

absl::StatusOr<bool> Skipped(const store::VersionRow& row) {
  v1::Version version;
  if (!version.ParseFromString(row.payload)) return DataLoss("version ", row.number, " cannot be parsed");
  return version.kind() == "skipped";
}

/// Sessions with less durability may have committed a session row that counts versions which were never written. They
/// are lost: the session goes on from the last one that is there.
absl::Status DropLostTail(Context& context, LiveSession& session) {
  store::SessionRow& row = session.row;
  if (context.store->GetVersion(row.uid, row.version_count - 1).ok()) return absl::OkStatus();
  int64_t there = 0, missing = row.version_count - 1;  // version `there` exists, `missing` does not
  while (missing - there > 1) {
    const int64_t middle = there + (missing - there) / 2;
    (context.store->GetVersion(row.uid, middle).ok() ? there : missing) = middle;
  }
  const int64_t lost = row.version_count - missing;
  row.version_count = missing;
  row.seq = std::max<int64_t>(0, row.seq - lost);
  if (row.head_version >= missing) row.head_version = there;
  session.durable_version = there;
  session.proto.mutable_usage()->set_steps(std::max<int64_t>(0, session.proto.usage().steps() - lost));
  return absl::OkStatus();
}

}  // namespace

FamilyFactory FirstOrderFactory() { return {{}, &Create, &FirstOrder::Load, &Fork}; }

absl::StatusOr<std::unique_ptr<Family>> FirstOrder::Load(Context& context, LiveSession& session) {
  RETURN_IF_ERROR(DropLostTail(context, session));
  auto family = std::unique_ptr<FirstOrder>(new FirstOrder(context, session));
  family->durable_before_ = session.durable_version;
  family->LoadAnswers(session.row.uid);
  if (session.proto.has_values()) {
    ASSIGN_OR_RETURN(family->head_, family->Rebuild(session.row.uid, session.row.head_version));
  }
  return std::unique_ptr<Family>(std::move(family));
}

void FirstOrder::LoadAnswers(int64_t uid) {
  auto rows = context_.store->ListObservations(uid, "answer", 0, INT64_MAX);
  if (!rows.ok()) return;  // answers only spare a client an error
  for (store::ObservationRow& row : *rows) answers_.push_back({row.a, row.b, std::move(row.payload)});
  while (answers_.size() > 64) answers_.pop_front();
}

absl::StatusOr<std::unique_ptr<optim::Rule>> FirstOrder::NewRule() const { return RuleFor(spec_, *layout_); }

absl::StatusOr<FirstOrder::Point> FirstOrder::Rebuild(int64_t uid, int64_t version) const {
  // Up to the newest snapshot on the way to version 0.
  std::vector<store::VersionRow> steps;
  store::VersionRow row;
  for (int64_t at = version;; at = row.parent) {
    ASSIGN_OR_RETURN(row, context_.store->GetVersion(uid, at));
    if (!row.blob.empty()) break;
    if (row.parent < 0) return FailedPrecondition("version ", version, " has no parameters");
    steps.push_back(row);
  }
  Point point;
  ASSIGN_OR_RETURN(point.rule, NewRule());
  ASSIGN_OR_RETURN(const std::string blob, context_.blobs->Get(row.blob));
  ASSIGN_OR_RETURN(Snapshot snapshot, DecodeSnapshot(*layout_, blob));
  if (snapshot.has_state) RETURN_IF_ERROR(point.rule->ImportState(snapshot.state));
  point.params = std::move(snapshot.params);
  point.snapshot = row.number;
  point.step = row.step;
  if (steps.empty()) return point;
  ASSIGN_OR_RETURN(const auto gradients,
                   context_.store->ListObservations(uid, "gradient", row.number + 1, version + 1));
  std::unordered_map<int64_t, const store::ObservationRow*> by_version;
  for (const store::ObservationRow& gradient : gradients) by_version[gradient.a] = &gradient;
  for (const store::VersionRow& step : steps) {
    ASSIGN_OR_RETURN(const bool skipped, Skipped(step));
    if (!skipped && !by_version.contains(step.number))
      return FailedPrecondition(
          "version ", version,
          " cannot be rebuilt: the gradients between snapshots are no longer kept; the nearest that can is ",
          row.number);
  }
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const auto gradient = by_version.find(step->number);
    if (gradient == by_version.end()) {  // skipped: a step of the schedule, not of the rule
      ++point.step;
      ++point.since_snapshot;
      continue;
    }
    RETURN_IF_ERROR(Replay(*step, *gradient->second, &point));
  }
  return point;
}

absl::Status FirstOrder::Replay(const store::VersionRow& row, const store::ObservationRow& gradient,
                                Point* point) const {
  v1::Version version;
  if (!version.ParseFromString(row.payload)) return DataLoss("version ", row.number, " cannot be parsed");
  ASSIGN_OR_RETURN(const Gradients gradients, GradientsFromRecord(*layout_, *context_.blobs, gradient));
  std::optional<double> loss;
  if (version.loss() == version.loss()) loss = version.loss();
  return StepOnce(point, gradients, loss, nullptr);
}

absl::Status FirstOrder::MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) {
  if (version.number == session.row.head_version || !head_) return absl::OkStatus();
  ASSIGN_OR_RETURN(Point point, Rebuild(session.row.uid, version.number));
  RETURN_IF_ERROR(Flush(session, effects));
  head_ = std::move(point);
  return absl::OkStatus();
}

absl::Status FirstOrder::SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values,
                                    const std::string& sha256, Effects* effects) {
  Point point;
  ASSIGN_OR_RETURN(point.rule, NewRule());
  RETURN_IF_ERROR(AttachInitial(context_, session, sha256, effects));
  point.params = std::move(values);
  head_ = std::move(point);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const TensorBuffer>> FirstOrder::ParametersAt(LiveSession& session, int64_t version) {
  if (!head_) return FailedPrecondition("session ", session.name().Full(), " has no parameters yet; push them first");
  if (version < 0 || version >= session.row.version_count)
    return NotFound("version: ", version, " does not exist; the session has versions 0 to ",
                    session.row.version_count - 1);
  if (version == session.row.head_version) return std::shared_ptr<const TensorBuffer>(head_->params);
  if (pulled_.first != version) {
    ASSIGN_OR_RETURN(const Point point, RebuildForReader(session, version));
    pulled_ = {version, point.params};
  }
  return std::shared_ptr<const TensorBuffer>(pulled_.second);
}

absl::StatusOr<FirstOrder::Point> FirstOrder::RebuildForReader(LiveSession& session, int64_t version) const {
  WaitForStore(*context_.store);
  auto point = Rebuild(session.row.uid, version);
  if (absl::IsNotFound(point.status()))
    return FailedPrecondition("version ", version, " was not made durable and cannot be rebuilt; the nearest that can is ",
                              head_->snapshot);
  return point;
}

absl::StatusOr<StateFile> FirstOrder::Export(LiveSession& session, int64_t version) {
  RETURN_IF_ERROR(ParametersAt(session, version).status());
  StateFile out;
  if (version == session.row.head_version) {
    out.params = head_->params;
    out.state = head_->rule->ExportState();
    out.step = head_->step;
    return out;
  }
  ASSIGN_OR_RETURN(const Point point, RebuildForReader(session, version));
  out.params = point.params;
  out.state = point.rule->ExportState();
  out.step = point.step;
  return out;
}

absl::Status FirstOrder::TakeState(LiveSession& session, const StateFile& file, const std::string& note,
                                   Effects* effects) {
  if (!head_) return FailedPrecondition("session ", session.name().Full(), " has no parameters yet; push them first");
  Point point;
  ASSIGN_OR_RETURN(point.rule, NewRule());
  if (absl::Status fits = point.rule->ImportState(file.state); !fits.ok())
    return InvalidArgument("file: ", fits.message());
  point.params = TensorBuffer::Copy(*file.params);
  if (point.params == nullptr) return ResourceExhausted("file: no memory for ", file.params->size(), " bytes");
  point.snapshot = session.row.version_count;
  point.step = file.step;
  ASSIGN_OR_RETURN(std::string blob, PutSnapshot(point, point.snapshot, point.step));
  RETURN_IF_ERROR(Flush(session, effects));
  v1::Version version;
  version.set_kind("set");
  version.set_note(note);
  version.set_loss(std::nan(""));
  store::VersionRow row = session.NewVersion(&version, file.step - 1, context_.clock->NowUnixMs());
  row.blob = std::move(blob);
  effects->mutations.push_back(store::InsertVersion{std::move(row)});
  durable_before_ = session.durable_version;
  session.row.head_version = session.durable_version = point.snapshot;
  head_ = std::move(point);
  return absl::OkStatus();
}

absl::StatusOr<Adopted> AdoptFirstOrder(Context& context, const StateFile& file) {
  const Layout layout(file.layout);
  ASSIGN_OR_RETURN(const auto rule, RuleFor(file.optimizer, layout));
  if (absl::Status fits = rule->ImportState(file.state); !fits.ok()) return InvalidArgument("file: ", fits.message());
  ASSIGN_OR_RETURN(const auto snapshot, EncodeSnapshot(layout, file.params->data(), rule->ExportState(), 0, file.step));
  Adopted out;
  ASSIGN_OR_RETURN(out.blob, context.blobs->Put(snapshot->bytes()));
  return out;
}

absl::StatusOr<std::vector<optim::OwnedTensor>> FirstOrder::State(LiveSession& session) {
  if (!head_) return FailedPrecondition("session ", session.name().Full(), " has no parameters yet; push them first");
  return head_->rule->ExportState();
}

void FirstOrder::DescribeMemory(v1::MemoryReport* report) const {
  report->set_resident(head_.has_value());
  if (!head_) return;
  const optim::RuleMemory memory = optim::MemoryOf(*head_->rule, layout_->specs());
  for (size_t i = 0; i < layout_->size(); ++i) {
    v1::TensorMemory* tensor = report->mutable_tensors(static_cast<int>(i));
    tensor->set_state_bytes(memory.tensors[i].state);
    tensor->set_transient_bytes(memory.tensors[i].transient);
  }
  report->set_state_bytes(memory.state);
  report->set_shared_state_bytes(memory.shared_state);
  report->set_transient_bytes(memory.transient);
  report->set_shared_transient_bytes(memory.shared_transient);
}

absl::StatusOr<FirstOrder::Saved> FirstOrder::Save(LiveSession& session, int64_t version, Effects* effects) {
  const auto row = context_.store->GetVersion(session.row.uid, version);
  if (row.ok() && (!row->blob.empty() || !head_)) return Saved{row->blob, row->step};
  if (version == session.row.head_version && head_) {
    RETURN_IF_ERROR(Flush(session, effects));
    ASSIGN_OR_RETURN(std::string blob, PutSnapshot(*head_, version, head_->step));
    return Saved{std::move(blob), head_->step};
  }
  if (!row.ok()) return FailedPrecondition("version ", version, " was not made durable and cannot be rebuilt");
  ASSIGN_OR_RETURN(const Point point, Rebuild(session.row.uid, version));
  ASSIGN_OR_RETURN(std::string blob, PutSnapshot(point, version, row->step));
  return Saved{std::move(blob), row->step};
}

}  // namespace optod::engine
