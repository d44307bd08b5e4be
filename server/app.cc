#include "server/app.h"

#include <google/protobuf/descriptor.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/fs.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "optim/zo/stream.h"
#include "optod/v1/admin.pb.h"
#include "optod/v1/artifact.pb.h"
#include "optod/v1/event.pb.h"
#include "optod/v1/job.pb.h"
#include "optod/v1/operation.pb.h"
#include "optod/v1/order.pb.h"
#include "optod/v1/search.pb.h"
#include "optod/v1/session.pb.h"
#include "optod/v1/trace.pb.h"
#include "optod/v1/workflow.pb.h"
#include "optod/v1/worker.pb.h"
#include "server/auth/authenticator.h"
#include "server/checks.h"
#include "server/engine/engine.h"
#include "server/engine/first_order.h"
#include "server/engine/operations.h"
#include "server/engine/trace_family.h"
#include "server/engine/trace_services.h"
#include "server/engine/zeroth_order.h"
#include "server/jobs/job_queue.h"
#include "server/language_models.h"
#include "server/listeners.h"
#include "server/log/log.h"
#include "server/services/admin_service.h"
#include "server/services/artifact_service.h"
#include "server/services/byte_budget.h"
#include "server/services/event_service.h"
#include "server/services/job_service.h"
#include "server/services/order_service.h"
#include "server/services/request_meter.h"
#include "server/services/search_service.h"
#include "server/services/session_service.h"
#include "server/services/trace_service.h"
#include "server/services/workflow_service.h"
#include "server/spending.h"
#include "server/store/blob_store.h"
#include "server/store/caretaker.h"
#include "server/store/directory_lock.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"
#include "server/usage_report.h"
#include "server/web/http_server.h"
#include "server/web/metrics.h"
#include "server/web/status_page.h"
#include "trace/sandbox/sandbox.h"

namespace optod::server {
namespace {

constexpr char kMemory[] = ":memory:";
constexpr int64_t kTransferBudgetBytes = int64_t{1} << 30;

constexpr int kStudyThreads = 16;  // questions about studies under way at once
constexpr int kLlmThreads = 16;  // model calls under way at once; each waits on the network
constexpr std::chrono::hours kCareInterval{1};
constexpr std::chrono::milliseconds kJobTick{250};

/// The public services. `implemented` is what GetServerInfo reports.
constexpr std::string_view kJobService = "optod.v1.JobService", kOrderService = "optod.v1.OrderService";
struct ServiceRow {
  const char* name;
  bool implemented;
};
constexpr ServiceRow kServices[] = {
    {"optod.v1.AdminService", true}, {"optod.v1.ArtifactService", true},  {"optod.v1.EventService", true},
    {"optod.v1.JobService", true},   {"optod.v1.OperationService", true}, {"optod.v1.OrderService", true},
    {"optod.v1.SearchService", true},
    {"optod.v1.SessionService", true},
    {"optod.v1.TraceService", true},
    {"optod.v1.WorkflowService", true},
};

/// The families of optimizers, by the registry's names.
std::map<std::string, engine::FamilyFactory> Families() {
  return {{"first-order", engine::FirstOrderFactory()},
          {"zeroth-order", engine::ZerothOrderFactory()},
          {"trace", engine::MakeTraceFamilyFactory()}};
}

int PoolThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 2, 32); }

/// "/optod.v1.SessionService/Ask", ... of every declared method.
std::vector<std::string> MethodNames() {
  // The generated descriptors register when their file is linked; naming one message of each file keeps them all.
  const google::protobuf::Message* const files[] = {
      &v1::ServerInfo::default_instance(),     &v1::Artifact::default_instance(),
      &v1::Event::default_instance(),          &v1::Job::default_instance(),
      &v1::Operation::default_instance(),      &v1::Session::default_instance(),
      &v1::BackwardRequest::default_instance(), &v1::CompleteRequest::default_instance(),
      &v1::Search::default_instance(),          &v1::OrderStudy::default_instance(),
      &v1::WorkerHello::default_instance()};
  std::vector<std::string> names = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
                                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
  for (const google::protobuf::Message* message : files) {
    const google::protobuf::FileDescriptor* file = message->GetDescriptor()->file();
    for (int s = 0; s < file->service_count(); ++s) {
      const google::protobuf::ServiceDescriptor* service = file->service(s);
      for (int m = 0; m < service->method_count(); ++m)
        names.push_back("/" + service->full_name() + "/" + service->method(m)->name());
    }
  }
  return names;
}

