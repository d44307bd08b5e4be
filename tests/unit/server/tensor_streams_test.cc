// The calls that carry tensors, over a real gRPC server: ordinary protobuf clients, checks, long-lived step streams.
#include "server/services/tensor_streams.h"

#include <thread>

#include "optim/rules/half.h"
#include "server/services/tensor_wire.h"
#include "tensor_streams_testing.h"

namespace optod::services {
namespace {

using ::testing::HasSubstr;

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
    {"dtype", [](Stream* s) { s->Send(1, 0, std::string(40, '\0'), 100, v1::DTYPE_I32); },
     grpc::StatusCode::INVALID_ARGUMENT, "dtype: int32"},
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

// ---- forms of a step: rates, absent tensors, further inputs, half precision, a second beginning

TEST_F(TensorStreams, AToldRateReplacesTheSessionsAlsoAfterACrash) {
  Create(4, "sgd");
  ASSERT_TRUE(Push().ok());
  {
    Stream stream(*stub_);
    const std::string ones = FloatBytes(std::vector<float>(10, 1.0f));
    for (const auto& [seq, lr] : {std::pair<int64_t, double>{1, 0.5}, {2, 0.0}}) {
      v1::StepStreamRequest begin = Begin(seq, 40);
      begin.mutable_begin()->set_base_version(seq - 1);
      stream.stream->Write(begin);
      stream.stream->Write(ChunkOf(ones));
      stream.stream->Write(Commit(seq, lr));
      const auto applied = stream.Applied();
      ASSERT_TRUE(applied);
      EXPECT_EQ(applied->lr(), lr);
    }
    ASSERT_TRUE(stream.Finish().ok());
  }
  v1::TellRequest tell;
  tell.set_session("s");
  tell.mutable_gradients()->set_base_version(2);
  tell.mutable_gradients()->add_lr(0.25);
  *tell.mutable_gradients()->add_gradients() = TensorOf("b", {4}, {1, 1, 1, 1});
  ASSERT_TRUE(inside_->Tell(tell).ok());
  std::vector<float> want = values_;
  for (float& value : want) value -= 0.5f;
  for (size_t i = 6; i < 10; ++i) want[i] -= 0.25f;
  EXPECT_EQ(*inside_->Parameters("s"), want);
  inside_->Crash();
  EXPECT_EQ(*inside_->Parameters("s"), want);
}

TEST_F(TensorStreams, AbsentTensorsAreLeftAloneAlsoAfterACrash) {
  Create(4, "sgd");
  ASSERT_TRUE(Push().ok());
  {
    Stream stream(*stub_);
    v1::StepStreamRequest begin = Begin(1, 16);
    begin.mutable_begin()->add_absent(0);
    stream.stream->Write(begin);
    stream.stream->Write(ChunkOf(FloatBytes({1, 1, 1, 1})));
    stream.stream->Write(Commit(1, 1.0));
    ASSERT_TRUE(stream.Applied());
  }
  std::vector<float> want = values_;
  for (size_t i = 6; i < 10; ++i) want[i] -= 1;
  EXPECT_EQ(*inside_->Parameters("s"), want);
  inside_->Crash();
  EXPECT_EQ(*inside_->Parameters("s"), want);
}

TEST_F(TensorStreams, FurtherInputsFollowTheGradients) {
  Create(4, "adahessian");
  ASSERT_TRUE(Push().ok());
  ASSERT_TRUE(inside_->Fork("s", 0, "t").ok());
  const std::vector<float> g = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, h = {1, 1, 2, 2, 3, 3, 4, 4, 5, 5};
  {
    Stream stream(*stub_);
    v1::StepStreamRequest begin = Begin(1, 80);
    engine::SpecToProto({"hessian_z/w", optim::DType::kF32, {2, 3}}, begin.mutable_begin()->add_extra());
    engine::SpecToProto({"hessian_z/b", optim::DType::kF32, {4}}, begin.mutable_begin()->add_extra());
    stream.stream->Write(begin);
    stream.stream->Write(ChunkOf(FloatBytes(g) + FloatBytes(h)));
    stream.stream->Write(Commit(1));
    ASSERT_TRUE(stream.Applied()) << stream.Finish().error_message();
  }
  v1::TellRequest tell;
  tell.set_session("t");
  *tell.mutable_gradients()->add_gradients() = TensorOf("w", {2, 3}, {g.begin(), g.begin() + 6});
  *tell.mutable_gradients()->add_gradients() = TensorOf("b", {4}, {g.begin() + 6, g.end()});
  *tell.mutable_gradients()->add_extra() = TensorOf("hessian_z/w", {2, 3}, {h.begin(), h.begin() + 6});
  *tell.mutable_gradients()->add_extra() = TensorOf("hessian_z/b", {4}, {h.begin() + 6, h.end()});
  ASSERT_TRUE(inside_->Tell(tell).ok());
  EXPECT_EQ(*inside_->Parameters("s"), *inside_->Parameters("t"));
  const auto values = *inside_->Parameters("s");
  inside_->Crash();
  EXPECT_EQ(*inside_->Parameters("s"), values);
}

TEST_F(TensorStreams, HalfPrecisionOnTheWireBothWays) {
  for (const auto& [dtype, from, to] : {std::tuple{v1::DTYPE_BF16, &optim::half::FromBf16, &optim::half::ToBf16},
                                        std::tuple{v1::DTYPE_F16, &optim::half::FromF16, &optim::half::ToF16}}) {
    Create(4, "sgd");
    ASSERT_TRUE(Push().ok());
    v1::StepStreamOpen open;
    open.set_values_dtype(dtype);
    Stream stream(*stub_, /*return_values=*/true, open);
    std::vector<uint16_t> g(10);
    for (size_t i = 0; i < g.size(); ++i) g[i] = to(0.37f * static_cast<float>(i) - 1);
    v1::StepStreamRequest begin = Begin(1, 20);
    begin.mutable_begin()->set_dtype(dtype);
    stream.stream->Write(begin);
    stream.stream->Write(ChunkOf(std::string(reinterpret_cast<const char*>(g.data()), 20)));
    stream.stream->Write(Commit(1, 1.0));
    ASSERT_TRUE(stream.Applied()) << stream.Finish().error_message();
    const std::string back = stream.Values(20);
    std::vector<float> want = values_;
    for (size_t i = 0; i < want.size(); ++i) {
      want[i] -= from(g[i]);
      uint16_t bits;
      std::memcpy(&bits, back.data() + 2 * i, 2);
      EXPECT_EQ(bits, to(want[i])) << i;
    }
    EXPECT_EQ(*inside_->Parameters("s"), want) << "the server keeps float32";
    ASSERT_TRUE(stream.Finish().ok());
    inside_->Crash();
    EXPECT_EQ(*inside_->Parameters("s"), want);
    Restart();
  }
}

TEST_F(TensorStreams, ABegunStepMayBeginAgain) {
  Create(4, "sgd");
  ASSERT_TRUE(Push().ok());
  Stream stream(*stub_);
  stream.stream->Write(Begin(1, 40));
  stream.stream->Write(Chunk(0, 12));
  v1::StepStreamRequest again = Begin(1, 40);
  again.mutable_begin()->set_restart(true);
  stream.stream->Write(again);
  stream.stream->Write(ChunkOf(FloatBytes(std::vector<float>(10, 1.0f))));
  stream.stream->Write(Commit(1, 1.0));
  ASSERT_TRUE(stream.Applied()) << stream.Finish().error_message();
  std::vector<float> want = values_;
  for (float& value : want) value -= 1;
  EXPECT_EQ(*inside_->Parameters("s"), want);
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

/// Sends a state file in chunks, the messages as `spoil` made them.
grpc::Status Import(v1::SessionService::Stub& stub, const std::string& file, const std::string& id, v1::Session* session,
                    const std::function<void(std::vector<v1::ImportStateRequest>*)>& spoil = {}) {
  std::vector<v1::ImportStateRequest> messages(1);
  messages[0].mutable_header()->set_session_id(id);
  messages[0].mutable_header()->set_total_bytes(file.size());
  messages[0].mutable_header()->set_sha256(Sha256Hex(file));
  for (size_t at = 0; at < file.size(); at += 100'000) {
    v1::TensorChunk* chunk = messages.emplace_back().mutable_chunk();
    chunk->set_offset(at);
    chunk->set_data(file.substr(at, 100'000));
    chunk->set_crc32c(Crc32c(chunk->data().data(), chunk->data().size()));
  }
  if (spoil) spoil(&messages);
  grpc::ClientContext context;
  auto writer = stub.ImportState(&context, session);
  for (const auto& message : messages)
    if (!writer->Write(message)) break;
  writer->WritesDone();
  return writer->Finish();
}
struct ImportCase {
  const char* name;
  std::function<void(std::vector<v1::ImportStateRequest>*)> spoil;
  grpc::StatusCode want;
  const char* message;
};
const ImportCase kImports[] = {
    {"no header", [](auto* m) { m->erase(m->begin()); }, grpc::StatusCode::INVALID_ARGUMENT, "header: missing"},
    {"nothing", [](auto* m) { m->clear(); }, grpc::StatusCode::INVALID_ARGUMENT, "header: missing"},
    {"too small", [](auto* m) { (*m)[0].mutable_header()->set_total_bytes(7); }, grpc::StatusCode::INVALID_ARGUMENT, "has at least 8"},
    {"cut", [](auto* m) { m->pop_back(); }, grpc::StatusCode::INVALID_ARGUMENT, ""},
    {"gap", [](auto* m) { (*m)[2].mutable_chunk()->set_offset(5); }, grpc::StatusCode::INVALID_ARGUMENT, "offset"},
    {"checksum of a chunk", [](auto* m) { (*m)[1].mutable_chunk()->set_crc32c(1); }, grpc::StatusCode::DATA_LOSS, ""},
    {"checksum of the file", [](auto* m) { (*m)[0].mutable_header()->set_sha256(std::string(64, 'a')); }, grpc::StatusCode::DATA_LOSS, "header.sha256"},
    {"two headers", [](auto* m) { (*m)[1] = (*m)[0]; }, grpc::StatusCode::INVALID_ARGUMENT, "chunk: missing"},
};

TEST_F(TensorStreams, StateGoesOutAndComesIn) {
  Create(300'000);
  ASSERT_TRUE(Push().ok());
  v1::ExportStateRequest request;
  request.set_session("s");
  grpc::ClientContext context;
  auto reader = stub_->ExportState(&context, request);
  v1::ExportStateResponse piece;
  v1::ExportStateHeader header;
  std::string file;
  while (reader->Read(&piece)) {
    if (piece.has_header()) header = piece.header();
    if (!piece.has_chunk()) continue;
    EXPECT_EQ(piece.chunk().offset(), file.size());
    file += piece.chunk().data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(header.total_bytes(), file.size());
  v1::Session session;
  const grpc::Status status = Import(*stub_, file, "again", &session);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(session.name(), "users/local/sessions/again");
  EXPECT_EQ(*inside_->Parameters("again"), values_);
  for (const ImportCase& c : kImports) {
    const grpc::Status refused = Import(*stub_, file, "never", &session, c.spoil);
    EXPECT_EQ(refused.error_code(), c.want) << c.name << ": " << refused.error_message();
    EXPECT_THAT(refused.error_message(), HasSubstr(c.message)) << c.name;
    EXPECT_FALSE(inside_->Get("never").ok()) << c.name;
  }
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

}  // namespace
}  // namespace optod::services
