// PushParameters, PullParameters and PullState.
#include "server/services/tensor_streams.h"

#include <atomic>
#include <cstring>

#include "base/status.h"
#include "server/engine/numeric_family.h"
#include "server/services/flat_write.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Effects;
using engine::Engine;
using engine::LiveSession;
using engine::TensorBuffer;

/// Hashes and writes a buffer into the blob store while it is being filled, on the engine's pool. Shared by the reactor
/// and the tasks it posted, so that a cancelled call may go while a write is still running.
class BlobFeed : public std::enable_shared_from_this<BlobFeed> {
 public:
  BlobFeed(Engine& engine, std::shared_ptr<TensorBuffer> buffer)
      : strand_(*engine.context().pool), blobs_(*engine.context().blobs), buffer_(std::move(buffer)) {}

  /// The first `size` bytes are final. Cheap: work is handed on in pieces of several chunks.
  void Received(uint64_t size) {
    if (size - handed_on_ < kPieceBytes) return;
    handed_on_ = size;
    strand_.Post([self = shared_from_this(), size] { self->Take(size); });
  }
  /// Everything is there. `done` runs on the pool with the blob's name.
  void Finish(std::function<void(absl::StatusOr<std::string>)> done) {
    strand_.Post([self = shared_from_this(), done = std::move(done)] {
      self->Take(self->buffer_->size());
      done(self->status_.ok() ? self->writer_->Finish() : absl::StatusOr<std::string>(self->status_));
    });
  }

 private:
  static constexpr uint64_t kPieceBytes = 8u << 20;

  void Take(uint64_t size) {
    if (status_.ok() && writer_ == nullptr) {
      auto writer = blobs_.Begin();
      status_ = writer.status();
      if (writer.ok()) writer_ = *std::move(writer);
    }
    if (!status_.ok()) return;
    status_ = writer_->Append(buffer_->bytes().subspan(taken_, size - taken_));
    taken_ = size;
  }

  Strand strand_;
  store::BlobStore& blobs_;
  const std::shared_ptr<TensorBuffer> buffer_;
  uint64_t handed_on_ = 0;  ///< the reactor's
  // The strand's:
  uint64_t taken_ = 0;
  std::unique_ptr<store::BlobWriter> writer_;
  absl::Status status_;
};

/// Header, then chunks into a buffer and from there into the blob store, then (client half-closed) the session. One step
/// at a time: no locks.
class PushReactor final : public RawReadReactor {
 public:
  PushReactor(Engine& engine, Caller caller, grpc::ByteBuffer* response, ToGrpcStatus to_grpc)
      : engine_(engine), caller_(std::move(caller)), response_(response), to_grpc_(std::move(to_grpc)) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End();
    if (state_ == State::kHeader) {  // goes on in OnOpened, perhaps on another thread before OnHeader returns
      if (absl::Status status = OnHeader(); !status.ok()) Finish(to_grpc_(status));
      return;
    }
    if (absl::Status status = ReceiveChunk<v1::PushParametersRequest>(message_, &receiver_); !status.ok()) return Finish(to_grpc_(status));
    feed_->Received(receiver_.received());
    StartRead(&message_);
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  enum class State { kHeader, kOpening, kChunks, kStoring };

  absl::Status OnHeader() {
    v1::PushParametersRequest request;
    RETURN_IF_ERROR(ParseMessage(message_, &request));
    if (!request.has_header()) return InvalidArgument("header: missing; the first message must be the header");
    header_ = request.header();
    state_ = State::kOpening;
    engine_.Read<uint64_t>(
        caller_, header_.session(),
        [](LiveSession& live) -> absl::StatusOr<uint64_t> {
          ASSIGN_OR_RETURN(engine::NumericFamily * family, engine::AsNumeric(live));
          if (live.row.version_count > 1)
            return FailedPrecondition("session ", live.name().Full(),
                                      " has made steps; initial parameters can be pushed before the first one only");
          return family->layout()->total_bytes();
        },
        [this](absl::StatusOr<uint64_t> total) { OnOpened(std::move(total)); });
    return absl::OkStatus();
  }

