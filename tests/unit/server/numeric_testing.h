#pragma once
/// What the tests of numeric sessions share: a server's inside over a memory store that outlives "crashes", blocking
/// calls, small tensors.

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/sha256.h"
#include "base/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/engine/first_order.h"
#include "server/engine/zeroth_order.h"
#include "server/store/memory_store.h"

namespace optod::engine {

/// Blobs in a map; Put can be made to fail.
class MapBlobStore final : public store::BlobStore {
 public:
  absl::StatusOr<std::string> Put(std::span<const std::byte> data) override {
    std::lock_guard lock(mutex_);
    if (full_) return absl::ResourceExhaustedError("disk full");
    std::string sha = Sha256Hex(data);
    blobs_.emplace(sha, std::string(reinterpret_cast<const char*>(data.data()), data.size()));
    return sha;
  }
  absl::StatusOr<std::string> Get(const std::string& sha256) override {
    std::lock_guard lock(mutex_);
    auto it = blobs_.find(sha256);
    if (it == blobs_.end()) return absl::NotFoundError("no blob " + sha256);
    return it->second;
  }
  absl::StatusOr<int64_t> Size(const std::string& sha256) override {
    auto data = Get(sha256);
    if (!data.ok()) return data.status();
    return static_cast<int64_t>(data->size());
  }
  bool Has(const std::string& sha256) override { return Get(sha256).ok(); }
  absl::StatusOr<int64_t> Sweep(const std::vector<std::string>&, int64_t, int64_t) override { return 0; }
  int64_t BytesStored() override { return 0; }
  void set_full(bool full) {
    std::lock_guard lock(mutex_);
    full_ = full;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> blobs_;
  bool full_ = false;
};

/// A clock that many threads may read while a test moves it.
class TestClock final : public Clock {
 public:
  int64_t NowUnixMs() override { return 1'700'000'000'000 + ns_ / 1'000'000; }
  int64_t NowMonotonicNs() override { return ns_; }
  void SleepFor(std::chrono::nanoseconds duration) override { Advance(duration); }
  void Advance(std::chrono::nanoseconds duration) { ns_ += duration.count(); }

 private:
  std::atomic<int64_t> ns_{1};
};

/// Runs a call of the engine to its answer.
template <typename Response, typename Call>
absl::StatusOr<Response> Await(Call call) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<absl::StatusOr<Response>> result;
  };
  auto shared = std::make_shared<Shared>();
  call([shared](absl::StatusOr<Response> result) {
    std::lock_guard lock(shared->mutex);
    shared->result = std::move(result);
    shared->ready.notify_all();
  });
  std::unique_lock lock(shared->mutex);
  shared->ready.wait(lock, [&] { return shared->result.has_value(); });
  return *std::move(shared->result);
}

/// A server's inside. Crash() forgets everything that is not in the store.
class Server {
 public:
  Server() : store_(store::MakeMemoryStore()) { Start(); }

  Engine& engine() { return running_->engine; }
  store::Store& store() { return *store_; }
  MapBlobStore& blobs() { return blobs_; }
  TestClock& clock() { return clock_; }

  /// The engine goes without writing another byte; another one opens what is durable.
  void Crash() {
    WaitForStore(*store_);
    dead_.push_back(std::move(running_));
    Start();
  }

