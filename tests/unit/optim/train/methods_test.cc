// The methods of zeroth order without a model: groups, masks, objectives, the agreement of several workers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <thread>

#include "optim/nn/checkpoint.h"
#include "optim/train/adapters.h"
#include "optim/train/exchange.h"
#include "optim/train/groups.h"
#include "optim/train/packed.h"
#include "optim/train/sparse.h"
#include "optim/train/text_match.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

nn::ModelConfig Config(const std::string& family) {
  return *nn::ParseConfig(
      R"({"model_type": ")" + family +
      R"(", "vocab_size": 30, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40})");
}

/// Names and blocks of a model's tensors.
struct Tensors {
  explicit Tensors(const nn::ModelConfig& config) {
    const auto blocks = nn::DescribeBlocks(config);
    for (size_t b = 0; b < blocks.size(); ++b) {
      for (const tier::BlockTensor& tensor : blocks[b].tensors) {
        tensors.push_back(tensor);
        block_of.push_back(b);
      }
    }
    count = blocks.size();
  }
  std::vector<tier::BlockTensor> tensors;
  std::vector<size_t> block_of;
  size_t count;
};

struct Level {
  const char *family, *level;
  size_t groups;
};
class Groups : public testing::TestWithParam<Level> {};
// llama: embedding, 2 x (1 | attention, 3 projections, 2 norms | 4 + 3 projections, 2 norms), norm, lm_head.
// opt: 2 embeddings, 2 x (1 | attention, fc1, fc2, 2 norms | 4 + 2, 2 norms), norm. roberta: 3 embeddings and their
// norm, 2 x (1 | attention, 2 dense, 2 norms | 3 + dense, 2 dense, 2 norms), dense, norm, bias.
INSTANTIATE_TEST_SUITE_P(Levels, Groups,
                         testing::Values(Level{"llama", "transformer-block", 5}, Level{"llama", "mlp-attn", 15},
                                         Level{"llama", "linear", 21}, Level{"opt", "transformer-block", 5},
                                         Level{"opt", "mlp-attn", 13}, Level{"opt", "linear", 19}));

TEST_P(Groups, HoldEveryTensorOnceInTheOrderOfTheBlocks) {
  const Tensors t(Config(GetParam().family));
  const auto groups = GroupTensors(t.tensors, t.block_of, t.count, GetParam().level);
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_EQ(groups->size(), GetParam().groups);
  std::vector<int> seen(t.tensors.size());
  size_t block = 0;
  for (const auto& group : *groups) {
    EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
    for (size_t tensor : group) {
      ++seen[tensor];
      EXPECT_EQ(t.block_of[tensor], t.block_of[group[0]]);
    }
    EXPECT_GE(t.block_of[group[0]], block);
    block = t.block_of[group[0]];
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::ptrdiff_t>(seen.size()));
}
TEST(GroupTensors, RefusesOtherLevels) {
  EXPECT_THAT(std::string(GroupTensors({}, {}, 0, "layer").status().message()),
              HasSubstr("blockwise.level: \"layer\""));
}

// ---- masks

const zo::ZoLayout kLayout({{"a", 4000}, {"b", 6000}});

std::vector<float> Theta() {
  std::vector<float> theta(kLayout.size());
  zo::FillNormal({1, 2, 3}, 0, 0, theta);
  for (size_t i = 4000; i < theta.size(); ++i) theta[i] *= 10;
  return theta;
}
double Share(const zo::BitMask& mask, size_t first, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) count += mask[first + i];
  return static_cast<double>(count) / static_cast<double>(n);
}

struct MaskCase {
  SparseSpec spec;
  double share_a, share_b;
};
TEST(Masks, SharesAreThoseOfTheSource) {
  const std::vector<float> theta = Theta();
  const auto give = [&] { return std::span<const float>(theta); };
  const double normal = 0.5 * std::erfc(-0.3 / std::sqrt(2.0));
  for (const MaskCase& c :
       {MaskCase{{.ratio = 0.3}, 0.3, 0.3}, MaskCase{{.ratio = 0.3, .law = "normal"}, normal, normal},
        MaskCase{{.ratio = 0.3, .source = "magnitude"}, 0.3, 0.3},
        MaskCase{{.ratio = 0.4, .source = "magnitude", .group = "global"}, 0.87, 0.08},
        MaskCase{{.ratio = 0.4, .group = "global"}, 0.87, 0.08}}) {
    Masks masks(c.spec, 9, kLayout);
    const auto mask = masks.At(0, give);
    ASSERT_TRUE(mask.ok());
    EXPECT_NEAR(Share(**mask, 0, 4000), c.share_a, 0.035) << c.spec.source << c.spec.group << c.spec.law;
    EXPECT_NEAR(Share(**mask, 4000, 6000), c.share_b, 0.03) << c.spec.source << c.spec.group << c.spec.law;
  }
}

