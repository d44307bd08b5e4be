// Blocks and masks: what a direction moves, and that an update by scalars equals the optimizer that has everything.
#include "optim/zo/support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/zo/direction.h"
#include "optim/zo/mask.h"
#include "optim/zo/replay.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::zo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 21;
const ZoLayout kPlain({{"emb", 5}, {"layers.0.w", 9}, {"layers.0.b", 3, false}, {"layers.1.w", 7}, {"norm", 4}});

std::vector<float> Start(size_t n) {
  std::vector<float> theta(n);
  for (size_t i = 0; i < n; ++i) theta[i] = std::sin(0.7f * static_cast<float>(i)) + 0.1f;
  return theta;
}
double Bowl(std::span<const float> theta) {
  double sum = 0;
  for (size_t i = 0; i < theta.size(); ++i) sum += 0.5 * static_cast<double>(i % 5 + 1) * theta[i] * theta[i];
  return sum;
}

TEST(ArrangeTest, TensorsFindTheirBlocks) {
  struct Case {
    const char* text;
    std::vector<uint32_t> blocks;
  };
  const Case cases[] = {{"", {0, 0, 0, 0, 0}},
                        {"each", {0, 1, 2, 3, 4}},
                        {"emb,norm;layers.0.;layers.1.", {0, 1, 1, 2, 0}},
                        {"layers.1;layers;emb,norm", {2, 1, 1, 0, 2}}};  // the first that matches
  for (const Case& c : cases) {
    const auto layout = Arrange(kPlain, {.blocks = c.text});
    ASSERT_TRUE(layout.ok()) << layout.status();
    std::vector<uint32_t> blocks;
    for (size_t t = 0; t < layout->tensors(); ++t) blocks.push_back(layout->tensor(t).block);
    EXPECT_EQ(blocks, c.blocks) << c.text;
  }
}

TEST(ArrangeTest, WhatDoesNotFitIsNamed) {
  struct Case {
    ZoHyper hyper;
    const char* message;
  };
  const Case cases[] = {{{.blocks = "layers.0.;layers.1."}, "no prefix matches tensor \"emb\""},
                        {{.blocks = "emb,layers,norm;nothing"}, "block 1 (\"nothing\") has no tensor"},
                        {{.blocks = "emb,layers,norm;"}, "block 1 (\"\") has no tensor"},
                        {{.mask_ratios = "0.1,0.2"}, "2 numbers; the layout has 5"},
                        {{.mask_ratios = "0,0,0,1.5,0"}, "mask_ratios[3]: \"1.5\""},
                        {{.mask_ratios = "0,0,x,0,0"}, "mask_ratios[2]: \"x\""}};
  for (const Case& c : cases)
    EXPECT_THAT(std::string(Arrange(kPlain, c.hyper).status().message()), HasSubstr(c.message));
}

TEST(SupportTest, DirectionsBelongToBlocks) {
  ZoHyper hyper{.queries = 2, .blocks = "emb,norm;layers.0.;layers.1."};
  const ZoLayout layout = *Arrange(kPlain, hyper);
  EXPECT_EQ(DirectionsOfStep(layout, hyper), 2u);
  std::vector<uint32_t> first;
  std::vector<int64_t> updates;
  for (int64_t n = 0; n < 7; ++n) {
    first.push_back(FirstDirection(layout, hyper, n));
    updates.push_back(UpdatesOfBlock(layout, hyper, n));
  }
  EXPECT_THAT(first, ElementsAre(0, 2, 4, 0, 2, 4, 0));
  EXPECT_THAT(updates, ElementsAre(0, 1, 1, 1, 2, 2, 2));
  hyper.block_schedule = BlockSchedule::kJoint;
  EXPECT_EQ(DirectionsOfStep(layout, hyper), 6u);
  EXPECT_EQ(FirstDirection(layout, hyper, 4), 0u);
  EXPECT_EQ(UpdatesOfBlock(layout, hyper, 4), 4);
  EXPECT_TRUE(Moves(layout, hyper, 3, 1) && Moves(layout, hyper, 0, 4));
  EXPECT_FALSE(Moves(layout, hyper, 3, 0) || Moves(layout, hyper, 5, 1));
}

