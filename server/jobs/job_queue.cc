#include "server/jobs/job_queue.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/random_id.h"
#include "base/reason.h"
#include "base/sha256.h"
#include "base/status.h"
#include "server/jobs/job_kinds.h"
#include "server/jobs/job_request.h"

namespace optod::jobs {
namespace {

using v1::Job;

constexpr int64_t kLongestTickNs = 1'000'000'000;  // more between two ticks: the server itself stood still

bool IsUnderWay(Job::State state) {
  return state == Job::SCHEDULED || state == Job::RUNNING || state == Job::CHECKPOINTING;
}
bool HasEnded(Job::State state) {
  return state == Job::SUCCEEDED || state == Job::FAILED || state == Job::CANCELLED || state == Job::LOST;
}

void SetTime(int64_t unix_ms, google::protobuf::Timestamp* out) {
  out->set_seconds(unix_ms / 1000);
  out->set_nanos(static_cast<int32_t>(unix_ms % 1000) * 1'000'000);
}

std::string SignalText(int signal) {
  std::string text = Cat("killed by signal ", signal, " (", strsignal(signal), ")");
  if (signal == SIGKILL) text += ", perhaps by the kernel for lack of memory";
  return text;
}

/// Which of several workers: "(rank 2) ".
std::string RankText(size_t workers, size_t rank) { return workers > 1 ? Cat("(rank ", rank, ") ") : ""; }

/// Threads of each of `workers` processes: what the job says, or their part of the machine; 0 = all.
int32_t ThreadsOf(int32_t cpus, int workers) {
  if (cpus > 0 || workers == 1) return cpus;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / workers);
}

/// SHA-256 of the parameters that a worker ended with; "" = it says none.
std::string ParametersOf(const std::string& result_json) {
  const auto json = nlohmann::json::parse(result_json, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json.value("parameters_sha256", "") : "";
}

/// The last step whose loss is in the job's events.
int64_t ToldStep(const std::vector<v1::JobEvent>& events) {
  const auto last = std::find_if(events.rbegin(), events.rend(), [](const v1::JobEvent& event) { return event.metrics().contains("loss"); });
  return last == events.rend() ? 0 : last->step();
}

}  // namespace

JobQueue::JobQueue(QueueOptions options, JobFiles files, Launcher& launcher, Clock& clock)
    : options_(std::move(options)), files_(std::move(files)), launcher_(launcher), clock_(clock) {}

absl::Status JobQueue::Load() {
  std::vector<std::string> broken;
  ASSIGN_OR_RETURN(std::vector<v1::JobRecord> records, files_.LoadAll(&broken));
  std::lock_guard lock(mutex_);
  for (v1::JobRecord& record : records) {
    Entry& entry = jobs_[{record.user(), record.id()}];
    entry.record = std::move(record);
    entry.events = files_.LoadEvents(entry.record);
    if (!IsUnderWay(entry.record.job().state())) continue;
    if (entry.record.cancelling())
      SetState(entry, Job::CANCELLED, "cancelled");
    else
      SetState(entry, Job::QUEUED, "the server was restarted; goes on from the last checkpoint");
  }
  if (!broken.empty()) return DataLoss("jobs: record of ", broken[0], " cannot be read");
  return absl::OkStatus();
}

void JobQueue::Start(const std::string& address) {
  std::lock_guard lock(mutex_);
  address_ = address;
}

// ---- clients

absl::StatusOr<Job> JobQueue::Create(const std::string& user, const v1::CreateJobRequest& request) {
  if (!has_worker())
    return WithReason(Unimplemented("JobService: this server has no optod-worker program"), "NO_WORKER");
  std::lock_guard lock(mutex_);
  const std::string hash = Sha256Hex(request.SerializeAsString());
  for (const auto& [key, entry] : jobs_) {
    if (request.request_id().empty() || key.first != user || entry.record.request_id() != request.request_id())
      continue;
    if (entry.record.request_sha256() != hash)
      return WithReason(Aborted("request_id: was used for another request"), "REQUEST_ID_REUSED");
    return View(entry);
  }
  v1::JobRecord record;
  RETURN_IF_ERROR(CheckJobRequest(request.job(), {options_.file_roots, options_.max_job_workers}, record.mutable_job()));
  for (const std::string& other : record.job().after()) {
    if (!jobs_.contains({user, other})) return NotFound("after: no job ", other);
  }
  const std::string id = request.job_id().empty() ? RandomId() : request.job_id();
  if (!IsJobId(id))
    return InvalidArgument("job_id: \"", id, "\" is not a letter and then letters, digits, hyphens; at most 63");
  if (jobs_.contains({user, id})) return AlreadyExists("job_id: ", id, " is taken");
  if (stopping_) return WithReason(Unavailable("the server is draining; try again later"), "DRAINING");
  record.set_user(user);
  record.set_id(id);
  record.set_request_id(request.request_id());
  record.set_request_sha256(hash);
  record.mutable_job()->set_name("users/" + user + "/jobs/" + id);
  record.mutable_job()->set_state(Job::QUEUED);
  SetTime(clock_.NowUnixMs(), record.mutable_job()->mutable_create_time());
  RETURN_IF_ERROR(files_.Save(record));
  Entry& entry = jobs_[{user, id}];
  entry.record = std::move(record);
  AddEvent(entry, {});
  return View(entry);
}

absl::StatusOr<JobQueue::Entry*> JobQueue::Find(const std::string& user, const std::string& id) {
  const auto it = jobs_.find({user, id});
  if (it == jobs_.end()) return NotFound("name: no job ", id);
  return &it->second;
}
absl::StatusOr<const JobQueue::Entry*> JobQueue::Find(const std::string& user, const std::string& id) const {
  const auto it = jobs_.find({user, id});
  if (it == jobs_.end()) return NotFound("name: no job ", id);
  return &it->second;
}

absl::StatusOr<Job> JobQueue::Get(const std::string& user, const std::string& id) const {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, Find(user, id));
  return View(*entry);
}