/// The configured program, or the one beside this server; "" = none.
std::string FindWorker(const config::Config& config, const Environment& environment, Fs& fs) {
  if (config.worker == "none") return "";
  if (!config.worker.empty()) return config.worker;
  const std::string beside = environment.program_dir + "/optod-worker";
  return !environment.program_dir.empty() && fs.Exists(beside) ? beside : "";
}

/// Where workers of this machine dial: the first Unix socket, else the first address, loopback in place of "all".
std::string WorkerAddress(const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    if (address.starts_with("unix:")) return address;
  }
  std::string address = addresses.front();
  if (address.starts_with("0.0.0.0:")) address = "127.0.0.1" + address.substr(7);
  if (address.starts_with("[::]:")) address = "[::1]" + address.substr(4);
  return address;
}

/// The message gets the name of what could not be done in front; the code stays.
absl::Status Explain(const std::string& what, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), what + ": " + std::string(status.message()));
}

}  // namespace

struct App::Impl {
  config::Config config;
  Environment environment;
  Clock& clock = SystemClock();
  Fs& fs = PosixFs();
  int64_t start_ns = 0;
  std::atomic<bool> serving{false};
  bool shut_down = false;
  std::atomic<int64_t> commits{0};

  // In the order of construction; members are destroyed from the bottom up.
  std::unique_ptr<store::DirectoryLock> lock;
  std::unique_ptr<store::Store> store;
  std::unique_ptr<store::BlobStore> blobs;
  std::unique_ptr<ThreadPool> pool;      ///< session work
  std::unique_ptr<ThreadPool> care;      ///< what may block: files, store reads, backups
  std::unique_ptr<ThreadPool> llm_pool;  ///< calls of language models
  std::unique_ptr<Timers> timers;        ///< of the engine, posts to pool
  std::unique_ptr<Timers> care_timers;   ///< posts to care
  std::unique_ptr<auth::Authenticator> authenticator;
  LanguageModels models;
  std::unique_ptr<Spending> spending;  ///< the gateway's ledger
  std::once_flag sandbox_once;
  std::unique_ptr<trace::Sandbox> sandbox;  ///< behind CodeSandbox()
  std::unique_ptr<engine::Operations> operations;
  engine::TraceServices trace;
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<services::ByteBudget> transfers;
  std::unique_ptr<web::Metrics> metrics;
  std::unique_ptr<services::EventServiceControl> events;
  std::unique_ptr<jobs::Launcher> launcher;
  std::unique_ptr<jobs::JobQueue> queue;
  std::unique_ptr<services::JobServiceControl> job_service;
  std::unique_ptr<ThreadPool> study_pool;  ///< questions about studies, which may take minutes
  std::unique_ptr<services::StudyProcesses> studies;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> grpc;
  std::vector<std::string> addresses;
  std::unique_ptr<web::HttpServer> http;
  std::string http_address = "off";

  absl::Status OpenStorage();
  absl::Status StartEngine();
  void AddMetrics();
  void AddLlmMetrics();
  void MakeServices();
  absl::Status StartGrpc();
  absl::Status StartHttp();
  services::ServerState State();
  web::Page StatusPage();
  std::vector<std::string> LlmEndpoints() const { return models.gateway->EndpointNames(); }
  /// Of code that models wrote; features() says whether there is one. Looked for when first asked: the probe takes some 60 ms,
  /// which a server that runs no such code need not spend at its start.
  const trace::Sandbox& CodeSandbox() {
    std::call_once(sandbox_once, [this] { sandbox = trace::Sandbox::Detect(environment.get_env("PATH").value_or("")); });
    return *sandbox;
  }
  int64_t UptimeMs() const { return (clock.NowMonotonicNs() - start_ns) / 1'000'000; }
  void SetServing(bool now);
  /// Jobs need a program of their own.
  bool Serves(const ServiceRow& row) const { return row.implemented && ((row.name != kJobService && row.name != kOrderService) || queue->has_worker()); }
  void ScheduleCare();
  absl::Status StartJobs();
  void ScheduleJobs();
  bool DrainEngine(std::chrono::steady_clock::time_point deadline, std::thread* drainer);
};

