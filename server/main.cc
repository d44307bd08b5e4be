/// optod: parses the command line, starts the server, waits for a signal. Everything else is in app.h.
/// Exit codes: 0 served and drained, 1 could not run, 2 usage or configuration, 130 a second signal cut the drain
/// short.

#include <grpc/support/log.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/secret.h"
#include "server/app.h"
#include "server/config/config.h"
#include "server/log/log.h"

namespace {

constexpr int kRuntimeError = 1;
constexpr int kUsage = 2;
constexpr int kCutShort = 130;
constexpr char kLlmKey[] = "OPTOD_LLM_KEY";

/// Keeps freed memory instead of giving it back: the first touch of a page costs more than most of what is done in it,
/// and tensors come in the same sizes again and again. Worth a factor of 4 to 9 in streamed bytes/s.
void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  mallopt(M_TOP_PAD, 64 << 20);
}

/// gRPC's own messages become events of our log.
void ForwardGrpcLog(gpr_log_func_args* args) {
  const char* file = std::strrchr(args->file, '/');
  auto level = args->severity == GPR_LOG_SEVERITY_ERROR ? optod::log::Level::kWarn : optod::log::Level::kDebug;
  optod::log::Write(level, "grpc", {{"at", file == nullptr ? args->file : file + 1}, {"message", args->message}});
}

/// Signals as a file descriptor, blocked in every thread that is started afterwards.
int SignalDescriptor() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return signalfd(-1, &set, SFD_CLOEXEC);
}

/// The number of the signal, or 0 when `wake` was written first.
int WaitForSignal(int signals, int wake) {
  pollfd fds[2] = {{signals, POLLIN, 0}, {wake, POLLIN, 0}};
  while (poll(fds, 2, -1) < 0) {
  }
  if ((fds[0].revents & POLLIN) != 0) {
    signalfd_siginfo info{};
    if (read(signals, &info, sizeof(info)) == sizeof(info)) return static_cast<int>(info.ssi_signo);
  }
  uint64_t ignored = 0;
  (void)!read(wake, &ignored, sizeof(ignored));
  return 0;
}

void Wake(int descriptor) {
  uint64_t one = 1;
  (void)!write(descriptor, &one, sizeof(one));
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "optod: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? kUsage : kRuntimeError;
}

/// "" when /proc does not say.
std::string ProgramFolder() {
  std::string path(4096, '\0');
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  path.resize(length > 0 ? static_cast<size_t>(length) : 0);
  return path.substr(0, path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
}

int Serve(const optod::config::Config& config, const optod::Secret& llm_key) {
  int signals = SignalDescriptor();
  int wake = eventfd(0, EFD_CLOEXEC);
  std::atomic<int64_t> grace_ms{-1};
  optod::server::Environment environment;
  environment.get_env = [&llm_key](const std::string& name) -> std::optional<std::string> {
    if (name == kLlmKey) return llm_key.empty() ? std::nullopt : std::optional<std::string>(llm_key.Reveal());
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
  environment.program_dir = ProgramFolder();
  environment.on_drain_request = [&](int64_t grace) {
    grace_ms = grace;
    Wake(wake);
  };
  auto app = optod::server::App::Start(config, environment);
  if (!app.ok()) return Fail(app.status());
  std::printf("%s\n", (*app)->ReadyLine().c_str());
  std::fflush(stdout);
  optod::log::Info("ready", {{"version", optod::config::Version()},
                             {"grpc", (*app)->grpc_addresses().front()},
                             {"http", (*app)->http_address()},
                             {"auth", config.auth}});

  int signal = WaitForSignal(signals, wake);
  optod::log::Info("draining", {{"why", signal == 0 ? "request" : signal == SIGTERM ? "SIGTERM" : "SIGINT"}});
  std::thread stopper([&] {
    (*app)->Shutdown(grace_ms);
    Wake(wake);
  });
  if (WaitForSignal(signals, wake) != 0) _exit(kCutShort);
  stopper.join();
  optod::log::Info("stopped");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  KeepFreedMemory();
  prctl(PR_SET_DUMPABLE, 0);  // tokens and keys stay out of core dumps and of other processes' reach
  const optod::Secret llm_key = optod::TakeFromEnvironment(kLlmKey);
  auto line = optod::config::ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc));
  if (!line.ok()) return Fail(line.status());
  if (line->only_print) {
    std::fputs(line->text.c_str(), stdout);
    return 0;
  }
  optod::log::Init(optod::log::LevelFromName(line->config.log_level),
                   line->config.log_format == "json" ? optod::log::Format::kJson : optod::log::Format::kText);
  gpr_set_log_verbosity(line->config.log_level == "debug" ? GPR_LOG_SEVERITY_INFO : GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(&ForwardGrpcLog);
  return Serve(line->config, llm_key);
}