std::vector<Job> JobQueue::List(const std::string& user) const {
  std::lock_guard lock(mutex_);
  std::vector<Job> all;
  for (const auto& [key, entry] : jobs_) {
    if (key.first != user) continue;
    all.push_back(View(entry));
    all.back().clear_memory();
  }
  std::sort(all.begin(), all.end(), [](const Job& a, const Job& b) {
    const auto time = [](const Job& j) { return std::pair(j.create_time().seconds(), j.create_time().nanos()); };
    return time(a) != time(b) ? time(a) > time(b) : a.name() < b.name();
  });
  return all;
}

absl::StatusOr<Job> JobQueue::Cancel(const std::string& user, const std::string& id) {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(Entry * entry, Find(user, id));
  const Job::State state = entry->record.job().state();
  if (HasEnded(state) || entry->record.cancelling()) return View(*entry);
  if (!IsUnderWay(state)) {
    SetState(*entry, Job::CANCELLED, "cancelled before it began");
    return View(*entry);
  }
  entry->record.set_cancelling(true);
  entry->cancel_ns = clock_.NowMonotonicNs();
  SetState(*entry, state, "cancelling");
  const auto here = [](const Rank& rank) { return rank.channel != nullptr || rank.done; };
  if (!std::all_of(entry->ranks.begin(), entry->ranks.end(), here)) {
    Kill(*entry, "cancelled");
    return View(*entry);
  }
  v1::ServerMessage stop;
  stop.mutable_stop()->set_why("cancelled");
  for (const Rank& rank : entry->ranks) {
    if (rank.channel != nullptr) rank.channel->Send(stop);
  }
  return View(*entry);
}

absl::StatusOr<Job> JobQueue::Resume(const std::string& user, const std::string& id) {
  if (!has_worker())
    return WithReason(Unimplemented("JobService: this server has no optod-worker program"), "NO_WORKER");
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(Entry * entry, Find(user, id));
  const Job::State state = entry->record.job().state();
  if (!HasEnded(state)) return View(*entry);  // a retry, or nothing to do
  if (state == Job::SUCCEEDED) return FailedPrecondition("state: the job has succeeded");
  entry->record.set_crashes(0);
  entry->record.set_cancelling(false);
  entry->record.mutable_job()->clear_end_time();
  SetState(*entry, Job::QUEUED, "resumed");
  return View(*entry);
}

