// The load for steps_bench.py: durable ask + tell of zo-sgd sessions (layout only, 1 B parameters) through the C++
// client.
//
//   steps_client ADDRESS --mode unary|stream --shape own|shared [--callers 64] [--processes 4] [--channels 1]
//   [--seconds 8] [--warmup 2]
//                [--queries N] [--session NAME]
//   steps_client ADDRESS --history STEPS --session NAME        drives NAME (made here, q = 1) through STEPS steps
//
// One step = one probe asked for, and its two losses told and committed (EVERY_STEP), under a fresh request id.
//   unary   Ask, then Tell                                     the latency of a step is that of both calls
//   stream  one message that tells step n and asks for n + 1   the latency of a step is that of the exchange
//   own     every caller has its session, q = 1                every step makes a version
//   shared  all callers work on one session, q = --queries     every q steps make a version; the default is one query a
//   caller
// --session uses (or makes) the named session instead of fresh ones: with --shape own and one caller, to compare an old
// one with a fresh one. Callers are threads, split over processes; a channel is one connection, shared by the callers
// of a process.
//
// Prints one JSON object: steps_per_s, p50_ms, p99_ms, max_ms, errors, first_error; with --history: steps, seconds,
// steps_per_s.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/random_id.h"
#include "base/status.h"
#include "clients/cpp/client.h"
#include "clients/cpp/layout.h"

namespace optod {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Options {
  std::string address, mode = "stream", shape = "own", session;
  int callers = 64, processes = 4, channels = 1, queries = 0;
  double seconds = 8, warmup = 2;
  int64_t history = 0;
};

/// What one caller saw between the two times.
struct Observed {
  std::vector<float> latencies_ms;
  int64_t errors = 0;
  std::string first_error;

  void Fail(const absl::Status& status) {
    if (errors++ == 0) first_error = status.ToString();
  }
  void Add(const Observed& other) {
    latencies_ms.insert(latencies_ms.end(), other.latencies_ms.begin(), other.latencies_ms.end());
    if (first_error.empty()) first_error = other.first_error;
    errors += other.errors;
  }
};

struct Window {
  SteadyTime from, to;
};

float MillisecondsSince(SteadyTime start) {
  return std::chrono::duration<float, std::milli>(std::chrono::steady_clock::now() - start).count();
}

/// The session `id`, made when it is not there yet.
absl::Status MakeSession(client::Client& client, const std::string& id, int queries) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name("zo-sgd");
  auto& hyper = *request.mutable_optimizer()->mutable_hyperparameters();
  hyper["lr"].set_number(1e-6);
  hyper["queries"].set_number(queries);
  *request.mutable_layout() = client::Float32Layout({{"w", {31'250, 32'000}}});
  request.mutable_durability()->set_mode(v1::Durability::EVERY_STEP);
  const absl::Status status = client.CreateSession(std::move(request)).status();
  return absl::IsAlreadyExists(status) ? absl::OkStatus() : status;
}

v1::AskRequest AskFor(const std::string& session, const std::string& worker) {
  v1::AskRequest ask;
  ask.set_session(session);
  ask.set_worker(worker);
  ask.mutable_wait()->set_seconds(5);
  return ask;
}

v1::TellRequest TellOf(const std::string& session, const std::string& probe_id) {
  v1::TellRequest tell;
  tell.set_session(session);
  tell.set_request_id(Uuid4());
  v1::ProbeResult* result = tell.mutable_losses()->add_results();
  result->set_probe_id(probe_id);
  result->set_loss_plus(0.7001);
  result->set_loss_minus(0.6999);
  return tell;
}

/// Counts a step that began at `start`; false when the window is over.
bool Count(const Window& window, SteadyTime start, Observed* out) {
  const SteadyTime now = std::chrono::steady_clock::now();
  if (now >= window.to) return false;
  if (now >= window.from) out->latencies_ms.push_back(MillisecondsSince(start));
  return true;
}

void CallUnary(client::Client& client, const std::string& session, const std::string& worker, const Window& window,
               Observed* out) {
  for (;;) {
    const SteadyTime start = std::chrono::steady_clock::now();
    if (start >= window.to) return;
    const auto asked = client.Ask(AskFor(session, worker));
    if (asked.ok() && asked->probes().empty()) continue;
    const absl::Status status =
        asked.ok() ? client.Tell(TellOf(session, asked->probes(0).probe_id())).status() : asked.status();
    if (!status.ok()) {
      out->Fail(status);
    } else if (!Count(window, start, out)) {
      return;
    }
  }
}

