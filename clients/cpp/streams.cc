// The client's streams: tensors, gradient steps, ask and tell, artifacts, exports, events.
#include <algorithm>

#include "base/random_id.h"
#include "base/sha256.h"
#include "base/status.h"
#include "clients/cpp/client_impl.h"
#include "clients/cpp/raw_stream.h"

namespace optod::client {
namespace {

// Pulls a header message and the chunks of the buffer that it announces.
template <typename Request>
absl::StatusOr<Client::Tensors> Pull(ClientImpl& impl, const std::string& method, const Request& request) {
  RawStream stream(impl, "/optod.v1.SessionService/" + method, std::chrono::milliseconds(0));
  RETURN_IF_ERROR(stream.Start());
  if (!stream.Write(request) || !stream.WritesDone()) return stream.Finish();
  Client::Tensors out;
  grpc::ByteBuffer buffer;
  bool header_seen = false;
  uint64_t received = 0;
  while (stream.Read(&buffer)) {
    RawMessage message;
    RETURN_IF_ERROR(ReadRawMessage(buffer, 2, out.data, &message));
    if (message.is_chunk) {
      if (message.offset != received)
        return DataLoss("stream: chunk at byte ", message.offset, ", expected ", received);
      received += message.bytes;
      continue;
    }
    v1::PullParametersResponse response;
    if (!response.ParseFromString(message.other) || !response.has_header())
      return DataLoss("stream: the first message is no header");
    header_seen = true;
    out.version = response.header().version();
    out.index = std::move(*response.mutable_header()->mutable_index());
    out.data.resize(out.index.total_bytes());
  }
  RETURN_IF_ERROR(stream.Finish());
  if (!header_seen || received != out.data.size())
    return DataLoss("stream: ", received, " of ", out.data.size(), " bytes came");
  return out;
}

class AskTellStreamImpl final : public AskTellStream {
 public:
  explicit AskTellStreamImpl(ClientImpl& impl) {
    impl.Prepare(&context_, std::chrono::milliseconds(0));
    stream_ = impl.sessions->AskTellStream(&context_);
  }
  ~AskTellStreamImpl() override {
    if (closed_) return;
    context_.TryCancel();
    (void)stream_->Finish();
  }
  absl::Status Send(v1::AskTellRequest request) override {
    if (closed_) return FailedPrecondition("stream: it is closed");
    if (request.has_tell() && request.tell().request_id().empty()) request.mutable_tell()->set_request_id(Uuid4());
    return stream_->Write(request) ? absl::OkStatus() : Ended();
  }
  absl::StatusOr<v1::AskTellResponse> Receive() override {
    if (closed_) return FailedPrecondition("stream: it is closed");
    v1::AskTellResponse response;
    if (!stream_->Read(&response)) return Ended();
    return response;
  }
  absl::StatusOr<v1::AskTellResponse> Exchange(v1::AskTellRequest request) override {
    RETURN_IF_ERROR(Send(std::move(request)));
    ASSIGN_OR_RETURN(v1::AskTellResponse response, Receive());
    if (response.error_code() != 0)
      return absl::Status(static_cast<absl::StatusCode>(response.error_code()), response.error_message());
    return response;
  }
  absl::Status Close() override {
    if (closed_) return absl::OkStatus();
    stream_->WritesDone();
    v1::AskTellResponse ignored;
    while (stream_->Read(&ignored)) {
    }
    closed_ = true;
    return ToAbsl(stream_->Finish(), context_);
  }

 private:
  absl::Status Ended() {
    closed_ = true;
    const absl::Status status = ToAbsl(stream_->Finish(), context_);
    return status.ok() ? Unavailable("stream: the server ended it") : status;
  }
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AskTellRequest, v1::AskTellResponse>> stream_;
  bool closed_ = false;
};

class StepStreamImpl final : public StepStream {
 public:
  explicit StepStreamImpl(ClientImpl& impl)
      : stream_(impl, "/optod.v1.SessionService/StepStream", std::chrono::milliseconds(0)) {}

