#pragma once
/// Searches of a trace session: trace/search/search.h made durable. A search is a spec (observation "search") and a
/// journal of events (observations "search_event"); loading the session folds them. Told evaluations are also the
/// session's cache: equal values on the same task of the same data set are evaluated once. Leases live in memory only.
/// A search with a workflow is evaluated by the server; the replies that its evaluations received are durable until the
/// evaluations of the step are told.
/// Used on the session's strand.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "optod/v1/search.pb.h"
#include "server/engine/trace_family.h"
#include "trace/search/search.h"
#include "trace/workflow/workflow.h"

namespace optod::engine {

/// users/U/sessions/S/searches/N (or a short form of the session).
absl::StatusOr<std::pair<SessionName, int64_t>> ParseSearchName(const std::string& text, const Caller& caller,
                                                                const std::string& field);

class TraceSearches {
 public:
  explicit TraceSearches(TraceFamily& family) : family_(family) {}
  absl::Status Load(LiveSession& session);

  /// `runnable`: whether this server can run the workflow that the request carries.
  absl::Status Create(LiveSession& session, const v1::CreateSearchRequest& request,
                      const std::function<absl::Status(const trace::Workflow&)>& runnable, v1::Search* out,
                      Effects* effects);
  absl::StatusOr<v1::Search> Get(LiveSession& session, int64_t search, bool with_candidates);
  v1::ListSearchesResponse List(LiveSession& session);
  absl::StatusOr<v1::AskSearchResponse> Ask(LiveSession& session, int64_t search, const v1::AskSearchRequest& request,
                                            const std::string& worker);
  absl::Status Tell(LiveSession& session, int64_t search, const v1::TellSearchRequest& request,
                    v1::TellSearchResponse* out, Effects* effects);
  absl::Status Stop(LiveSession& session, int64_t search, v1::Search* out, Effects* effects);

  // ---- searches with a workflow: the server evaluates (search_evaluations.cc)
  /// One evaluation that such a search wants and that nobody works on.
  struct Evaluating {
    int64_t search = 0;
    size_t candidate = 0;
    uint32_t task = 0;
    bool validation = false;
    double min_score = 0, max_score = 1;                ///< the worst one is for a version that fails
    v1::SearchWorkflow workflow;                        ///< without rows
    std::string row;                                    ///< JSON text of the task
    v1::Version version;                                ///< its number and values
    std::string scope;                                  ///< of received replies
    std::map<std::string, v1::ReceivedReply> received;  ///< before a restart, by key
    std::shared_ptr<std::atomic<bool>> cancelled;       ///< by the end of the search, or of a drain's grace
    v1::Operation operation;                            ///< live, never a row: whoever took it says Operations::Ended
  };
  /// Takes as many as may go on at once; each must come back by Evaluated or Release. `resume`: ends a pause.
  absl::StatusOr<std::vector<std::unique_ptr<Evaluating>>> TakeEvaluations(LiveSession& session, int64_t search,
                                                                           bool resume);
  /// What came of it. `usage`: of its model calls.
  absl::Status Evaluated(LiveSession& session, const Evaluating& work, double score, const std::string& feedback,
                         std::optional<int64_t> output_node, const v1::Usage& usage, Effects* effects);
  /// It could not be evaluated: it is free again. `pause` not "": why the search pauses.
  void Release(const Evaluating& work, const std::string& pause);

  // ---- proposals (search_proposals.cc)
  /// One proposal that a search waits for and that nobody works on.
  struct Work {
    int64_t search = 0;
    uint32_t slot = 0;
    TraceFamily::Proposal proposal;
    std::shared_ptr<std::atomic<bool>> cancelled;
  };
  /// Takes all such work of the search; each must come back by Finish. What cannot be prepared pauses the search.
  /// `resume`: ends a pause.
  std::vector<std::unique_ptr<Work>> TakeWork(LiveSession& session, int64_t search, bool resume);
  /// `failure`: no call was answered; the search pauses and the work is free again.
  absl::Status Finish(LiveSession& session, const Work& work, const trace::ProposerResult& result,
                      const std::vector<TraceFamily::CallCost>& costs, const absl::Status& failure, Effects* effects);

 private:
  struct Told {
    std::string feedback;
    int64_t node = 0;
  };
  struct Record {
    v1::Search proto;  ///< name, spec, create_time; cached_evaluations and usage are counted in it
    std::unique_ptr<trace::Search> machine;
    std::map<std::pair<size_t, uint32_t>, Told> told;
    std::map<std::pair<size_t, uint32_t>, std::pair<std::string, int64_t>> leases;  ///< worker, end (monotonic ns)
    std::set<uint32_t> taken;                                                       ///< slots somebody works on
    std::set<uint32_t> reserved;  ///< slots whose received replies must stay
    std::map<size_t, std::string> values_sha256;
    /// What the server evaluates now, and what stops it.
    std::map<std::pair<size_t, uint32_t>, std::shared_ptr<std::atomic<bool>>> evaluating;
    std::string paused;
    std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
  };
  struct CacheEntry {
    double score;
    Told told;
  };

  /// The workflow of a new search, its tasks counted; nothing without one.
  absl::Status CheckWorkflow(LiveSession& session, const std::function<absl::Status(const trace::Workflow&)>& runnable,
                             v1::SearchSpec* spec);
  absl::Status Count(LiveSession& session, int64_t search, Record& record, std::pair<size_t, uint32_t> key,
                     const v1::TellSearchRequest& request, const v1::Usage& usage, Effects* effects);
  absl::StatusOr<Record*> Find(LiveSession& session, int64_t search);
  v1::Search ToWire(LiveSession& session, const Record& record, bool with_candidates) const;
  /// Applies an event to memory. False: it changes nothing.
  bool Apply(int64_t id, Record& record, const v1::SearchEvent& event);
  void Journal(LiveSession& session, int64_t id, v1::SearchEvent event, Effects* effects);
  /// Answers what the cache knows, keeps the reservations of received replies, and moves the head when the search is
  /// done.
  absl::Status Settle(LiveSession& session, int64_t id, Record& record, Effects* effects);
  void Reserve(LiveSession& session, Record& record, Effects* effects);
  absl::Status EndOf(LiveSession& session, Record& record, Effects* effects);
  absl::StatusOr<std::string> ValuesHash(LiveSession& session, Record& record, size_t candidate);
  static std::string CacheKey(const Record& record, const std::string& values_sha256, uint32_t task);
  absl::StatusOr<int64_t> OutputNode(LiveSession& session, const v1::TellSearchRequest& request, Effects* effects);
  absl::Status Prepare(LiveSession& session, int64_t id, Record& record, const trace::Search::Proposal& wanted,
                       TraceFamily::Proposal* out);
  absl::StatusOr<std::vector<trace::MemoryRound>> Memory(LiveSession& session, Record& record, size_t but,
                                                         const std::vector<trace::NodeId>& nodes);

  TraceFamily& family_;
  std::map<int64_t, Record> records_;
  std::map<std::string, CacheEntry> cache_;
  int64_t next_event_ = 0;
};

}  // namespace optod::engine
