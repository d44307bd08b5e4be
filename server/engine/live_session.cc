// LiveSession and the parts of a session's row: which fields are fixed at creation, which change, which are counters.
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/time_util.h"
#include "server/engine/engine.h"

namespace optod::engine {
namespace {

using google::protobuf::util::TimeUtil;

void SetTime(google::protobuf::Timestamp* out, int64_t ms) { *out = TimeUtil::MillisecondsToTimestamp(ms); }

constexpr int64_t kPurgeAfterMs = 7LL * 24 * 3600 * 1000;

void FillCounters(const store::SessionRow& row, v1::Session* out) {
  out->set_name(SessionName{row.user, row.id}.Full());
  out->set_etag(std::to_string(row.etag));
  out->set_state(static_cast<v1::Session::State>(row.state));
  out->set_head_version(row.head_version);
  out->set_version_count(row.version_count);
  out->set_seq(row.seq);
  SetTime(out->mutable_create_time(), row.create_ms);
  SetTime(out->mutable_update_time(), row.update_ms);
  if (row.delete_ms > 0) {
    SetTime(out->mutable_delete_time(), row.delete_ms);
    SetTime(out->mutable_purge_time(), row.delete_ms + kPurgeAfterMs);
  }
}

/// The fields that can change after creation and are not counters.
v1::Session MutableFields(const v1::Session& session) {
  v1::Session out;
  *out.mutable_labels() = session.labels();
  out.set_display_name(session.display_name());
  out.set_state_reason(session.state_reason());
  if (session.has_budget()) *out.mutable_budget() = session.budget();
  if (session.has_usage()) *out.mutable_usage() = session.usage();
  if (session.has_best_score()) out.set_best_score(session.best_score());
  if (session.has_best_version()) out.set_best_version(session.best_version());
  out.set_has_values(session.has_values());
  return out;
}

}  // namespace

v1::Session SessionFromRow(const store::SessionRow& row) {
  v1::Session out;
  out.ParseFromString(row.spec);
  out.MergeFromString(row.mutable_fields);
  FillCounters(row, &out);
  out.set_durable_version(row.version_count - 1);
  return out;
}

v1::Session LiveSession::ToProto() const {
  v1::Session out = proto;
  FillCounters(row, &out);
  out.set_durable_version(durable_version);
  return out;
}

void LiveSession::SyncRow(int64_t now_ms) {
  MutableFields(proto).SerializeToString(&row.mutable_fields);
  row.update_ms = now_ms;
  ++row.revision;
}

store::VersionRow LiveSession::NewVersion(v1::Version* version, int64_t parent_step, int64_t now_ms) {
  version->set_number(row.version_count);
  version->set_parent(row.head_version);
  version->set_step(parent_step + 1);
  *version->mutable_create_time() = TimeUtil::MillisecondsToTimestamp(now_ms);
  store::VersionRow out;
  out.session_uid = row.uid;
  out.number = row.version_count++;
  out.parent = row.head_version;
  out.step = parent_step + 1;
  out.create_ms = now_ms;
  version->SerializeToString(&out.payload);
  return out;
}

std::string CanonicalBytes(const google::protobuf::MessageLite& message) {
  std::string out;
  google::protobuf::io::StringOutputStream stream(&out);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return out;
}

}  // namespace optod::engine
