// Pooled buffers, layouts, snapshots, recorded gradients.
#include <cstdint>
#include <cstring>
#include <set>

#include "base/crc32c.h"
#include "numeric_testing.h"
#include "optim/rules/buffer.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

using optim::DType;
using ::testing::HasSubstr;

TEST(TensorBuffer, IsAlignedAndComesBackFromThePool) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{1} << 20, (size_t{5} << 20) + 3}) {
    auto buffer = TensorBuffer::Make(size);
    ASSERT_NE(buffer, nullptr);
    EXPECT_EQ(buffer->size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    std::memset(buffer->data(), 7, size);
    auto copy = TensorBuffer::Copy(*buffer);
    EXPECT_TRUE(size == 0 || std::memcmp(copy->data(), buffer->data(), size) == 0);
  }
  auto first = TensorBuffer::Make(9 << 20);
  const void* place = first->data();
  first = nullptr;
  EXPECT_EQ(TensorBuffer::Make(9 << 20)->data(), place);
  EXPECT_EQ(TensorBuffer::Make(size_t{1} << 60), nullptr);
}

// A power of two apart, the streams of a step would share cache sets and memory banks.
TEST(TensorBuffer, LargeBlocksOfOneSizeBeginAtDifferentPlacesOfTheirPages) {
  std::vector<std::shared_ptr<TensorBuffer>> buffers;
  std::set<uintptr_t> places;
  for (int i = 0; i < 4; ++i) {
    buffers.push_back(TensorBuffer::Make(size_t{32} << 20));
    std::memset(buffers.back()->data(), i, buffers.back()->size());  // all of it is there
    places.insert(reinterpret_cast<uintptr_t>(buffers.back()->data()) % 4096);
  }
  EXPECT_EQ(places.size(), 4u);
  std::set<uintptr_t> rule_places;
  for (int i = 0; i < 4; ++i) {
    optim::Buffer buffer(size_t{32} << 20);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    std::memset(buffer.data(), i, buffer.size());
    rule_places.insert(reinterpret_cast<uintptr_t>(buffer.data()) % 4096);
  }
  EXPECT_EQ(rule_places.size(), 4u);
}

Layout MakeLayout() {
  v1::TensorIndex index;
  SpecToProto({"model.w", DType::kF32, {3, 2}}, index.add_tensors());
  SpecToProto({"model.h", DType::kBF16, {3}}, index.add_tensors());
  SpecToProto({"head \"q\"", DType::kF64, {}}, index.add_tensors());
  SpecToProto({"none", DType::kF32, {0, 4}}, index.add_tensors());
  return Layout(index);
}

TEST(Layout, PlacesTensorsWithoutGaps) {
  const Layout layout = MakeLayout();
  EXPECT_EQ(layout.offset(1), 24u);
  EXPECT_EQ(layout.offset(2), 30u);
  EXPECT_EQ(layout.total_bytes(), 38u);
  EXPECT_EQ(layout.total_elements(), 10u);
  EXPECT_FALSE(layout.aligned());
  EXPECT_EQ(layout.Find("model.h"), 1);
  EXPECT_EQ(layout.Find("model"), -1);
}

struct GlobCase {
  const char* glob;
  const char* text;
  bool want;
};
TEST(Layout, Globs) {
  for (const GlobCase& c : {GlobCase{"*", "", true}, GlobCase{"a*c", "abbc", true}, GlobCase{"a*c", "abcb", false},
                            GlobCase{"?", "", false}, GlobCase{"*.w", "model.w", true},
                            GlobCase{"model.?", "model.h", true}, GlobCase{"*a*b*", "xxaxxbx", true},
                            GlobCase{"*a*b*", "xxbxxa", false}, GlobCase{"[a]", "a", false}, GlobCase{"", "", true}})
    EXPECT_EQ(GlobMatch(c.glob, c.text), c.want) << c.glob << " " << c.text;
  std::vector<size_t> chosen;
  const v1::TensorIndex index = MakeLayout().Index({"model.*"}, &chosen);
  EXPECT_EQ(chosen, (std::vector<size_t>{0, 1}));
  EXPECT_EQ(index.total_bytes(), 30u);
}