/// Directions of the stream in which block b draws queries b q, ... of one step, as sessions do.
class BlockDirection final : public DirectionSource<float> {
 public:
  BlockDirection(const ZoLayout& layout, const ZoHyper& hyper, uint32_t step) : layout_(layout), q_(hyper.queries), z_(kSeed, step, layout) {}
  void Fill(int query, size_t first, std::span<float> z) const override {
    for (size_t i = 0; i < z.size(); ++i)
      z_.Fill(query + q_ * static_cast<int>(layout_.tensor(layout_.TensorAt(first + i)).block), first + i, z.subspan(i, 1));
  }

 private:
  const ZoLayout& layout_;
  const int q_;
  const StreamDirection<float> z_;
};

struct JointCase {
  const char* name;
  const char* optimizer;
  ZoValues more;
};
void PrintTo(const JointCase& c, std::ostream* out) { *out << c.name; }
const JointCase kJoint[] = {{"sgd", "zo-sgd", {{"queries", 2.0}}},
                            {"sign", "zo-sgd-sign", {}},
                            {"momentum", "zo-sgd-mmt", {{"queries", 3.0}, {"weight_decay", 0.1}}},
                            {"adam", "zo-adam", {{"weight_decay", 0.1}}}};
class JointBlocks : public testing::TestWithParam<JointCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, JointBlocks, testing::ValuesIn(kJoint), [](const auto& info) { return std::string(info.param.name); });

TEST_P(JointBlocks, ScalarsGiveTheBytesOfTheBlockwiseOptimizer) {
  ZoValues values = GetParam().more;
  values["lr"] = 0.01;
  values["blocks"] = std::string("emb,norm;layers.0.;layers.1.");
  values["block_schedule"] = std::string("joint");
  const ZoHyper hyper = *ZoHyperFor(GetParam().optimizer, values);
  const ZoLayout layout = *Arrange(kPlain, hyper);
  const std::vector<std::vector<size_t>> blocks = {{0, 4}, {1, 2}, {3}};
  ZoOptimizer<float> optimizer(layout, hyper);
  std::vector<float> want = Start(layout.size()), got = want;
  ZoState<float> state = InitialState(layout, hyper);
  for (uint32_t step = 0; step < 5; ++step) {
    const StepResult result = optimizer.StepBlockwise(want, BlockDirection(layout, hyper, step), Bowl, blocks, BlockSchedule::kJoint);
    UpdateScalars update;
    for (size_t i = 0; i < result.projected_grad.size(); ++i) {
      const double g = hyper.sign == Sign::kScalar ? (result.projected_grad[i] > 0) - (result.projected_grad[i] < 0) : result.projected_grad[i];
      update.terms.push_back({step, static_cast<uint32_t>(i), static_cast<float>(NeedsRule(hyper) ? g : hyper.lr * g / hyper.queries)});
    }
    if (NeedsRule(hyper)) update.rule = RuleScalarsFor<float>(hyper, hyper.lr, step + 1);
    ASSERT_TRUE(ApplyUpdate(layout, hyper, kSeed, update, got, &state).ok());
    EXPECT_EQ(got, want) << step;
  }
  EXPECT_EQ(state.m, optimizer.update().state().m);
  EXPECT_EQ(state.v, optimizer.update().state().v);
}