absl::StatusOr<std::vector<v1::JobEvent>> JobQueue::Events(const std::string& user, const std::string& id,
                                                           int64_t after, size_t limit, bool* ended) const {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, Find(user, id));
  if (after < 0) return InvalidArgument("after_sequence: ", after, " is negative");
  std::vector<v1::JobEvent> events;
  for (size_t i = static_cast<size_t>(after); i < entry->events.size() && events.size() < limit; ++i)
    events.push_back(entry->events[i]);
  *ended = HasEnded(entry->record.job().state()) && static_cast<size_t>(after) + events.size() >= entry->events.size();
  return events;
}

absl::StatusOr<std::string> JobQueue::LogPath(const std::string& user, const std::string& id, bool* ended) const {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, Find(user, id));
  *ended = HasEnded(entry->record.job().state());
  return files_.LogPath(entry->record);
}

absl::StatusOr<std::string> JobQueue::WorkFolder(const std::string& user, const std::string& id) const {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, Find(user, id));
  return files_.WorkFolder(entry->record);
}

int64_t JobQueue::running() const {
  std::lock_guard lock(mutex_);
  return std::count_if(jobs_.begin(), jobs_.end(),
                       [](const auto& item) { return IsUnderWay(item.second.record.job().state()); });
}
int64_t JobQueue::queued() const {
  std::lock_guard lock(mutex_);
  return std::count_if(jobs_.begin(), jobs_.end(),
                       [](const auto& item) { return item.second.record.job().state() == Job::QUEUED; });
}

Job JobQueue::View(const Entry& entry) const {
  Job job = entry.record.job();
  if (job.state() == Job::QUEUED) {
    int64_t before = 1;
    for (const auto& [key, other] : jobs_) {
      const Job& o = other.record.job();
      if (o.state() != Job::QUEUED || &other == &entry) continue;
      const auto time = [](const Job& j) { return std::pair(j.create_time().seconds(), j.create_time().nanos()); };
      before += o.priority() > job.priority() || (o.priority() == job.priority() && time(o) < time(job)) ? 1 : 0;
    }
    job.set_queue_position(before);
  }
  return job;
}

// ---- states

void JobQueue::SetState(Entry& entry, Job::State state, const std::string& reason) {
  Job& job = *entry.record.mutable_job();
  job.set_state(state);
  job.set_reason(reason);
  if (HasEnded(state)) SetTime(clock_.NowUnixMs(), job.mutable_end_time());
  if (state == Job::SUCCEEDED) job.set_progress(1);
  const absl::Status saved = files_.Save(entry.record);
  if (!saved.ok()) job.set_reason(reason + " (not on disk: " + std::string(saved.message()) + ")");
  AddEvent(entry, {});
}

void JobQueue::AddEvent(Entry& entry, const std::map<std::string, double>& metrics) {
  v1::JobEvent event;
  event.set_sequence(static_cast<int64_t>(entry.events.size()) + 1);
  SetTime(clock_.NowUnixMs(), event.mutable_time());
  *event.mutable_job() = entry.record.job();
  event.mutable_job()->clear_spec_json();
  event.mutable_job()->clear_metrics();
  event.mutable_job()->clear_memory();
  event.set_step(entry.record.job().step());
  for (const auto& [name, value] : metrics) (*event.mutable_metrics())[name] = value;
  files_.AppendEvent(entry.record, event);
  entry.events.push_back(std::move(event));
}

std::string JobQueue::BlockedBy(const Entry& entry, bool* failed) const {
  for (const std::string& id : entry.record.job().after()) {
    const auto it = jobs_.find({entry.record.user(), id});
    const Job::State state = it == jobs_.end() ? Job::FAILED : it->second.record.job().state();
    if (state == Job::SUCCEEDED) continue;
    *failed = HasEnded(state);
    return id;
  }
  return "";
}