  absl::StatusOr<v1::Session> Create(v1::CreateSessionRequest request) {
    return Await<v1::Session>([&](auto done) { engine().CreateSession(caller_, std::move(request), std::move(done)); });
  }
  absl::StatusOr<v1::Session> Get(const std::string& name) {
    v1::GetSessionRequest request;
    request.set_name(name);
    return Await<v1::Session>([&](auto done) { engine().GetSession(caller_, request, std::move(done)); });
  }
  absl::StatusOr<v1::AskResponse> Ask(v1::AskRequest request) {
    return Await<v1::AskResponse>([&](auto done) { engine().Ask(caller_, std::move(request), std::move(done)); });
  }
  absl::StatusOr<v1::TellResponse> Tell(v1::TellRequest request) {
    return Await<v1::TellResponse>([&](auto done) { engine().Tell(caller_, std::move(request), std::move(done)); });
  }
  absl::StatusOr<v1::Version> Version(const std::string& session, int64_t number) {
    v1::GetVersionRequest request;
    request.set_name("sessions/" + session + "/versions/" + std::to_string(number));
    return Await<v1::Version>([&](auto done) { engine().GetVersion(caller_, request, std::move(done)); });
  }
  absl::StatusOr<v1::Session> Rollback(const std::string& session, int64_t version) {
    v1::RollbackRequest request;
    request.set_session(session);
    request.set_version(version);
    return Await<v1::Session>([&](auto done) { engine().Rollback(caller_, request, std::move(done)); });
  }
  absl::StatusOr<v1::Session> Fork(const std::string& session, int64_t version, const std::string& id) {
    v1::ForkSessionRequest request;
    request.set_session(session);
    request.set_version(version);
    request.set_session_id(id);
    return Await<v1::Session>([&](auto done) { engine().ForkSession(caller_, request, std::move(done)); });
  }
  /// Parameters of a version (-1 = head) as float32.
  absl::StatusOr<std::vector<float>> Parameters(const std::string& session, int64_t version = -1) {
    using Buffer = std::shared_ptr<const TensorBuffer>;
    auto buffer = Await<Buffer>([&](auto done) {
      engine().Read<Buffer>(
          caller_, session,
          [version](LiveSession& live) -> absl::StatusOr<Buffer> {
            auto family = AsNumeric(live);
            if (!family.ok()) return family.status();
            return (*family)->ParametersAt(live, version < 0 ? live.row.head_version : version);
          },
          std::move(done));
    });
    if (!buffer.ok()) return buffer.status();
    std::vector<float> out((*buffer)->size() / 4);
    if (!out.empty()) std::memcpy(out.data(), (*buffer)->data(), out.size() * 4);
    return out;
  }
  absl::StatusOr<v1::MemoryReport> Memory(const std::string& session) {
    return Await<v1::MemoryReport>(
        [&](auto done) { engine().Read<v1::MemoryReport>(caller_, session, &MemoryOf, std::move(done)); });
  }
  /// State tensors, concatenated bytes by name.
  std::map<std::string, std::string> State(const std::string& session) {
    using Tensors = std::vector<optim::OwnedTensor>;
    auto state = Await<Tensors>([&](auto done) {
      engine().Read<Tensors>(
          caller_, session, [](LiveSession& live) { return (*AsNumeric(live))->State(live); }, std::move(done));
    });
    std::map<std::string, std::string> out;
    if (state.ok())
      for (const auto& tensor : *state)
        out[tensor.spec.name] = std::string(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    return out;
  }
  const Caller& caller() const { return caller_; }

 private:
  /// One process: threads and an engine.
  struct Process {
    Process(store::Store* store, store::BlobStore* blobs, Clock* clock)
        : pool(4), timers(pool), engine(Given(store, blobs, clock), Families()) {}
    static std::map<std::string, FamilyFactory> Families() {
      return {{"first-order", FirstOrderFactory()}, {"zeroth-order", ZerothOrderFactory()}};
    }
    Context Given(store::Store* store, store::BlobStore* blobs, Clock* clock) {
      Context context;
      context.store = store;
      context.blobs = blobs;
      context.clock = clock;
      context.pool = &pool;
      context.timers = &timers;
      return context;
    }
    ThreadPool pool;
    Timers timers;
    Engine engine;
  };
  void Start() { running_ = std::make_unique<Process>(store_.get(), &blobs_, &clock_); }

  Caller caller_;
  TestClock clock_;
  MapBlobStore blobs_;
  std::unique_ptr<store::Store> store_;
  std::vector<std::unique_ptr<Process>>
      dead_;  ///< would flush if it were destroyed now: kept until the end, when nobody looks any more
  std::unique_ptr<Process> running_;
};

inline v1::Tensor TensorOf(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
  v1::Tensor tensor;
  SpecToProto({name, optim::DType::kF32, std::move(shape)}, tensor.mutable_spec());
  tensor.set_data(values.data(), values.size() * 4);
  return tensor;
}

}  // namespace optod::engine