TEST(Snapshot, RoundTripsAndRefusesDamage) {
  const Layout layout = MakeLayout();
  auto flat = TensorBuffer::Make(layout.total_bytes());
  for (size_t i = 0; i < flat->size(); ++i) flat->data()[i] = static_cast<std::byte>(i + 1);
  std::vector<optim::OwnedTensor> state;
  for (const char* name : {"m/model.w", "t/head \"q\"", "v/none"}) {
    optim::OwnedTensor tensor{{name, DType::kI64, {2}}, {}};
    if (state.size() == 2) tensor.spec.shape = {0};
    tensor.data.assign(tensor.spec.bytes(), static_cast<std::byte>(0x40 + state.size()));
    state.push_back(tensor);
  }
  auto file = EncodeSnapshot(layout, flat->data(), state, 12, 7);
  ASSERT_TRUE(file.ok());
  const std::string blob(reinterpret_cast<const char*>((*file)->data()), (*file)->size());
  auto read = DecodeSnapshot(layout, blob);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(std::memcmp(read->params->data(), flat->data(), flat->size()), 0);
  ASSERT_EQ(read->state.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read->state[i].spec.name, state[i].spec.name);
    EXPECT_EQ(read->state[i].spec.shape, state[i].spec.shape);
    EXPECT_EQ(read->state[i].data, state[i].data);
  }
  auto plain = DecodeSnapshot(layout, blob.substr(blob.size() - 32 - layout.total_bytes(), layout.total_bytes()));
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->has_state);
  for (const size_t cut : {size_t{0}, size_t{5}, size_t{60}, blob.size() - 1})
    EXPECT_EQ(DecodeSnapshot(layout, blob.substr(0, cut)).status().code(), absl::StatusCode::kDataLoss) << cut;
  std::string spoiled = blob;
  spoiled[9] = '!';
  EXPECT_EQ(DecodeSnapshot(layout, spoiled).status().code(), absl::StatusCode::kDataLoss);
}

TEST(Gradients, RecordsGiveBackEveryBit) {
  v1::TensorIndex index;
  SpecToProto({"a", DType::kF32, {5}}, index.add_tensors());
  SpecToProto({"big", DType::kF32, {20'000}}, index.add_tensors());
  const Layout layout(index);
  MapBlobStore blobs;
  std::vector<float> a = {1, -2, 3.5f, 1e-30f, 4}, big(20'000);
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<float>(i) * 0.37f;
  for (const bool with_big : {false, true}) {
    v1::GradientTell tell;
    *tell.add_gradients() = TensorOf("a", {5}, a);
    if (with_big) *tell.add_gradients() = TensorOf("big", {20'000}, big);
    *tell.add_extra() = TensorOf("hessian_z/a", {5}, {5, 4, 3, 2, 1});
    auto row = RecordTell(blobs, tell);
    ASSERT_TRUE(row.ok());
    EXPECT_EQ(row->blob.empty(), !with_big);
    auto back = GradientsFromRecord(layout, blobs, *row);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(std::memcmp(back->views[0].data, a.data(), 20), 0);
    EXPECT_EQ(back->views[1].data != nullptr, with_big);
    if (with_big) {
      EXPECT_EQ(std::memcmp(back->views[1].data, big.data(), big.size() * 4), 0);
    }
    ASSERT_EQ(back->extra.size(), 1u);
    EXPECT_EQ(back->extra[0].spec.name, "hessian_z/a");
  }
}

TEST(Gradients, ExtraTensorsAreChecked) {
  v1::TensorIndex index;
  SpecToProto({"a", DType::kF32, {1}}, index.add_tensors());
  const Layout layout(index);
  struct Case {
    std::function<void(v1::Tensor*)> spoil;
    const char* message;
  };
  for (const Case& c : {Case{[](auto* t) { t->mutable_spec()->set_shape(0, -1); }, "negative"},
                        Case{[](auto* t) { t->mutable_spec()->clear_dtype(); }, "dtype"},
                        Case{[](auto* t) { t->set_data("abc"); }, "3 bytes"},
                        Case{[](auto* t) { t->mutable_spec()->set_shape(0, int64_t{1} << 60); }, "too large"}}) {
    v1::GradientTell tell;
    *tell.add_gradients() = TensorOf("a", {1}, {1});
    *tell.add_extra() = TensorOf("x", {1}, {1});
    c.spoil(tell.mutable_extra(0));
    auto result = GradientsFromTell(layout, tell);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(c.message));
  }
}

TEST(Crc32c, KnownValueAndPieces) {
  const std::string digits = "123456789";
  EXPECT_EQ(Crc32c(digits.data(), 9), 0xe3069283u);
  for (size_t cut = 0; cut <= 9; ++cut)
    EXPECT_EQ(Crc32c(digits.data() + cut, 9 - cut, Crc32c(digits.data(), cut)), 0xe3069283u);
  EXPECT_EQ(Crc32c("", 0), 0u);
  const std::string zeros(32, '\0');  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(zeros.data(), 32), 0x8a9136aau);
}

}  // namespace
}  // namespace optod::engine
