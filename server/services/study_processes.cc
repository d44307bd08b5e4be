#include "server/services/study_processes.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/reason.h"
#include "base/status.h"

namespace optod::services {
namespace {

constexpr int kMessageBytes = 64 << 20;

/// What the process said last: "optod-worker: MESSAGE".
std::string LastWords(const std::string& log) {
  std::ifstream file(log, std::ios::binary);
  std::string words;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("optod-worker: ")) words = line.substr(14);
  }
  return words;
}

}  // namespace

void StudyProcess::SetEnd(jobs::ExitStatus exit) {
  {
    const std::lock_guard lock(mutex_);
    exit_ = exit;
  }
  ended = true;
}
std::string StudyProcess::how() const {
  const std::lock_guard lock(mutex_);
  if (exit_.signal != 0) return Cat("killed by signal ", exit_.signal, " (", strsignal(exit_.signal), ")");
  return exit_.code == 0 ? "idle" : Cat("ended with code ", exit_.code);
}
bool StudyProcess::EndedByItself() const {
  const std::lock_guard lock(mutex_);
  return ended && exit_.signal == 0 && exit_.code == 0;
}

absl::Status StudyLease::Explain(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE)
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  for (int i = 0; i < 50 && !process_->ended; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::string how = process_->ended ? process_->how() : "it does not answer";
  return WithReason(Unavailable("study: its process is gone (", how, "); ask again"), "STUDY_PROCESS_ENDED");
}

StudyProcesses::StudyProcesses(StudyProcessOptions options, jobs::Launcher& launcher)
    : options_(std::move(options)), launcher_(launcher) {}

StudyProcesses::~StudyProcesses() {
  Stop();
  if (sockets_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(sockets_, ignored);
}

absl::StatusOr<StudyLease> StudyProcesses::Acquire(const std::string& name, const std::string& folder,
                                                   int64_t memory_bytes) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return WithReason(Unavailable("the server is draining; try again later"), "DRAINING");
    std::shared_ptr<Entry>& found = entries_[name];
    if (found == nullptr || (found->process != nullptr && found->process->ended)) {
      found = nullptr;
      if (const absl::Status room = MakeRoom(); !room.ok()) {
        entries_.erase(name);
        return room;
      }
      found = std::make_shared<Entry>();
      if (const absl::Status launched = Launch(name, folder, memory_bytes, *found); !launched.ok()) {
        entries_.erase(name);
        return launched;
      }
    }
    entry = found;
    entry->process->used = ++acquired_;
  }
  StudyLease lease(entry->process);
  const std::lock_guard starting(entry->starting);
  if (!entry->listening) {
    RETURN_IF_ERROR(AwaitStart(*entry, folder + "/order-serve.log"));
    entry->listening = true;
  }
  return lease;
}

/// Forgets those that have ended, and ends the idle one that was asked longest ago when there are too many.
absl::Status StudyProcesses::MakeRoom() {
  std::erase_if(entries_, [](const auto& item) {
    return item.second != nullptr && item.second->process != nullptr && item.second->process->ended;
  });
  int running = 0;
  Entry* oldest = nullptr;
  for (auto& [name, entry] : entries_) {
    if (entry == nullptr || entry->process == nullptr) continue;
    ++running;
    if (entry->process->calls > 0) continue;
    if (oldest == nullptr || entry->process->used < oldest->process->used) oldest = entry.get();
  }
  if (running < options_.most) return absl::OkStatus();
  if (oldest == nullptr)
    return ResourceExhausted("study: ", running, " other studies are being asked; try again later");
  launcher_.Kill(oldest->handle);
  std::erase_if(entries_, [&](const auto& item) { return item.second.get() == oldest; });
  return absl::OkStatus();
}

absl::Status StudyProcesses::Launch(const std::string& name, const std::string& folder, int64_t memory_bytes,
                                    Entry& entry) {
  if (sockets_.empty()) {
    std::string made = options_.socket_root + "/optod-study-XXXXXX";
    if (mkdtemp(made.data()) == nullptr) return Internal("study: no folder for its socket: ", std::strerror(errno));
    sockets_ = made;
  }
  entry.socket = Cat(sockets_, "/", ++launched_);
  entry.process = std::make_shared<StudyProcess>();
  jobs::LaunchSpec spec;
  spec.argv = {options_.worker, "order-serve", "--folder", folder,           "--socket",
               entry.socket,    "--name",      name,       "--idle-seconds", std::to_string(options_.idle_seconds)};
  spec.environment = options_.environment;
  spec.environment.emplace_back("OMP_WAIT_POLICY", "PASSIVE");
  spec.log_path = folder + "/order-serve.log";
  if (memory_bytes > 0) spec.environment.emplace_back("OPTOD_WORKER_MEMORY", std::to_string(memory_bytes));
  std::error_code ignored;
  std::filesystem::remove(spec.log_path, ignored);
  ASSIGN_OR_RETURN(entry.handle,
                   launcher_.Launch(spec, [process = entry.process](jobs::ExitStatus exit) { process->SetEnd(exit); }));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytes);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);  // also the time a handshake may take
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel("unix:" + entry.socket, grpc::InsecureChannelCredentials(), arguments);
  entry.process->stub = v1::OrderService::NewStub(channel);
  entry.channel = channel;
  return absl::OkStatus();
}

absl::Status StudyProcesses::AwaitStart(Entry& entry, const std::string& log) {
  for (int tenths = 0; tenths < 10 * options_.start_seconds; ++tenths) {
    if (entry.channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::milliseconds(100)))
      return absl::OkStatus();
    if (!entry.process->ended) continue;
    const std::string words = LastWords(log);
    if (!words.empty()) return FailedPrecondition("study: ", words);
    return WithReason(Unavailable("study: its process is gone (", entry.process->how(), "); ask again"),
                      "STUDY_PROCESS_ENDED");
  }
  launcher_.Kill(entry.handle);
  return Unavailable("study: its process did not start within ", options_.start_seconds, " s");
}

void StudyProcesses::Stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  for (auto& [name, entry] : entries_) {
    if (entry != nullptr && entry->process != nullptr && !entry->process->ended) launcher_.Kill(entry->handle);
  }
}

}  // namespace optod::services
