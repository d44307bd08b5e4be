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

struct FormCase {
  const char* name;
  std::function<void(v1::StepStreamBegin*, v1::StepStreamCommit*)> spoil;
  const char* message;
};
const FormCase kForms[] = {
    {"lr_negative", [](auto*, auto* commit) { commit->add_lr(-1); }, "commit.lr[0]: -1 must be a finite number >= 0"},
    {"lr_nan", [](auto*, auto* commit) { commit->add_lr(std::nan("")); }, "must be a finite number"},
    {"lr_two",
     [](auto*, auto* commit) {
       commit->add_lr(1);
       commit->add_lr(1);
     },
     "lr: 2 rates; the optimizer has one parameter group"},
    {"absent_outside", [](auto* begin, auto*) { begin->add_absent(2); }, "absent: 2 is no tensor; the layout has 2"},
    {"absent_negative", [](auto* begin, auto*) { begin->add_absent(-1); }, "absent: -1 follows -1; must ascend"},
    {"absent_twice",
     [](auto* begin, auto*) {
       begin->add_absent(1);
       begin->add_absent(1);
     },
     "absent: 1 follows 1; must ascend"},
    {"absent_all",
     [](auto* begin, auto*) {
       begin->add_absent(0);
       begin->add_absent(1);
     },
     "absent: names every tensor"},
    {"extra_dtype", [](auto* begin, auto*) { begin->add_extra()->set_name("x"); },
     "extra[0] \"x\": dtype is missing or unknown"},
    {"extra_huge",
     [](auto* begin, auto*) {
       engine::SpecToProto({"x", optim::DType::kF32, {1ll << 62}}, begin->add_extra());
     },
     "extra[0] \"x\": shape is too large"},
    {"extra_negative",
     [](auto* begin, auto*) {
       engine::SpecToProto({"x", optim::DType::kF32, {-3}}, begin->add_extra());
     },
     "has a negative size"},
    {"extra_sum",
     [](auto* begin, auto*) {
       for (int i = 0; i < 1 << 17; ++i)
         engine::SpecToProto({std::to_string(i), optim::DType::kF32, {1ll << 46}}, begin->add_extra());
     },
     "extra: more than 1125899906842624 bytes"},
    {"extra_twice",
     [](auto* begin, auto*) {
       for (int i = 0; i < 2; ++i) engine::SpecToProto({"x", optim::DType::kF32, {0}}, begin->add_extra());
     },
     "extra[1] \"x\": given twice"},
    {"memory_without", [](auto* begin, auto*) { begin->set_in_shared_memory(true); },
     "begin.in_shared_memory: the stream was opened without"},
    {"dtype", [](auto* begin, auto*) { begin->set_dtype(v1::DTYPE_I8); }, "dtype: int8; tensor \"w\" takes float32"},
};

TEST_F(TensorStreams, SpoiltFormsEndTheStreamAndChangeNothing) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  for (const FormCase& c : kForms) {
    Stream stream(*stub_);
    v1::StepStreamRequest begin = Begin(1, 40), commit = Commit(1);
    c.spoil(begin.mutable_begin(), commit.mutable_commit());
    stream.stream->Write(begin);
    stream.stream->Write(Chunk(0, 40));
    stream.stream->Write(commit);
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.name << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message)) << c.name;
    EXPECT_EQ(inside_->Get("s")->version_count(), 1) << c.name;
  }
}

// ---- shared memory