  absl::Status Open(const std::string& session, bool return_values) {
    return_values_ = return_values;
    RETURN_IF_ERROR(stream_.Start());
    v1::StepStreamRequest request;
    request.mutable_open()->set_session(session);
    request.mutable_open()->set_return_values(return_values);
    if (!stream_.Write(request)) return Ended();
    ASSIGN_OR_RETURN(v1::StepStreamResponse response, ReadMessage());
    if (!response.has_opened()) return Ended();
    opened_ = response.opened();
    return absl::OkStatus();
  }
  const v1::StepStreamOpened& opened() const override { return opened_; }

  absl::StatusOr<v1::TellResponse> Step(v1::StepStreamBegin begin, std::span<const std::byte> gradients,
                                        std::span<std::byte> values) override {
    if (ended_) return FailedPrecondition("stream: it has ended");
    if (return_values_ && values.size() != opened_.total_bytes())
      return InvalidArgument("values: ", values.size(), " bytes; the layout has ", opened_.total_bytes());
    v1::StepStreamRequest request, commit;
    commit.mutable_commit()->set_seq(begin.seq());
    if (begin.request_id().empty()) begin.set_request_id(Uuid4());
    begin.set_total_bytes(gradients.size());
    *request.mutable_begin() = std::move(begin);
    const bool sent = stream_.Write(request) && stream_.WriteChunks(3, gradients) && stream_.Write(commit);
    if (!sent) return Ended();
    ASSIGN_OR_RETURN(v1::StepStreamResponse response, ReadMessage());
    if (!response.has_applied()) return Internal("stream: a step was answered by something else");
    if (return_values_) RETURN_IF_ERROR(ReadValues(values));
    stream_.WaitReleased();
    return response.applied();
  }

  absl::Status Close() override {
    if (ended_) return absl::OkStatus();
    stream_.WritesDone();
    grpc::ByteBuffer ignored;
    while (stream_.Read(&ignored)) {
    }
    ended_ = true;
    return stream_.Finish();
  }

 private:
  absl::Status Ended() {
    if (ended_) return FailedPrecondition("stream: it has ended");
    ended_ = true;
    grpc::ByteBuffer ignored;
    while (stream_.Read(&ignored)) {
    }
    const absl::Status status = stream_.Finish();
    stream_.WaitReleased();
    return status.ok() ? Unavailable("stream: the server ended it") : status;
  }
  absl::StatusOr<v1::StepStreamResponse> ReadMessage() {
    grpc::ByteBuffer buffer;
    if (!stream_.Read(&buffer)) return Ended();
    RawMessage message;
    RETURN_IF_ERROR(ReadRawMessage(buffer, 3, {}, &message));
    v1::StepStreamResponse response;
    if (message.is_chunk || !response.ParseFromString(message.other))
      return DataLoss("stream: an answer cannot be decoded");
    return response;
  }
  absl::Status ReadValues(std::span<std::byte> values) {
    for (size_t received = 0; received < values.size();) {
      grpc::ByteBuffer buffer;
      if (!stream_.Read(&buffer)) return Ended();
      RawMessage message;
      RETURN_IF_ERROR(ReadRawMessage(buffer, 3, values, &message));
      if (!message.is_chunk || message.offset != received) return DataLoss("stream: the new parameters are cut short");
      received += message.bytes;
    }
    return absl::OkStatus();
  }

