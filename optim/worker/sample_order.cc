#include "optim/worker/sample_order.h"

#include <grpcpp/grpcpp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/order_job/builtin_problem.h"
#include "optim/worker/order_service.h"
#include "optim/zo/stream.h"

namespace optod::worker {
namespace {

absl::StatusOr<order::LanguageProblem> MakeProblem(const order::SampleOrderSpec& spec,
                                                   const std::function<bool()>& stop,
                                                   const std::function<void(const std::string&)>& log) {
  if (!spec.builtin) return order::MakeLanguageProblem(spec, stop, log);
  order::LanguageProblem problem;
  ASSIGN_OR_RETURN(problem.model, order::MakeBuiltinProblem(spec, PosixFs()));
  return problem;
}

/// What LibTorch and the allocator throw, as a status.
template <typename Work>
auto Guarded(Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory: limits.memory, or the machine");
  } catch (const std::exception& error) {
    return Internal("worker: ", error.what());
  }
}

/// The same hooks, with a checkpoint told at most five times a second: terms come faster.
order::RunHooks Calmer(order::RunHooks hooks) {
  hooks.checkpoint = [tell = hooks.checkpoint, told = std::chrono::steady_clock::time_point()](int64_t units) mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - told < std::chrono::milliseconds(200)) return;
    told = now;
    tell(units);
  };
  return hooks;
}

std::atomic<bool> g_end{false};
void OnSignal(int) { g_end = true; }

}  // namespace

bool IsSampleOrder(const std::string& spec_json) {
  const auto json = nlohmann::json::parse(spec_json, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("kind") && json["kind"] == "sample_order";
}

absl::StatusOr<std::string> RunSampleOrderJob(const std::string& spec_json, const std::string& folder, int threads,
                                              const order::RunHooks& hooks) {
  ASSIGN_OR_RETURN(order::SampleOrderSpec spec, order::ParseSampleOrderSpec(spec_json));
  if (threads > 0) spec.threads = spec.study.threads = threads;
  return Guarded([&]() -> absl::StatusOr<std::string> {
    nn::UseCachingAllocator();
    zo::SetStreamThreads(nn::SetThreads(spec.threads));
    ASSIGN_OR_RETURN(const order::LanguageProblem problem, MakeProblem(spec, hooks.stop, hooks.log));
    return order::RunSampleOrder(PosixFs(), folder, spec_json, spec, problem.model, Calmer(hooks));
  });
}

absl::Status ServeOrders(const OrderServeOptions& options) {
  prctl(PR_SET_PDEATHSIG,
        SIGTERM);  // of the thread that started us: kill -9 of the server; the idle time does the rest
  ASSIGN_OR_RETURN(const std::string text, PosixFs().ReadFile(options.folder + "/spec.json"));
  OrderFolder folder{options.folder, options.name, {}, nullptr, {}};
  ASSIGN_OR_RETURN(folder.spec, order::ParseSampleOrderSpec(text));
  RETURN_IF_ERROR(Guarded([&]() -> absl::Status {
    nn::UseCachingAllocator();
    zo::SetStreamThreads(nn::SetThreads(folder.spec.threads));
    ASSIGN_OR_RETURN(order::LanguageProblem problem,
                     MakeProblem(
                         folder.spec, [] { return g_end.load(); }, [](const std::string&) {}));
    folder.model = std::move(problem.model);
    folder.tensors = std::move(problem.tensors);
    return absl::OkStatus();
  }));
  std::signal(SIGTERM, &OnSignal);
  std::signal(SIGINT, &OnSignal);
  OrderService service(PosixFs(), std::move(folder));
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + options.socket, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return Unavailable("socket: cannot be listened on");
  while (!g_end && service.Idle() < std::chrono::seconds(options.idle_seconds))
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  return absl::OkStatus();
}

}  // namespace optod::worker