void CallStream(client::Client& client, const std::string& session, const std::string& worker, const Window& window,
                Observed* out) {
  auto stream = client.OpenAskTell();
  if (!stream.ok()) return out->Fail(stream.status());
  std::string probe_id;
  for (;;) {
    const SteadyTime start = std::chrono::steady_clock::now();
    if (start >= window.to) break;
    v1::AskTellRequest message;
    const bool tells = !probe_id.empty();
    if (tells) *message.mutable_tell() = TellOf(session, probe_id);
    *message.mutable_ask() = AskFor(session, worker);
    auto answer = (*stream)->Exchange(std::move(message));
    probe_id = answer.ok() && !answer->ask().probes().empty() ? answer->ask().probes(0).probe_id() : "";
    if (!answer.ok()) {
      out->Fail(answer.status());
      if (absl::IsUnavailable(answer.status())) return;
    } else if (tells && !Count(window, start, out)) {
      break;
    }
  }
  if (const absl::Status closed = (*stream)->Close(); !closed.ok()) out->Fail(closed);
}

std::string SessionOf(const Options& options, const std::string& run, int caller) {
  if (!options.session.empty()) return options.session;
  return options.shape == "shared" ? "bench-" + run : "bench-" + run + "-" + std::to_string(caller);
}

void WriteAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = write(fd, at, bytes);
    if (n <= 0) _exit(1);
    at += n;
    bytes -= static_cast<size_t>(n);
  }
}

