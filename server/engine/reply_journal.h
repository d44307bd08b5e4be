#pragma once
/// The replies of language models that a session has received for proposals which are not finished: durable, so that a
/// restart pays for none of them twice. A reply is named by a key: of a search's proposal by its place (search, step,
/// candidate), of a search's evaluation by its place and the call, of a lone proposal by the content of the call. Used
/// on the session's strand only.

#include <map>
#include <string>

#include "optod/v1/trace.pb.h"
#include "server/engine/engine.h"

namespace optod::engine {

class ReplyJournal {
 public:
  /// What is durable. DATA_LOSS: a row cannot be read.
  absl::Status Load(store::Store& store, int64_t session_uid);

  const v1::ReceivedReply* Find(const std::string& key) const;
  /// Those whose key begins with `scope`.
  std::map<std::string, v1::ReceivedReply> Under(const std::string& scope) const;
  /// Keeps the reply; it is durable with `effects`. Counts what it cost into the session's usage.
  void Add(LiveSession& session, v1::ReceivedReply reply, Effects* effects);

  /// A proposal that may use the journal has begun; the last one to end forgets all replies.
  void Begin() { ++under_way_; }
  void End(LiveSession& session, Effects* effects);

 private:
  std::map<std::string, v1::ReceivedReply> replies_;
  int64_t next_ = 0;
  int under_way_ = 0;
};

}  // namespace optod::engine
