// StepStream: gradients in, one step after another on one long-lived stream.
//
//   reads:  open ─► (begin, chunks, commit)* ─► half-close
//   steps:  committed steps wait in `steps_`; one at a time goes to the blob store (when large), then to the strand
//   writes: opened, then per step: applied, chunks of the new parameters; one message in flight
//
// A step's bytes come in chunks or lie in memory shared with the client (shared_memory.h); NaN and infinity are looked for
// as they come (flat_numbers.h); the new parameters go back the same way, as they are or rounded to a half precision.
//
// Reads, steps and writes run side by side: the next gradient arrives while the last one is applied. A step that is
// refused ends the stream with its status, after the answers before it.
#include <deque>
#include <mutex>
#include <optional>
#include <variant>

#include "base/sha256.h"
#include "base/status.h"
#include "server/engine/first_order.h"
#include "server/services/shared_memory.h"
#include "server/services/tensor_streams.h"
#include "server/services/tensor_wire.h"
#include "server/services/values_form.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Effects;
using engine::Engine;
using engine::FirstOrder;
using engine::LiveSession;
using engine::TensorBuffer;

/// What the stream knows of its session.
struct Opened {
  std::shared_ptr<const engine::Layout> layout;
  int64_t seq = 0, head_version = 0;
  bool every_step = false;  ///< gradients are recorded
};

/// One step on its way.
struct Step {
  FirstOrder::FlatStep flat;
  std::string request_id;
  uint64_t bytes = 0;
  bool in_memory = false;  ///< the bytes lie in the shared memory until the step is applied
  std::optional<engine::FlatNumbers> numbers;  ///< what its bytes are; set by begin
};

/// What names a told gradient's bytes in the hash of its request.
std::string ContentOf(const TensorBuffer& flat, const std::optional<PieceSums>& known) {
  constexpr size_t kDigestBytes = size_t{1} << 20;
  if (flat.size() <= kDigestBytes) return Sha256Hex(flat.bytes());
  // Checksums tell a request id used for something else by mistake, at a hundredth of a digest's time.
  std::string out = Cat("crc32c ", flat.size());
  for (const uint32_t sum : known ? *known : SumPieces(flat.bytes())) out += Cat(" ", sum);
  return out;
}

/// Everything else of a step that makes it this request.
std::string ContentOf(const FirstOrder::FlatStep& flat) {
  std::string out = Cat("\n", flat.seq, "\n", flat.base_version, "\n", flat.loss.value_or(0), "\n",
                        static_cast<int>(flat.form.dtype));
  for (const double lr : flat.form.lr) out += Cat("\nlr ", lr);
  for (const int32_t at : flat.form.absent) out += Cat("\nabsent ", at);
  for (const optim::TensorSpec& spec : flat.form.extra)
    out += Cat("\nextra ", spec.name, engine::ShapeText(spec.shape));
  return out;
}

absl::StatusOr<FirstOrder*> AsFirstOrder(LiveSession& live) {
  if (auto* family = dynamic_cast<FirstOrder*>(live.family.get())) return family;
  return FailedPrecondition("session ", live.name().Full(), ": optimizer ", live.proto.optimizer().name(),
                            " is not told gradients");
}

