#pragma once
/// All jobs of the server: takes them, orders them, starts the workers of each attempt (one, or as many as the job's
/// parallel.workers), follows them, and decides what their end means. Every change of state is on disk before it is told. Thread-safe; Create, Cancel, Resume and the worker's
/// messages may block on the disk: never call them on a gRPC thread.
///
///   order      priority, then the user with fewer running jobs, then age
///   attempts   a worker that dies or falls silent is replaced (kMaxCrashes times), the new one goes on from the last
///              checkpoint; one that says what is wrong has the last word
///   ranks      several workers exchange the scalars of each step through an ExchangeRelay; the attempt is RUNNING when
///              all are there, has succeeded when all have, and the end of one ends it for all
///   fencing    each attempt has a random token; a worker with an older one is turned away, one that wakes up late finds
///              its stream refused, and it writes into its own folder only

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "optod/v1/job.pb.h"
#include "optod/v1/worker.pb.h"
#include "server/jobs/exchange_relay.h"
#include "server/jobs/job_files.h"
#include "server/jobs/launcher.h"

namespace optod::jobs {

struct QueueOptions {
  std::string worker;                                            ///< program; "" = none: jobs are refused
  int64_t max_workers = 1;                                       ///< jobs at once
  int64_t max_job_workers = 8;                                   ///< processes of one job
  std::vector<std::pair<std::string, std::string>> environment;  ///< of every worker
  std::vector<std::string> file_roots;                           ///< folders that jobs may name; empty = all
  int64_t lease_ms = 30'000;         ///< a worker that sends nothing for so long is taken for dead
  int64_t start_ms = 60'000;         ///< ... before its first message
  int64_t cancel_grace_ms = 10'000;  ///< then it is killed
  /// Told when an attempt ends, however it ends: the user and the wall time of its workers, added up. Under the queue's lock; may be empty.
  std::function<void(const std::string& user, int64_t wall_ms)> on_attempt_end;
};
inline constexpr int kMaxCrashes = 3;

/// The server's end of a worker's stream.
class WorkerChannel {
 public:
  virtual ~WorkerChannel() = default;
  virtual void Send(const v1::ServerMessage& message) = 0;
};

class JobQueue {
 public:
  JobQueue(QueueOptions options, JobFiles files, Launcher& launcher, Clock& clock);
  /// Loads what is on disk. Jobs that were under way when the server ended are queued again (their next attempt).
  absl::Status Load();
  /// From now on workers are started; they dial `address`. Call Tick about four times a second.
  void Start(const std::string& address);
  void Tick();
  /// Tells the workers to stop after a checkpoint, waits at most `grace_ms`; their jobs go on at the next start.
  void Shutdown(int64_t grace_ms);

  // ---- clients. `user` has been authenticated and is the one in the name.
  absl::StatusOr<v1::Job> Create(const std::string& user, const v1::CreateJobRequest& request);
  absl::StatusOr<v1::Job> Get(const std::string& user, const std::string& id) const;
  std::vector<v1::Job> List(const std::string& user) const;  ///< newest first
  absl::StatusOr<v1::Job> Cancel(const std::string& user, const std::string& id);
  absl::StatusOr<v1::Job> Resume(const std::string& user, const std::string& id);
  /// Events after `after_sequence`, at most `limit`; `ended`: no more will come.
  absl::StatusOr<std::vector<v1::JobEvent>> Events(const std::string& user, const std::string& id,
                                                   int64_t after_sequence, size_t limit, bool* ended) const;
  absl::StatusOr<std::string> LogPath(const std::string& user, const std::string& id, bool* ended) const;
  /// A copy of all jobs, for a backup of the data directory (JobFiles::CopyTo). The workers go on meanwhile.
  absl::StatusOr<CopiedJobs> CopyTo(const std::string& folder) { return files_.CopyTo(folder); }
  /// Where the job's workers write: checkpoints, studies, results.
  absl::StatusOr<std::string> WorkFolder(const std::string& user, const std::string& id) const;
  int64_t running() const;
  int64_t queued() const;
  bool has_worker() const { return !options_.worker.empty(); }

  // ---- workers
  /// UNAUTHENTICATED: wrong or older token; ABORTED: the attempt is over. `channel` lives until Detach.
  absl::StatusOr<v1::WorkerTask> Attach(const v1::WorkerHello& hello, WorkerChannel* channel);
  /// ABORTED: the attempt of this channel is over (it was silent for too long, or was ended); nothing of the message
  /// counts, and the stream must be ended with this status.
  absl::Status OnMessage(WorkerChannel* channel, const v1::WorkerMessage& message);
  void Detach(WorkerChannel* channel);

 private:
  /// A worker process of the attempt under way.
  struct Rank {
    int64_t handle = 0, heard_ns = 0;
    WorkerChannel* channel = nullptr;
    bool done = false;        ///< it has said that it succeeded
    std::string result_json;  ///< then
  };
  struct Entry {
    v1::JobRecord record;
    std::vector<v1::JobEvent> events;
    // of the attempt under way
    std::string token;
    int64_t launched_ns = 0, cancel_ns = 0, killed_ns = 0;
    std::vector<Rank> ranks;
    std::unique_ptr<ExchangeRelay> relay;  ///< of several workers
    std::string killed_because;            ///< we killed it
  };
  using Key = std::pair<std::string, std::string>;
  struct Place {
    Key key;
    size_t rank = 0;
  };

  absl::StatusOr<Entry*> Find(const std::string& user, const std::string& id);
  absl::StatusOr<const Entry*> Find(const std::string& user, const std::string& id) const;
  void SetState(Entry& entry, v1::Job::State state, const std::string& reason);
  void AddEvent(Entry& entry, const std::map<std::string, double>& metrics);
  void Launch(const Key& key, Entry& entry);
  absl::Status LaunchRanks(const Key& key, Entry& entry);
  LaunchSpec LaunchOf(const Entry& entry, size_t rank) const;
  void OnExit(const Key& key, int32_t attempt, size_t rank, ExitStatus exit);
  void AttemptEnded(Entry& entry, const std::string& how, bool crash);
  void AttemptFailed(Entry& entry, const std::string& reason);
  void Fence(Entry& entry);
  void Kill(Entry& entry, const std::string& why);
  void KillRanks(const Entry& entry);
  void ForgivePause(int64_t now_ns);
  void OnProgress(Entry& entry, const v1::WorkerProgress& progress);
  void OnDone(Entry& entry, size_t rank, const v1::WorkerDone& done);
  void OnExchange(Entry& entry, size_t rank, const v1::WorkerMessage& message);
  void CheckSilence(Entry& entry, int64_t now_ns);
  std::string TooQuiet(const Entry& entry, int64_t now_ns) const;
  Key* NextKey(Key* out);
  std::string BlockedBy(const Entry& entry, bool* failed) const;
  v1::Job View(const Entry& entry) const;

  const QueueOptions options_;
  JobFiles files_;
  Launcher& launcher_;
  Clock& clock_;
  mutable std::mutex mutex_;
  std::map<Key, Entry> jobs_;
  std::map<WorkerChannel*, Place> channels_;
  std::string address_;
  int64_t last_tick_ns_ = 0;
  bool stopping_ = false;
};

}  // namespace optod::jobs
