#pragma once
/// What the tests of the calls that carry tensors share: the service over a real gRPC server, a session on it, one step
/// stream and its messages, a client's shared memory.

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "numeric_testing.h"
#include "server/services/shared_memory.h"
#include "server/services/tensor_streams.h"

namespace optod::services {

using engine::Server;
using engine::TensorOf;

inline grpc::Status Plain(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

class Service final : public SessionServiceBase {
 public:
  explicit Service(engine::Engine& engine, StreamOptions options) : engine_(engine), options_(options) {}
  RawReadReactor* PushParameters(grpc::CallbackServerContext*, grpc::ByteBuffer* response) override {
    return MakePushParameters(engine_, {}, response, &Plain, options_);
  }
  RawWriteReactor* PullParameters(grpc::CallbackServerContext*, const grpc::ByteBuffer* request) override {
    return MakePullParameters(engine_, {}, request, &Plain, options_);
  }
  RawWriteReactor* PullState(grpc::CallbackServerContext*, const grpc::ByteBuffer* request) override {
    return MakePullState(engine_, {}, request, &Plain, options_);
  }
  RawWriteReactor* ExportState(grpc::CallbackServerContext*, const grpc::ByteBuffer* request) override {
    return MakeExportState(engine_, {}, request, &Plain, options_);
  }
  RawReadReactor* ImportState(grpc::CallbackServerContext*, grpc::ByteBuffer* response) override {
    return MakeImportState(engine_, {}, response, &Plain);
  }
  RawBidiReactor* StepStream(grpc::CallbackServerContext* context) override {
    StreamOptions options = options_;
    options.local_peer = IsLocalPeer(context->peer()) && !far_;
    return MakeStepStream(engine_, {}, &Plain, options);
  }
  grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse>* AskTellStream(
      grpc::CallbackServerContext*) override {
    return nullptr;
  }

 private:
  engine::Engine& engine_;
  const StreamOptions options_;

 public:
  std::atomic<bool> far_{false};  ///< callers count as being on another machine
};

/// Session "s" of two float32 tensors, 6 + `n` elements.
class TensorStreams : public testing::Test {
 protected:
  /// An empty server in place of this one.
  void Restart() {
    TearDown();
    inside_ = std::make_unique<Server>();
    SetUp();
  }
  void SetUp() override {
    service_ = std::make_unique<Service>(inside_->engine(), StreamOptions{1u << 20, 100'000});
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(service_.get());
    grpc_ = builder.BuildAndStart();
    stub_ = v1::SessionService::NewStub(
        grpc::CreateChannel("127.0.0.1:" + std::to_string(port_), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    stub_ = nullptr;
    grpc_->Shutdown();
    grpc_->Wait();
  }
  void Create(int64_t n, const std::string& optimizer = "adamw") {
    v1::CreateSessionRequest request;
    request.set_session_id("s");
    request.mutable_optimizer()->set_name(optimizer);
    engine::SpecToProto({"w", optim::DType::kF32, {2, 3}}, request.mutable_layout()->add_tensors());
    engine::SpecToProto({"b", optim::DType::kF32, {n}}, request.mutable_layout()->add_tensors());
    ASSERT_TRUE(inside_->Create(request).ok());
    values_.resize(6 + static_cast<size_t>(n));
    for (size_t i = 0; i < values_.size(); ++i) values_[i] = 0.25f * static_cast<float>(i % 1000);
  }
  std::string Bytes() const { return std::string(reinterpret_cast<const char*>(values_.data()), values_.size() * 4); }

  /// Pushes with what `spoil` made of the messages.
  grpc::Status Push(std::function<void(std::vector<v1::PushParametersRequest>*)> spoil = {},
                    v1::PushParametersResponse* response = nullptr) {
    std::vector<v1::PushParametersRequest> messages(1);
    const std::string bytes = Bytes();
    messages[0].mutable_header()->set_session("s");
    messages[0].mutable_header()->set_total_bytes(bytes.size());
    messages[0].mutable_header()->set_sha256(Sha256Hex(bytes));
    for (size_t at = 0; at < bytes.size(); at += 100'000) {
      v1::TensorChunk* chunk = messages.emplace_back().mutable_chunk();
      chunk->set_offset(at);
      chunk->set_data(bytes.substr(at, 100'000));
      chunk->set_crc32c(Crc32c(chunk->data().data(), chunk->data().size()));
    }
    if (spoil) spoil(&messages);
    grpc::ClientContext context;
    v1::PushParametersResponse scratch;
    auto writer = stub_->PushParameters(&context, response != nullptr ? response : &scratch);
    for (const auto& message : messages)
      if (!writer->Write(message)) break;
    writer->WritesDone();
    return writer->Finish();
  }
  grpc::Status Pull(v1::PullParametersRequest request, v1::PullParametersHeader* header, std::string* bytes) {
    grpc::ClientContext context;
    auto reader = stub_->PullParameters(&context, request);
    return Collect(reader.get(), header, bytes);
  }
  static grpc::Status Collect(grpc::ClientReader<v1::PullParametersResponse>* reader, v1::PullParametersHeader* header,
                              std::string* bytes) {
    v1::PullParametersResponse message;
    while (reader->Read(&message)) {
      if (message.has_header()) *header = message.header();
      if (message.has_chunk()) {
        EXPECT_EQ(message.chunk().offset(), bytes->size());
        *bytes += message.chunk().data();
      }
    }
    return reader->Finish();
  }

  std::unique_ptr<Server> inside_ = std::make_unique<Server>();
  std::unique_ptr<Service> service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<v1::SessionService::Stub> stub_;
  std::vector<float> values_;
};

/// One stream and the steps on it.
struct Stream {
  explicit Stream(v1::SessionService::Stub& stub, bool return_values = false, v1::StepStreamOpen open = {})
      : stream(stub.StepStream(&context)) {
    v1::StepStreamRequest request;
    *request.mutable_open() = std::move(open);
    request.mutable_open()->set_session("s");
    request.mutable_open()->set_return_values(return_values);
    stream->Write(request);
    v1::StepStreamResponse response;
    if (stream->Read(&response)) opened = response.opened();
  }
  void Send(int64_t seq, int64_t base, const std::string& bytes, size_t chunk_bytes = 100'000,
            v1::DType dtype = v1::DTYPE_UNSPECIFIED) {
    v1::StepStreamRequest request;
    request.mutable_begin()->set_seq(seq);
    request.mutable_begin()->set_base_version(base);
    request.mutable_begin()->set_total_bytes(bytes.size());
    request.mutable_begin()->set_dtype(dtype);
    if (!stream->Write(request)) return;
    for (size_t at = 0; at < bytes.size(); at += chunk_bytes) {
      request.mutable_chunk()->set_offset(at);
      request.mutable_chunk()->set_data(bytes.substr(at, chunk_bytes));
      if (!stream->Write(request)) return;
    }
    request.mutable_commit()->set_seq(seq);
    stream->Write(request);
  }
  /// The next `applied`; nullopt when the stream has ended.
  std::optional<v1::TellResponse> Applied() {
    v1::StepStreamResponse response;
    while (stream->Read(&response)) {
      if (response.has_applied()) return response.applied();
      ADD_FAILURE() << "a chunk comes before its answer";
    }
    return std::nullopt;
  }
  std::string Values(size_t bytes) {
    std::string out;
    v1::StepStreamResponse response;
    while (out.size() < bytes && stream->Read(&response)) out += response.chunk().data();
    return out;
  }
  grpc::Status Finish() {
    stream->WritesDone();
    v1::StepStreamResponse rest;
    while (stream->Read(&rest)) {
    }
    return stream->Finish();
  }
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepStreamRequest, v1::StepStreamResponse>> stream;
  v1::StepStreamOpened opened;
};

inline std::string GradientBytes(size_t n, int64_t step) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i)
    values[i] = 0.001f * static_cast<float>((step * 31 + static_cast<int64_t>(i) * 7) % 97) - 0.04f;
  return std::string(reinterpret_cast<const char*>(values.data()), n * 4);
}

inline v1::StepStreamRequest Begin(int64_t seq, uint64_t total) {
  v1::StepStreamRequest request;
  request.mutable_begin()->set_seq(seq);
  request.mutable_begin()->set_total_bytes(total);
  return request;
}
inline v1::StepStreamRequest Chunk(uint64_t offset, size_t size) {
  v1::StepStreamRequest request;
  request.mutable_chunk()->set_offset(offset);
  request.mutable_chunk()->set_data(std::string(size, '\0'));
  return request;
}
inline v1::StepStreamRequest Commit(int64_t seq) {
  v1::StepStreamRequest request;
  request.mutable_commit()->set_seq(seq);
  return request;
}

inline v1::StepStreamRequest Commit(int64_t seq, std::optional<double> lr) {
  v1::StepStreamRequest request = Commit(seq);
  if (lr) request.mutable_commit()->add_lr(*lr);
  return request;
}

inline v1::StepStreamRequest ChunkOf(const std::string& bytes) {
  v1::StepStreamRequest request;
  request.mutable_chunk()->set_data(bytes);
  return request;
}

inline std::string FloatBytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

/// A client's memfd.
struct ClientMemory {
  explicit ClientMemory(size_t size, int seals = F_SEAL_SHRINK, const char* name = "optod-test") {
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
    data = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    offer.set_pid(getpid());
    offer.set_fd(fd);
    offer.set_total_bytes(size);
    offer.set_nonce(std::string(32, 'n'));
    std::memcpy(data, offer.nonce().data(), 32);
  }
  ~ClientMemory() {
    munmap(data, offer.total_bytes());
    close(fd);
  }
  int fd;
  char* data;
  v1::SharedMemory offer;
};

}  // namespace optod::services
