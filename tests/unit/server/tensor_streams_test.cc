// The calls that carry tensors, over a real gRPC server: ordinary protobuf clients, checks, long-lived step streams.
#include "server/services/tensor_streams.h"

#include <grpcpp/grpcpp.h>

#include <thread>

#include "base/crc32c.h"
#include "numeric_testing.h"
#include "server/services/tensor_wire.h"

namespace optod::services {
namespace {

using engine::Server;
using engine::TensorOf;
using ::testing::HasSubstr;

grpc::Status Plain(const absl::Status& status) {
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
  RawBidiReactor* StepStream(grpc::CallbackServerContext*) override {
    return MakeStepStream(engine_, {}, &Plain, options_);
  }
  grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse>* AskTellStream(
      grpc::CallbackServerContext*) override {
    return nullptr;
  }

 private:
  engine::Engine& engine_;
  const StreamOptions options_;
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

TEST_F(TensorStreams, PushedIsPulled) {
  for (const int64_t n : {2, 300'000}) {
    Create(n);
    v1::PushParametersResponse response;
    const grpc::Status status = Push({}, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.total_bytes(), Bytes().size());
    EXPECT_EQ(response.sha256(), Sha256Hex(Bytes()));
    v1::PullParametersRequest request;
    request.set_session("s");
    v1::PullParametersHeader header;
    std::string bytes;
    ASSERT_TRUE(Pull(request, &header, &bytes).ok());
    EXPECT_EQ(header.version(), 0);
    EXPECT_EQ(header.index().tensors_size(), 2);
    EXPECT_EQ(bytes, Bytes());
    request.add_tensors("b*");
    bytes.clear();
    ASSERT_TRUE(Pull(request, &header, &bytes).ok());
    EXPECT_EQ(header.index().tensors_size(), 1);
    EXPECT_EQ(bytes, Bytes().substr(24));
    request.set_tensors(0, "nothing");
    EXPECT_EQ(Pull(request, &header, &bytes).error_code(), grpc::StatusCode::NOT_FOUND);
    request.clear_tensors();
    request.set_version(4);
    EXPECT_EQ(Pull(request, &header, &bytes).error_code(), grpc::StatusCode::NOT_FOUND);
    inside_->Crash();  // the session is what the store holds (the service still talks to the old process)
    EXPECT_EQ(*inside_->Parameters("s"), values_);
    Restart();
  }
}

struct PushCase {
  const char* name;
  std::function<void(std::vector<v1::PushParametersRequest>*)> spoil;
  grpc::StatusCode want;
  const char* message;
};
const PushCase kPushes[] = {
    {"crc", [](auto* m) { (*m)[1].mutable_chunk()->set_crc32c(7); }, grpc::StatusCode::DATA_LOSS,
     "chunk.crc32c: 7 at offset 0"},
    {"sha256", [](auto* m) { (*m)[0].mutable_header()->set_sha256("00"); }, grpc::StatusCode::DATA_LOSS,
     "header.sha256: 00"},
    {"total", [](auto* m) { (*m)[0].mutable_header()->set_total_bytes(7); }, grpc::StatusCode::INVALID_ARGUMENT,
     "header.total_bytes: 7; the layout has"},
    {"gap", [](auto* m) { m->erase(m->begin() + 1); }, grpc::StatusCode::INVALID_ARGUMENT,
     "chunk.offset: 100000; expected 0"},
    {"short", [](auto* m) { m->pop_back(); }, grpc::StatusCode::INVALID_ARGUMENT, "bytes came"},
    {"long",
     [](auto* m) {
       m->push_back(m->back());
       m->back().mutable_chunk()->set_offset(400'024);
     },
     grpc::StatusCode::INVALID_ARGUMENT, "reach past the end"},
    {"no_header", [](auto* m) { m->erase(m->begin()); }, grpc::StatusCode::INVALID_ARGUMENT, "header: missing"},
    {"nothing", [](auto* m) { m->clear(); }, grpc::StatusCode::INVALID_ARGUMENT, "header: missing"},
    {"two_headers", [](auto* m) { m->insert(m->begin(), m->front()); }, grpc::StatusCode::INVALID_ARGUMENT,
     "chunk: missing"},
    {"unknown_session", [](auto* m) { (*m)[0].mutable_header()->set_session("t"); }, grpc::StatusCode::NOT_FOUND,
     "does not exist"},
};

TEST_F(TensorStreams, SpoiltPushesChangeNothing) {
  Create(100'000);
  for (const PushCase& c : kPushes) {
    const grpc::Status status = Push(c.spoil);
    EXPECT_EQ(status.error_code(), c.want) << c.name << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message)) << c.name;
    EXPECT_FALSE(inside_->Get("s")->has_values()) << c.name;
  }
  ASSERT_TRUE(Push().ok());
  EXPECT_TRUE(inside_->Get("s")->has_values());
  EXPECT_EQ(*inside_->Parameters("s"), values_);
}

TEST_F(TensorStreams, RepeatedPushReturnsTheFirstAnswer) {
  Create(5);
  auto with_id = [](auto* m) { (*m)[0].mutable_header()->set_request_id("p"); };
  ASSERT_TRUE(Push(with_id).ok());
  ASSERT_TRUE(Push(with_id).ok());
  values_[0] = 9;
  EXPECT_EQ(Push(with_id).error_code(), grpc::StatusCode::ABORTED);
}

// ---- StepStream

/// One stream and the steps on it.
struct Stream {
  explicit Stream(v1::SessionService::Stub& stub, bool return_values = false) : stream(stub.StepStream(&context)) {
    v1::StepStreamRequest request;
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

std::string GradientBytes(size_t n, int64_t step) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i)
    values[i] = 0.001f * static_cast<float>((step * 31 + static_cast<int64_t>(i) * 7) % 97) - 0.04f;
  return std::string(reinterpret_cast<const char*>(values.data()), n * 4);
}

TEST_F(TensorStreams, StepsAnswerInOrderWithTheNewParameters) {
  for (const bool pipelined : {false, true}) {
    Create(200'000);
    ASSERT_TRUE(Push().ok());
    Stream stream(*stub_, /*return_values=*/true);
    EXPECT_EQ(stream.opened.seq(), 0);
    EXPECT_EQ(stream.opened.total_bytes(), Bytes().size());
    std::thread sender;
    if (pipelined)
      sender = std::thread([&] {
        for (int64_t step = 0; step < 8; ++step) stream.Send(step + 1, step, GradientBytes(200'006, step));
      });
    for (int64_t step = 0; step < 8; ++step) {
      if (!pipelined) stream.Send(step + 1, step, GradientBytes(200'006, step));
      auto applied = stream.Applied();
      ASSERT_TRUE(applied);
      EXPECT_EQ(applied->seq(), step + 1);
      EXPECT_EQ(applied->head_version(), step + 1);
      const auto want = *inside_->Parameters("s", step + 1);
      EXPECT_EQ(stream.Values(Bytes().size()), std::string(reinterpret_cast<const char*>(want.data()), want.size() * 4))
          << step;
    }
    if (sender.joinable()) sender.join();
    EXPECT_TRUE(stream.Finish().ok());
    const auto values = *inside_->Parameters("s");
    inside_->Crash();
    EXPECT_EQ(*inside_->Parameters("s"), values);
    Restart();
  }
}

TEST_F(TensorStreams, StreamAndUnaryTellsGiveTheSameBits) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  ASSERT_TRUE(inside_->Fork("s", 0, "t").ok());
  Stream stream(*stub_);
  for (int64_t step = 0; step < 5; ++step) {
    const std::string bytes = GradientBytes(10, step);
    stream.Send(step + 1, step, bytes, 7);  // odd pieces
    ASSERT_TRUE(stream.Applied());
    v1::TellRequest tell;
    tell.set_session("t");
    tell.mutable_gradients()->set_base_version(step);
    std::vector<float> values(10);
    std::memcpy(values.data(), bytes.data(), 40);
    *tell.mutable_gradients()->add_gradients() = TensorOf("w", {2, 3}, {values.begin(), values.begin() + 6});
    *tell.mutable_gradients()->add_gradients() = TensorOf("b", {4}, {values.begin() + 6, values.end()});
    ASSERT_TRUE(inside_->Tell(tell).ok());
  }
  EXPECT_EQ(*inside_->Parameters("s"), *inside_->Parameters("t"));
}

TEST_F(TensorStreams, ABrokenStreamLosesOnlyTheOpenStep) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  {
    Stream stream(*stub_);
    stream.Send(1, 0, GradientBytes(10, 0));
    ASSERT_TRUE(stream.Applied());
    v1::StepStreamRequest request;
    request.mutable_begin()->set_seq(2);
    request.mutable_begin()->set_base_version(1);
    request.mutable_begin()->set_total_bytes(40);
    stream.stream->Write(request);
    stream.context.TryCancel();
    EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  Stream stream(*stub_, /*return_values=*/true);
  EXPECT_EQ(stream.opened.seq(), 1);
  EXPECT_EQ(stream.opened.head_version(), 1);
  stream.Send(1, 0, GradientBytes(10, 0));  // told again: the stored answer and the parameters of its version
  auto again = stream.Applied();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->head_version(), 1);
  const auto want = *inside_->Parameters("s", 1);
  EXPECT_EQ(stream.Values(40), std::string(reinterpret_cast<const char*>(want.data()), 40));
  stream.Send(2, 1, GradientBytes(10, 1));
  EXPECT_EQ(stream.Applied()->seq(), 2);
  stream.Values(40);
  EXPECT_TRUE(stream.Finish().ok());
}

struct StreamCase {
  const char* name;
  std::function<void(Stream*)> send;
  grpc::StatusCode want;
  const char* message;
};
v1::StepStreamRequest Begin(int64_t seq, uint64_t total) {
  v1::StepStreamRequest request;
  request.mutable_begin()->set_seq(seq);
  request.mutable_begin()->set_total_bytes(total);
  return request;
}
v1::StepStreamRequest Chunk(uint64_t offset, size_t size) {
  v1::StepStreamRequest request;
  request.mutable_chunk()->set_offset(offset);
  request.mutable_chunk()->set_data(std::string(size, '\0'));
  return request;
}
v1::StepStreamRequest Commit(int64_t seq) {
  v1::StepStreamRequest request;
  request.mutable_commit()->set_seq(seq);
  return request;
}
const StreamCase kStreams[] = {
    {"nan", [](Stream* s) { s->Send(1, 0, std::string(36, '\0') + std::string("\0\0\xc0\x7f", 4)); },
     grpc::StatusCode::INVALID_ARGUMENT, "b: element 3 is NaN"},
    {"gap", [](Stream* s) { s->Send(3, 0, GradientBytes(10, 0)); }, grpc::StatusCode::FAILED_PRECONDITION,
     "expected 1"},
    {"base", [](Stream* s) { s->Send(1, 1, GradientBytes(10, 0)); }, grpc::StatusCode::ABORTED,
     "base_version: 1 is not the head 0"},
    {"no_seq", [](Stream* s) { s->stream->Write(Begin(0, 40)); }, grpc::StatusCode::INVALID_ARGUMENT, "begin.seq: 0"},
    {"total", [](Stream* s) { s->stream->Write(Begin(1, 41)); }, grpc::StatusCode::INVALID_ARGUMENT,
     "begin.total_bytes: 41"},
    {"dtype", [](Stream* s) { s->Send(1, 0, std::string(20, '\0'), 100, v1::DTYPE_F16); },
     grpc::StatusCode::INVALID_ARGUMENT, "dtype: float16"},
    {"dtype_number", [](Stream* s) { s->Send(1, 0, std::string(40, '\0'), 100, static_cast<v1::DType>(257)); },
     grpc::StatusCode::INVALID_ARGUMENT, "begin.dtype: 257 is unknown"},
    {"chunk_first", [](Stream* s) { s->stream->Write(Chunk(0, 4)); }, grpc::StatusCode::INVALID_ARGUMENT,
     "chunk: comes without begin"},
    {"commit_first", [](Stream* s) { s->stream->Write(Commit(1)); }, grpc::StatusCode::INVALID_ARGUMENT,
     "commit: comes without begin"},
    {"begin_twice",
     [](Stream* s) {
       s->stream->Write(Begin(1, 40));
       s->stream->Write(Begin(1, 40));
     },
     grpc::StatusCode::INVALID_ARGUMENT, "the step before has no commit"},
    {"short",
     [](Stream* s) {
       s->stream->Write(Begin(1, 40));
       s->stream->Write(Chunk(0, 4));
       s->stream->Write(Commit(1));
     },
     grpc::StatusCode::INVALID_ARGUMENT, "4 of 40 bytes came"},
    {"other_commit",
     [](Stream* s) {
       s->stream->Write(Begin(1, 40));
       s->stream->Write(Chunk(0, 40));
       s->stream->Write(Commit(2));
     },
     grpc::StatusCode::INVALID_ARGUMENT, "commit.seq: 2; begin said 1"},
    {"open_end", [](Stream* s) { s->stream->Write(Begin(1, 40)); }, grpc::StatusCode::INVALID_ARGUMENT,
     "ended inside step 1"},
    {"empty", [](Stream* s) { s->stream->Write(v1::StepStreamRequest()); }, grpc::StatusCode::INVALID_ARGUMENT,
     "message: missing"},
};

TEST_F(TensorStreams, SpoiltStepsEndTheStreamAndChangeNothing) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  for (const StreamCase& c : kStreams) {
    Stream stream(*stub_);
    c.send(&stream);
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), c.want) << c.name << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message)) << c.name;
    EXPECT_EQ(inside_->Get("s")->version_count(), 1) << c.name;
    EXPECT_EQ(*inside_->Parameters("s"), values_) << c.name;
  }
}

TEST_F(TensorStreams, StateIsPulledAsTensors) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  Stream stream(*stub_);
  stream.Send(1, 0, GradientBytes(10, 0));
  ASSERT_TRUE(stream.Applied());
  grpc::ClientContext context;
  v1::PullStateRequest request;
  request.set_session("s");
  auto reader = stub_->PullState(&context, request);
  v1::PullParametersHeader header;
  std::string bytes;
  ASSERT_TRUE(Collect(reader.get(), &header, &bytes).ok());
  EXPECT_EQ(header.version(), 1);
  std::string want;
  for (const auto& [name, data] : inside_->State("s")) want += data;
  EXPECT_EQ(bytes, want);
  EXPECT_EQ(header.index().total_bytes(), want.size());
}

TEST_F(TensorStreams, SixteenStreamsMakeOneGaplessSequence) {
  Create(4, "sgd");
  ASSERT_TRUE(Push().ok());
  std::vector<std::thread> threads;
  std::atomic<int> applied{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      for (int mine = 0; mine < 5;) {
        Stream stream(*stub_);
        int64_t seq = stream.opened.seq();
        int64_t base = stream.opened.head_version();
        stream.Send(seq + 1, base, GradientBytes(10, base));
        auto answer = stream.Applied();
        // Another stream may have taken this seq: then the answer is the stored one, or the stream ends.
        if (answer && answer->seq() == seq + 1) ++mine;
        if (answer) ++applied;
        (void)stream.Finish();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto session = inside_->Get("s");
  EXPECT_EQ(session->seq() + 1, session->version_count());
  EXPECT_LE(session->seq(), applied);
  const auto values = *inside_->Parameters("s");
  inside_->Crash();
  EXPECT_EQ(*inside_->Parameters("s"), values);
}

// ---- the wire

std::vector<grpc::Slice> Split(const std::string& bytes, size_t first, size_t second) {
  std::vector<grpc::Slice> out;
  out.emplace_back(bytes.substr(0, first));
  out.emplace_back(bytes.substr(first, second - first));
  out.emplace_back(bytes.substr(second));
  return out;
}

TEST(TensorWire, ChunksParseHoweverTheyAreCut) {
  v1::PushParametersRequest request;
  request.mutable_chunk()->set_offset(300);
  request.mutable_chunk()->set_crc32c(0xdeadbeef);
  request.mutable_chunk()->set_data("hello world");
  const std::string bytes = request.SerializeAsString();
  for (size_t a = 0; a <= bytes.size(); ++a) {
    for (size_t b = a; b <= bytes.size(); ++b) {
      const auto slices = Split(bytes, a, b);
      ChunkView chunk;
      ASSERT_TRUE(ParseChunk(slices, 2, &chunk));
      EXPECT_EQ(chunk.offset, 300u);
      EXPECT_EQ(chunk.crc32c, 0xdeadbeefu);
      ASSERT_EQ(chunk.size, 11u);
      std::string data(11, '?');
      CopyChunk(slices, chunk, reinterpret_cast<std::byte*>(data.data()));
      EXPECT_EQ(data, "hello world");
    }
  }
  for (size_t n = 0; n < bytes.size(); ++n) {  // truncated: left to protobuf, which refuses
    ChunkView chunk;
    EXPECT_FALSE(ParseChunk(Split(bytes.substr(0, n), n / 2, n), 2, &chunk)) << n;
  }
  ChunkView chunk;
  EXPECT_FALSE(ParseChunk(Split(bytes + bytes, 1, 2), 2, &chunk));  // the field twice
  EXPECT_FALSE(ParseChunk(Split(bytes, 1, 2), 3, &chunk));          // another field
}

TEST(TensorWire, SentChunksAreOrdinaryMessages) {
  auto buffer = engine::TensorBuffer::Make(1000);
  for (size_t i = 0; i < 1000; ++i) buffer->data()[i] = static_cast<std::byte>(i * 7);
  FlatSender sender(buffer, {{10, 0}, {20, 130}, {500, 77}, {999, 1}}, 2, 64);
  std::string got, want;
  for (const auto& [begin, size] : std::vector<std::pair<size_t, size_t>>{{20, 130}, {500, 77}, {999, 1}})
    want.append(reinterpret_cast<const char*>(buffer->data()) + begin, size);
  while (!sender.done()) {
    v1::PullParametersResponse response;
    ASSERT_TRUE(ParseMessage(sender.Next(), &response).ok());
    EXPECT_EQ(response.chunk().offset(), got.size());
    EXPECT_LE(response.chunk().data().size(), 64u);
    got += response.chunk().data();
  }
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace optod::services