absl::Status App::Impl::OpenStorage() {
  if (config.data_dir == kMemory) {
    store = store::MakeMemoryStore();
    blobs = store::MakeMemoryBlobStore();
    return absl::OkStatus();
  }
  const std::string what = "data-dir " + config.data_dir;
  RETURN_IF_ERROR(Explain(what, fs.CreateDirectories(config.data_dir, 0700)));
  ASSIGN_OR_RETURN(lock, store::DirectoryLock::Acquire(config.data_dir));
  RETURN_IF_ERROR(Explain(what, fs.CreateDirectories(config.data_dir + "/blobs", 0700)));
  store::SqliteOptions options;
  options.path = config.data_dir + "/optod.db";
  options.synchronous = config.synchronous == "full" ? store::SqliteOptions::kFull : store::SqliteOptions::kNormal;
  options.commits = &commits;
  auto opened = store::OpenSqliteStore(options);
  if (!opened.ok()) return Explain(what, opened.status());
  store = *std::move(opened);
  blobs = store::MakeFileBlobStore(fs, config.data_dir + "/blobs");
  return absl::OkStatus();
}

absl::Status App::Impl::StartEngine() {
  pool = std::make_unique<ThreadPool>(PoolThreads());
  care = std::make_unique<ThreadPool>(2);
  timers = std::make_unique<Timers>(*pool);
  care_timers = std::make_unique<Timers>(*care);
  auto mode = config.auth == "token" ? auth::Mode::kToken : auth::Mode::kOff;
  auto made = auth::Authenticator::Create(mode, *store, clock, fs, config.data_dir);
  if (!made.ok()) return Explain("authentication", made.status());
  authenticator = *std::move(made);

  engine::Context context;
  context.store = store.get();
  context.blobs = blobs.get();
  context.clock = &clock;
  context.pool = pool.get();
  context.timers = timers.get();
  if (config.executor == "sandbox" && !CodeSandbox().features().available)
    log::Warn("sandbox", {{"executor", config.executor}, {"reason", CodeSandbox().features().reason}});
  ASSIGN_OR_RETURN(models, OpenLanguageModels(config, environment.get_env, fs, clock));
  spending = std::make_unique<Spending>(*store, clock, models.limits);
  models.gateway->SetLedger(spending.get());
  for (const std::string& hint : models.hints) log::Warn("llm", {{"hint", hint}});
  llm_pool = std::make_unique<ThreadPool>(kLlmThreads);
  operations = std::make_unique<engine::Operations>(*store, clock, *pool, *timers);
  if (absl::Status ended = operations->AbortUnfinished(); !ended.ok()) return Explain("operations", ended);
  trace = {models.gateway.get(), models.cassette.get(), llm_pool.get(), operations.get(),
           [this](const std::string& user, int64_t count) { spending->CountEvaluations(user, count); }};
  context.trace = &trace;
  engine = std::make_unique<engine::Engine>(context, Families());
  engine->SetMemoryBudget(config.memory_budget_bytes);
  engine->SetMaxLoaded(static_cast<size_t>(config.max_sessions_loaded));
  return absl::OkStatus();
}

void App::Impl::AddLlmMetrics() {
  auto add = [this](const char* name, const char* help, int64_t trace::EndpointTotals::*field) {
    metrics->AddCounters(name, help, "endpoint", [this, field] {
      std::vector<web::Sample> samples;
      for (const trace::EndpointTotals& totals : models.gateway->Totals()) {
        samples.push_back({totals.name, static_cast<double>(totals.*field)});
      }
      return samples;
    });
  };
  add("optod_llm_calls_total", "Calls of language models that were answered", &trace::EndpointTotals::answered);
  add("optod_llm_failures_total", "Calls of language models that failed", &trace::EndpointTotals::failed);
  add("optod_llm_prompt_tokens_total", "Tokens sent to language models", &trace::EndpointTotals::prompt_tokens);
  add("optod_llm_completion_tokens_total", "Tokens that language models answered",
      &trace::EndpointTotals::completion_tokens);
}

