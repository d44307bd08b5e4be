// How fast tensors get into a server: 256 MiB in 1 MiB chunks up one PushParameters stream, over TCP and a Unix socket,
// by a raw client (GenericStub and static slices) and by an ordinary protobuf client, beside a plain socket copy of the
// same bytes in the same run. And zeroth-order tells a second.
//
//   tensor_stream_bench [--mib 256] [--rounds 5]
//
// "received": until every byte stands in the session's buffer (blobs are dropped). "hashed": with the SHA-256 that
// names the blob. The server is another process; both ends set mallopt as optod does. Rows are interleaved; medians and
// the range over the rounds.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <future>
#include <iostream>
#include <mutex>
#include <thread>

#include "base/sha256.h"
#include "server/engine/first_order.h"
#include "server/engine/zeroth_order.h"
#include "server/services/tensor_streams.h"
#include "server/store/memory_store.h"

namespace optod {
namespace {

constexpr size_t kChunk = 1u << 20;

void TuneMalloc() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Keeps nothing; hashes when asked to.
class NullBlobStore final : public store::BlobStore {
 public:
  class Writer final : public store::BlobWriter {
   public:
    explicit Writer(bool hash) : hash_(hash) {}
    absl::Status Append(std::span<const std::byte> data) override {
      if (hash_) hasher_.Update(data);
      return absl::OkStatus();
    }
    absl::StatusOr<std::string> Finish() override { return hash_ ? hasher_.FinishHex() : std::string(64, '0'); }

   private:
    const bool hash_;
    Sha256 hasher_;
  };
  absl::StatusOr<std::unique_ptr<store::BlobWriter>> Begin() override { return std::make_unique<Writer>(hash_); }
  explicit NullBlobStore(bool hash) : hash_(hash) {}
  absl::StatusOr<std::string> Put(std::span<const std::byte> data) override {
    return hash_ ? Sha256Hex(data) : std::string(64, '0');
  }
  absl::StatusOr<std::string> Get(const std::string& sha256) override { return absl::NotFoundError(sha256); }
  absl::StatusOr<int64_t> Size(const std::string& sha256) override { return absl::NotFoundError(sha256); }
  bool Has(const std::string&) override { return false; }
  absl::StatusOr<int64_t> Sweep(const std::vector<std::string>&, int64_t, int64_t) override { return 0; }
  int64_t BytesStored() override { return 0; }