TEST_F(TensorStreams, SharedMemoryGivesTheSameBitsAsChunks) {
  for (const v1::DType values_dtype : {v1::DTYPE_UNSPECIFIED, v1::DTYPE_BF16}) {
    Create(3'000'000);
    ASSERT_TRUE(Push().ok());
    ASSERT_TRUE(inside_->Fork("s", 0, "t").ok());
    const size_t bytes = Bytes().size(), values_at = (64 + bytes + 63) / 64 * 64;
    const size_t back = values_dtype == v1::DTYPE_BF16 ? bytes / 2 : bytes;
    ClientMemory memory(values_at + back);
    memory.offer.set_values_offset(values_at);
    v1::StepStreamOpen open;
    *open.mutable_shared_memory() = memory.offer;
    open.set_values_dtype(values_dtype);
    Stream stream(*stub_, /*return_values=*/true, open);
    ASSERT_TRUE(stream.opened.shared_memory()) << stream.opened.shared_memory_refused();
    for (int64_t step = 0; step < 3; ++step) {
      const std::string gradient = GradientBytes(3'000'006, step);
      if (step == 1) {  // chunks still work on such a stream
        stream.Send(step + 1, step, gradient, 1'000'000);
        ASSERT_TRUE(stream.Applied());
        EXPECT_EQ(stream.Values(back).size(), back);
        continue;
      }
      std::memcpy(memory.data + 64, gradient.data(), gradient.size());
      v1::StepStreamRequest begin = Begin(step + 1, bytes);
      begin.mutable_begin()->set_base_version(step);
      begin.mutable_begin()->set_in_shared_memory(true);
      stream.stream->Write(begin);
      stream.stream->Write(Commit(step + 1));
      ASSERT_TRUE(stream.Applied()) << stream.Finish().error_message();
      v1::StepStreamResponse response;
      ASSERT_TRUE(stream.stream->Read(&response));
      EXPECT_EQ(response.in_memory().bytes(), back);
      const auto want = *inside_->Parameters("s", step + 1);
      if (values_dtype == v1::DTYPE_UNSPECIFIED) {
        EXPECT_EQ(std::memcmp(memory.data + values_at, want.data(), bytes), 0) << step;
      } else {
        for (size_t i = 0; i < want.size(); i += 977) {
          uint16_t bits;
          std::memcpy(&bits, memory.data + values_at + 2 * i, 2);
          ASSERT_EQ(bits, optim::half::ToBf16(want[i])) << i;
        }
      }
    }
    ASSERT_TRUE(stream.Finish().ok());
    for (int64_t step = 0; step < 3; ++step) {
      v1::TellRequest tell;
      tell.set_session("t");
      tell.mutable_gradients()->set_base_version(step);
      const std::string gradient = GradientBytes(3'000'006, step);
      for (const auto& [name, shape, at, size] :
           {std::tuple<const char*, std::vector<int64_t>, size_t, size_t>{"w", {2, 3}, 0, 24},
            {"b", {3'000'000}, 24, 12'000'000}}) {
        v1::Tensor* tensor = tell.mutable_gradients()->add_gradients();
        engine::SpecToProto({name, optim::DType::kF32, shape}, tensor->mutable_spec());
        tensor->set_data(gradient.substr(at, size));
      }
      ASSERT_TRUE(inside_->Tell(tell).ok());
    }
    EXPECT_EQ(*inside_->Parameters("s"), *inside_->Parameters("t"));
    Restart();
  }
}

struct MemoryCase {
  const char* name;
  std::function<void(v1::SharedMemory*)> spoil;
  const char* message;
};
const MemoryCase kMemories[] = {
    {"nonce", [](v1::SharedMemory* m) { m->set_nonce(std::string(32, 'x')); }, "nonce: is not what the memory holds"},
    {"short_nonce", [](v1::SharedMemory* m) { m->set_nonce("n"); }, "nonce: 1 bytes; must be 32"},
    {"no_process", [](v1::SharedMemory* m) { m->set_pid(0x7fffffff); }, "is no memory of a client on this machine"},
    {"stdin", [](v1::SharedMemory* m) { m->set_fd(0); }, "is no memory of a client on this machine"},
    {"negative", [](v1::SharedMemory* m) { m->set_fd(-1); }, "pid and fd must be those of a process"},
    {"too_large", [](v1::SharedMemory* m) { m->set_total_bytes(1 << 20); },
     "total_bytes: 1048576; the memory has 4096"},
    {"enormous", [](v1::SharedMemory* m) { m->set_total_bytes(UINT64_MAX); }, "at most"},
    {"unaligned", [](v1::SharedMemory* m) { m->set_values_offset(100); }, "values_offset: 100; must be a multiple"},
    {"in_header", [](v1::SharedMemory* m) { m->set_values_offset(0); }, "values_offset: 0; must be"},
    {"past_end", [](v1::SharedMemory* m) { m->set_values_offset(1 << 20); }, "values_offset: 1048576; must be"},
    {"no_room", [](v1::SharedMemory* m) { m->set_values_offset(4096); }, "the parameters need 40 at 4096"},
};

