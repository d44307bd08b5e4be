#pragma once
/// Evaluates candidates by the file's `workflow:` instead of a command: optoctl runs it here, Python and commands in
/// the sandbox, model calls through the server (which has the keys, the budget and the cassette). Thread-safe after
/// Open and SetSession.

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/http_transport.h"
#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/evaluator.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cpp/client.h"
#include "optod/v1/trace.pb.h"
#include "trace/sandbox/sandbox.h"

namespace optod::cli {

class WorkflowRunner {
 public:
  /// Reads the data set (below `folder`) and looks for the sandbox when the workflow needs one. INVALID_ARGUMENT: the
  /// data; FAILED_PRECONDITION: no sandbox. `file` and `client` must outlive it.
  static absl::StatusOr<std::unique_ptr<WorkflowRunner>> Open(const OptimizeFile& file, const std::string& folder,
                                                              client::Client& client, const std::string& path);

  /// The session that model calls count to.
  void SetSession(const std::string& session) { session_ = session; }

  /// Runs it with the values, in `folder` (a copy of the tree with the values written in).
  absl::StatusOr<Evaluation> Run(const Values& values, const std::string& folder,
                                 const std::atomic<bool>* cancelled) const;

 private:
  WorkflowRunner(const OptimizeFile& file, client::Client& client) : file_(file), client_(client) {}
  absl::StatusOr<trace::ChatReply> Complete(const std::string& endpoint, const trace::ChatRequest& request,
                                            std::chrono::milliseconds timeout) const;

  const OptimizeFile& file_;
  client::Client& client_;
  std::string session_;
  std::vector<std::string> rows_;
  std::unique_ptr<trace::Sandbox> sandbox_;
  std::unique_ptr<HttpTransport> http_;
};

}  // namespace optod::cli