  RawStream stream_;
  v1::StepStreamOpened opened_;
  bool return_values_ = false, ended_ = false;
};

// Reads a server stream into a sink until either ends it.
template <typename Message>
absl::Status ReadAll(grpc::ClientContext& context, grpc::ClientReader<Message>& reader,
                     const std::function<absl::Status(const Message&)>& sink) {
  Message message;
  absl::Status refused;
  while (refused.ok() && reader.Read(&message)) refused = sink(message);
  if (!refused.ok()) context.TryCancel();
  const absl::Status status = ToAbsl(reader.Finish(), context);
  return refused.ok() ? status : refused;
}

}  // namespace

absl::StatusOr<v1::PushParametersResponse> Client::PushParameters(const std::string& session,
                                                                  std::span<const std::byte> data) {
  v1::PushParametersRequest header;
  header.mutable_header()->set_session(session);
  header.mutable_header()->set_total_bytes(data.size());
  header.mutable_header()->set_request_id(Uuid4());
  RawStream stream(*impl_, "/optod.v1.SessionService/PushParameters", TransferDeadline(data.size()));
  RETURN_IF_ERROR(stream.Start());
  // WritesDone only after the last write's completion: RawStream runs one operation at a time.
  if (stream.Write(header) && stream.WriteChunks(2, data)) stream.WritesDone();
  grpc::ByteBuffer buffer;
  const bool answered = stream.Read(&buffer);
  RETURN_IF_ERROR(stream.Finish());
  if (!answered) return Unavailable("push: the server ended the call without an answer");
  v1::PushParametersResponse response;
  if (!grpc::SerializationTraits<v1::PushParametersResponse>::Deserialize(&buffer, &response).ok())
    return DataLoss("push: the answer cannot be decoded");
  return response;
}

absl::StatusOr<Client::Tensors> Client::PullParameters(const std::string& session, int64_t version,
                                                       const std::vector<std::string>& globs) {
  v1::PullParametersRequest request;
  request.set_session(session);
  if (version >= 0) request.set_version(version);
  for (const std::string& glob : globs) request.add_tensors(glob);
  return Pull(*impl_, "PullParameters", request);
}

absl::StatusOr<Client::Tensors> Client::PullState(const std::string& session) {
  v1::PullStateRequest request;
  request.set_session(session);
  return Pull(*impl_, "PullState", request);
}

absl::Status Client::ExportState(const std::string& session, int64_t version,
                                 const std::function<absl::Status(std::string_view)>& sink) {
  v1::ExportStateRequest request;
  request.set_session(session);
  if (version >= 0) request.set_version(version);
  grpc::ClientContext context;
  impl_->Prepare(&context, std::chrono::milliseconds(0));
  auto reader = impl_->sessions->ExportState(&context, request);
  uint64_t total = 0, received = 0;
  RETURN_IF_ERROR(ReadAll<v1::ExportStateResponse>(context, *reader, [&](const v1::ExportStateResponse& piece) {
    if (piece.has_header()) total = piece.header().total_bytes();
    if (!piece.has_chunk()) return absl::OkStatus();
    if (piece.chunk().offset() != received)
      return DataLoss("stream: chunk at byte ", piece.chunk().offset(), ", expected ", received);
    received += piece.chunk().data().size();
    return sink(piece.chunk().data());
  }));
  return received == total ? absl::OkStatus() : DataLoss("stream: ", received, " of ", total, " bytes came");
}

absl::StatusOr<v1::Session> Client::ImportState(v1::ImportStateHeader header, std::span<const std::byte> file) {
  header.set_total_bytes(file.size());
  header.set_sha256(Sha256Hex(file));
  if (header.request_id().empty()) header.set_request_id(Uuid4());
  v1::ImportStateRequest first;
  *first.mutable_header() = std::move(header);
  RawStream stream(*impl_, "/optod.v1.SessionService/ImportState", TransferDeadline(file.size()));
  RETURN_IF_ERROR(stream.Start());
  if (stream.Write(first) && stream.WriteChunks(v1::ImportStateRequest::kChunkFieldNumber, file)) stream.WritesDone();
  grpc::ByteBuffer buffer;
  const bool answered = stream.Read(&buffer);
  RETURN_IF_ERROR(stream.Finish());
  if (!answered) return Unavailable("import: the server ended the call without an answer");
  v1::Session session;
  if (!grpc::SerializationTraits<v1::Session>::Deserialize(&buffer, &session).ok())
    return DataLoss("import: the answer cannot be decoded");
  return session;
}

absl::StatusOr<std::unique_ptr<AskTellStream>> Client::OpenAskTell() {
  return std::make_unique<AskTellStreamImpl>(*impl_);
}

absl::StatusOr<std::unique_ptr<StepStream>> Client::OpenSteps(const std::string& session, bool return_values) {
  auto stream = std::make_unique<StepStreamImpl>(*impl_);
  RETURN_IF_ERROR(stream->Open(session, return_values));
  return stream;
}

absl::StatusOr<v1::Artifact> Client::WriteArtifact(const v1::WriteArtifactHeader& header,
                                                   const std::function<absl::StatusOr<std::string>()>& read) {
  grpc::ClientContext context;
  impl_->Prepare(&context, TransferDeadline(static_cast<uint64_t>(std::max<int64_t>(header.size_bytes(), 0))));
  v1::Artifact artifact;
  auto writer = impl_->artifacts->WriteArtifact(&context, &artifact);
  v1::WriteArtifactRequest request;
  *request.mutable_header() = header;
  bool open = writer->Write(request);
  absl::Status broken;
  while (open) {
    auto piece = read();
    if (!piece.ok()) {
      broken = piece.status();
      context.TryCancel();
      break;
    }
    if (piece->empty()) break;
    *request.mutable_data() = std::move(*piece);
    open = writer->Write(request);
  }
  writer->WritesDone();
  const absl::Status status = ToAbsl(writer->Finish(), context);
  RETURN_IF_ERROR(broken);
  RETURN_IF_ERROR(status);
  return artifact;
}

absl::Status Client::ReadArtifact(const v1::ReadArtifactRequest& request,
                                  const std::function<absl::Status(const std::string&)>& sink) {
  grpc::ClientContext context;
  impl_->Prepare(&context, std::chrono::milliseconds(0));
  auto reader = impl_->artifacts->ReadArtifact(&context, request);
  return ReadAll<v1::ReadArtifactResponse>(context, *reader,
                                           [&](const v1::ReadArtifactResponse& piece) { return sink(piece.data()); });
}

absl::Status Client::ExportSession(const std::string& session,
                                   const std::function<absl::Status(const std::string&)>& sink) {
  v1::ExportSessionRequest request;
  request.set_session(session);
  grpc::ClientContext context;
  impl_->Prepare(&context, std::chrono::milliseconds(0));
  auto reader = impl_->sessions->ExportSession(&context, request);
  return ReadAll<v1::ExportSessionResponse>(context, *reader,
                                            [&](const v1::ExportSessionResponse& piece) { return sink(piece.data()); });
}

absl::Status Client::WatchEvents(v1::WatchEventsRequest request,
                                 const std::function<absl::Status(const v1::Event&)>& sink) {
  for (int attempt = 1;; ++attempt) {
    grpc::ClientContext context;
    impl_->Prepare(&context, std::chrono::milliseconds(0));
    auto reader = impl_->events->WatchEvents(&context, request);
    bool refused = false;
    const absl::Status status = ReadAll<v1::Event>(context, *reader, [&](const v1::Event& event) {
      request.set_after_sequence(event.sequence());
      attempt = 1;
      const absl::Status taken = sink(event);
      refused = !taken.ok();
      return taken;
    });
    if (status.ok() || refused || !ShouldRetry(impl_->options.retry, attempt, status)) return status;
    impl_->clock().SleepFor(RetryWait(impl_->options.retry, attempt, 0.5, RetryAfter(status)));
  }
}

absl::Status Client::WatchJob(v1::WatchJobRequest request,
                              const std::function<absl::Status(const v1::JobEvent&)>& sink) {
  grpc::ClientContext context;
  impl_->Prepare(&context, std::chrono::milliseconds(0));
  auto reader = impl_->jobs->WatchJob(&context, request);
  return ReadAll<v1::JobEvent>(context, *reader, sink);
}

absl::Status Client::TailLogs(v1::TailLogsRequest request,
                              const std::function<absl::Status(const v1::LogChunk&)>& sink) {
  grpc::ClientContext context;
  impl_->Prepare(&context, std::chrono::milliseconds(0));
  auto reader = impl_->jobs->TailLogs(&context, request);
  return ReadAll<v1::LogChunk>(context, *reader, sink);
}

}  // namespace optod::client