TEST_F(TensorStreams, SharedMemoryThatCannotBeUsedIsRefusedAndChunksGoOn) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  ClientMemory memory(4096);
  memory.offer.set_values_offset(1024);
  ClientMemory unsealed(4096, F_SEAL_GROW), stranger(4096, F_SEAL_SHRINK, "other");
  int64_t seq = 0;
  auto refused = [&](const char* name, const v1::SharedMemory& offer, const char* message) {
    v1::StepStreamOpen open;
    *open.mutable_shared_memory() = offer;
    Stream stream(*stub_, /*return_values=*/true, open);
    EXPECT_FALSE(stream.opened.shared_memory()) << name;
    EXPECT_THAT(stream.opened.shared_memory_refused(), HasSubstr(message)) << name;
    stream.Send(seq + 1, seq, GradientBytes(10, seq));
    ASSERT_TRUE(stream.Applied()) << name;
    ++seq;
    EXPECT_EQ(stream.Values(40).size(), 40u);
    EXPECT_TRUE(stream.Finish().ok());
  };
  for (const MemoryCase& c : kMemories) {
    v1::SharedMemory offer = memory.offer;
    c.spoil(&offer);
    refused(c.name, offer, c.message);
  }
  unsealed.offer.set_values_offset(1024);
  refused("unsealed", unsealed.offer, "must be sealed with F_SEAL_SHRINK");
  stranger.offer.set_values_offset(1024);
  refused("stranger", stranger.offer, "is no memory of a client");
  service_->far_ = true;
  refused("far", memory.offer, "the client is on another machine");
}

TEST_F(TensorStreams, AStepLargerThanTheSharedMemoryIsRefused) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  ClientMemory memory(4096);
  memory.offer.set_values_offset(64);
  v1::StepStreamOpen open;
  *open.mutable_shared_memory() = memory.offer;
  Stream stream(*stub_, true, open);
  ASSERT_TRUE(stream.opened.shared_memory()) << stream.opened.shared_memory_refused();
  v1::StepStreamRequest begin = Begin(1, 40);
  begin.mutable_begin()->set_in_shared_memory(true);
  stream.stream->Write(begin);
  EXPECT_THAT(stream.Finish().error_message(), HasSubstr("the shared memory has room for 0"));
}

TEST(SharedMemoryPeers, OnlyThisMachine) {
  for (const char* peer :
       {"unix:/run/optod.sock", "unix:", "ipv4:127.0.0.1:4711", "ipv6:[::1]:4711", "ipv6:%5B::1%5D:4711"})
    EXPECT_TRUE(IsLocalPeer(peer)) << peer;
  for (const char* peer : {"ipv4:10.0.0.1:4711", "ipv6:[2001:db8::1]:4711", "", "ipv4:12.7.0.0:1", "uds:unix:"})
    EXPECT_FALSE(IsLocalPeer(peer)) << peer;
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
      chunk.offset = 0;
      chunk.crc32c = Crc32c("hello world");
      FlatReceiver receiver;
      ASSERT_TRUE(receiver.Start(11).ok());
      ASSERT_TRUE(receiver.Add(slices, chunk).ok());
      EXPECT_EQ(std::memcmp(receiver.buffer()->data(), "hello world", 11), 0);
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