  void OnOpened(absl::StatusOr<uint64_t> total) {
    absl::Status status = total.status();
    if (status.ok() && header_.total_bytes() != *total)
      status = InvalidArgument("header.total_bytes: ", header_.total_bytes(), "; the layout has ", *total);
    if (status.ok()) status = receiver_.Start(*total);
    if (!status.ok()) return Finish(to_grpc_(status));
    feed_ = std::make_shared<BlobFeed>(engine_, receiver_.buffer());
    state_ = State::kChunks;
    StartRead(&message_);
  }

  /// The client has sent everything (or is gone).
  void End() {
    if (cancelled_) return Finish(grpc::Status::CANCELLED);
    absl::Status status = state_ == State::kChunks ? receiver_.CheckComplete() : InvalidArgument("header: missing");
    if (!status.ok()) return Finish(to_grpc_(status));
    state_ = State::kStoring;
    feed_->Finish([this](absl::StatusOr<std::string> sha256) { OnStored(std::move(sha256)); });
  }

  void OnStored(absl::StatusOr<std::string> sha256) {
    std::shared_ptr<TensorBuffer> values = receiver_.Take();
    if (!sha256.ok()) return Finish(to_grpc_(sha256.status()));
    if (!header_.sha256().empty() && header_.sha256() != *sha256)
      return Finish(to_grpc_(DataLoss("header.sha256: ", header_.sha256(), "; what came has ", *sha256)));
    v1::PushParametersResponse answer;
    answer.set_total_bytes(values->size());
    answer.set_sha256(*sha256);
    engine_.Mutate<v1::PushParametersResponse>(
        caller_, header_.session(), "PushParameters", header_.request_id(), header_.session() + '\n' + *sha256,
        [values, answer](LiveSession& live, v1::PushParametersResponse* out) -> absl::StatusOr<Effects> {
          if (live.row.state != v1::Session::ACTIVE)
            return FailedPrecondition("session ", live.name().Full(), " is closed");
          ASSIGN_OR_RETURN(engine::NumericFamily * family, engine::AsNumeric(live));
          if (family->layout()->total_bytes() != values->size())
            return Aborted("session ", live.name().Full(), " changed meanwhile");
          *out = answer;
          Effects effects;
          RETURN_IF_ERROR(family->SetInitial(live, values, answer.sha256(), &effects));
          return effects;
        },
        [this](absl::StatusOr<v1::PushParametersResponse> result) {
          if (result.ok()) *response_ = SerializeMessage(*result);
          Finish(to_grpc_(result.status()));
        });
  }

  Engine& engine_;
  const Caller caller_;
  grpc::ByteBuffer* response_;
  const ToGrpcStatus to_grpc_;
  State state_ = State::kHeader;
  std::atomic<bool> cancelled_{false};
  grpc::ByteBuffer message_;
  v1::PushParametersHeader header_;
  FlatReceiver receiver_;
  std::shared_ptr<BlobFeed> feed_;
};

/// What a pull sends: the header and ranges of a buffer.
struct Parcel {
  v1::PullParametersHeader header;
  std::shared_ptr<const TensorBuffer> buffer;
  std::vector<FlatSender::Range> ranges;
};

void Send(FlatWriteReactor* reactor, absl::StatusOr<Parcel> parcel) {
  if (!parcel.ok()) return reactor->Fail(parcel.status());
  v1::PullParametersResponse first;
  *first.mutable_header() = std::move(parcel->header);
  reactor->Start(first, std::move(parcel->buffer), std::move(parcel->ranges), v1::PullParametersResponse::kChunkFieldNumber);
}