class StepReactor final : public RawBidiReactor {
 public:
  StepReactor(Engine& engine, Caller caller, ToGrpcStatus to_grpc, StreamOptions options)
      : engine_(engine), caller_(std::move(caller)), to_grpc_(std::move(to_grpc)), options_(options) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    std::unique_lock lock(mutex_);
    reading_ = false;
    if (!ok) {
      read_closed_ = true;
      return Go(std::move(lock));
    }
    if (absl::Status status = OnMessage(); !status.ok()) FailLocked(status);
    const bool open = opening_;
    opening_ = false;
    if (!open) return Go(std::move(lock));
    lock.unlock();
    OpenSession();  // answers through OnOpened, which goes on reading
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok) {
      FailLocked(absl::CancelledError("the client is gone"));
      writes_.clear();
    }
    Go(std::move(lock));
  }
  void OnDone() override { delete this; }

 private:
  enum class State { kOpen, kOpening, kBegin, kChunks };

  // ---- reads; under the lock

  absl::Status OnMessage() {
    if (failed_) return absl::OkStatus();  // drained, not looked at
    if (state_ == State::kChunks) {
      std::vector<grpc::Slice> slices;
      ChunkView chunk;
      if (!step_.in_memory && message_.Dump(&slices).ok() &&
          ParseChunk(slices, v1::StepStreamRequest::kChunkFieldNumber, &chunk)) {
        Count(chunk.size);
        return receiver_.Add(slices, chunk);
      }
    }
    v1::StepStreamRequest request;
    RETURN_IF_ERROR(ParseMessage(message_, &request));
    switch (request.message_case()) {
      case v1::StepStreamRequest::kOpen:
        return OnOpen(request.open());
      case v1::StepStreamRequest::kBegin:
        return OnBegin(request.begin());
      case v1::StepStreamRequest::kChunk:
        if (state_ != State::kChunks) return InvalidArgument("chunk: comes without begin");
        if (step_.in_memory) return InvalidArgument("chunk: the step is in shared memory");
        Count(request.chunk().data().size());
        return receiver_.Add(request.chunk());
      case v1::StepStreamRequest::kCommit:
        return OnCommit(request.commit());
      case v1::StepStreamRequest::MESSAGE_NOT_SET:
        break;
    }
    return InvalidArgument("message: missing; send open, begin, chunk or commit");
  }

  void Count(uint64_t bytes) {
    unprocessed_ += bytes;
    chunked_ += bytes;
  }

  absl::Status OnOpen(const v1::StepStreamOpen& open) {
    if (state_ != State::kOpen) return InvalidArgument("open: must come first and once");
    open_ = open;
    state_ = State::kOpening;
    opening_ = true;
    return absl::OkStatus();
  }

  absl::Status OnBegin(const v1::StepStreamBegin& begin) {
    if (state_ == State::kOpen) return InvalidArgument("open: missing; the first message must be open");
    if (state_ == State::kChunks && begin.restart()) {
      unprocessed_ -= chunked_;
      state_ = State::kBegin;
    }
    if (state_ != State::kBegin) return InvalidArgument("begin: the step before has no commit");
    if (begin.seq() < 1) return InvalidArgument("begin.seq: ", begin.seq(), "; must be 1 or more");
    step_ = {};
    step_.request_id = begin.request_id();
    step_.flat.seq = begin.seq();
    step_.flat.base_version = begin.base_version();
    chunked_ = 0;
    engine::FlatForm& form = step_.flat.form;
    form.dtype = engine::DTypeFromProto(begin.dtype());
    if (!v1::DType_IsValid(begin.dtype()))
      return InvalidArgument("begin.dtype: ", static_cast<int>(begin.dtype()), " is unknown");
    form.absent.assign(begin.absent().begin(), begin.absent().end());
    for (const v1::TensorSpec& spec : begin.extra()) form.extra.push_back(engine::SpecFromProto(spec));
    RETURN_IF_ERROR(engine::CheckForm(*session_.layout, form));
    if (begin.has_loss()) step_.flat.loss = begin.loss();
    step_.bytes = engine::FlatBytes(*session_.layout, form);
    if (begin.total_bytes() != step_.bytes)
      return InvalidArgument("begin.total_bytes: ", begin.total_bytes(), "; gradients of this layout have ",
                             step_.bytes);
    step_.in_memory = begin.in_shared_memory();
    if (step_.in_memory && memory_ == nullptr)
      return InvalidArgument("begin.in_shared_memory: the stream was opened without shared memory");
    if (step_.in_memory && step_.bytes > memory_->input().size())
      return InvalidArgument("begin.total_bytes: ", step_.bytes, "; the shared memory has room for ",
                             memory_->input().size());
    step_.numbers.emplace(*session_.layout, form);
    RETURN_IF_ERROR(receiver_.Start(step_.bytes, step_.numbers));
    state_ = State::kChunks;
    return absl::OkStatus();
  }

  absl::Status OnCommit(const v1::StepStreamCommit& commit) {
    if (state_ != State::kChunks) return InvalidArgument("commit: comes without begin");
    if (commit.seq() != step_.flat.seq)
      return InvalidArgument("commit.seq: ", commit.seq(), "; begin said ", step_.flat.seq);
    if (commit.has_loss()) step_.flat.loss = commit.loss();
    step_.flat.form.lr.assign(commit.lr().begin(), commit.lr().end());
    RETURN_IF_ERROR(engine::CheckRates(step_.flat.form.lr, "commit.lr"));
    if (step_.in_memory) {
      Count(step_.bytes);  // copied when its turn comes
    } else {
      RETURN_IF_ERROR(receiver_.CheckComplete());
    }
    step_.flat.finite = receiver_.finite();
    step_.flat.gradients = receiver_.Take();
    steps_.push_back(std::move(step_));
    state_ = State::kBegin;
    return absl::OkStatus();
  }

  // ---- opening

  void OpenSession() {
    engine_.Read<Opened>(
        caller_, open_.session(),
        [](LiveSession& live) -> absl::StatusOr<Opened> {
          ASSIGN_OR_RETURN(FirstOrder * family, AsFirstOrder(live));
          return Opened{family->layout(), live.row.seq, live.row.head_version,
                        FirstOrder::RecordsAsBlob(live, UINT64_MAX)};
        },
        [this](absl::StatusOr<Opened> opened) { OnOpened(std::move(opened)); });
  }

  /// Takes up the memory that the client offers, or says why not.
  void OpenMemory(v1::StepStreamOpened* opened) {
    if (!open_.has_shared_memory()) return;
    const uint64_t values = open_.return_values() ? ValuesBytes(*session_.layout, values_dtype_) : 0;
    auto memory = options_.local_peer ? SharedMemory::Map(open_.shared_memory(), values)
                                      : FailedPrecondition("shared_memory: the client is on another machine");
    if (memory.ok()) {
      memory_ = *std::move(memory);
    } else {
      opened->set_shared_memory_refused(std::string(memory.status().message()));
    }
    opened->set_shared_memory(memory_ != nullptr);
  }

  void OnOpened(absl::StatusOr<Opened> opened) {
    std::unique_lock lock(mutex_);
    values_dtype_ = engine::DTypeFromProto(open_.values_dtype());
    if (opened.ok())
      if (absl::Status status = CheckValuesDtype(*opened->layout, values_dtype_); !status.ok()) opened = status;
    if (opened.ok()) {
      session_ = *std::move(opened);
      state_ = State::kBegin;
      v1::StepStreamResponse response;
      OpenMemory(response.mutable_opened());
      response.mutable_opened()->set_seq(session_.seq);
      response.mutable_opened()->set_head_version(session_.head_version);
      response.mutable_opened()->set_total_bytes(session_.layout->total_bytes());
      writes_.push_back(SerializeMessage(response));
    } else {
      FailLocked(opened.status());
    }
    Go(std::move(lock));
  }

  // ---- steps

  /// On the pool: what is large becomes a blob before the session's strand is asked.
  void ApplyStep(std::shared_ptr<Step> step) {
    std::optional<PieceSums> sums;
    if (step->in_memory) {
      const Arrived arrived = CopyAndLook(step->flat.gradients->data(), memory_->input().data(),
                                          step->flat.gradients->size(), *step->numbers);
      sums = arrived.sums;
      step->flat.finite = arrived.finite;
    }
    std::string content;
    if (session_.every_step && step->bytes > engine::kInlineGradientBytes) {
      auto blob = engine_.context().blobs->Put(step->flat.gradients->bytes());
      if (!blob.ok()) return OnApplied(*step, blob.status(), nullptr);
      step->flat.blob = *std::move(blob);
      content = step->flat.blob;
    } else if (!step->request_id.empty()) {
      content = ContentOf(*step->flat.gradients, sums);
    }
    content += ContentOf(step->flat);
    auto values = std::make_shared<std::shared_ptr<const TensorBuffer>>();
    const int64_t start_ns = engine_.context().clock->NowMonotonicNs();
    engine_.Mutate<v1::TellResponse>(
        caller_, open_.session(), "StepStream", step->request_id, std::move(content),
        [step, values, start_ns, clock = engine_.context().clock, want = open_.return_values()](
            LiveSession& live, v1::TellResponse* out) -> absl::StatusOr<Effects> {
          const int64_t begin_ns = clock->NowMonotonicNs();
          if (live.row.state != v1::Session::ACTIVE)
            return FailedPrecondition("session ", live.name().Full(), " is closed");
          ASSIGN_OR_RETURN(FirstOrder * family, AsFirstOrder(live));
          Effects effects;
          RETURN_IF_ERROR(family->TellFlat(live, step->flat, out, &effects));
          if (want && out->head_version() == live.row.head_version) {
            ASSIGN_OR_RETURN(*values, family->ParametersAt(live, live.row.head_version));
          }
          out->mutable_timings()->set_queue_us((begin_ns - start_ns) / 1000);
          out->mutable_timings()->set_compute_us((clock->NowMonotonicNs() - begin_ns) / 1000);
          return effects;
        },
        [this, step, values](absl::StatusOr<v1::TellResponse> answer) {
          OnAnswered(step, std::move(answer), *values);
        });
  }

  void OnAnswered(const std::shared_ptr<Step>& step, absl::StatusOr<v1::TellResponse> answer,
                  std::shared_ptr<const TensorBuffer> values) {
    if (!answer.ok() || !open_.return_values()) return OnApplied(*step, std::move(answer), nullptr);
    if (values != nullptr) return ReturnValues(step, *std::move(answer), std::move(values));
    // A step that was told before: its parameters are those of its version, if they can still be had.
    const int64_t version = answer->head_version();
    engine_.Read<std::shared_ptr<const TensorBuffer>>(
        caller_, open_.session(),
        [version](LiveSession& live) -> absl::StatusOr<std::shared_ptr<const TensorBuffer>> {
          ASSIGN_OR_RETURN(FirstOrder * family, AsFirstOrder(live));
          return family->ParametersAt(live, version);
        },
        [this, step, answer = *std::move(answer)](absl::StatusOr<std::shared_ptr<const TensorBuffer>> found) {
          if (!found.ok()) return OnApplied(*step, found.status(), nullptr);
          ReturnValues(step, answer, *std::move(found));
        });
  }

  /// The new parameters in the form in which they go back; work on many bytes is done on the pool.
  void ReturnValues(const std::shared_ptr<Step>& step, v1::TellResponse answer,
                    std::shared_ptr<const TensorBuffer> values) {
    if (!step->in_memory && values_dtype_ == optim::DType::kUnspecified)
      return OnApplied(*step, std::move(answer), std::move(values));
    engine_.context().pool->Post([this, step, answer = std::move(answer), values = std::move(values)]() mutable {
      if (step->in_memory) {
        WriteValues(*session_.layout, *values, values_dtype_, memory_->values().data());
        return OnApplied(*step, std::move(answer), nullptr);
      }
      auto converted = TensorBuffer::Make(ValuesBytes(*session_.layout, values_dtype_));
      if (converted == nullptr) return OnApplied(*step, ResourceExhausted("values: no memory"), nullptr);
      WriteValues(*session_.layout, *values, values_dtype_, converted->data());
      values.reset();
      OnApplied(*step, std::move(answer), std::move(converted));
    });
  }

  void OnApplied(Step& step, absl::StatusOr<v1::TellResponse> answer, std::shared_ptr<const TensorBuffer> values) {
    step.flat.gradients.reset();  // back to the pool before the next step needs one
    std::unique_lock lock(mutex_);
    applying_ = false;
    applying_bytes_ = 0;
    unprocessed_ -= step.bytes;
    if (answer.ok()) {
      v1::StepStreamResponse response;
      *response.mutable_applied() = *std::move(answer);
      writes_.push_back(SerializeMessage(response));
      if (step.in_memory && open_.return_values()) {
        v1::StepStreamResponse lies;
        lies.mutable_in_memory()->set_bytes(ValuesBytes(*session_.layout, values_dtype_));
        writes_.push_back(SerializeMessage(lies));
      }
      if (values != nullptr)
        writes_.push_back(
            FlatSender(values, {{0, values->size()}}, v1::StepStreamResponse::kChunkFieldNumber, options_.chunk_bytes));
    } else {
      FailLocked(answer.status());
    }
    Go(std::move(lock));
  }

  // ---- what comes next

  void FailLocked(const absl::Status& status) {
    if (!failed_) failure_ = status;
    failed_ = true;
    for (const Step& step : steps_) unprocessed_ -= step.bytes;
    steps_.clear();
  }

  bool NextMessage(grpc::ByteBuffer* out) {
    while (!writes_.empty()) {
      if (auto* message = std::get_if<grpc::ByteBuffer>(&writes_.front())) {
        *out = std::move(*message);
        writes_.pop_front();
        return true;
      }
      auto& sender = std::get<FlatSender>(writes_.front());
      if (!sender.done()) {
        *out = sender.Next();
        return true;
      }
      writes_.pop_front();
    }
    return false;
  }

  /// Starts whatever can be started, then lets go of the lock. Nothing of this object may be touched after it returns:
  /// when everything has come to an end it finishes the call, and OnDone deletes the reactor.
  void Go(std::unique_lock<std::mutex> lock) {
    if (!applying_ && !steps_.empty()) {
      applying_ = true;
      auto step = std::make_shared<Step>(std::move(steps_.front()));
      steps_.pop_front();
      applying_bytes_ = step->bytes;
      engine_.context().pool->Post([this, step] { ApplyStep(step); });
    }
    if (!writing_ && NextMessage(&outgoing_)) {
      writing_ = true;
      StartWrite(&outgoing_);
    }
    const bool busy = applying_ || !steps_.empty();
    const bool full = busy && unprocessed_ > options_.window_bytes;
    if (!reading_ && !read_closed_ && !failed_ && state_ != State::kOpening && !full) {
      reading_ = true;
      StartRead(&message_);
    }
    const bool ended = (failed_ || read_closed_) && state_ != State::kOpening && !busy && !writing_ && !finished_;
    const bool opening_failed = failed_ && !busy && !writing_ && !finished_;
    if (!ended && !opening_failed) return;
    finished_ = true;
    absl::Status status = failure_;
    if (!failed_ && state_ == State::kChunks)
      status = InvalidArgument("commit: missing; the stream ended inside step ", step_.flat.seq);
    lock.unlock();
    Finish(to_grpc_(status));
  }

  Engine& engine_;
  const Caller caller_;
  const ToGrpcStatus to_grpc_;
  const StreamOptions options_;
  grpc::ByteBuffer message_, outgoing_;

  std::mutex mutex_;
  State state_ = State::kOpen;
  bool opening_ = false;
  bool reading_ = true, read_closed_ = false, writing_ = false, applying_ = false, failed_ = false, finished_ = false;
  absl::Status failure_;
  v1::StepStreamOpen open_;
  Opened session_;
  Step step_;  ///< being received
  FlatReceiver receiver_;
  std::deque<Step> steps_;  ///< committed, not yet applied
  std::deque<std::variant<grpc::ByteBuffer, FlatSender>> writes_;
  uint64_t unprocessed_ = 0, applying_bytes_ = 0;
  uint64_t chunked_ = 0;                                    ///< of unprocessed_, what the step being received has
  optim::DType values_dtype_ = optim::DType::kUnspecified;  ///< set once, when the session is opened
  std::unique_ptr<SharedMemory> memory_;                    ///< likewise
};

}  // namespace

RawBidiReactor* MakeStepStream(Engine& engine, const Caller& caller, ToGrpcStatus to_grpc, StreamOptions options) {
  return new StepReactor(engine, caller, std::move(to_grpc), options);
}

}  // namespace optod::services
