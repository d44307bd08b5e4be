#pragma once
/// The processes that answer questions about recorded studies: one a study, started at its first question, gone after
/// some idle minutes of its own accord or when another study needs the room. Its end, however it comes, ends the calls
/// under way with UNAVAILABLE and nothing else. Thread-safe; Acquire blocks until the process listens.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "optod/v1/order.grpc.pb.h"
#include "server/jobs/launcher.h"

namespace optod::services {

/// A running process and the way to it.
struct StudyProcess {
  std::unique_ptr<v1::OrderService::Stub> stub;
  std::atomic<int> calls{0};
  std::atomic<int64_t> used{0};  ///< number of the last Acquire
  std::atomic<bool> ended{false};

  /// How it ended, once `ended`.
  std::string how() const;
  void SetEnd(jobs::ExitStatus exit);
  bool EndedByItself() const;

 private:
  mutable std::mutex mutex_;
  jobs::ExitStatus exit_;
};

/// What an answer needs while it is made: the process, counted as busy.
class StudyLease {
 public:
  explicit StudyLease(std::shared_ptr<StudyProcess> process) : process_(std::move(process)) { ++process_->calls; }
  ~StudyLease() {
    if (process_ != nullptr) --process_->calls;
  }
  StudyLease(StudyLease&& other) noexcept = default;
  StudyLease& operator=(StudyLease&& other) noexcept {
    std::swap(process_, other.process_);
    return *this;
  }
  StudyProcess* operator->() const { return process_.get(); }
  /// The caller's view of an error of the stub: what the process answered, or that it is gone.
  absl::Status Explain(const grpc::Status& status) const;

 private:
  std::shared_ptr<StudyProcess> process_;
};

struct StudyProcessOptions {
  std::string worker;                                            ///< program
  std::vector<std::pair<std::string, std::string>> environment;  ///< of every process
  std::string socket_root;                                       ///< folder in which a private one is made: short
  int idle_seconds = 300;
  int most = 4;             ///< at once
  int start_seconds = 120;  ///< until it listens
};

class StudyProcesses {
 public:
  StudyProcesses(StudyProcessOptions options, jobs::Launcher& launcher);
  ~StudyProcesses();

  /// The study in `folder` (of the job `name`): its process, started when there is none. RESOURCE_EXHAUSTED: all are
  /// busy with other studies; what the process says when it cannot open the study; UNAVAILABLE: it died at its start.
  absl::StatusOr<StudyLease> Acquire(const std::string& name, const std::string& folder, int64_t memory_bytes);
  /// Ends all and starts no more.
  void Stop();

 private:
  struct Entry {
    std::shared_ptr<StudyProcess> process;
    int64_t handle = 0;
    std::string socket;
    std::shared_ptr<grpc::Channel> channel;
    bool listening = false;
    std::mutex starting;  ///< held while the process comes up
  };
  absl::Status MakeRoom();
  absl::Status Launch(const std::string& name, const std::string& folder, int64_t memory_bytes, Entry& entry);
  absl::Status AwaitStart(Entry& entry, const std::string& log);

  const StudyProcessOptions options_;
  jobs::Launcher& launcher_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;
  std::string sockets_;  ///< private folder, made at the first launch
  int64_t acquired_ = 0, launched_ = 0;
  bool stopped_ = false;
};

}  // namespace optod::services