absl::StatusOr<Parcel> PackParameters(LiveSession& live, const v1::PullParametersRequest& request) {
  ASSIGN_OR_RETURN(engine::NumericFamily * family, engine::AsNumeric(live));
  const engine::Layout& layout = *family->layout();
  Parcel out;
  out.header.set_version(request.has_version() ? request.version() : live.row.head_version);
  std::vector<size_t> chosen;
  *out.header.mutable_index() = layout.Index({request.tensors().begin(), request.tensors().end()}, &chosen);
  if (chosen.empty()) return NotFound("tensors: no tensor of the layout matches");
  for (const size_t i : chosen) {
    const FlatSender::Range range{layout.offset(i), layout.spec(i).bytes()};
    if (!out.ranges.empty() && out.ranges.back().begin + out.ranges.back().size == range.begin) {
      out.ranges.back().size += range.size;
    } else {
      out.ranges.push_back(range);
    }
  }
  ASSIGN_OR_RETURN(out.buffer, family->ParametersAt(live, out.header.version()));
  return out;
}

absl::StatusOr<Parcel> PackState(LiveSession& live) {
  ASSIGN_OR_RETURN(engine::NumericFamily * family, engine::AsNumeric(live));
  ASSIGN_OR_RETURN(const std::vector<optim::OwnedTensor> state, family->State(live));
  Parcel out;
  out.header.set_version(live.row.head_version);
  uint64_t total = 0;
  for (const optim::OwnedTensor& tensor : state) {
    engine::SpecToProto(tensor.spec, out.header.mutable_index()->add_tensors());
    total += tensor.data.size();
  }
  out.header.mutable_index()->set_total_bytes(total);
  auto buffer = TensorBuffer::Make(total);
  if (buffer == nullptr) return ResourceExhausted("state: no memory for ", total, " bytes");
  std::byte* at = buffer->data();
  for (const optim::OwnedTensor& tensor : state) {
    if (!tensor.data.empty()) std::memcpy(at, tensor.data.data(), tensor.data.size());
    at += tensor.data.size();
  }
  out.buffer = std::move(buffer);
  out.ranges.push_back({0, total});
  return out;
}

template <typename Base>
class Refused final : public Base {
 public:
  explicit Refused(grpc::Status status) { this->Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

RawReadReactor* MakePushParameters(Engine& engine, const Caller& caller, grpc::ByteBuffer* response,
                                   ToGrpcStatus to_grpc, StreamOptions) {
  return new PushReactor(engine, caller, response, std::move(to_grpc));
}

RawWriteReactor* MakePullParameters(Engine& engine, const Caller& caller, const grpc::ByteBuffer* request,
                                    ToGrpcStatus to_grpc, StreamOptions options) {
  auto* reactor = new FlatWriteReactor(std::move(to_grpc), options.chunk_bytes);
  v1::PullParametersRequest pull;
  if (absl::Status status = ParseMessage(*request, &pull); !status.ok()) {
    reactor->Fail(status);
    return reactor;
  }
  const std::string session = pull.session();
  engine.Read<Parcel>(
      caller, session, [pull = std::move(pull)](LiveSession& live) { return PackParameters(live, pull); },
      [reactor](absl::StatusOr<Parcel> parcel) { Send(reactor, std::move(parcel)); });
  return reactor;
}

RawWriteReactor* MakePullState(Engine& engine, const Caller& caller, const grpc::ByteBuffer* request,
                               ToGrpcStatus to_grpc, StreamOptions options) {
  auto* reactor = new FlatWriteReactor(std::move(to_grpc), options.chunk_bytes);
  v1::PullStateRequest pull;
  if (absl::Status status = ParseMessage(*request, &pull); !status.ok()) {
    reactor->Fail(status);
    return reactor;
  }
  engine.Read<Parcel>(caller, pull.session(), &PackState,
                      [reactor](absl::StatusOr<Parcel> parcel) { Send(reactor, std::move(parcel)); });
  return reactor;
}

RawReadReactor* RefuseRead(grpc::Status status) { return new Refused<RawReadReactor>(std::move(status)); }
RawWriteReactor* RefuseWrite(grpc::Status status) { return new Refused<RawWriteReactor>(std::move(status)); }
RawBidiReactor* RefuseBidi(grpc::Status status) { return new Refused<RawBidiReactor>(std::move(status)); }

}  // namespace optod::services
