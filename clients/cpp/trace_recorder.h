#pragma once
/// Records the nodes of a trace in batches: nodes are added one by one and refer to each other at once; the server sees
/// few large calls. For one thread. Nodes that were added but not flushed are lost with the recorder: call Flush before
/// Backward.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cpp/client.h"

namespace optod::client {

class TraceRecorder {
 public:
  TraceRecorder(Client& client, std::string session) : client_(client), session_(std::move(session)) {}

  /// A node of this recorder: an index into what was added, or the id of a node that the server knows already.
  struct Ref {
    int64_t index = -1;  ///< >= 0: the index-th node added
    int64_t id = -1;     ///< >= 0: id on the server
  };
  static Ref Known(int64_t id) { return {-1, id}; }

  /// Adds a node whose inputs are `inputs` (argument name, node). `node.inputs` must be empty. Sends a batch when it is
  /// large.
  absl::StatusOr<Ref> Add(v1::Node node, const std::vector<std::pair<std::string, Ref>>& inputs = {});
  /// Sends what is pending.
  absl::Status Flush();
  /// The server's id. FAILED_PRECONDITION when the node has not been flushed.
  absl::StatusOr<int64_t> Id(Ref ref) const;

 private:
  Client& client_;
  std::string session_;
  v1::RecordNodesRequest pending_;
  size_t pending_bytes_ = 0;
  std::vector<int64_t> ids_;  // of flushed nodes, in order of adding
};

}  // namespace optod::client
