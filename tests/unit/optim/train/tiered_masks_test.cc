// Masks of streamed parameters are those of resident ones, bit for bit, whatever order and pieces the values come in.
#include "optim/train/tiered_masks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "optim/zo/stream.h"

namespace optod::train {
namespace {

constexpr uint64_t kSeed = 11;

zo::ZoLayout LayoutOf(const std::vector<size_t>& sizes) {
  std::vector<zo::ZoTensor> tensors;
  for (size_t size : sizes) tensors.push_back({"t" + std::to_string(tensors.size()), size});
  return zo::ZoLayout(std::move(tensors));
}

std::vector<float> ThetaAt(const zo::ZoLayout& layout, uint32_t step) {
  std::vector<float> theta(layout.size());
  for (size_t t = 0; t < layout.tensors(); ++t) {
    const std::span<float> values = std::span(theta).subspan(layout.offset(t), layout.tensor(t).size);
    zo::FillNormal({3, step, 0}, static_cast<uint32_t>(t), 0, values);
    for (float& w : values) w = (t == 1 ? 0.1f : 1.0f) * std::round(w * 64) / 64;  // many are equal, some are 0
  }
  return theta;
}

/// Shows tensors from the last to the first, in units of two pieces.
TieredMasks::Sweep ShowBackwards(const zo::ZoLayout& layout, std::span<const float> theta) {
  return [&layout, theta](const TieredMasks::Parts& parts) {
    for (size_t t = layout.tensors(); t-- > 0;) {
      const std::span<const float> values = theta.subspan(layout.offset(t), layout.tensor(t).size);
      const size_t half = values.size() / 3;
      const TieredMasks::Part unit[] = {{static_cast<uint32_t>(t), 0, values.first(half)}, {static_cast<uint32_t>(t), half, values.subspan(half)}};
      parts(unit);
    }
    return absl::OkStatus();
  };
}

void ExpectBitsOf(const TieredMasks& masks, const zo::ZoLayout& layout, uint32_t step, const zo::BitMask& want) {
  for (size_t t = 0; t < layout.tensors(); ++t) {
    for (size_t at = 0; at < layout.tensor(t).size; at += 1000) {
      std::vector<float> z(std::min<size_t>(1000, layout.tensor(t).size - at), 1.0f);
      masks.Zero(static_cast<uint32_t>(t), at, step, z);
      for (size_t i = 0; i < z.size(); ++i) ASSERT_EQ(z[i] == 0, want[layout.offset(t) + at + i]) << "step " << step << " tensor " << t << " element " << at + i;
    }
  }
}

struct MaskCase {
  const char* name;
  SparseSpec spec;
  std::vector<size_t> sizes = {3000, 1, 777, 64, 2500};
};
class EveryMask : public testing::TestWithParam<MaskCase> {};
INSTANTIATE_TEST_SUITE_P(
    Sources, EveryMask,
    testing::Values(MaskCase{"random", {.ratio = 0.3, .resample = 2}}, MaskCase{"random_normal", {.ratio = 0.3, .law = "normal"}},
                    MaskCase{"random_global", {.ratio = 0.4, .group = "global", .resample = 3}},
                    MaskCase{"random_global_sampled", {.ratio = 0.4, .group = "global", .resample = 8}, {6'000'000, 1'000'000, 3'500'000}},
                    MaskCase{"magnitude", {.ratio = 0.25, .source = "magnitude", .resample = 3}},
                    MaskCase{"magnitude_all_but_one", {.ratio = 0.9999, .source = "magnitude"}},
                    MaskCase{"magnitude_global", {.ratio = 0.6, .source = "magnitude", .group = "global", .resample = 2}}),
    [](const auto& info) { return info.param.name; });

TEST_P(EveryMask, EqualsTheResidentOne) {
  const MaskCase& c = GetParam();
  const zo::ZoLayout layout = LayoutOf(c.sizes);
  Masks resident(c.spec, kSeed, layout);
  TieredMasks tiered(c.spec, kSeed, layout);
  for (uint32_t step = 0; step < (layout.size() > 1'000'000 ? 1u : 7u); ++step) {
    const std::vector<float> theta = ThetaAt(layout, step);
    const auto want = resident.At(step, [&] { return std::span<const float>(theta); });
    ASSERT_TRUE(want.ok()) << want.status();
    if (tiered.Due(step)) {
      const TieredMasks::Sweep sweep = ShowBackwards(layout, theta);
      ASSERT_TRUE(tiered.Draw(step, sweep, sweep).ok());
    }
    ExpectBitsOf(tiered, layout, step, **want);
  }
}

/// A unit that is behind asks for masks of steps long past.
TEST(TieredMasks, OldRandomMasksCanBeHadAgain) {
  const SparseSpec spec{.ratio = 0.3, .resample = 2};
  const zo::ZoLayout layout = LayoutOf({500, 300});
  Masks resident(spec, kSeed, layout);
  const TieredMasks tiered(spec, kSeed, layout);
  std::vector<zo::BitMask> past;
  for (int step = 0; step < 9; ++step) past.push_back(**resident.At(step, nullptr));
  for (const uint32_t step : {8u, 0u, 5u}) ExpectBitsOf(tiered, layout, step, past[step]);
}

TEST(TieredMasks, BytesAreABitAParameterWhereThereAreBits) {
  EXPECT_EQ(TieredMasks::Bytes({}, 1000), 0u);
  EXPECT_EQ(TieredMasks::Bytes({.ratio = 0.5}, 1000), 0u);
  EXPECT_EQ(TieredMasks::Bytes({.ratio = 0.5, .source = "magnitude"}, 1000), 128u);
  EXPECT_EQ(TieredMasks::Bytes({.ratio = 0.5, .source = "wanda"}, 1 << 20), 1u << 17);
}

}  // namespace
}  // namespace optod::train
