// NaN and infinity in told numbers, on every way that they can come: chunks of any size, shared memory, unary tells, the
// log that a session is replayed from. Wherever the look is taken (flat_numbers.h, Rule::Step), a bad number is named, and
// the step changes nothing or, when the session says so, is skipped whole.
#include <cmath>
#include <limits>

#include "optim/rules/half.h"
#include "server/engine/flat_numbers.h"
#include "server/services/tensor_wire.h"
#include "tensor_streams_testing.h"

namespace optod::services {
namespace {

using engine::FlatForm;
using engine::FlatNumbers;
using engine::Layout;
using optim::DType;
using ::testing::HasSubstr;

Layout LayoutOf(const std::vector<optim::TensorSpec>& specs) {
  v1::TensorIndex index;
  for (const optim::TensorSpec& spec : specs) engine::SpecToProto(spec, index.add_tensors());
  return Layout(index);
}

void PutNumber(DType dtype, double value, std::byte* at) {
  const auto put = [at](auto x) { std::memcpy(at, &x, sizeof(x)); };
  if (dtype == DType::kF64) put(value);
  if (dtype == DType::kF32) put(static_cast<float>(value));
  if (dtype == DType::kF16) put(optim::half::ToF16(static_cast<float>(value)));
  if (dtype == DType::kBF16) put(optim::half::ToBf16(static_cast<float>(value)));
  if (dtype == DType::kI64) put(int64_t{0x7ff8000000000000});  // as a float64 it would be NaN
}

struct LookCase {
  const char* name;
  std::vector<optim::TensorSpec> layout;
  FlatForm form;
  bool aligned = true;
};
const LookCase kLooks[] = {
    {"float32", {{"a", DType::kF32, {3, 1000}}, {"b", DType::kF32, {7}}}, {}},
    {"float64", {{"a", DType::kF64, {501}}}, {}},
    {"halves on the wire", {{"a", DType::kF32, {700}}, {"b", DType::kF32, {333}}}, {DType::kBF16, {}, {}, {}}},
    {"float16", {{"a", DType::kF16, {999}}}, {}},
    {"absent, extra", {{"a", DType::kF32, {100}}, {"b", DType::kF32, {50}}, {"c", DType::kF32, {20}}},
     {DType::kUnspecified, {1}, {{"x", DType::kF64, {9}}, {"n", DType::kI64, {4}}, {"y", DType::kBF16, {30}}}, {}}},
    {"wide first", {{"a", DType::kF64, {5}}, {"b", DType::kF32, {3}}, {"c", DType::kBF16, {8}}}, {}},
    {"not aligned", {{"a", DType::kBF16, {3}}, {"b", DType::kF32, {40}}}, {}, false},
    {"nothing", {{"a", DType::kF32, {0}}}, {}},
};

TEST(FlatNumbers, ABadNumberIsFoundWhereverItLies) {
  for (const LookCase& c : kLooks) {
    const Layout layout = LayoutOf(c.layout);
    const uint64_t size = engine::FlatBytes(layout, c.form);
    const FlatNumbers numbers(layout, c.form);
    auto flat = engine::TensorBuffer::Make(size);
    std::memset(flat->data(), 0x3c, size);
    EXPECT_EQ(numbers.Finite(flat->data(), 0, size), c.aligned || size == 0) << c.name;
    if (!c.aligned) continue;
    std::vector<std::pair<DType, int64_t>> runs;
    for (size_t i = 0; i < c.layout.size(); ++i)
      if (!std::count(c.form.absent.begin(), c.form.absent.end(), static_cast<int32_t>(i)))
        runs.emplace_back(c.form.dtype == DType::kUnspecified ? c.layout[i].dtype : c.form.dtype, c.layout[i].elements());
    for (const optim::TensorSpec& extra : c.form.extra) runs.emplace_back(extra.dtype, extra.elements());
    uint64_t at = 0;
    for (const auto& [dtype, count] : runs) {
      const auto width = static_cast<uint64_t>(optim::DTypeSize(dtype));
      for (int64_t i = 0; i < count; ++i, at += width) {
        std::byte kept[8];
        std::memcpy(kept, flat->data() + at, width);
        PutNumber(dtype, i % 3 == 0 ? std::nan("") : i % 3 == 1 ? INFINITY : -INFINITY, flat->data() + at);
        const uint64_t begin = at / FlatNumbers::kGrain * FlatNumbers::kGrain, end = std::min(size, begin + FlatNumbers::kGrain);
        const bool fine = dtype == DType::kI64;
        EXPECT_EQ(numbers.Finite(flat->data(), 0, size), fine) << c.name << " " << at;
        EXPECT_EQ(numbers.Finite(flat->data(), begin, end), fine) << c.name << " " << at;
        EXPECT_TRUE(numbers.Finite(flat->data(), 0, begin)) << c.name << " " << at;
        EXPECT_TRUE(numbers.Finite(flat->data(), end, size)) << c.name << " " << at;
        std::memcpy(flat->data() + at, kept, width);
      }
    }
    EXPECT_EQ(at, size) << c.name;
  }
}

TEST(FlatReceiver, VouchesOnlyForWhatItSaw) {
  const Layout layout = LayoutOf({{"a", DType::kF32, {100'000}}});
  const uint64_t size = layout.total_bytes();
  for (const size_t piece : {size_t{1} << 20, size_t{100'001}, size_t{4'097}, size_t{63}}) {
    for (const int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{15}, int64_t{16}, int64_t{32'768}, int64_t{99'999}}) {
      std::string bytes(size, '\x3c');
      if (bad >= 0) PutNumber(DType::kF32, std::nan(""), reinterpret_cast<std::byte*>(bytes.data()) + bad * 4);
      FlatReceiver looking, blind;
      ASSERT_TRUE(looking.Start(size, FlatNumbers(layout, {})).ok());
      ASSERT_TRUE(blind.Start(size).ok());
      EXPECT_FALSE(looking.finite());
      for (size_t at = 0; at < size; at += piece) {
        v1::TensorChunk chunk;
        chunk.set_offset(at);
        chunk.set_data(bytes.substr(at, piece));
        chunk.set_crc32c(Crc32c(chunk.data().data(), chunk.data().size()));
        ASSERT_TRUE(looking.Add(chunk).ok());
        ASSERT_TRUE(blind.Add(chunk).ok());
        if (at + piece < size) {
          EXPECT_FALSE(looking.finite());
        }
      }
      EXPECT_EQ(looking.finite(), bad < 0) << piece << " " << bad;
      EXPECT_FALSE(blind.finite());
      EXPECT_EQ(std::memcmp(looking.buffer()->data(), bytes.data(), size), 0);
    }
  }
}

TEST(CopyAndLook, EveryPieceOfALargeBufferIsSeen) {
  const int64_t n = 5'000'003;  // several threads
  const Layout layout = LayoutOf({{"a", DType::kF32, {n}}});
  const FlatNumbers numbers(layout, {});
  std::vector<float> from(n, 1.5f), to(n);
  const size_t size = from.size() * 4;
  const auto copy = [&] {
    return CopyAndLook(reinterpret_cast<std::byte*>(to.data()), reinterpret_cast<const std::byte*>(from.data()), size, numbers);
  };
  EXPECT_TRUE(copy().finite);
  for (const int64_t bad : {int64_t{0}, n / 4 - 1, n / 4, n / 4 + 16, n / 2, 3 * n / 4 + 1, n - 1}) {
    from[bad] = -INFINITY;
    const Arrived arrived = copy();
    EXPECT_FALSE(arrived.finite) << bad;
    EXPECT_EQ(arrived.sums, SumPieces(std::as_bytes(std::span(from))));
    EXPECT_EQ(std::memcmp(from.data(), to.data(), size), 0);
    from[bad] = 1.5f;
  }
}

// ---- the ways in, with a session behind them

enum class Way { kChunks, kSharedMemory, kUnary };

/// Session "s" of 6 + kElements float32 parameters under AdamW, and one gradient told to it.
class Arrival : public TensorStreams {
 protected:
  static constexpr int64_t kElements = 60'000;

  void Begin(const std::string& optimizer, v1::NonFinite non_finite) {
    v1::CreateSessionRequest request;
    request.set_session_id("s");
    request.mutable_optimizer()->set_name(optimizer);
    request.mutable_optimizer()->set_non_finite(non_finite);
    engine::SpecToProto({"w", DType::kF32, {2, 3}}, request.mutable_layout()->add_tensors());
    engine::SpecToProto({"b", DType::kF32, {kElements}}, request.mutable_layout()->add_tensors());
    ASSERT_TRUE(inside_->Create(request).ok());
    values_.assign(6 + kElements, 0.25f);
    ASSERT_TRUE(Push().ok());
  }

  /// The answer's message, "" when the step was taken; `skipped` when it was skipped.
  std::string Tell(Way way, int64_t seq, const std::vector<float>& gradient, bool* skipped, DType dtype = DType::kF32) {
    if (way == Way::kUnary) return TellUnary(seq, gradient, skipped);
    const size_t bytes = gradient.size() * optim::DTypeSize(dtype);
    std::string flat(bytes, '\0');
    for (size_t i = 0; i < gradient.size(); ++i)
      PutNumber(dtype, gradient[i], reinterpret_cast<std::byte*>(flat.data()) + i * optim::DTypeSize(dtype));
    ClientMemory memory(4096 + bytes);
    memory.offer.set_values_offset((4096 + bytes) / 64 * 64);
    v1::StepStreamOpen open;
    if (way == Way::kSharedMemory) *open.mutable_shared_memory() = memory.offer;
    Stream stream(*stub_, false, open);
    EXPECT_EQ(stream.opened.shared_memory(), way == Way::kSharedMemory) << stream.opened.shared_memory_refused();
    const auto wire = static_cast<v1::DType>(dtype);
    if (way == Way::kChunks) {
      stream.Send(seq, seq - 1, flat, 10'007, wire);
    } else {
      std::memcpy(memory.data + 64, flat.data(), bytes);
      v1::StepStreamRequest begin = services::Begin(seq, bytes);
      begin.mutable_begin()->set_base_version(seq - 1);
      begin.mutable_begin()->set_in_shared_memory(true);
      begin.mutable_begin()->set_dtype(wire);
      stream.stream->Write(begin);
      stream.stream->Write(Commit(seq));
    }
    const auto applied = stream.Applied();
    *skipped = applied && applied->skipped();
    return stream.Finish().error_message();
  }

 private:
  std::string TellUnary(int64_t seq, const std::vector<float>& gradient, bool* skipped) {
    v1::TellRequest tell;
    tell.set_session("s");
    tell.mutable_gradients()->set_base_version(seq - 1);
    *tell.mutable_gradients()->add_gradients() = TensorOf("w", {2, 3}, {gradient.begin(), gradient.begin() + 6});
    *tell.mutable_gradients()->add_gradients() = TensorOf("b", {kElements}, {gradient.begin() + 6, gradient.end()});
    const auto told = inside_->Tell(tell);
    *skipped = told.ok() && told->skipped();
    return std::string(told.status().message());
  }
};

TEST_F(Arrival, ABadNumberIsNamedAndChangesNothing) {
  Begin("adamw", v1::NON_FINITE_UNSPECIFIED);
  std::vector<float> gradient(6 + kElements, 0.01f);
  bool skipped = false;
  int64_t seq = 1;
  for (const Way way : {Way::kChunks, Way::kSharedMemory, Way::kUnary}) {
    ASSERT_EQ(Tell(way, seq++, gradient, &skipped), "");
    const std::vector<float> before = *inside_->Parameters("s");
    const auto state = inside_->State("s");
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const auto& [at, message] : {std::pair<int64_t, std::string>{0, "grads.w: element 0 is NaN"},
                                        {6, "grads.b: element 0 is NaN"},
                                        {2'501, "grads.b: element 2495 is NaN"},  // behind an odd end of a chunk
                                        {kElements + 5, "grads.b: element 59999 is NaN"}}) {
        std::vector<float> bad = gradient;
        bad[static_cast<size_t>(at)] = std::nanf("");
        EXPECT_THAT(Tell(way, seq, bad, &skipped, dtype), HasSubstr(message)) << static_cast<int>(way);
        EXPECT_EQ(*inside_->Parameters("s"), before);
        EXPECT_EQ(inside_->State("s"), state);
      }
    }
  }
  inside_->Crash();
  EXPECT_EQ(inside_->Get("s")->version_count(), seq);
}

TEST_F(Arrival, ASkippedStepIsSkippedWhole) {
  for (const Way way : {Way::kChunks, Way::kSharedMemory, Way::kUnary}) {
    Begin("adamw", v1::SKIP);
    std::vector<float> gradient(6 + kElements, 0.01f);
    bool skipped = false;
    ASSERT_EQ(Tell(way, 1, gradient, &skipped), "");
    EXPECT_FALSE(skipped);
    const std::vector<float> before = *inside_->Parameters("s");
    const auto state = inside_->State("s");
    gradient.back() = std::numeric_limits<float>::infinity();
    ASSERT_EQ(Tell(way, 2, gradient, &skipped), "");
    EXPECT_TRUE(skipped);
    EXPECT_EQ(*inside_->Parameters("s"), before);
    EXPECT_EQ(inside_->State("s"), state);
    Restart();
  }
}

TEST_F(Arrival, FurtherInputsAreLookedAtToo) {
  Create(4, "adahessian");
  ASSERT_TRUE(Push().ok());
  for (const size_t bad : {size_t{0}, size_t{9}}) {
    std::vector<float> h(10, 1.0f);
    h[bad] = INFINITY;
    Stream stream(*stub_);
    v1::StepStreamRequest begin = services::Begin(1, 80);
    engine::SpecToProto({"hessian_z/w", DType::kF32, {2, 3}}, begin.mutable_begin()->add_extra());
    engine::SpecToProto({"hessian_z/b", DType::kF32, {4}}, begin.mutable_begin()->add_extra());
    stream.stream->Write(begin);
    stream.stream->Write(ChunkOf(FloatBytes(std::vector<float>(10, 1.0f)) + FloatBytes(h)));
    stream.stream->Write(Commit(1));
    EXPECT_THAT(stream.Finish().error_message(), HasSubstr(bad == 0 ? "hessian_z/w: element 0 is infinite" : "hessian_z/b: element 3 is infinite"));
    EXPECT_EQ(*inside_->Parameters("s"), values_);
  }
}

// A recorded gradient that is not what was recorded (a file that was changed by hand, say) is not stepped on.
TEST_F(Arrival, AReplayLooksAtWhatItReads) {
  Begin("sgd", v1::NON_FINITE_UNSPECIFIED);
  bool skipped = false;
  const std::vector<float> gradient(6 + kElements, 0.01f);
  ASSERT_EQ(Tell(Way::kChunks, 1, gradient, &skipped), "");
  const std::vector<float> after = *inside_->Parameters("s");
  engine::WaitForStore(inside_->store());
  inside_->Crash();
  EXPECT_EQ(*inside_->Parameters("s"), after);
  const int64_t uid = inside_->store().GetSession("local", "s")->uid;
  auto rows = inside_->store().ListObservations(uid, "gradient", 0, 100);
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 1u);
  std::vector<float> bad = gradient;
  bad[1'000] = std::nanf("");
  rows->front().blob = *inside_->blobs().Put(std::as_bytes(std::span(bad)));
  ASSERT_TRUE(inside_->store().CommitAndWait({{store::PutObservation{rows->front()}}, {}}).ok());
  inside_->Crash();
  const auto parameters = inside_->Parameters("s");
  EXPECT_THAT(std::string(parameters.status().message()), HasSubstr("grads.b: element 994 is NaN"));
}

}  // namespace
}  // namespace optod::services