 private:
  const bool hash_;
};

grpc::Status Plain(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

class Service final : public services::SessionServiceBase {
 public:
  explicit Service(engine::Engine& engine) : engine_(engine) {}
  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context, const v1::CreateSessionRequest* request,
                                          v1::Session* response) override {
    auto* reactor = context->DefaultReactor();
    engine_.CreateSession({}, *request, [reactor, response](absl::StatusOr<v1::Session> session) {
      if (session.ok()) *response = *session;
      reactor->Finish(Plain(session.status()));
    });
    return reactor;
  }
  services::RawReadReactor* PushParameters(grpc::CallbackServerContext*, grpc::ByteBuffer* response) override {
    return services::MakePushParameters(engine_, {}, response, &Plain);
  }
  services::RawBidiReactor* StepStream(grpc::CallbackServerContext*) override {
    return services::RefuseBidi(grpc::Status::CANCELLED);
  }
  grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse>* AskTellStream(
      grpc::CallbackServerContext*) override {
    return nullptr;
  }

 private:
  engine::Engine& engine_;
};

struct Inside {
  explicit Inside(bool hash)
      : store(store::MakeMemoryStore()), blobs(hash), pool(2), timers(pool), engine(Given(), Families()) {}
  engine::Context Given() {
    engine::Context context;
    context.store = store.get();
    context.blobs = &blobs;
    context.clock = &SystemClock();
    context.pool = &pool;
    context.timers = &timers;
    return context;
  }
  static std::map<std::string, engine::FamilyFactory> Families() {
    return {{"first-order", engine::FirstOrderFactory()}, {"zeroth-order", engine::ZerothOrderFactory()}};
  }
  std::unique_ptr<store::Store> store;
  NullBlobStore blobs;
  ThreadPool pool;
  Timers timers;
  engine::Engine engine;
};

/// A server process on both addresses; ends when `stop` closes.
pid_t StartServer(const std::string& unix_path, bool hash, int* port) {
  int ready[2];
  if (pipe(ready) != 0) return -1;
  const pid_t pid = fork();
  if (pid != 0) {
    if (read(ready[0], port, sizeof(*port)) != sizeof(*port)) return -1;
    return pid;
  }
  TuneMalloc();
  Inside inside(hash);
  Service service(inside.engine);
  grpc::ServerBuilder builder;
  int chosen = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &chosen);
  builder.AddListeningPort("unix:" + unix_path, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  auto server = builder.BuildAndStart();
  if (write(ready[1], &chosen, sizeof(chosen)) < 0) _exit(1);
  pause();
  _exit(0);
}

/// One push by GenericStub: per chunk a head slice and a slice that refers to `data`.
class RawPush final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  RawPush(grpc::GenericStub& stub, const std::string& session, const std::string& data) : data_(data) {
    v1::PushParametersRequest header;
    header.mutable_header()->set_session(session);
    header.mutable_header()->set_total_bytes(data.size());
    const grpc::Slice slice(header.SerializeAsString());
    message_ = grpc::ByteBuffer(&slice, 1);
    stub.PrepareBidiStreamingCall(&context_, "/optod.v1.SessionService/PushParameters", {}, this);
    StartRead(&answer_);
    StartWrite(&message_);
    StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return;
    if (at_ == data_.size()) return StartWritesDone();  // not before this write's completion was read
    const size_t size = std::min(kChunk, data_.size() - at_);
    uint8_t head[40];
    uint8_t* p = head;
    auto varint = [&p](uint64_t value) {
      for (; value >= 0x80; value >>= 7) *p++ = static_cast<uint8_t>(value | 0x80);
      *p++ = static_cast<uint8_t>(value);
    };
    auto length = [](uint64_t value) {
      int n = 1;
      while (value >>= 7) ++n;
      return n;
    };
    *p++ = 0x12;
    varint((at_ > 0 ? 1 + length(at_) : 0) + 1 + length(size) + size);
    if (at_ > 0) {
      *p++ = 0x08;
      varint(at_);
    }
    *p++ = 0x7a;
    varint(size);
    const grpc::Slice slices[2] = {grpc::Slice(head, static_cast<size_t>(p - head)),
                                   grpc::Slice(data_.data() + at_, size, grpc::Slice::STATIC_SLICE)};
    message_ = grpc::ByteBuffer(slices, 2);
    at_ += size;
    StartWrite(&message_);
  }
  void OnDone(const grpc::Status& status) override { done_.set_value(status); }
  grpc::Status Wait() { return done_.get_future().get(); }