TEST(SupportTest, ATermMovesItsBlockAlone) {
  for (const char* optimizer : {"zo-sgd", "zo-adam"}) {
    const ZoHyper hyper = *ZoHyperFor(optimizer, {{"lr", 0.1}, {"weight_decay", 0.5}, {"blocks", std::string("each")}});
    const ZoLayout layout = *Arrange(kPlain, hyper);
    std::vector<float> theta = Start(layout.size());
    const std::vector<float> before = theta;
    ZoState<float> state = InitialState(layout, hyper);
    UpdateScalars update{{{0, 3, 0.25f}}, 0.05f, {}};
    if (NeedsRule(hyper)) update.rule = RuleScalarsFor<float>(hyper, 0.1, 1);
    ASSERT_TRUE(ApplyUpdate(layout, hyper, kSeed, update, theta, &state).ok());
    for (size_t i = 0; i < theta.size(); ++i) EXPECT_EQ(theta[i] != before[i], layout.TensorAt(i) == 3) << optimizer << i;
    EXPECT_THAT(state.counts, ElementsAre(0, 0, 0, NeedsRule(hyper) ? 1 : 0, 0));
  }
}

// ---- masks

TEST(SupportTest, MaskedElementsKeepTheirBitsAndTheRestMovesAsWithoutAMask) {
  for (const MaskLaw law : {MaskLaw::kUniform, MaskLaw::kNormal}) {
    const ZoHyper hyper{.mask_ratio = 0.4, .mask_law = law, .mask_every = 3};
    const ZoLayout open({{"w", 100'000}}), layout = *Arrange(open, hyper);
    std::vector<std::vector<bool>> still;
    for (const uint32_t step : {3u, 5u, 6u}) {
      std::vector<float> theta(layout.size(), -0.0f), free = theta;
      ShiftAlong(layout, hyper, {kSeed, step, 1}, 0.5f, theta);
      ShiftAlong(open, {}, {kSeed, step, 1}, 0.5f, free);
      still.emplace_back();
      double masked = 0;
      for (size_t i = 0; i < theta.size(); ++i) {
        const bool kept = std::signbit(theta[i]) && theta[i] == 0;
        EXPECT_TRUE(kept || theta[i] == free[i]);
        still.back().push_back(kept);
        masked += kept;
      }
      const double want = law == MaskLaw::kUniform ? 0.4 : 0.5 * std::erfc(-0.4 / std::sqrt(2.0)), n = 1e5;
      EXPECT_NEAR(masked / n, want, 4 * std::sqrt(want * (1 - want) / n));
    }
    EXPECT_EQ(still[0], still[1]);  // steps 3, 4, 5 share a mask
    EXPECT_NE(still[1], still[2]);
  }
}

TEST(SupportTest, MaskedSgdHasTheBytesOfTheOptimizerWithThatMask) {
  const ZoHyper hyper = *ZoHyperFor("zo-sgd", {{"lr", 0.05}, {"queries", 2.0}, {"weight_decay", 0.1}, {"mask_ratios", std::string("0.5,0,0.25,1,0.75")}});
  const ZoLayout layout = *Arrange(kPlain, hyper);
  ZoOptimizer<float> optimizer(layout, hyper);
  std::vector<float> want = Start(layout.size()), got = want;
  for (uint32_t step = 0; step < 4; ++step) {
    auto mask = std::make_shared<std::vector<uint8_t>>(layout.size());
    for (size_t t = 0; t < layout.tensors(); ++t)
      ASSERT_TRUE(FillMask({kSeed, step, kMaskQuery}, static_cast<uint32_t>(t), 0, layout.tensor(t).mask_ratio, MaskLaw::kUniform,
                           std::span(*mask).subspan(layout.offset(t), layout.tensor(t).size)).ok());
    const auto z = std::make_shared<StreamDirection<float>>(kSeed, step, layout);
    const auto bits = std::make_shared<BitMask>(layout.size());
    bits->Set(0, *mask);
    const StepResult result = optimizer.Step(want, MaskedDirection<float>(z, bits), Bowl);
    UpdateScalars update{{}, static_cast<float>(hyper.lr * hyper.weight_decay), {}};
    for (uint32_t i = 0; i < 2; ++i)
      update.terms.push_back({step, i, static_cast<float>(hyper.lr * result.projected_grad[i] / 2)});
    ASSERT_TRUE(ApplyUpdate(layout, hyper, kSeed, update, got, nullptr).ok());
    EXPECT_EQ(got, want) << step;
  }
}

}  // namespace
}  // namespace optod::zo
