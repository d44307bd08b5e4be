// Transport behaviour of the client against an in-process service: request ids, retries, deadlines, errors, raw
// streams.
#include "clients/cpp/client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>

#include "base/crc32c.h"
#include "clients/cpp/layout.h"
#include "clients/cpp/raw_stream.h"
#include "clients/cpp/retry.h"
#include "clients/cpp/trace_recorder.h"
#include "optod/v1/operation.grpc.pb.h"
#include "optod/v1/session.grpc.pb.h"
#include "optod/v1/trace.grpc.pb.h"

namespace optod::client {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

// ---- pure functions

struct WaitCase {
  int attempt;
  double jitter;
  std::optional<milliseconds> retry_after;
  int64_t want_ms;
};
TEST(Retry, WaitsDoubleUpToTheLongest) {
  const WaitCase cases[] = {
      {1, 0.5, {}, 100},   {2, 0.5, {}, 200}, {3, 0.5, {}, 400}, {6, 0.5, {}, 2000},
      {60, 0.5, {}, 2000}, {1, 0.0, {}, 80},  {1, 1.0, {}, 120}, {1, 0.0, milliseconds(700), 700}};
  for (const WaitCase& c : cases)
    EXPECT_EQ(RetryWait({}, c.attempt, c.jitter, c.retry_after).count(), c.want_ms) << c.attempt;
}

TEST(Retry, OnlyUnavailableAndOnlyFourAttempts) {
  EXPECT_TRUE(ShouldRetry({}, 3, absl::UnavailableError("")));
  EXPECT_FALSE(ShouldRetry({}, 4, absl::UnavailableError("")));
  for (const auto code : {absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kAborted,
                          absl::StatusCode::kResourceExhausted, absl::StatusCode::kInternal})
    EXPECT_FALSE(ShouldRetry({}, 1, absl::Status(code, "")));
}

TEST(Retry, ReadsRetryAfter) {
  EXPECT_EQ(ParseRetryAfter("1500"), milliseconds(1500));
  for (const char* bad : {"", "-1", "1.5", "1s", "99999999", "123456789123"})
    EXPECT_EQ(ParseRetryAfter(bad), std::nullopt) << bad;
}

TEST(Layout, PlacesTensorsWithoutGaps) {
  v1::TensorIndex index = Float32Layout({{"w", {2, 3}, false}, {"b", {}, true}, {"empty", {0, 5}, false}});
  const auto places = PlaceTensors(index);
  ASSERT_TRUE(places.ok()) << places.status();
  EXPECT_EQ((*places)[1].offset, 24u);
  EXPECT_EQ((*places)[1].elements, 1);
  EXPECT_TRUE((*places)[1].no_decay);
  EXPECT_EQ((*places)[2].bytes, 0u);
  index.set_total_bytes(29);
  EXPECT_EQ(PlaceTensors(index).status().code(), absl::StatusCode::kInvalidArgument);
  index.mutable_tensors(0)->set_shape(0, -1);
  EXPECT_EQ(PlaceTensors(index).status().code(), absl::StatusCode::kInvalidArgument);
}

// What goes out raw is, byte for byte, a message that protobuf reads, and the other way round.
TEST(RawStream, ChunksAreTheGeneratedMessages) {
  std::string data(300, 'x');
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{127}, uint64_t{128}, uint64_t{1} << 40})
    for (const size_t size : {size_t{1}, size_t{127}, size_t{128}, size_t{300}}) {
      const std::string piece = data.substr(0, size);
      const uint32_t crc = Crc32c(piece);
      v1::PushParametersRequest message;
      ASSERT_TRUE(message.ParseFromString(ChunkHead(2, offset, crc, size) + piece));
      EXPECT_EQ(message.chunk().offset(), offset);
      EXPECT_EQ(message.chunk().crc32c(), crc);
      EXPECT_EQ(message.chunk().data(), piece);
    }
}