TEST(Masks, AreDrawnAgainEveryFewStepsAndTheSameAfterARestart) {
  std::vector<float> theta = Theta();
  int asked = 0;
  const auto give = [&] { return ++asked, std::span<const float>(theta); };
  Masks masks({.ratio = 0.5, .resample = 3}, 9, kLayout);
  std::vector<std::vector<uint64_t>> drawn;
  for (int64_t step = 0; step < 9; ++step) drawn.push_back((*masks.At(step, give))->words());
  EXPECT_EQ(asked, 0) << "a random mask needs no parameters";
  for (size_t s = 0; s < drawn.size(); ++s) {
    EXPECT_EQ(drawn[s], drawn[s / 3 * 3]);
    if (s >= 3) {
      EXPECT_NE(drawn[s], drawn[s - 3]);
    }
  }
  masks.Restart();
  EXPECT_EQ((*masks.At(0, give))->words(), drawn[0]);
  Masks none({}, 9, kLayout);
  EXPECT_EQ(*none.At(0, give), nullptr);
}

/// Per output row, the smallest |w| |x|; the same for weights stored the other way round.
TEST(Masks, WandaComparesWithinRows) {
  const std::vector<float> w = {1, -2, 3, 4, /**/ 4, 3, -2, 1}, turned = {1, 4, -2, 3, 3, -2, 4, 1};
  const std::map<size_t, std::vector<double>> norms = {{0, {10, 1, 1, 1}}};
  for (bool in_out : {false, true}) {
    const zo::ZoLayout layout({{"w", 8}});
    const std::vector<tier::BlockTensor> tensors = {
        {"w", in_out ? std::vector<int64_t>{4, 2} : std::vector<int64_t>{2, 4}, true}};
    const auto mask = WandaMask(layout, tensors, in_out ? turned : w, norms, 0.5, in_out);
    ASSERT_TRUE(mask.ok()) << mask.status();
    for (int64_t o = 0; o < 2; ++o) {
      for (int64_t i = 0; i < 4; ++i) {
        const bool want = o == 0 ? i == 1 || i == 2 : i == 2 || i == 3;
        EXPECT_EQ((*mask)[static_cast<size_t>(in_out ? i * 2 + o : o * 4 + i)], want) << o << i;
      }
    }
  }
  EXPECT_THAT(std::string(WandaMask(kLayout, {}, {}, {}, 0.5, false).status().message()), HasSubstr("sparse.source"));
}

TEST(Masks, FilesComeBackOrAreRefused) {
  nn::TempFolder folder;
  zo::BitMask mask(131);
  for (size_t i = 0; i < 131; i += 5) mask.Set(i, std::vector<uint8_t>{1});
  const std::string path = folder.path() + "/m";
  ASSERT_TRUE(WriteMask(path, mask).ok());
  EXPECT_EQ(ReadMask(path, 131)->words(), mask.words());
  EXPECT_EQ(ReadMask(path, 132).status().code(), absl::StatusCode::kDataLoss);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(10).put('x');
  EXPECT_EQ(ReadMask(path, 131).status().code(), absl::StatusCode::kDataLoss);
}

// ---- objectives

TEST(Objectives, TokenF1IsSquads) {
  struct Case {
    const char *prediction, *truth;
    double f1;
  };
  for (const Case& c : {Case{"The cat sat.", "a cat  sat", 1}, Case{"cat", "cat sat", 2.0 / 3}, Case{"dog", "cat", 0},
                        Case{"cat cat", "cat", 2.0 / 3}, Case{"", "", 1}, Case{"", "cat", 0}, Case{"the", "an", 1}})
    EXPECT_NEAR(TokenF1(c.prediction, c.truth), c.f1, 1e-12) << c.prediction << " / " << c.truth;
}

TEST(Objectives, ValuesAreThoseToMinimise) {
  Example right{{{{1}, {{0, 2, 0}, {0, 3, 1}}}}, 2, 0, {1, 0.4}}, wrong = right;
  wrong.correct = 1;
  wrong.f1 = {0.4, 1};
  const std::vector<const Example*> examples = {&right, &wrong};
  const Objective objective = Judge(examples, std::vector<double>{-0.5, -1, -0.5, -1}, true);
  EXPECT_EQ(ValueOf(objective, 2, "loss"), objective.loss);
  EXPECT_EQ(ValueOf(objective, 2, "accuracy"), -0.5);
  EXPECT_NEAR(ValueOf(objective, 2, "f1"), -0.7, 1e-12);
  const Objective broken = Judge(examples, std::vector<double>{NAN, -1, -0.5, -1}, true);
  for (const char* name : {"loss", "accuracy", "f1"}) EXPECT_TRUE(std::isnan(ValueOf(broken, 2, name))) << name;
}

