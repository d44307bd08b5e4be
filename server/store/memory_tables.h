#pragma once
/// The memory store's rows in ordered maps, and the application of one batch to them with an undo log. Not thread-safe:
/// memory_store.cc locks.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/store/store.h"

namespace optod::store {

struct MemoryTables {
  using TextPair = std::pair<std::string, std::string>;
  using SessionPart = std::pair<int64_t, int64_t>;  ///< (session uid, number or id)

  std::map<std::string, UserRow> users;
  std::map<std::string, TokenRow> tokens;
  std::map<int64_t, SessionRow> sessions;
  std::map<TextPair, int64_t> session_uids;  ///< (user, id) -> uid
  std::map<SessionPart, VersionRow> versions;
  std::map<std::tuple<int64_t, std::string, int64_t, int64_t>, ObservationRow> observations;
  std::map<std::tuple<std::string, std::string, std::string>, std::pair<RequestRow, int64_t>>
      requests;  ///< with its place in the next
  std::map<int64_t, std::tuple<std::string, std::string, std::string>> request_order;
  std::map<SessionPart, NodeRow> nodes;
  std::map<std::pair<std::string, int64_t>, EventRow> events;
  std::map<std::string, int64_t> last_event;
  std::map<TextPair, OperationRow> operations;
  std::map<TextPair, ArtifactRow> artifacts;
  std::map<std::string, std::string> meta;

  /// All mutations or none.
  absl::Status Apply(const std::vector<Mutation>& mutations);

 private:
  std::vector<std::function<void()>> undo_;

  template <typename Map>
  void Set(Map& map, const typename Map::key_type& key, typename Map::mapped_type value);
  template <typename Map>
  void Erase(Map& map, const typename Map::key_type& key);
  template <typename Map>
  void EraseRange(Map& map, const typename Map::key_type& first, const typename Map::key_type& end);

  absl::Status CheckSession(int64_t uid) const;
  absl::Status Do(const PutUser& m);
  absl::Status Do(const PutToken& m);
  absl::Status Do(const InsertSession& m);
  absl::Status Do(const UpdateSession& m);
  absl::Status Do(const PurgeSession& m);
  absl::Status Do(const InsertVersion& m);
  absl::Status Do(const UpdateVersion& m);
  absl::Status Do(const PutObservation& m);
  absl::Status Do(const DeleteObservations& m);
  absl::Status Do(const InsertRequest& m);
  absl::Status Do(const InsertNodes& m);
  absl::Status Do(const UpdateNode& m);
  absl::Status Do(const AppendEvent& m);
  absl::Status Do(const PutOperation& m);
  absl::Status Do(const PutArtifact& m);
  absl::Status Do(const DeleteArtifact& m);
  absl::Status Do(const PruneRequests& m);
  absl::Status Do(const PruneEvents& m);
  absl::Status Do(const SetMeta& m);
};

}  // namespace optod::store