bool ReadAll(int fd, void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = read(fd, at, bytes);
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

/// The callers of one process: makes sessions, says 'r', waits for the start time, runs, sends what it saw.
int RunProcess(const Options& options, const std::string& run, int process, int in, int out) {
  std::vector<std::unique_ptr<client::Client>> clients;
  client::ClientOptions connection;
  connection.address = options.address;
  for (int i = 0; i < options.channels; ++i) {
    auto client = client::Client::Connect(connection);
    if (!client.ok()) return 1;
    clients.push_back(*std::move(client));
  }
  const int queries = options.queries > 0 ? options.queries : options.shape == "shared" ? options.callers : 1;
  Observed total;
  for (int caller = process; caller < options.callers; caller += options.processes) {
    const absl::Status made = MakeSession(*clients[0], SessionOf(options, run, caller), queries);
    if (!made.ok()) total.Fail(made);
  }
  WriteAll(out, "r", 1);
  int64_t start_ns = 0;
  if (!ReadAll(in, &start_ns, sizeof start_ns)) return 1;
  const SteadyTime start{std::chrono::nanoseconds(start_ns)};
  const auto after = [start](double seconds) {
    return start + std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
  };
  const Window window{after(options.warmup), after(options.warmup + options.seconds)};
  std::vector<Observed> observed(static_cast<size_t>(options.callers));
  std::vector<std::thread> threads;
  for (int caller = process; caller < options.callers && total.errors == 0; caller += options.processes) {
    client::Client& client = *clients[threads.size() % clients.size()];
    threads.emplace_back([&options, &run, &client, &window, caller, seen = &observed[static_cast<size_t>(caller)]] {
      auto* call = options.mode == "unary" ? &CallUnary : &CallStream;
      call(client, SessionOf(options, run, caller), "worker-" + std::to_string(caller), window, seen);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Observed& one : observed) total.Add(one);
  const int64_t sizes[3] = {static_cast<int64_t>(total.latencies_ms.size()), total.errors,
                            static_cast<int64_t>(total.first_error.size())};
  WriteAll(out, sizes, sizeof sizes);
  WriteAll(out, total.latencies_ms.data(), total.latencies_ms.size() * sizeof(float));
  WriteAll(out, total.first_error.data(), total.first_error.size());
  return 0;
}

bool ReadObserved(int fd, Observed* out) {
  int64_t sizes[3];
  if (!ReadAll(fd, sizes, sizeof sizes)) return false;
  Observed one;
  one.latencies_ms.resize(static_cast<size_t>(sizes[0]));
  one.errors = sizes[1];
  one.first_error.resize(static_cast<size_t>(sizes[2]));
  if (!ReadAll(fd, one.latencies_ms.data(), one.latencies_ms.size() * sizeof(float))) return false;
  if (!ReadAll(fd, one.first_error.data(), one.first_error.size())) return false;
  out->Add(one);
  return true;
}

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

void Print(const Options& options, Observed* all) {
  std::vector<float>& ms = all->latencies_ms;
  std::sort(ms.begin(), ms.end());
  const auto at = [&ms](double p) {
    return ms.empty() ? 0.0 : static_cast<double>(ms[static_cast<size_t>(p * static_cast<double>(ms.size() - 1))]);
  };
  std::printf(
      "{\"mode\": \"%s\", \"shape\": \"%s\", \"callers\": %d, \"seconds\": %g, \"steps\": %zu, \"steps_per_s\": %.1f, "
      "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, \"errors\": %lld, \"first_error\": %s}\n",
      options.mode.c_str(), options.shape.c_str(), options.callers, options.seconds, ms.size(),
      static_cast<double>(ms.size()) / options.seconds, at(0.5), at(0.99), at(1.0), static_cast<long long>(all->errors),
      Quoted(all->first_error).c_str());
}

/// gRPC does not survive a fork: the parent never touches it.
int RunLoad(const Options& options) {
  const std::string run = Uuid4().substr(0, 8);
  struct Child {
    pid_t pid;
    int to, from;
  };
  std::vector<Child> children;
  for (int process = 0; process < options.processes; ++process) {
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0) return 1;
    const pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) _exit(RunProcess(options, run, process, down[0], up[1]));
    close(down[0]);
    close(up[1]);
    children.push_back({pid, down[1], up[0]});
  }
  bool well = true;
  char ready = 0;
  for (const Child& child : children) well = ReadAll(child.from, &ready, 1) && well;
  const int64_t start_ns = (std::chrono::steady_clock::now() + std::chrono::milliseconds(50)).time_since_epoch() /
                           std::chrono::nanoseconds(1);
  for (const Child& child : children) WriteAll(child.to, &start_ns, sizeof start_ns);
  Observed all;
  for (const Child& child : children) well = ReadObserved(child.from, &all) && well;
  for (const Child& child : children) waitpid(child.pid, nullptr, 0);
  if (!well) {
    std::fprintf(stderr, "steps_client: a process ended early\n");
    return 1;
  }
  Print(options, &all);
  return all.latencies_ms.empty() ? 1 : 0;
}

/// Tells `steps` steps over one stream with 64 messages under way: probe ids are VERSION.QUERY, so that a tell need not
/// wait for the answer to the one before it.
absl::Status DriveHistory(const Options& options) {
  client::ClientOptions connection;
  connection.address = options.address;
  ASSIGN_OR_RETURN(auto client, client::Client::Connect(connection));
  RETURN_IF_ERROR(MakeSession(*client, options.session, 1));
  v1::GetSessionRequest get;
  get.set_name(options.session);
  ASSIGN_OR_RETURN(const v1::Session before, client->GetSession(get));
  const int64_t first = before.head_version();
  ASSIGN_OR_RETURN(auto stream, client->OpenAskTell());
  const SteadyTime start = std::chrono::steady_clock::now();
  int64_t sent = 0;
  for (int64_t received = 0; received < options.history; ++received) {
    for (; sent < options.history && sent - received < 64; ++sent) {
      v1::AskTellRequest message;
      *message.mutable_tell() = TellOf(options.session, std::to_string(first + sent) + ".0");
      RETURN_IF_ERROR(stream->Send(std::move(message)));
    }
    ASSIGN_OR_RETURN(const v1::AskTellResponse answer, stream->Receive());
    if (answer.error_code() != 0)
      return absl::Status(static_cast<absl::StatusCode>(answer.error_code()), answer.error_message());
  }
  RETURN_IF_ERROR(stream->Close());
  const double seconds = static_cast<double>(MillisecondsSince(start)) / 1e3;
  ASSIGN_OR_RETURN(const v1::Session after, client->GetSession(get));
  std::printf("{\"steps\": %lld, \"head_version\": %lld, \"seconds\": %.2f, \"steps_per_s\": %.1f}\n",
              static_cast<long long>(options.history), static_cast<long long>(after.head_version()), seconds,
              static_cast<double>(options.history) / seconds);
  return absl::OkStatus();
}

int Usage() {
  std::fprintf(stderr,
               "usage: steps_client ADDRESS --mode unary|stream --shape own|shared [--callers N] [--processes N] "
               "[--channels N]\n"
               "                    [--seconds S] [--warmup S] [--queries N] [--session NAME]\n"
               "       steps_client ADDRESS --history STEPS --session NAME\n");
  return 2;
}

bool Parse(int argc, char** argv, Options* out) {
  if (argc < 2 || argc % 2 != 0) return false;
  out->address = argv[1];
  const std::map<std::string, std::string*> texts = {
      {"--mode", &out->mode}, {"--shape", &out->shape}, {"--session", &out->session}};
  const std::map<std::string, int*> numbers = {{"--callers", &out->callers},
                                               {"--processes", &out->processes},
                                               {"--channels", &out->channels},
                                               {"--queries", &out->queries}};
  const std::map<std::string, double*> reals = {{"--seconds", &out->seconds}, {"--warmup", &out->warmup}};
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (auto text = texts.find(name); text != texts.end()) {
      *text->second = argv[i + 1];
    } else if (auto number = numbers.find(name); number != numbers.end()) {
      *number->second = std::atoi(argv[i + 1]);
    } else if (auto real = reals.find(name); real != reals.end()) {
      *real->second = std::atof(argv[i + 1]);
    } else if (name == "--history") {
      out->history = std::atoll(argv[i + 1]);
    } else {
      return false;
    }
  }
  out->processes = std::min(out->processes, out->callers);
  const bool modes = (out->mode == "unary" || out->mode == "stream") && (out->shape == "own" || out->shape == "shared");
  return modes && out->callers > 0 && out->processes > 0 && out->channels > 0 && out->queries >= 0 &&
         out->seconds > 0 && out->warmup >= 0 && (out->history == 0 || !out->session.empty());
}

}  // namespace
}  // namespace optod

int main(int argc, char** argv) {
  optod::Options options;
  if (!optod::Parse(argc, argv, &options)) return optod::Usage();
  if (options.history == 0) return optod::RunLoad(options);
  const absl::Status status = optod::DriveHistory(options);
  if (!status.ok()) std::fprintf(stderr, "steps_client: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