TEST(Packed, VirtualTokensStandBeforeEverySequence) {
  const Example example{{{{7, 8}, {{1, 2, 0}}}, {{9}, {{0, 3, 1}}}}, 2, 0};
  const Example* examples[] = {&example};
  const Packed packed = Pack(examples, 2);
  EXPECT_THAT(packed.ids, ElementsAre(0, 0, 9, 0, 0, 7, 8));
  EXPECT_THAT(packed.lengths, ElementsAre(3, 4));
  EXPECT_THAT(packed.sources, ElementsAre(-1, -2, 0, -1, -2, 1, 2));
  EXPECT_THAT(packed.rows, ElementsAre(2, 6));
}

// ---- several workers

ReplayRecord Told(uint32_t step, double loss, std::vector<double> g) { return {step, 0, 0.5, loss, std::move(g)}; }
ReplayRecord Absent() { return Told(0xffffffffu, 0, {}); }

TEST(Exchange, RecordsAreCombinedByTheirShare) {
  const ReplayRecord mean = Combine({Told(4, 1, {2, 4}), Absent(), Told(4, 3, {4, 0})}, "examples");
  EXPECT_EQ(mean.step, 4u);
  EXPECT_EQ(mean.loss, 2);
  EXPECT_THAT(mean.g, ElementsAre(3, 2));
  const ReplayRecord listed = Combine({Told(4, 1, {2}), Absent(), Told(4, 3, {4})}, "queries");
  EXPECT_THAT(listed.g, ElementsAre(2, 0, 4));
  EXPECT_EQ(listed.flags, 0u);
  EXPECT_EQ(Combine({Told(4, 1, {2}), Told(4, NAN, {4})}, "examples").flags, ReplayRecord::kSkipped);
}

TEST(Exchange, StepsWaitForThoseWhoTakePartAlone) {
  ExchangeHub hub({.workers = 2, .share = "examples"});
  std::vector<ReplayRecord> missed;
  auto a = hub.Seat(0);
  EXPECT_EQ(a->Join({}, &missed, [] { return true; }).status().code(), absl::StatusCode::kCancelled) << "waits for b";
  std::thread other([&] {
    std::vector<ReplayRecord> none;
    auto b = hub.Seat(1);
    EXPECT_TRUE(*b->Join({}, &none, nullptr));
    EXPECT_EQ(b->Agree(Told(0, 3, {3}), nullptr)->g[0], 2);
  });  // b leaves
  ASSERT_TRUE(*a->Join({}, &missed, nullptr));
  EXPECT_EQ(a->Agree(Told(0, 1, {1}), nullptr)->g[0], 2);
  other.join();
  EXPECT_EQ(a->Agree(Told(1, 1, {7}), nullptr)->g[0], 7) << "alone";
  auto late = hub.Seat(1);
  EXPECT_FALSE(*late->Join({}, &missed, nullptr));
  ASSERT_EQ(missed.size(), 2u);
  EXPECT_EQ(missed[1].g[0], 7);
  EXPECT_TRUE(*late->Join(missed, &missed, nullptr));
  const std::vector<ReplayRecord> too_far(3);
  EXPECT_EQ(late->Join(too_far, &missed, nullptr).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(a->Agree(Told(2, 1, {1}), [] { return true; }).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(a->Agree(Told(2, 1, {1}), nullptr).status().code(), absl::StatusCode::kFailedPrecondition);
}

/// An earlier run ended when one worker had written a step and the other had not.
TEST(Exchange, AllBeginWhereTheLongestLogEnds) {
  ExchangeHub hub({.workers = 2, .share = "examples"});
  const std::vector<ReplayRecord> log = {Told(0, 1, {1}), Told(1, 2, {2})};
  std::vector<ReplayRecord> missed, none;
  auto a = hub.Seat(0), b = hub.Seat(1);
  std::thread other([&] { EXPECT_TRUE(*b->Join(log, &none, nullptr)); });
  EXPECT_TRUE(*a->Join(std::span(log).first(1), &missed, nullptr));
  other.join();
  ASSERT_EQ(missed.size(), 1u);
  EXPECT_EQ(missed[0].loss, 2);
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace optod::train