JobQueue::Key* JobQueue::NextKey(Key* out) {
  std::map<std::string, int> running;
  for (const auto& [key, entry] : jobs_) running[key.first] += IsUnderWay(entry.record.job().state()) ? 1 : 0;
  const Entry* best = nullptr;
  for (auto& [key, entry] : jobs_) {
    const Job& job = entry.record.job();
    if (job.state() != Job::QUEUED) continue;
    bool failed = false;
    if (const std::string other = BlockedBy(entry, &failed); !other.empty()) {
      if (failed) SetState(entry, Job::FAILED, "job " + other + ", which comes before, did not succeed");
      continue;
    }
    const auto rank = [&](const Entry& e) {
      const Job& j = e.record.job();
      return std::tuple(-j.priority(), running[e.record.user()], j.create_time().seconds(), j.create_time().nanos());
    };
    if (best == nullptr || rank(entry) < rank(*best)) {
      best = &entry;
      *out = key;
    }
  }
  return best == nullptr ? nullptr : out;
}

void JobQueue::Launch(const Key& key, Entry& entry) {
  Job& job = *entry.record.mutable_job();
  job.set_attempt(job.attempt() + 1);
  job.clear_memory();
  entry.token = Uuid4() + Uuid4();
  entry.killed_because.clear();
  entry.killed_ns = 0;
  entry.launched_ns = clock_.NowMonotonicNs();
  if (!job.has_start_time()) SetTime(clock_.NowUnixMs(), job.mutable_start_time());
  SetState(entry, Job::SCHEDULED, "worker starts");
  if (const absl::Status launched = LaunchRanks(key, entry); !launched.ok())
    AttemptFailed(entry, std::string(launched.message()));
}

absl::Status JobQueue::LaunchRanks(const Key& key, Entry& entry) {
  // Of the job file and not of the record: one that an older server took has no count.
  ASSIGN_OR_RETURN(const CheckedSpec spec, CheckJobSpec(entry.record.job().spec_json()));
  const auto workers = static_cast<size_t>(spec.workers);
  entry.ranks.assign(workers, Rank{0, entry.launched_ns, nullptr, false, ""});
  entry.relay = workers > 1 ? std::make_unique<ExchangeRelay>(static_cast<int>(workers), spec.share) : nullptr;
  const int32_t attempt = entry.record.job().attempt();
  for (size_t r = 0; r < workers; ++r) {
    ASSIGN_OR_RETURN(entry.ranks[r].handle,
                     launcher_.Launch(LaunchOf(entry, r), [this, key, attempt, r](ExitStatus exit) { OnExit(key, attempt, r, exit); }));
  }
  return absl::OkStatus();
}

LaunchSpec JobQueue::LaunchOf(const Entry& entry, size_t rank) const {
  const Job& job = entry.record.job();
  LaunchSpec spec;
  spec.argv = {options_.worker, "attach",   "--server",  address_,
               "--job",         job.name(), "--attempt", std::to_string(job.attempt())};
  if (rank > 0) spec.argv.insert(spec.argv.end(), {"--rank", std::to_string(rank)});
  spec.environment = options_.environment;
  spec.environment.emplace_back("OPTOD_WORKER_TOKEN", entry.token);
  spec.environment.emplace_back("OMP_WAIT_POLICY", "PASSIVE");  // waiting threads leave the CPUs to other jobs
  spec.log_path = files_.LogPath(entry.record);
  if (const int64_t bytes = job.placement().memory_bytes(); bytes > 0)
    spec.environment.emplace_back("OPTOD_WORKER_MEMORY", std::to_string(bytes));
  return spec;
}