void App::Impl::AddMetrics() {
  metrics = std::make_unique<web::Metrics>(MethodNames());
  metrics->AddGauge("optod_sessions_loaded", "Sessions in memory",
                    [this] { return static_cast<double>(engine->LoadedSessions()); });
  metrics->AddGauge("optod_sessions_resident_bytes", "Memory of the sessions in memory",
                    [this] { return static_cast<double>(engine->ResidentBytes()); });
  metrics->AddGauge("optod_blob_bytes", "Bytes in the blob store",
                    [this] { return static_cast<double>(blobs->BytesStored()); });
  metrics->AddGauge("optod_disk_commits_per_second", "Synchronous commits of this disk, measured at start",
                    [this] { return store->CommitsPerSecond(); });
  metrics->AddCounter("optod_commits_total", "Transactions made durable; each holds what came in during the one before",
                      [this] { return static_cast<double>(commits); });
  AddLlmMetrics();
  metrics->AddGauge("optod_transfer_bytes", "Memory held by artifact transfers",
                    [this] { return static_cast<double>(transfers->used_bytes()); });
  metrics->AddGauge("optod_jobs_running", "Jobs with a worker", [this] { return static_cast<double>(queue->running()); });
  metrics->AddGauge("optod_jobs_queued", "Jobs that wait", [this] { return static_cast<double>(queue->queued()); });
  metrics->AddGauge("optod_serving", "1 while new calls are taken", [this] { return serving ? 1.0 : 0.0; });
  metrics->AddGauge("optod_uptime_seconds", "Since the start",
                    [this] { return static_cast<double>(UptimeMs()) / 1000; });
  metrics->AddGauge("process_resident_memory_bytes", "Resident memory",
                    [] { return static_cast<double>(web::ProcessResidentBytes()); });
  metrics->AddGauge("process_open_fds", "Open file descriptors",
                    [] { return static_cast<double>(web::ProcessOpenFiles()); });
}

services::ServerState App::Impl::State() {
  services::ServerState state;
  state.version = config::Version();
  state.normal_path = zo::NormalPathName();
  for (const ServiceRow& row : kServices) state.services.emplace_back(row.name, Serves(row));
  state.llm_endpoints = [this] { return LlmEndpoints(); };
  state.commits_per_second = [this] { return store->CommitsPerSecond(); };
  state.sessions_loaded = [this] { return engine->LoadedSessions(); };
  state.resident_bytes = [] { return web::ProcessResidentBytes(); };
  state.uptime_ms = [this] { return UptimeMs(); };
  state.checks = [this] { return RunChecks(config, {store->CommitsPerSecond(), LlmEndpoints(), CodeSandbox().features().Text()}); };
  state.request_drain = environment.on_drain_request;
  return state;
}

void App::Impl::MakeServices() {
  transfers = std::make_unique<services::ByteBudget>(std::max(kTransferBudgetBytes, config.max_artifact_bytes));
  services::AdminParts admin{authenticator.get(), store.get(), blobs.get(), &fs, &clock, care.get(), queue.get(), config.data_dir,
                             [this](const engine::Caller& caller, const v1::GetUsageRequest& request, v1::GetUsageResponse* response) {
                               return ReportUsage(*spending, caller, request, response);
                             }};
  services::ArtifactParts artifact{
      authenticator.get(), store.get(), blobs.get(), &clock, care.get(), transfers.get(), config.max_artifact_bytes};
  events = services::MakeEventService(*authenticator, *store, *care, *care_timers);
  services.push_back(services::MakeAdminService(admin, State()));
  services.push_back(services::MakeArtifactService(artifact));
  services.push_back(services::MakeSessionService(*engine, *authenticator));
  services.push_back(services::MakeTraceService(*engine, *authenticator));
  services::WorkflowParts workflow{engine.get(), authenticator.get(), config.executor,
                                   [this]() -> const trace::Sandbox& { return CodeSandbox(); }};
  services.push_back(services::MakeSearchService(*engine, *authenticator, workflow));
  services.push_back(services::MakeWorkflowService(std::move(workflow)));
  services.push_back(services::MakeOperationService(*operations, *authenticator));
  job_service = services::MakeJobService({authenticator.get(), queue.get(), care.get(), care_timers.get()});
  services.push_back(services::MakeWorkerService(*queue, *care));
  services.push_back(services::MakeOrderService({authenticator.get(), queue.get(), studies.get(), &fs, study_pool.get()}));
}