 private:
  const std::string& data_;
  size_t at_ = 0;
  grpc::ClientContext context_;
  grpc::ByteBuffer message_, answer_;
  std::promise<grpc::Status> done_;
};

grpc::Status TypedPush(v1::SessionService::Stub& stub, const std::string& session, const std::string& data) {
  grpc::ClientContext context;
  v1::PushParametersResponse response;
  auto writer = stub.PushParameters(&context, &response);
  v1::PushParametersRequest request;
  request.mutable_header()->set_session(session);
  request.mutable_header()->set_total_bytes(data.size());
  writer->Write(request);
  for (size_t at = 0; at < data.size(); at += kChunk) {
    request.mutable_chunk()->set_offset(at);
    request.mutable_chunk()->set_data(data.data() + at, std::min(kChunk, data.size() - at));
    if (!writer->Write(request)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

/// Another process reads a plain socket into touched memory; the bar that the rest is measured against.
double SocketCopy(bool unix_socket, const std::string& unix_path, const std::string& data) {
  const int listener = socket(unix_socket ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  std::strncpy(un.sun_path, unix_path.c_str(), sizeof(un.sun_path) - 1);
  unlink(unix_path.c_str());
  auto* address = unix_socket ? reinterpret_cast<sockaddr*>(&un) : reinterpret_cast<sockaddr*>(&in);
  socklen_t size = unix_socket ? sizeof(un) : sizeof(in);
  if (bind(listener, address, size) != 0 || listen(listener, 1) != 0) return 0;
  if (!unix_socket) getsockname(listener, address, &size);
  int ready[2];
  if (pipe(ready) != 0) return 0;
  const pid_t pid = fork();
  if (pid == 0) {
    std::string to(data.size(), '\1');  // touched before the clock starts
    if (write(ready[1], "x", 1) != 1) _exit(1);
    const int fd = accept(listener, nullptr, nullptr);
    size_t at = 0;
    while (at < to.size()) {
      const ssize_t n = read(fd, to.data() + at, std::min(kChunk, to.size() - at));
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    if (write(fd, "x", 1) != 1) _exit(1);
    _exit(0);
  }
  char byte;
  if (read(ready[0], &byte, 1) != 1) return 0;
  const int fd = socket(unix_socket ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
  const double start = Now();
  if (connect(fd, address, size) != 0) return 0;
  for (size_t at = 0; at < data.size();) {
    const ssize_t n = write(fd, data.data() + at, std::min(kChunk, data.size() - at));
    if (n <= 0) break;
    at += static_cast<size_t>(n);
  }
  const bool ok = read(fd, &byte, 1) == 1;
  const double seconds = Now() - start;
  close(fd);
  close(listener);
  close(ready[0]);
  close(ready[1]);
  waitpid(pid, nullptr, 0);
  return ok ? static_cast<double>(data.size()) / seconds / 1e9 : 0;
}

struct Row {
  std::string name;
  std::vector<double> rates;
};

void Print(const std::string& unit, std::vector<Row>& rows) {
  for (Row& row : rows) {
    std::sort(row.rates.begin(), row.rates.end());
    std::printf("%-44s %8.2f %s  (%.2f-%.2f)\n", row.name.c_str(), row.rates[row.rates.size() / 2], unit.c_str(),
                row.rates.front(), row.rates.back());
  }
}

/// Tells of zo-sgd with q queries on a layout-only session, straight into the engine (no network, no disk).
double TellsPerSecond(int q, int tells) {
  Inside inside(false);
  v1::CreateSessionRequest create;
  create.set_session_id("s");
  create.mutable_optimizer()->set_name("zo-sgd");
  (*create.mutable_optimizer()->mutable_hyperparameters())["queries"].set_number(q);
  engine::SpecToProto({"w", optim::DType::kF32, {1'000'000'000}}, create.mutable_layout()->add_tensors());
  std::promise<void> created;
  inside.engine.CreateSession({}, create, [&](absl::StatusOr<v1::Session>) { created.set_value(); });
  created.get_future().get();
  std::mutex mutex;
  std::condition_variable idle;
  int in_flight = 0, done = 0;
  const double start = Now();
  for (int i = 0; i < tells; ++i) {
    v1::TellRequest tell;
    tell.set_session("s");
    auto* result = tell.mutable_losses()->add_results();
    result->set_probe_id(std::to_string(i / q) + "." + std::to_string(i % q));
    result->set_loss_plus(1.0 + i);
    result->set_loss_minus(1.0);
    std::unique_lock lock(mutex);
    idle.wait(lock, [&] { return in_flight < 256; });
    ++in_flight;
    lock.unlock();
    inside.engine.Tell({}, std::move(tell), [&](absl::StatusOr<v1::TellResponse> told) {
      if (!told.ok()) std::cerr << told.status() << "\n";
      std::lock_guard guard(mutex);
      --in_flight;
      ++done;
      idle.notify_one();
    });
  }
  std::unique_lock lock(mutex);
  idle.wait(lock, [&] { return done == tells; });
  return tells / (Now() - start);
}

int Main(int argc, char** argv) {
  size_t mib = 256;
  int rounds = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--mib") mib = std::stoul(argv[i + 1]);
    if (std::string(argv[i]) == "--rounds") rounds = std::max(1, std::stoi(argv[i + 1]));
  }
  const std::string base =
      (std::filesystem::temp_directory_path() / ("optod-bench-" + std::to_string(getpid()))).string();
  int ports[2];
  pid_t servers[2];
  for (const bool hash : {false, true})
    servers[hash] = StartServer(base + (hash ? "h" : "r"), hash, &ports[hash]);  // before gRPC starts threads here
  TuneMalloc();
  std::string data(mib << 20, '\0');
  for (size_t i = 0; i < data.size(); i += 8) std::memcpy(data.data() + i, &i, 8);
  std::vector<Row> rows;
  auto add = [&rows](const std::string& name, double rate) {
    for (Row& row : rows)
      if (row.name == name) return row.rates.push_back(rate);
    rows.push_back({name, {rate}});
  };
  for (int round = 0; round <= rounds; ++round) {  // round 0 warms up
    std::fprintf(stderr, "round %d of %d: %zu MiB ten times\n", round, rounds, mib);
    for (const bool unix_socket : {false, true}) {
      const std::string where = unix_socket ? "unix" : "tcp";
      const double copy = SocketCopy(unix_socket, base + "c", data);
      if (round > 0) add(where + "  plain socket copy", copy);
      for (const bool hash : {false, true}) {
        for (const bool raw : {true, false}) {
          const std::string target =
              unix_socket ? "unix:" + base + (hash ? "h" : "r") : "127.0.0.1:" + std::to_string(ports[hash]);
          auto channel = grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
          auto stub = v1::SessionService::NewStub(channel);
          grpc::GenericStub generic(channel);
          v1::CreateSessionRequest create;
          create.set_session_id("s");  // pushed again and again: its buffers come from the pool after the first time
          create.mutable_optimizer()->set_name("sgd");
          engine::SpecToProto({"w", optim::DType::kF32, {static_cast<int64_t>(data.size() / 4)}},
                              create.mutable_layout()->add_tensors());
          grpc::ClientContext context;
          v1::Session session;
          const auto created = stub->CreateSession(&context, create, &session);
          if (const auto& status = created; !status.ok() && status.error_code() != grpc::StatusCode::ALREADY_EXISTS) {
            std::cerr << status.error_message() << "\n";
            return 1;
          }
          const double start = Now();
          grpc::Status status;
          if (raw) {
            RawPush push(generic, create.session_id(), data);
            status = push.Wait();
          } else {
            status = TypedPush(*stub, create.session_id(), data);
          }
          if (!status.ok()) {
            std::cerr << status.error_message() << "\n";
            return 1;
          }
          const std::string name =
              where + "  " + (raw ? "raw slices" : "protobuf client") + (hash ? ", hashed" : ", received");
          if (round > 0) add(name, static_cast<double>(data.size()) / (Now() - start) / 1e9);
        }
      }
    }
  }
  for (const pid_t pid : servers) kill(pid, SIGKILL), waitpid(pid, nullptr, 0);
  std::printf("push of %zu MiB in 1 MiB chunks, median of %d rounds (range)\n", mib, rounds);
  Print("GB/s", rows);
  std::vector<Row> tells;
  for (const int q : {1, 64}) {
    Row row{"zo-sgd tells, q = " + std::to_string(q), {}};
    for (int round = 0; round < rounds; ++round) row.rates.push_back(TellsPerSecond(q, 64'000) / 1000);
    tells.push_back(row);
  }
  Print("k/s ", tells);
  for (const char* suffix : {"h", "r", "c"}) std::filesystem::remove(base + suffix);
  return 0;
}

}  // namespace
}  // namespace optod

int main(int argc, char** argv) { return optod::Main(argc, argv); }