void JobQueue::Tick() {
  std::lock_guard lock(mutex_);
  const int64_t now = clock_.NowMonotonicNs();
  ForgivePause(now);
  int64_t running = 0;
  for (auto& [key, entry] : jobs_) {
    if (IsUnderWay(entry.record.job().state())) CheckSilence(entry, now);
    running += IsUnderWay(entry.record.job().state()) ? 1 : 0;
  }
  Key key;
  while (!stopping_ && !address_.empty() && running < options_.max_workers && NextKey(&key) != nullptr) {
    Launch(key, jobs_[key]);
    running += IsUnderWay(jobs_[key].record.job().state()) ? 1 : 0;
  }
}

/// While the server itself stood still (stopped, its machine suspended) it could not hear its workers: that time does
/// not count against their lease.
void JobQueue::ForgivePause(int64_t now) {
  const int64_t gap = last_tick_ns_ == 0 ? 0 : now - last_tick_ns_;
  last_tick_ns_ = now;
  if (gap <= kLongestTickNs) return;
  for (auto& [key, entry] : jobs_) {
    for (Rank& rank : entry.ranks) rank.heard_ns = std::min(now, rank.heard_ns + gap - kLongestTickNs);
  }
}

void JobQueue::CheckSilence(Entry& entry, int64_t now) {
  if (!entry.killed_because.empty()) {
    // What does not even die (a process in an uninterruptible call, a machine out of reach) must not hold up the job.
    if ((now - entry.killed_ns) / 1'000'000 > options_.cancel_grace_ms)
      AttemptEnded(entry, entry.killed_because, /*crash=*/true);
    return;
  }
  const int64_t wall_s = entry.record.job().placement().max_wall().seconds();
  std::string why = TooQuiet(entry, now);
  if (why.empty() && entry.record.cancelling() && (now - entry.cancel_ns) / 1'000'000 > options_.cancel_grace_ms)
    why = "cancelled";
  if (why.empty() && wall_s > 0 && (now - entry.launched_ns) / 1'000'000'000 > wall_s)
    why = Cat("limits.wall: ", wall_s, " s are over");
  if (!why.empty()) Kill(entry, why);
}

/// "said nothing for 31 s" of the first worker that is taken for dead; "" = none is.
std::string JobQueue::TooQuiet(const Entry& entry, int64_t now) const {
  for (size_t r = 0; r < entry.ranks.size(); ++r) {
    const Rank& rank = entry.ranks[r];
    const int64_t silent_ms = (now - rank.heard_ns) / 1'000'000;
    if (rank.done || silent_ms <= (rank.channel == nullptr ? options_.start_ms : options_.lease_ms)) continue;
    return Cat(RankText(entry.ranks.size(), r), "said nothing for ", silent_ms / 1000, " s");
  }
  return "";
}

void JobQueue::Kill(Entry& entry, const std::string& why) {
  entry.killed_because = why;
  entry.killed_ns = clock_.NowMonotonicNs();
  KillRanks(entry);
}

void JobQueue::KillRanks(const Entry& entry) {
  for (const Rank& rank : entry.ranks) {
    if (rank.handle != 0) launcher_.Kill(rank.handle);
  }
}

void JobQueue::OnExit(const Key& key, int32_t attempt, size_t rank, ExitStatus exit) {
  std::lock_guard lock(mutex_);
  const auto it = jobs_.find(key);
  if (it == jobs_.end()) return;
  Entry& entry = it->second;
  if (entry.record.job().attempt() != attempt || !IsUnderWay(entry.record.job().state())) return;
  entry.ranks[rank].handle = 0;
  if (entry.ranks[rank].done) return;  // the others go on
  std::string how = RankText(entry.ranks.size(), rank) +
                    (exit.signal != 0 ? SignalText(exit.signal) : Cat("ended with code ", exit.code));
  if (entry.record.job().state() == Job::SCHEDULED) how += " before it began";
  AttemptEnded(entry, entry.killed_because.empty() ? how : entry.killed_because, /*crash=*/true);
}

/// From now on nothing that the attempt's workers say counts.
void JobQueue::Fence(Entry& entry) {
  if (!entry.token.empty() && options_.on_attempt_end)
    options_.on_attempt_end(entry.record.user(), (clock_.NowMonotonicNs() - entry.launched_ns) / 1'000'000 *
                                                     static_cast<int64_t>(entry.ranks.size()));
  entry.token.clear();
  for (Rank& rank : entry.ranks) {
    if (rank.channel != nullptr) channels_.erase(rank.channel);
    rank.channel = nullptr;
  }
}

void JobQueue::AttemptEnded(Entry& entry, const std::string& how, bool crash) {
  Fence(entry);
  if (entry.ranks.size() > 1) KillRanks(entry);  // the others have nobody to exchange with
  if (entry.record.cancelling()) return SetState(entry, Job::CANCELLED, "cancelled");
  if (stopping_) return SetState(entry, Job::QUEUED, "the server ends; goes on from the last checkpoint");
  if (how.starts_with("limits.wall")) return SetState(entry, Job::FAILED, how);
  if (crash) entry.record.set_crashes(entry.record.crashes() + 1);
  const std::string text = Cat("worker of attempt ", entry.record.job().attempt(), " ", how);
  if (entry.record.crashes() >= kMaxCrashes)
    return SetState(entry, Job::FAILED, Cat(text, "; ", kMaxCrashes, " attempts ended so"));
  SetState(entry, Job::QUEUED, text + "; goes on from the last checkpoint");
}

/// A worker, or the exchange between them, has said what is wrong.
void JobQueue::AttemptFailed(Entry& entry, const std::string& reason) {
  Fence(entry);
  if (entry.ranks.size() > 1) KillRanks(entry);
  SetState(entry, Job::FAILED, reason);
}

// ---- workers

absl::StatusOr<v1::WorkerTask> JobQueue::Attach(const v1::WorkerHello& hello, WorkerChannel* channel) {
  std::lock_guard lock(mutex_);
  for (auto& [key, entry] : jobs_) {
    Job& job = *entry.record.mutable_job();
    if (job.name() != hello.job()) continue;
    if (entry.token.empty() || hello.attempt() != job.attempt())
      return Aborted("attempt: ", hello.attempt(), " is over");
    if (hello.token() != entry.token) return absl::UnauthenticatedError("token: wrong");
    const auto workers = static_cast<int>(entry.ranks.size());
    if (hello.rank() < 0 || hello.rank() >= workers) return InvalidArgument("rank: ", hello.rank(), " of ", workers);
    Rank& rank = entry.ranks[static_cast<size_t>(hello.rank())];
    if (rank.channel != nullptr || rank.done) return Aborted("attempt: another worker has it");
    rank.channel = channel;
    rank.heard_ns = clock_.NowMonotonicNs();
    channels_[channel] = {key, static_cast<size_t>(hello.rank())};
    if (std::all_of(entry.ranks.begin(), entry.ranks.end(), [](const Rank& r) { return r.channel != nullptr; }))
      SetState(entry, Job::RUNNING, "");
    v1::WorkerTask task;
    task.set_spec_json(job.spec_json());
    task.set_folder(files_.WorkFolder(entry.record));
    task.set_attempt(job.attempt());
    task.set_threads(ThreadsOf(job.placement().cpus(), workers));
    task.set_rank(hello.rank());
    task.set_workers(workers);
    task.set_told_step(ToldStep(entry.events));
    return task;
  }
  return NotFound("job: no such job");
}

absl::Status JobQueue::OnMessage(WorkerChannel* channel, const v1::WorkerMessage& message) {
  std::lock_guard lock(mutex_);
  const auto it = channels_.find(channel);
  if (it == channels_.end()) return Aborted("attempt: it is over");
  const Place place = it->second;
  Entry& entry = jobs_[place.key];
  entry.ranks[place.rank].heard_ns = clock_.NowMonotonicNs();
  switch (message.message_case()) {
    case v1::WorkerMessage::kProgress:
      if (place.rank == 0) OnProgress(entry, message.progress());
      break;
    case v1::WorkerMessage::kMemory:
      if (place.rank == 0) *entry.record.mutable_job()->mutable_memory() = message.memory();
      break;
    case v1::WorkerMessage::kCheckpoint:
      // On disk with the next change of state; the checkpoint itself is the worker's file.
      if (place.rank == 0) entry.record.mutable_job()->set_checkpoint_step(message.checkpoint().step());
      break;
    case v1::WorkerMessage::kDone:
      OnDone(entry, place.rank, message.done());
      break;
    case v1::WorkerMessage::kJoin:
    case v1::WorkerMessage::kRecords:
    case v1::WorkerMessage::kExchange:
      OnExchange(entry, place.rank, message);
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

void JobQueue::OnProgress(Entry& entry, const v1::WorkerProgress& progress) {
  Job& job = *entry.record.mutable_job();
  std::map<std::string, double> metrics(progress.metrics().begin(), progress.metrics().end());
  job.set_step(progress.step());
  job.set_progress(job.total_steps() > 0 ? static_cast<double>(job.step()) / static_cast<double>(job.total_steps()) : 0);
  for (const auto& [name, value] : metrics) (*job.mutable_metrics())[name] = value;
  AddEvent(entry, metrics);
}

void JobQueue::OnExchange(Entry& entry, size_t rank, const v1::WorkerMessage& message) {
  if (entry.relay == nullptr) return AttemptFailed(entry, "exchange: the job has one worker");
  const absl::StatusOr<std::vector<ToRank>> out = entry.relay->OnMessage(static_cast<int>(rank), message);
  if (!out.ok()) return AttemptFailed(entry, std::string(out.status().message()));
  for (const ToRank& to : *out) {
    if (WorkerChannel* channel = entry.ranks[static_cast<size_t>(to.rank)].channel; channel != nullptr)
      channel->Send(to.message);
  }
}

void JobQueue::OnDone(Entry& entry, size_t rank, const v1::WorkerDone& done) {
  const auto code = static_cast<absl::StatusCode>(done.code());
  if (code == absl::StatusCode::kCancelled) return AttemptEnded(entry, "stopped", /*crash=*/false);
  if (code != absl::StatusCode::kOk) return AttemptFailed(entry, done.message());
  entry.ranks[rank].done = true;
  entry.ranks[rank].result_json = done.result_json();
  if (!std::all_of(entry.ranks.begin(), entry.ranks.end(), [](const Rank& r) { return r.done; })) return;
  const std::string hash = ParametersOf(entry.ranks[0].result_json);
  for (size_t r = 1; r < entry.ranks.size(); ++r) {
    if (const std::string other = ParametersOf(entry.ranks[r].result_json); other != hash)
      return AttemptFailed(entry, Cat("parameters of rank ", r, " (", other, ") differ from rank 0's (", hash, ")"));
  }
  Fence(entry);
  entry.record.mutable_job()->set_result_json(entry.ranks[0].result_json);
  entry.record.mutable_job()->set_step(entry.record.job().total_steps());
  SetState(entry, Job::SUCCEEDED, "");
}

void JobQueue::Detach(WorkerChannel* channel) {
  std::lock_guard lock(mutex_);
  const auto it = channels_.find(channel);
  if (it == channels_.end()) return;
  // Its process ends by itself now; OnExit judges, CheckSilence kills it if it does not.
  jobs_[it->second.key].ranks[it->second.rank].channel = nullptr;
  channels_.erase(it);
}

void JobQueue::Shutdown(int64_t grace_ms) {
  const auto any_running = [this] {
    std::lock_guard lock(mutex_);
    return !channels_.empty();
  };
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    v1::ServerMessage stop;
    stop.mutable_stop()->set_why("the server ends");
    for (const auto& [channel, place] : channels_) channel->Send(stop);
  }
  const int64_t end = clock_.NowMonotonicNs() + grace_ms * 1'000'000;
  while (any_running() && clock_.NowMonotonicNs() < end) clock_.SleepFor(std::chrono::milliseconds(20));
  std::lock_guard lock(mutex_);
  for (auto& [key, entry] : jobs_) {
    KillRanks(entry);
    if (IsUnderWay(entry.record.job().state())) AttemptEnded(entry, "stopped", /*crash=*/false);
  }
}

}  // namespace optod::jobs
