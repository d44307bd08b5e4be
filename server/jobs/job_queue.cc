#include "server/jobs/job_queue.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/random_id.h"
#include "base/reason.h"
#include "base/sha256.h"
#include "base/status.h"
#include "server/jobs/job_kinds.h"

namespace optod::jobs {
namespace {

using v1::Job;

constexpr size_t kMaxSpecBytes = 1 << 20;
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

bool IsId(const std::string& id) {
  if (id.empty() || id.size() > 63 || !(id[0] >= 'a' && id[0] <= 'z') || id.back() == '-') return false;
  return std::all_of(id.begin(), id.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

/// 2GiB, 512MiB, 1000000.
absl::StatusOr<int64_t> Bytes(const nlohmann::json& value) {
  if (value.is_number_integer() && value.get<int64_t>() > 0) return value.get<int64_t>();
  if (value.is_string()) {
    const std::string text = value.get<std::string>();
    size_t used = 0;
    double number = 0;
    try {
      number = std::stod(text, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    const std::string unit = text.substr(used);
    const double factor = unit == "GiB" || unit == "G"   ? 1073741824.0
                          : unit == "MiB" || unit == "M" ? 1048576.0
                          : unit.empty()                 ? 1.0
                                                         : 0.0;
    if (used > 0 && factor > 0 && number > 0 && number * factor < 9e15) return static_cast<int64_t>(number * factor);
  }
  return InvalidArgument("limits.memory: ", value.dump(), " is not a size like 2GiB");
}

/// 90s, 15m, 2h, or seconds.
absl::StatusOr<int64_t> Seconds(const nlohmann::json& value) {
  if (value.is_number() && value.get<double>() > 0) return static_cast<int64_t>(std::max(1.0, value.get<double>()));
  if (value.is_string()) {
    const std::string text = value.get<std::string>();
    const double factor = text.ends_with("h") ? 3600 : text.ends_with("m") ? 60 : text.ends_with("s") ? 1 : 0;
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (factor > 0 && end == text.c_str() + text.size() - 1 && number > 0 && number < 1e9)
      return static_cast<int64_t>(std::max(1.0, number * factor));
  }
  return InvalidArgument("limits.wall: ", value.dump(), " is not a time like 90s, 15m, 2h");
}

/// Parts of the spec that are the queue's.
absl::Status ReadQueueFields(const std::string& spec_json, Job* job) {
  const auto json = nlohmann::json::parse(spec_json, nullptr, false);
  if (json.contains("priority")) {
    if (!json["priority"].is_number_integer() || std::abs(json["priority"].get<double>()) > 100)
      return InvalidArgument("priority: ", json["priority"].dump(), " must lie in -100 to 100");
    job->set_priority(json["priority"].get<int32_t>());
  }
  if (json.contains("after")) {
    const auto list = json["after"].is_array() ? json["after"] : nlohmann::json::array({json["after"]});
    for (const auto& name : list) {
      if (!name.is_string()) return InvalidArgument("after: not a list of jobs");
      const std::string text = name.get<std::string>();
      job->add_after(text.substr(text.rfind('/') + 1));
    }
  }
  if (!json.contains("limits") || json["limits"].is_null()) return absl::OkStatus();
  if (!json["limits"].is_object()) return InvalidArgument("limits: not a mapping");
  for (const auto& [key, value] : json["limits"].items()) {
    if (key == "memory") {
      ASSIGN_OR_RETURN(const int64_t bytes, Bytes(value));
      job->mutable_placement()->set_memory_bytes(bytes);
    } else if (key == "wall") {
      ASSIGN_OR_RETURN(const int64_t seconds, Seconds(value));
      job->mutable_placement()->mutable_max_wall()->set_seconds(seconds);
    } else if (key == "cpus") {
      if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > 4096)
        return InvalidArgument("limits.cpus: ", value.dump(), " must lie in 1 to 4096");
      job->mutable_placement()->set_cpus(value.get<int32_t>());
    } else {
      return InvalidArgument("limits: unknown field \"", key, "\" (memory, wall, cpus)");
    }
  }
  return absl::OkStatus();
}

/// "/data/x/../y" is judged as "/data/y"; links are followed as far as they exist.
bool IsBelow(const std::string& path, const std::string& root) {
  std::error_code ignored;
  const std::string real = std::filesystem::weakly_canonical(path, ignored).string(),
                    top = std::filesystem::weakly_canonical(root, ignored).string();
  return real == top || real.starts_with(top + "/");
}

std::string SignalText(int signal) {
  std::string text = Cat("killed by signal ", signal, " (", strsignal(signal), ")");
  if (signal == SIGKILL) text += ", perhaps by the kernel for lack of memory";
  return text;
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

absl::Status JobQueue::CheckRequest(const std::string& user, const v1::CreateJobRequest& request,
                                    v1::JobRecord* record) const {
  Job& job = *record->mutable_job();
  if (request.job().spec_json().size() > kMaxSpecBytes) return ResourceExhausted("job.spec_json: over 1 MiB");
  ASSIGN_OR_RETURN(const CheckedSpec spec, CheckJobSpec(request.job().spec_json()));
  RETURN_IF_ERROR(ReadQueueFields(request.job().spec_json(), &job));
  if (!request.job().kind().empty() && request.job().kind() != spec.kind)
    return InvalidArgument("job.kind: \"", request.job().kind(), "\" is not the spec's \"", spec.kind, "\"");
  if (job.placement().backend() == "cuda" || request.job().placement().backend() == "cuda")
    return Unimplemented("job.placement.backend: \"cuda\" is not part of this release");
  for (const std::string& path : spec.paths) {
    if (!path.starts_with("/"))
      return InvalidArgument("job: path \"", path, "\" is relative; the server needs absolute ones");
    const bool allowed =
        options_.file_roots.empty() || std::any_of(options_.file_roots.begin(), options_.file_roots.end(),
                                                   [&](const std::string& root) { return IsBelow(path, root); });
    if (!allowed)
      return absl::PermissionDeniedError("job: path \"" + path +
                                         "\" is outside the folders that this server opens to jobs (--job-files)");
  }
  for (const std::string& other : job.after()) {
    if (!jobs_.contains({user, other})) return NotFound("after: no job ", other);
  }
  job.set_kind(spec.kind);
  job.set_spec_json(request.job().spec_json());
  job.set_total_steps(spec.total_steps);
  job.mutable_placement()->set_backend("cpu");
  job.mutable_placement()->set_engine("local");
  return absl::OkStatus();
}

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
  RETURN_IF_ERROR(CheckRequest(user, request, &record));
  const std::string id = request.job_id().empty() ? RandomId() : request.job_id();
  if (!IsId(id))
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
  if (entry->channel != nullptr) {
    v1::ServerMessage stop;
    stop.mutable_stop()->set_why("cancelled");
    entry->channel->Send(stop);
  } else {
    entry->killed_because = "cancelled";
    entry->killed_ns = entry->cancel_ns;
    launcher_.Kill(entry->handle);
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
  entry.done = false;
  entry.killed_because.clear();
  entry.killed_ns = 0;
  entry.launched_ns = entry.heard_ns = clock_.NowMonotonicNs();
  if (!job.has_start_time()) SetTime(clock_.NowUnixMs(), job.mutable_start_time());
  SetState(entry, Job::SCHEDULED, "worker starts");
  LaunchSpec spec;
  spec.argv = {options_.worker, "attach",   "--server",  address_,
               "--job",         job.name(), "--attempt", std::to_string(job.attempt())};
  spec.environment = options_.environment;
  spec.environment.emplace_back("OPTOD_WORKER_TOKEN", entry.token);
  spec.environment.emplace_back("OMP_WAIT_POLICY", "PASSIVE");  // waiting threads leave the CPUs to other jobs
  spec.log_path = files_.LogPath(entry.record);
  spec.memory_bytes = job.placement().memory_bytes();
  const int32_t attempt = job.attempt();
  auto handle = launcher_.Launch(spec, [this, key, attempt](ExitStatus exit) { OnExit(key, attempt, exit); });
  if (handle.ok())
    entry.handle = *handle;
  else
    SetState(entry, Job::FAILED, std::string(handle.status().message()));
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
  for (auto& [key, entry] : jobs_) entry.heard_ns = std::min(now, entry.heard_ns + gap - kLongestTickNs);
}

void JobQueue::CheckSilence(Entry& entry, int64_t now) {
  if (entry.done) return;
  if (!entry.killed_because.empty()) {
    // What does not even die (a process in an uninterruptible call, a machine out of reach) must not hold up the job.
    if ((now - entry.killed_ns) / 1'000'000 > options_.cancel_grace_ms)
      AttemptEnded(entry, entry.killed_because, /*crash=*/true);
    return;
  }
  const int64_t patience = entry.channel == nullptr ? options_.start_ms : options_.lease_ms;
  const int64_t silent_ms = (now - entry.heard_ns) / 1'000'000,
                wall_s = entry.record.job().placement().max_wall().seconds();
  if (silent_ms > patience)
    entry.killed_because = Cat("said nothing for ", silent_ms / 1000, " s");
  else if (entry.record.cancelling() && (now - entry.cancel_ns) / 1'000'000 > options_.cancel_grace_ms)
    entry.killed_because = "cancelled";
  else if (wall_s > 0 && (now - entry.launched_ns) / 1'000'000'000 > wall_s)
    entry.killed_because = Cat("limits.wall: ", wall_s, " s are over");
  if (entry.killed_because.empty()) return;
  entry.killed_ns = now;
  launcher_.Kill(entry.handle);
}

void JobQueue::OnExit(Key key, int32_t attempt, ExitStatus exit) {
  std::lock_guard lock(mutex_);
  const auto it = jobs_.find(key);
  if (it == jobs_.end()) return;
  Entry& entry = it->second;
  if (entry.record.job().attempt() != attempt || !IsUnderWay(entry.record.job().state())) return;
  entry.handle = 0;
  std::string how = exit.signal != 0 ? SignalText(exit.signal) : Cat("ended with code ", exit.code);
  if (entry.record.job().state() == Job::SCHEDULED) {
    how += " before it began";
    if (const int64_t bytes = entry.record.job().placement().memory_bytes(); bytes > 0)
      how += Cat(" (limits.memory: ", bytes >> 20, " MiB may be too little for the program itself)");
  }
  AttemptEnded(entry, entry.killed_because.empty() ? how : entry.killed_because, /*crash=*/true);
}

/// From now on nothing that the attempt's worker says counts.
void JobQueue::Fence(Entry& entry) {
  if (!entry.token.empty() && options_.on_attempt_end)
    options_.on_attempt_end(entry.record.user(), (clock_.NowMonotonicNs() - entry.launched_ns) / 1'000'000);
  entry.token.clear();
  if (entry.channel != nullptr) channels_.erase(entry.channel);
  entry.channel = nullptr;
}

void JobQueue::AttemptEnded(Entry& entry, const std::string& how, bool crash) {
  Fence(entry);
  if (entry.record.cancelling()) return SetState(entry, Job::CANCELLED, "cancelled");
  if (stopping_) return SetState(entry, Job::QUEUED, "the server ends; goes on from the last checkpoint");
  if (how.starts_with("limits.wall")) return SetState(entry, Job::FAILED, how);
  if (crash) entry.record.set_crashes(entry.record.crashes() + 1);
  const std::string text = Cat("worker of attempt ", entry.record.job().attempt(), " ", how);
  if (entry.record.crashes() >= kMaxCrashes)
    return SetState(entry, Job::FAILED, Cat(text, "; ", kMaxCrashes, " attempts ended so"));
  SetState(entry, Job::QUEUED, text + "; goes on from the last checkpoint");
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
    if (entry.channel != nullptr) return Aborted("attempt: another worker has it");
    entry.channel = channel;
    entry.heard_ns = clock_.NowMonotonicNs();
    channels_[channel] = key;
    SetState(entry, Job::RUNNING, "");
    v1::WorkerTask task;
    task.set_spec_json(job.spec_json());
    task.set_folder(files_.WorkFolder(entry.record));
    task.set_attempt(job.attempt());
    task.set_threads(job.placement().cpus());
    return task;
  }
  return NotFound("job: no such job");
}

absl::Status JobQueue::OnMessage(WorkerChannel* channel, const v1::WorkerMessage& message) {
  std::lock_guard lock(mutex_);
  const auto it = channels_.find(channel);
  if (it == channels_.end()) return Aborted("attempt: it is over");
  Entry& entry = jobs_[it->second];
  Job& job = *entry.record.mutable_job();
  entry.heard_ns = clock_.NowMonotonicNs();
  switch (message.message_case()) {
    case v1::WorkerMessage::kProgress: {
      std::map<std::string, double> metrics(message.progress().metrics().begin(), message.progress().metrics().end());
      job.set_step(message.progress().step());
      job.set_progress(job.total_steps() > 0 ? static_cast<double>(job.step()) / static_cast<double>(job.total_steps())
                                             : 0);
      for (const auto& [name, value] : metrics) (*job.mutable_metrics())[name] = value;
      AddEvent(entry, metrics);
      break;
    }
    case v1::WorkerMessage::kMemory:
      *job.mutable_memory() = message.memory();
      break;
    case v1::WorkerMessage::kCheckpoint:
      job.set_checkpoint_step(
          message.checkpoint()
              .step());  // on disk with the next change of state; the checkpoint itself is the worker's file
      break;
    case v1::WorkerMessage::kDone:
      OnDone(entry, message.done());
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

void JobQueue::OnDone(Entry& entry, const v1::WorkerDone& done) {
  entry.done = true;
  const auto code = static_cast<absl::StatusCode>(done.code());
  entry.record.mutable_job()->set_result_json(done.result_json());
  if (code == absl::StatusCode::kOk) {
    Fence(entry);
    entry.record.mutable_job()->set_step(entry.record.job().total_steps());
    return SetState(entry, Job::SUCCEEDED, "");
  }
  if (code == absl::StatusCode::kCancelled) return AttemptEnded(entry, "stopped", /*crash=*/false);
  Fence(entry);
  SetState(entry, Job::FAILED, done.message());
}

void JobQueue::Detach(WorkerChannel* channel) {
  std::lock_guard lock(mutex_);
  const auto it = channels_.find(channel);
  if (it == channels_.end()) return;
  Entry& entry = jobs_[it->second];
  channels_.erase(it);
  entry.channel = nullptr;  // its process ends by itself now; OnExit judges, CheckSilence kills it if it does not
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
    for (const auto& [channel, key] : channels_) channel->Send(stop);
  }
  const int64_t end = clock_.NowMonotonicNs() + grace_ms * 1'000'000;
  while (any_running() && clock_.NowMonotonicNs() < end) clock_.SleepFor(std::chrono::milliseconds(20));
  std::lock_guard lock(mutex_);
  for (auto& [key, entry] : jobs_) {
    if (entry.handle != 0) launcher_.Kill(entry.handle);
    if (IsUnderWay(entry.record.job().state())) AttemptEnded(entry, "stopped", /*crash=*/false);
  }
}

}  // namespace optod::jobs