grpc::ByteBuffer Pieces(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) slices.emplace_back(bytes.substr(at, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

TEST(RawStream, ReadsChunksHoweverTheyAreSliced) {
  v1::PullParametersResponse message;
  message.mutable_chunk()->set_offset(10);
  message.mutable_chunk()->set_data("hello world");
  message.mutable_chunk()->set_crc32c(Crc32c("hello world"));
  for (size_t piece = 1; piece < 40; ++piece) {
    std::vector<std::byte> target(21);
    RawMessage out;
    ASSERT_TRUE(ReadRawMessage(Pieces(message.SerializeAsString(), piece), 2, target, &out).ok()) << piece;
    EXPECT_TRUE(out.is_chunk);
    EXPECT_EQ(out.bytes, 11u);
    EXPECT_EQ(std::memcmp(target.data() + 10, "hello world", 11), 0);
  }
}

TEST(RawStream, RefusesWrongChecksumsBoundsAndGarbage) {
  v1::PullParametersResponse message;
  message.mutable_chunk()->set_offset(10);
  message.mutable_chunk()->set_data("hello");
  message.mutable_chunk()->set_crc32c(Crc32c("hellO"));
  std::vector<std::byte> target(15), small(14);
  RawMessage out;
  EXPECT_EQ(ReadRawMessage(Pieces(message.SerializeAsString(), 99), 2, target, &out).code(),
            absl::StatusCode::kDataLoss);
  message.mutable_chunk()->set_crc32c(0);
  EXPECT_TRUE(ReadRawMessage(Pieces(message.SerializeAsString(), 99), 2, target, &out).ok());
  EXPECT_EQ(ReadRawMessage(Pieces(message.SerializeAsString(), 99), 2, small, &out).code(),
            absl::StatusCode::kDataLoss);
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = message.SerializeAsString();
    bytes[random() % bytes.size()] = static_cast<char>(random());
    bytes.resize(random() % (bytes.size() + 1));
    (void)ReadRawMessage(Pieces(bytes, 1 + random() % 7), 2, target, &out);
  }
}

// ---- against a service

// Answers what the test says, and remembers what it got.
class Sessions final : public v1::SessionService::Service {
 public:
  std::vector<grpc::Status> failures;  // of the next Tell calls, first first
  std::string retry_after_ms;
  std::vector<std::string> request_ids;
  std::string authorization;
  std::string buffer;  // pushed, or to be pulled
  int bad_chunk = -1;  // pull: this chunk's checksum is wrong

  grpc::Status Tell(grpc::ServerContext* context, const v1::TellRequest* request, v1::TellResponse* response) override {
    request_ids.push_back(request->request_id());
    const auto found = context->client_metadata().find("authorization");
    if (found != context->client_metadata().end())
      authorization = std::string(found->second.data(), found->second.size());
    if (failures.empty()) {
      response->set_seq(7);
      return grpc::Status::OK;
    }
    const grpc::Status status = failures.front();
    failures.erase(failures.begin());
    context->AddTrailingMetadata("optod-reason", "TEST_REASON");
    if (!retry_after_ms.empty()) context->AddTrailingMetadata("retry-after-ms", retry_after_ms);
    return status;
  }

  grpc::Status PushParameters(grpc::ServerContext*, grpc::ServerReader<v1::PushParametersRequest>* reader,
                              v1::PushParametersResponse* response) override {
    v1::PushParametersRequest message;
    if (!reader->Read(&message) || !message.has_header()) return {grpc::INVALID_ARGUMENT, "no header"};
    if (message.header().session() == "refused") return {grpc::FAILED_PRECONDITION, "a step has been made"};
    buffer.clear();
    while (reader->Read(&message)) {
      const v1::TensorChunk& chunk = message.chunk();
      if (chunk.offset() != buffer.size() || chunk.crc32c() != Crc32c(chunk.data())) return {grpc::DATA_LOSS, "chunk"};
      buffer += chunk.data();
    }
    response->set_total_bytes(buffer.size());
    return grpc::Status::OK;
  }

  grpc::Status PullParameters(grpc::ServerContext*, const v1::PullParametersRequest* request,
                              grpc::ServerWriter<v1::PullParametersResponse>* writer) override {
    v1::PullParametersResponse message;
    message.mutable_header()->set_version(request->version());
    message.mutable_header()->mutable_index()->set_total_bytes(buffer.size());
    writer->Write(message);
    int number = 0;
    for (size_t at = 0; at < buffer.size(); at += 1000, ++number) {
      v1::TensorChunk& chunk = *message.mutable_chunk();
      chunk.set_offset(at);
      chunk.set_data(buffer.substr(at, 1000));
      chunk.set_crc32c(Crc32c(chunk.data()) + (number == bad_chunk));
      writer->Write(message);
    }
    return grpc::Status::OK;
  }

  // Adds 1 to every byte.
  grpc::Status StepStream(grpc::ServerContext*,
                          grpc::ServerReaderWriter<v1::StepStreamResponse, v1::StepStreamRequest>* stream) override {
    v1::StepStreamRequest in;
    v1::StepStreamResponse out;
    if (!stream->Read(&in) || !in.has_open()) return {grpc::INVALID_ARGUMENT, "open"};
    out.mutable_opened()->set_total_bytes(3 << 20);
    stream->Write(out);
    std::string data;
    while (stream->Read(&in)) {
      if (in.has_begin() && in.begin().seq() == 3) return {grpc::ABORTED, "version moved"};
      if (in.has_begin()) data.clear();
      if (in.has_chunk()) data += in.chunk().data();
      if (!in.has_commit()) continue;
      out.mutable_applied()->set_seq(in.commit().seq());
      stream->Write(out);
      for (char& c : data) ++c;
      for (size_t at = 0; at < data.size(); at += 1 << 20) {
        out.mutable_chunk()->set_offset(at);
        out.mutable_chunk()->set_data(data.substr(at, 1 << 20));
        stream->Write(out);
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status AskTellStream(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::AskTellResponse, v1::AskTellRequest>* stream) override {
    v1::AskTellRequest in;
    while (stream->Read(&in)) {
      v1::AskTellResponse out;
      request_ids.push_back(in.tell().request_id());
      if (in.tell().session() == "bad")
        out.set_error_code(9), out.set_error_message("closed");
      else
        out.mutable_tell()->set_seq(in.tell().seq());
      stream->Write(out);
    }
    return grpc::Status::OK;
  }
};

class Trace final : public v1::TraceService::Service {
 public:
  std::vector<v1::RecordNodesRequest> recorded;
  int64_t next = 100;
  grpc::Status RecordNodes(grpc::ServerContext*, const v1::RecordNodesRequest* request,
                           v1::RecordNodesResponse* response) override {
    recorded.push_back(*request);
    for (int i = 0; i < request->nodes_size(); ++i) response->add_nodes()->set_id(next++);
    return grpc::Status::OK;
  }
};

class Operations final : public v1::OperationService::Service {
 public:
  int polls = 0, cancels = 0;
  v1::Operation last;
  grpc::Status WaitOperation(grpc::ServerContext*, const v1::WaitOperationRequest* request,
                             v1::Operation* response) override {
    if (++polls >= 3) *response = last;
    response->set_name(request->name());
    response->set_done(polls >= 3);
    return grpc::Status::OK;
  }
  grpc::Status CancelOperation(grpc::ServerContext*, const v1::CancelOperationRequest*, v1::Operation*) override {
    ++cancels;
    return grpc::Status::OK;
  }
};

class ClientTest : public testing::Test {
 protected:
  ClientTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&trace_);
    builder.RegisterService(&operations_);
    server_ = builder.BuildAndStart();
    ClientOptions options;
    options.address = "127.0.0.1:" + std::to_string(port);
    options.token = "secret";
    options.clock = &clock_;
    client_ = *Client::Connect(options);
  }
  Sessions sessions_;
  Trace trace_;
  Operations operations_;
  FakeClock clock_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
};

const grpc::Status kDown(grpc::UNAVAILABLE, "draining");

TEST_F(ClientTest, ARetryKeepsTheRequestId) {
  sessions_.failures = {kDown, kDown, kDown};
  const auto response = client_->Tell({});
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(sessions_.request_ids.size(), 4u);
  EXPECT_EQ(sessions_.request_ids[0].size(), 36u);
  for (const std::string& id : sessions_.request_ids) EXPECT_EQ(id, sessions_.request_ids[0]);
  EXPECT_EQ(sessions_.authorization, "Bearer secret");
}

TEST_F(ClientTest, TwoCallsHaveTwoIdsAndTheCallersOwnIdIsKept) {
  v1::TellRequest own;
  own.set_request_id("mine");
  ASSERT_TRUE(client_->Tell({}).ok() && client_->Tell({}).ok() && client_->Tell(own).ok());
  EXPECT_NE(sessions_.request_ids[0], sessions_.request_ids[1]);
  EXPECT_EQ(sessions_.request_ids[2], "mine");
}

TEST_F(ClientTest, GivesUpAfterFourAttempts) {
  sessions_.failures.assign(9, kDown);
  const auto response = client_->Tell({});
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(response.status().message(), "draining");
  EXPECT_EQ(sessions_.request_ids.size(), 4u);
}

TEST_F(ClientTest, WaitsAsLongAsTheServerAsks) {
  sessions_.failures = {kDown};
  sessions_.retry_after_ms = "7000";
  const int64_t before = clock_.NowMonotonicNs();
  ASSERT_TRUE(client_->Tell({}).ok());
  EXPECT_EQ(clock_.NowMonotonicNs() - before, 7'000'000'000);
}

TEST_F(ClientTest, DoesNotWaitBeyondItsDeadline) {
  sessions_.failures = {kDown};
  sessions_.retry_after_ms = "40000";
  EXPECT_EQ(client_->Tell({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(sessions_.request_ids.size(), 1u);
}

TEST_F(ClientTest, OtherErrorsComeBackUnchangedWithTheirReason) {
  for (const auto code :
       {grpc::ABORTED, grpc::INVALID_ARGUMENT, grpc::RESOURCE_EXHAUSTED, grpc::DATA_LOSS, grpc::UNAUTHENTICATED}) {
    sessions_.failures = {grpc::Status(code, "field: -1 is negative")};
    sessions_.request_ids.clear();
    const absl::Status status = client_->Tell({}).status();
    EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code));
    EXPECT_EQ(status.message(), "field: -1 is negative");
    EXPECT_EQ(ErrorReason(status), "TEST_REASON");
    EXPECT_EQ(sessions_.request_ids.size(), 1u);
  }
}

TEST_F(ClientTest, PushesAndPullsWholeBuffers) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{1} << 20, (size_t{5} << 20) + 13}) {
    std::vector<std::byte> data(size);
    std::mt19937 random(1);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    const auto pushed = client_->PushParameters("s", data);
    ASSERT_TRUE(pushed.ok()) << pushed.status();
    EXPECT_EQ(pushed->total_bytes(), size);
    const auto pulled = client_->PullParameters("s", 4);
    ASSERT_TRUE(pulled.ok()) << pulled.status();
    EXPECT_EQ(pulled->version, 4);
    EXPECT_TRUE(pulled->data == data);
  }
}

TEST_F(ClientTest, APushThatIsRefusedReturnsTheReasonAndReleasesTheBuffer) {
  for (int i = 0; i < 20; ++i) {
    std::vector<std::byte> data(size_t{8} << 20);
    EXPECT_EQ(client_->PushParameters("refused", data).status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(ClientTest, APullWithAWrongChecksumIsDataLoss) {
  sessions_.buffer.assign(5000, 'a');
  sessions_.bad_chunk = 3;
  const absl::Status status = client_->PullParameters("s").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "stream: the checksum of the chunk at byte 3000 does not fit");
}

TEST_F(ClientTest, StepsOverAStream) {
  auto stream = client_->OpenSteps("s", true);
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::vector<std::byte> gradients(3 << 20, std::byte{5}), values(3 << 20);
  for (int seq = 1; seq <= 2; ++seq) {
    v1::StepStreamBegin begin;
    begin.set_seq(seq);
    const auto told = (*stream)->Step(begin, gradients, values);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->seq(), seq);
    EXPECT_TRUE(values == std::vector<std::byte>(3 << 20, std::byte{6}));
  }
  v1::StepStreamBegin begin;
  begin.set_seq(3);
  EXPECT_EQ((*stream)->Step(begin, gradients, values).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ((*stream)->Step(begin, gradients, values).status().code(), absl::StatusCode::kFailedPrecondition);
  auto second = client_->OpenSteps("s", true);
  EXPECT_TRUE((*second)->Close().ok());
}

TEST_F(ClientTest, AskTellStreamGoesOnAfterAnErrorOfOneMessage) {
  auto stream = client_->OpenAskTell();
  v1::AskTellRequest request;
  request.mutable_tell()->set_session("bad");
  const absl::Status status = (*stream)->Exchange(request).status();
  EXPECT_EQ(status, absl::FailedPreconditionError("closed"));
  request.mutable_tell()->set_session("good");
  request.mutable_tell()->set_seq(5);
  EXPECT_EQ((*stream)->Exchange(request)->tell().seq(), 5);
  EXPECT_EQ(sessions_.request_ids[1].size(), 36u);
  EXPECT_TRUE((*stream)->Close().ok());
}

TEST_F(ClientTest, WaitsForOperationsAndReturnsTheirErrors) {
  v1::ProposeResponse answer;
  answer.set_head_version(4);
  operations_.last.mutable_response()->PackFrom(answer);
  int seen = 0;
  ASSERT_TRUE(client_->Wait("op", [&](const v1::Operation&) { ++seen; }).ok());
  EXPECT_EQ(seen, 3);
  operations_.polls = 0;
  operations_.last.mutable_error()->set_code(8);
  operations_.last.mutable_error()->set_message("budget");
  EXPECT_EQ(client_->Wait("op").status(), absl::ResourceExhaustedError("budget"));
  operations_.polls = 0;
  const std::atomic<bool> cancelled{true};
  (void)client_->Wait("op", nullptr, &cancelled);
  EXPECT_EQ(operations_.cancels, 1);
}

TEST_F(ClientTest, RecorderRefersToNodesOfThisAndOfEarlierBatches) {
  TraceRecorder recorder(*client_, "s");
  const auto a = recorder.Add({});
  const auto b = recorder.Add({}, {{"x", *a}, {"y", TraceRecorder::Known(7)}});
  EXPECT_EQ(recorder.Id(*b).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(recorder.Flush().ok());
  EXPECT_EQ(*recorder.Id(*b), 101);
  ASSERT_TRUE(recorder.Add({}, {{"z", *b}}).ok() && recorder.Flush().ok());
  EXPECT_EQ(trace_.recorded[0].nodes(1).inputs(0).node(), -1);
  EXPECT_EQ(trace_.recorded[0].nodes(1).inputs(1).node(), 7);
  EXPECT_EQ(trace_.recorded[1].nodes(0).inputs(0).node(), 101);
  EXPECT_EQ(recorder.Add({}, {{"w", TraceRecorder::Ref{9, -1}}}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Connect, RefusesAddressesThatAreNone) {
  for (const char* bad : {"", "localhost", ":70", "host:", "host:0", "host:99999", "host:7x", "unix:"}) {
    ClientOptions options;
    options.address = bad;
    EXPECT_EQ(Client::Connect(options).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace optod::client
