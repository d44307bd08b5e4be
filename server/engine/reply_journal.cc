#include "server/engine/reply_journal.h"

#include "base/status.h"

namespace optod::engine {
namespace {

constexpr char kKind[] = "llm_reply";

}  // namespace

absl::Status ReplyJournal::Load(store::Store& store, int64_t session_uid) {
  ASSIGN_OR_RETURN(auto rows, store.ListObservations(session_uid, kKind, 0, INT64_MAX));
  for (const store::ObservationRow& row : rows) {
    v1::ReceivedReply reply;
    if (!reply.ParseFromString(row.payload)) return DataLoss("received reply ", row.a, " cannot be read");
    next_ = row.a + 1;
    replies_[reply.key()] = std::move(reply);
  }
  return absl::OkStatus();
}

const v1::ReceivedReply* ReplyJournal::Find(const std::string& key) const {
  auto it = replies_.find(key);
  return it == replies_.end() ? nullptr : &it->second;
}

std::map<std::string, v1::ReceivedReply> ReplyJournal::Under(const std::string& scope) const {
  std::map<std::string, v1::ReceivedReply> out;
  for (auto it = replies_.lower_bound(scope); it != replies_.end() && it->first.starts_with(scope); ++it)
    out.insert(*it);
  return out;
}

void ReplyJournal::Add(LiveSession& session, v1::ReceivedReply reply, Effects* effects) {
  v1::Usage* usage = session.proto.mutable_usage();
  usage->set_llm_calls(usage->llm_calls() + 1);
  usage->set_llm_prompt_tokens(usage->llm_prompt_tokens() + reply.prompt_tokens());
  usage->set_llm_completion_tokens(usage->llm_completion_tokens() + reply.completion_tokens());
  usage->set_llm_usd(usage->llm_usd() + reply.usd());
  store::ObservationRow row;
  row.session_uid = session.row.uid;
  row.kind = kKind;
  row.a = next_++;
  row.payload = reply.SerializeAsString();
  effects->mutations.push_back(store::PutObservation{std::move(row)});
  replies_[reply.key()] = std::move(reply);
}

void ReplyJournal::End(LiveSession& session, Effects* effects) {
  if (under_way_ > 0) --under_way_;
  if (under_way_ > 0 || replies_.empty()) return;
  replies_.clear();
  effects->mutations.push_back(store::DeleteObservations{session.row.uid, kKind, next_});
}

}  // namespace optod::engine
