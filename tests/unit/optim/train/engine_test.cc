// The sweep over the blocks against plain evaluation: adapters, parts of the model, masks, updates that wait.
#include "optim/train/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "examples.h"
#include "optim/train/perturb.h"
#include "small_models.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::RandomModel;
using nn::SmallModel;

class EveryFamily : public testing::TestWithParam<SmallModel> {
 protected:
  EveryFamily() : model_(RandomModel(GetParam().config)), examples_(SomeExamples(model_.config)) {}
  /// Null when the family has no such adapter.
  std::unique_ptr<Engine> Make(const std::string& scheme) {
    auto made = Engine::Create(&model_, {.name = scheme, .rank = 2, .tokens = 2}, 1);
    if (model_.config.fused_qkv() && scheme == "lora") {
      EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented);
      return nullptr;
    }
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  /// theta + sign * scale * z on the tensors of `p`.
  static std::vector<float> Moved(Engine& engine, const Perturbation& p, float sign) {
    std::vector<float> theta(engine.theta().begin(), engine.theta().end());
    std::vector<size_t> tensors(p.tensors.begin(), p.tensors.end());
    if (tensors.empty()) tensors = engine.layout().All();
    for (size_t t : tensors) {
      std::vector<float> z(engine.layout().tensor(t).size);
      zo::FillNormal(p.direction, static_cast<uint32_t>(t), 0, z);
      const size_t first = engine.layout().offset(t);
      if (p.mask != nullptr) p.mask->Zero(first, std::span(z));
      for (size_t i = 0; i < z.size(); ++i) theta[first + i] += sign * p.scale * z[i];
    }
    return theta;
  }
  void ExpectPair(Engine& engine, const Perturbation& p, const ScoredPair& pair, const std::string& what) {
    for (float sign : {1.0f, -1.0f}) {
      const auto plain = *engine.Score(Moved(engine, p, sign), Pointers(examples_));
      const std::vector<double>& swept = sign > 0 ? pair.plus : pair.minus;
      ASSERT_EQ(plain.size(), swept.size());
      for (size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(plain[i], swept[i], 2e-6) << what << " pick " << i;
    }
  }
  nn::ModelFiles model_;
  std::vector<Example> examples_;
};
INSTANTIATE_TEST_SUITE_P(Models, EveryFamily, testing::ValuesIn(kSmallModels),
                         [](const auto& info) { return info.param.name; });

/// Log-probabilities straight from the reference forward pass.
void ExpectReference(const nn::ModelFiles& model, const std::vector<Example>& examples,
                     const std::vector<double>& scores, const std::vector<int64_t>& in_front) {
  size_t i = 0;
  for (const Example& example : examples) {
    for (const Sequence& sequence : example.sequences) {
      std::vector<int64_t> ids = in_front;
      ids.insert(ids.end(), sequence.ids.begin(), sequence.ids.end());
      const auto logits = ReferenceLogits(model, ids);
      for (const Pick& pick : sequence.picks) {
        const auto& row = logits[in_front.size() + static_cast<size_t>(pick.row)];
        double sum = 0;
        for (double l : row) sum += std::exp(l);
        EXPECT_NEAR(scores[i++], row[static_cast<size_t>(pick.target)] - std::log(sum), 1e-4);
      }
    }
  }
}

TEST_P(EveryFamily, ScoresAreTheReferences) {
  auto engine = Make("full");
  const auto scores = engine->Score(engine->theta(), Pointers(examples_));
  ASSERT_TRUE(scores.ok()) << scores.status();
  ExpectReference(model_, examples_, *scores, {});
}

/// Prompt tuning begins at embeddings of real tokens: it must score as if these stood in front.
TEST_P(EveryFamily, VirtualTokensStandInFront) {
  auto engine = Make("prompt");
  std::vector<uint32_t> words(2);
  zo::FillBits({1, 0, 0xffffffffu}, 0, 0, words);
  const auto scores = engine->Score(engine->theta(), Pointers(examples_));
  ASSERT_TRUE(scores.ok()) << scores.status();
  ExpectReference(model_, examples_, *scores, {words[0] % model_.config.vocab, words[1] % model_.config.vocab});
}

TEST_P(EveryFamily, TheSweepEqualsTwoPlainEvaluations) {
  for (const char* scheme : {"full", "head", "lora", "prefix", "prompt"}) {
    auto engine = Make(scheme);
    if (engine == nullptr) continue;
    auto mask = std::make_shared<zo::BitMask>(engine->layout().size());
    for (size_t i = 0; i < mask->size(); i += 3) mask->Set(i, std::vector<uint8_t>{1});
    const std::vector<float> before(engine->theta().begin(), engine->theta().end());
    for (const Perturbation& p :
         {Perturbation{{5, 2, 1}, 0.01f, nullptr, {}}, Perturbation{{5, 2, 1}, 0.01f, mask, {}}}) {
      auto pair = engine->ScorePair(p, Pointers(examples_));
      ASSERT_TRUE(pair.ok()) << pair.status();
      EXPECT_TRUE(std::equal(before.begin(), before.end(), engine->theta().begin())) << "parameters changed";
      EXPECT_NE(pair->plus, pair->minus) << scheme;
      ExpectPair(*engine, p, *pair, scheme);
    }
  }
}

/// Groups in the order of the blocks, on one walk: as from the beginning each.
TEST_P(EveryFamily, AWalkComputesTheBeginningOnce) {
  for (const char* scheme : {"full", "lora", "prefix"}) {
    auto engine = Make(scheme);
    if (engine == nullptr) continue;
    auto walk = *engine->StartWalk(Pointers(examples_));
    for (size_t block = 0; block < engine->blocks(); ++block) {
      std::vector<size_t> group;
      for (size_t t : engine->layout().All()) {
        if (engine->block_of(t) == block) group.push_back(t);
      }
      if (group.empty()) continue;
      const Perturbation p{{5, 3, 0}, 0.01f, nullptr, group};
      auto pair = engine->ScorePair(p, *walk);
      ASSERT_TRUE(pair.ok()) << pair.status();
      ExpectPair(*engine, p, *pair, scheme);
    }
    const std::vector<size_t> first = {0};
    if (engine->block_of(0) + 2 < engine->blocks()) {
      EXPECT_EQ(engine->ScorePair({{5, 3, 0}, 0.01f, nullptr, first}, *walk).status().code(),
                absl::StatusCode::kFailedPrecondition);
    }
  }
}

/// An update that waits for the sweep gives the same bits, of parameters and of scores, as one made before it.
TEST_P(EveryFamily, ADeferredUpdateIsTheUpdate) {
  for (const char* scheme : {"full", "head", "lora", "prefix", "prompt"}) {
    auto engine = Make(scheme);
    if (engine == nullptr) continue;
    PendingUpdate update{7, {.terms = {{3, 0, 0.02f}, {3, 1, -0.01f}}, .decay_rate = 0.125f, .rule = {}}, nullptr};
    std::vector<float> want(engine->theta().begin(), engine->theta().end());
    ASSERT_TRUE(zo::ApplyUpdate(engine->layout(), {}, 7, update.scalars, want, nullptr).ok());
    const Perturbation p{{7, 4, 0}, 0.01f, nullptr, {}};
    engine->Defer(update);
    const ScoredPair fused = *engine->ScorePair(p, Pointers(examples_));
    EXPECT_TRUE(std::equal(want.begin(), want.end(), engine->theta().begin())) << scheme;
    const ScoredPair after = *engine->ScorePair(p, Pointers(examples_));
    EXPECT_EQ(fused.plus, after.plus) << scheme;
    EXPECT_EQ(fused.minus, after.minus) << scheme;
    engine->Defer(update);
    ASSERT_TRUE(zo::ApplyUpdate(engine->layout(), {}, 7, update.scalars, want, nullptr).ok());
    EXPECT_TRUE(std::equal(want.begin(), want.end(), engine->theta().begin())) << scheme << ": theta() sees it";
  }
}

TEST(Perturb, TilesThreadsAndMasksDoNotMatter) {
  const size_t n = 5000, first = 13;
  std::vector<float> start(n), z(n);
  zo::FillNormal({1, 0, 0}, 9, 0, start);
  auto mask = std::make_shared<zo::BitMask>(n + first);
  for (size_t i = 0; i < n; i += 7) mask->Set(first + i, std::vector<uint8_t>{1});
  const PendingUpdate pending{4, {.terms = {{8, 2, 0.5f}}, .decay_rate = 0.25f, .rule = {}}, mask};
  std::vector<float> want = start;
  zo::DecayInPlace(0.25f, std::span(want));
  zo::FillNormal({4, 8, 2}, 3, first, z);
  for (size_t i = 0; i < n; ++i) want[i] = want[i] + -0.5f * ((*mask)[first + i] ? 0.0f : z[i]);
  for (bool here : {true, false}) {
    std::vector<float> theta = start, plus(n), minus(n);
    const Perturbation p{{4, 9, 0}, 0.1f, mask, {}};
    const Piece piece{3, true, first, first, theta};
    here ? UpdateAndPerturbHere(&pending, p, piece, plus, minus) : UpdateAndPerturb(&pending, p, piece, plus, minus);
    EXPECT_EQ(theta, want);
    zo::FillNormal({4, 9, 0}, 3, first, z);
    for (size_t i = 0; i < n; ++i) {
      const float step = 0.1f * ((*mask)[first + i] ? 0.0f : z[i]);
      ASSERT_EQ(plus[i], want[i] + step) << i;
      ASSERT_EQ(minus[i], want[i] - step) << i;
    }
  }
}

}  // namespace
}  // namespace optod::train