/// Jobs live in files of the data directory: a server in memory has none.
absl::Status App::Impl::StartJobs() {
  jobs::QueueOptions options;
  if (config.data_dir != kMemory) options.worker = FindWorker(config, environment, fs);
  options.max_workers = config.max_workers;
  options.max_job_workers = config.max_job_workers;
  options.lease_ms = config.worker_lease_ms;
  options.file_roots = config.job_files;
  options.on_attempt_end = [this](const std::string& user, int64_t wall_ms) { spending->CountJob(user, wall_ms); };
  // What a worker needs of this process's environment; keys of language models are none of its business.
  for (const char* name : {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS"}) {
    if (auto value = environment.get_env(name)) options.environment.emplace_back(name, *value);
  }
  if (!config.tls_cert.empty() && std::none_of(config.listen.begin(), config.listen.end(), [](const std::string& a) { return a.starts_with("unix:"); })) {
    log::Warn("jobs_off", {{"hint", "with TLS, workers dial a Unix socket: add --listen unix:PATH"}});
    options.worker.clear();
  }
  launcher = jobs::MakeLocalLauncher();
  queue = std::make_unique<jobs::JobQueue>(options, jobs::JobFiles(fs, config.data_dir + "/jobs"), *launcher, clock);
  study_pool = std::make_unique<ThreadPool>(kStudyThreads);
  studies = std::make_unique<services::StudyProcesses>(
      services::StudyProcessOptions{options.worker, options.environment, environment.get_env("TMPDIR").value_or("/tmp")}, *launcher);
  if (config.data_dir == kMemory) return absl::OkStatus();
  const absl::Status loaded = queue->Load();
  if (absl::IsDataLoss(loaded)) log::Error("job_unreadable", {{"message", std::string(loaded.message())}});
  else RETURN_IF_ERROR(Explain("jobs", loaded));
  return absl::OkStatus();
}

void App::Impl::ScheduleJobs() {
  care_timers->After(kJobTick, [this] {
    queue->Tick();
    spending->Flush();
    ScheduleJobs();
  });
}

absl::Status App::Impl::StartGrpc() {
  grpc::EnableDefaultHealthCheckService(true);
  static std::once_flag reflection_once;
  std::call_once(reflection_once, [] { grpc::reflection::InitProtoReflectionServerBuilderPlugin(); });
  grpc::ServerBuilder builder;
  SetLimits(builder);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(services::MakeRequestMeter(*metrics, clock));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (const auto& service : services) builder.RegisterService(service.get());
  builder.RegisterService(events->service());
  builder.RegisterService(job_service->service());
  ASSIGN_OR_RETURN(Listening listening, StartListening(builder, config, fs));
  grpc = std::move(listening.server);
  addresses = std::move(listening.addresses);
  return absl::OkStatus();
}

absl::Status App::Impl::StartHttp() {
  if (config.http == "off") return absl::OkStatus();
  ASSIGN_OR_RETURN(config::Address address, config::ParseAddress(config.http));
  std::map<std::string, std::function<web::Page()>> pages;
  pages["/"] = [this] { return StatusPage(); };
  pages["/metrics"] = [this] { return web::Page{200, "text/plain; version=0.0.4; charset=utf-8", metrics->Text()}; };
  pages["/healthz"] = [] { return web::Page{200, "text/plain; charset=utf-8", "ok\n"}; };
  pages["/readyz"] = [this] {
    return serving ? web::Page{200, "text/plain; charset=utf-8", "ready\n"}
                   : web::Page{503, "text/plain; charset=utf-8", "draining\n"};
  };
  ASSIGN_OR_RETURN(http, web::HttpServer::Start(address.host, address.port, std::move(pages)));
  address.port = http->port();
  http_address = address.Text();
  return absl::OkStatus();
}

web::Page App::Impl::StatusPage() {
  web::StatusPage page;
  page.version = config::Version();
  page.serving = serving;
  page.uptime_s = UptimeMs() / 1000;
  page.grpc_addresses = addresses;
  page.authentication = config.auth == "token";
  page.sessions_loaded = engine->LoadedSessions();
  page.resident_bytes = web::ProcessResidentBytes();
  page.requests_total = metrics->RequestsTotal();
  page.commits_per_second = store->CommitsPerSecond();
  for (const ServiceRow& row : kServices) page.services.emplace_back(row.name, Serves(row));
  page.llm_endpoints = LlmEndpoints();
  return {200, "text/html; charset=utf-8", web::RenderStatusPage(page)};
}

void App::Impl::SetServing(bool now) {
  serving = now;
  grpc::HealthCheckServiceInterface* health = grpc->GetHealthCheckService();
  health->SetServingStatus(now);
  for (const ServiceRow& row : kServices) health->SetServingStatus(row.name, now && Serves(row));
}

/// What age removes goes once an hour.
void App::Impl::ScheduleCare() {
  care_timers->After(kCareInterval, [this] {
    const absl::StatusOr<store::CareReport> report = store::TakeCare(*store, *blobs, clock);
    if (!report.ok()) {
      log::Warn("care_failed", {{"message", std::string(report.status().message())}});
    } else if (report->blob_bytes_freed > 0 || report->sessions_purged > 0) {
      log::Info("care", {{"bytes_freed", report->blob_bytes_freed}, {"sessions_purged", report->sessions_purged}});
    }
    ScheduleCare();
  });
}

absl::StatusOr<std::unique_ptr<App>> App::Start(const config::Config& config, Environment environment) {
  RETURN_IF_ERROR(config::Validate(config));
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->environment = std::move(environment);
  impl->start_ns = impl->clock.NowMonotonicNs();
  std::unique_ptr<App> app(new App(std::move(impl)));
  Impl& parts = *app->impl_;
  RETURN_IF_ERROR(parts.OpenStorage());
  RETURN_IF_ERROR(parts.StartEngine());
  RETURN_IF_ERROR(parts.StartJobs());
  parts.MakeServices();
  parts.AddMetrics();
  RETURN_IF_ERROR(parts.StartGrpc());
  RETURN_IF_ERROR(parts.StartHttp());
  parts.ScheduleCare();
  parts.queue->Start(WorkerAddress(parts.addresses));
  parts.ScheduleJobs();
  if (parts.lock != nullptr) RETURN_IF_ERROR(parts.lock->SetAddress(parts.addresses.front()));
  parts.SetServing(true);
  return app;
}

App::App(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
App::~App() { Shutdown(); }

const std::vector<std::string>& App::grpc_addresses() const { return impl_->addresses; }
const std::string& App::http_address() const { return impl_->http_address; }
std::string App::ReadyLine() const {
  return "optod ready grpc=" + impl_->addresses.front() + " http=" + impl_->http_address;
}

/// True when the engine is done before the deadline. The thread is the caller's to join.
bool App::Impl::DrainEngine(std::chrono::steady_clock::time_point deadline, std::thread* drainer) {
  struct Signal {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  auto signal = std::make_shared<Signal>();
  *drainer = std::thread([this, signal] {
    engine->Drain();
    std::lock_guard lock(signal->mutex);
    signal->done = true;
    signal->changed.notify_all();
  });
  std::unique_lock lock(signal->mutex);
  return signal->changed.wait_until(lock, deadline, [&] { return signal->done; });
}

void App::Shutdown(int64_t grace_ms) {
  Impl& parts = *impl_;
  if (parts.shut_down) return;
  parts.shut_down = true;
  if (grace_ms < 0) grace_ms = parts.config.drain_grace_ms;
  auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(grace_ms);
  std::thread drainer;
  if (parts.grpc != nullptr) {
    parts.SetServing(false);
    parts.events->StopWatchers();
    parts.job_service->StopStreams();
    parts.studies->Stop();  // ends the questions under way
    parts.queue->Shutdown(std::min<int64_t>(grace_ms, 3000));
  }
  bool drained = parts.engine == nullptr || parts.DrainEngine(deadline, &drainer);
  if (!drained) {
    log::Warn("drain_overdue", {{"grace_ms", grace_ms}});
    parts.operations->CancelAll();  // calls of language models end within 2 s
  }
  if (parts.grpc != nullptr) {
    // Transfers may use what is left of the grace; what else is open then is idle streams.
    while (parts.transfers->shares() > 0 && std::chrono::steady_clock::now() < deadline) {
      parts.clock.SleepFor(std::chrono::milliseconds(10));
    }
    auto last_words = std::chrono::milliseconds(drained ? std::min<int64_t>(grace_ms, 200) : 0);
    parts.grpc->Shutdown(std::chrono::system_clock::now() + last_words);
  }
  if (drainer.joinable()) drainer.join();
  parts.http.reset();
  parts.grpc.reset();
  parts.services.clear();
  parts.study_pool.reset();
  parts.studies.reset();
  parts.events.reset();
  parts.job_service.reset();
  if (parts.care_timers != nullptr) parts.care_timers->Stop();
  parts.care.reset();      // runs what is queued, chores that set their next timer among it
  parts.care_timers.reset();
  parts.launcher.reset();  // kills and reaps the workers that are left; they report to the queue
  parts.queue.reset();
  parts.llm_pool.reset();  // its tasks end in the engine
  parts.engine.reset();
  parts.operations.reset();
  if (parts.timers != nullptr) parts.timers->Stop();
  parts.pool.reset();
  parts.timers.reset();
  if (parts.spending != nullptr) parts.spending->Flush();
  if (parts.store != nullptr) {
    absl::Status closed = parts.store->Close();
    if (!closed.ok()) log::Error("store_close_failed", {{"message", std::string(closed.message())}});
  }
  parts.lock.reset();
}

}  // namespace optod::server
