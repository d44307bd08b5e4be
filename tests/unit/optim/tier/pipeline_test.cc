// A tiered run has the bytes of the resident one: whatever the tiers, slots, threads, delays, interruptions.
#include "optim/tier/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <set>

#include "optim/zo/mask.h"
#include "tier_testing.h"

namespace optod::tier {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using zo::Base;
using zo::Residue;
using zo::Sign;
using zo::ZoHyper;

constexpr uint32_t kSteps = 22;

const ZoHyper kSgd{.lr = 1e-2, .weight_decay = 0.1}, kMezo{.residue = Residue::kMezo, .lr = 1e-2},
    kQueries{.lr = 1e-2, .queries = 3}, kMezoQueries{.residue = Residue::kMezo, .lr = 1e-2, .queries = 2},
    kMomentum{.lr = 1e-3, .momentum = 0.9}, kAdam{.base = Base::kAdam, .lr = 1e-3, .queries = 2},
    kSign{.sign = Sign::kScalar, .lr = 1e-3}, kElement{.sign = Sign::kElement, .lr = 1e-3},
    kCons{.rule = zo::Rule::kConservative, .lr = 5e-2, .weight_decay = 0.1},
    kConsFar{.rule = zo::Rule::kConservative, .lr = 2},
    kConsBlunt{.rule = zo::Rule::kConservative, .sides = zo::Sides::kOne, .lr = 1e-4, .eps = 0.5},  // a slope that is wrong half of the time
    kConsQueries{.rule = zo::Rule::kConservative, .lr = 5e-2, .queries = 2},
    kConsOneSided{.rule = zo::Rule::kConservative, .sides = zo::Sides::kOne, .lr = 5e-2};

TierRequest Ask(bool disk, int slots, int write_every = 1, bool separate = false, bool fused = true) {
  TierRequest request;
  request.disk = disk;
  request.host_budget = disk ? 0 : -1;
  request.slots = slots;
  request.write_every = write_every;
  request.separate_device = separate;
  request.fused = fused;
  if (separate) request.device_budget = 24 << 10;
  return request;
}

/// On an accelerator.
TierRequest There(bool disk, int slots, int write_every = 1, bool fused = true, int64_t device_budget = 24 << 10) {
  TierRequest request = Ask(disk, slots, write_every, true, fused);
  request.device_budget = device_budget;
  return request;
}

const TierCase kCases[] = {
    {.name = "resident", .request = Ask(false, 0), .hyper = kSgd},
    {.name = "host_k1", .request = Ask(false, 1, 1, true), .hyper = kSgd},
    {.name = "host_k2", .request = Ask(false, 2, 1, true), .hyper = kSgd},
    {.name = "host_k3_threads", .request = Ask(false, 3, 1, true), .hyper = kSgd, .threads = 3},
    {.name = "disk_k1", .request = Ask(true, 1), .hyper = kSgd},
    {.name = "disk_k2", .request = Ask(true, 2), .hyper = kSgd},
    {.name = "disk_k3_threads", .request = Ask(true, 3), .hyper = kSgd, .threads = 2},
    {.name = "disk_more_slots_than_units", .request = Ask(true, 20), .hyper = kSgd},
    {.name = "disk_lazy_7", .request = Ask(true, 3, 7), .hyper = kSgd},
    {.name = "disk_lazy_7_k1", .request = Ask(true, 1, 7), .hyper = kSgd},
    {.name = "disk_through_the_host", .request = Ask(true, 2, 1, true), .host_share = 0.6, .hyper = kSgd},
    {.name = "disk_through_the_host_lazy", .request = Ask(true, 2, 7, true), .host_share = 0.6, .hyper = kSgd},
    {.name = "mixed", .request = Ask(true, 2), .host_share = 0.5, .hyper = kSgd},
    {.name = "mixed_three", .request = Ask(true, 2, 1, true), .host_share = 0.7, .device_share = 0.7, .hyper = kSgd},
    {.name = "unfused", .request = Ask(true, 2, 1, false, false), .hyper = kSgd},
    {.name = "serial", .request = Ask(true, 1), .hyper = kSgd, .serial = true},
    {.name = "untied", .request = Ask(true, 2), .hyper = kSgd, .tied = false},
    {.name = "mezo_resident", .request = Ask(false, 0), .hyper = kMezo},
    {.name = "mezo_host", .request = Ask(false, 2, 1, true), .hyper = kMezo},
    {.name = "mezo_disk", .request = Ask(true, 3), .hyper = kMezo},
    {.name = "mezo_unfused", .request = Ask(true, 1, 1, false, false), .hyper = kMezo},
    {.name = "mezo_q2", .request = Ask(true, 2), .hyper = kMezoQueries},
    {.name = "mezo_q2_unfused", .request = Ask(true, 2, 1, false, false), .hyper = kMezoQueries},
    {.name = "q3_disk", .request = Ask(true, 2), .hyper = kQueries},
    {.name = "q3_lazy", .request = Ask(true, 2, 7), .hyper = kQueries, .tied = false},
    {.name = "momentum_disk", .request = Ask(true, 2), .hyper = kMomentum},
    {.name = "momentum_lazy", .request = Ask(true, 2, 7), .hyper = kMomentum},
    {.name = "momentum_host", .request = Ask(false, 2, 1, true), .hyper = kMomentum},
    {.name = "adam_disk", .request = Ask(true, 2), .hyper = kAdam},
    {.name = "adam_lazy_threads", .request = Ask(true, 3, 7), .hyper = kAdam, .threads = 2},
    {.name = "sign_disk", .request = Ask(true, 2), .hyper = kSign},
    {.name = "element_sign_disk", .request = Ask(true, 2, 3), .hyper = kElement},
    {.name = "cons_resident", .request = Ask(false, 0), .hyper = kCons},
    {.name = "cons_disk_k2", .request = Ask(true, 2), .hyper = kCons},
    {.name = "cons_far", .request = Ask(true, 2), .hyper = kConsFar},
    {.name = "cons_blunt", .request = Ask(true, 2, 7), .hyper = kConsBlunt},
    {.name = "cons_disk_k3_threads", .request = Ask(true, 3), .hyper = kCons, .threads = 3},
    {.name = "cons_lazy_7", .request = Ask(true, 3, 7), .hyper = kCons},
    {.name = "cons_host", .request = Ask(false, 2, 1, true), .hyper = kCons},
    {.name = "cons_mixed_three", .request = Ask(true, 2, 7, true), .host_share = 0.7, .device_share = 0.7, .hyper = kCons},
    {.name = "cons_unfused_untied", .request = Ask(true, 2, 1, false, false), .hyper = kCons, .tied = false},
    {.name = "cons_q2_lazy", .request = Ask(true, 2, 7), .hyper = kConsQueries, .threads = 2},
    {.name = "cons_one_sided", .request = Ask(true, 2), .host_share = 0.5, .hyper = kConsOneSided},
    {.name = "there_resident", .request = There(false, 0, 1, true, -1), .hyper = kSgd, .accelerated = true},
    {.name = "there_k1", .request = There(false, 1), .hyper = kSgd, .accelerated = true},
    {.name = "there_k2_serial", .request = There(false, 2), .hyper = kSgd, .serial = true, .accelerated = true},
    {.name = "there_k3", .request = There(false, 3), .hyper = kSgd, .accelerated = true},
    {.name = "there_untied", .request = There(false, 3), .hyper = kSgd, .tied = false, .accelerated = true},
    {.name = "there_unfused", .request = There(false, 2, 1, false), .hyper = kSgd, .accelerated = true},
    {.name = "there_disk", .request = There(true, 2), .host_share = 0.6, .hyper = kSgd, .accelerated = true},
    {.name = "there_disk_lazy", .request = There(true, 3, 7), .host_share = 0.9, .hyper = kSgd, .accelerated = true},
    {.name = "there_three", .request = There(true, 2), .host_share = 0.7, .device_share = 0.7, .hyper = kSgd, .accelerated = true},
    {.name = "there_mezo", .request = There(false, 2), .hyper = kMezo, .accelerated = true},
    {.name = "there_mezo_q2_unfused", .request = There(false, 2, 1, false), .hyper = kMezoQueries, .accelerated = true},
    {.name = "there_q3_lazy", .request = There(true, 2, 7), .host_share = 0.6, .hyper = kQueries, .accelerated = true},
    {.name = "there_momentum_lazy", .request = There(true, 2, 7), .host_share = 0.7, .hyper = kMomentum, .accelerated = true},
    {.name = "there_adam", .request = There(false, 2), .hyper = kAdam, .accelerated = true},
    {.name = "there_sign", .request = There(false, 2), .hyper = kSign, .accelerated = true},
    {.name = "there_element_sign", .request = There(false, 2), .hyper = kElement, .accelerated = true},
};
class Equality : public testing::TestWithParam<TierCase> {
 protected:
  Equality() : model_({.tied = GetParam().tied}) {}
  const MlpModel model_;
  TempFolder folder_;
};
INSTANTIATE_TEST_SUITE_P(Runs, Equality, testing::ValuesIn(kCases), [](const auto& info) { return info.param.name; });

void ExpectSame(const StepLosses& got, const zo::StepResult& want, uint32_t step) {
  EXPECT_EQ(got.plus, want.loss_plus) << "step " << step;
  EXPECT_EQ(got.minus, want.loss_minus) << "step " << step;
  EXPECT_EQ(got.g, want.projected_grad) << "step " << step;
  EXPECT_TRUE(got.loss == want.loss || (std::isnan(got.loss) && std::isnan(want.loss))) << got.loss << " " << want.loss << " step " << step;
  EXPECT_EQ(got.chosen, want.chosen) << "step " << step;
}

TEST_P(Equality, LossesEveryStepAndBytesAtTheEnd) {
  Resident resident(model_, GetParam().hyper);
  auto run = StartRun(GetParam(), model_, folder_.File("units"));
  ASSERT_TRUE(run.ok()) << run.status();
  for (uint32_t step = 0; step < kSteps; ++step) {
    const zo::StepResult want = resident.Step();
    const auto got = run->Step(model_, GetParam().hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    ExpectSame(*got, want, step);
  }
  EXPECT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty());
}

TEST_P(Equality, BytesAfterEveryStepWithEvaluationsBetween) {
  Resident resident(model_, GetParam().hyper);
  auto run = StartRun(GetParam(), model_, folder_.File("units"));
  ASSERT_TRUE(run.ok()) << run.status();
  for (uint32_t step = 0; step < kSteps; ++step) {
    const bool nan = step % 9 == 4;  // a skipped step leaves the bytes (or MeZO's rounding)
    const zo::StepResult want = resident.Step(nan ? NAN : 1);
    const auto got = run->Step(model_, GetParam().hyper.lr, nan ? NAN : 1);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->skipped, want.skipped);
    if (!nan) ExpectSame(*got, want, step);
    ASSERT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty()) << "step " << step;
    const auto loss = run->Evaluate(model_, 1000 + step);
    ASSERT_TRUE(loss.ok()) << loss.status();
    EXPECT_EQ(*loss, std::vector<double>{MlpCompute(model_, 1000 + step).LossAt(resident.theta())});
    if (step == 11) {
      ASSERT_TRUE(run->pipeline->Flush().ok());
    }
  }
}

TEST_P(Equality, RandomDelaysChangeNothing) {
  Resident resident(model_, GetParam().hyper);
  auto run = StartRun(GetParam(), model_, folder_.File("units"), {}, nullptr, std::make_unique<DelayedDevice>(3));
  ASSERT_TRUE(run.ok()) << run.status();
  for (uint32_t step = 0; step < 6; ++step) {
    const zo::StepResult want = resident.Step();
    const auto got = run->Step(model_, GetParam().hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    ExpectSame(*got, want, step);
  }
  EXPECT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty());
}

/// Every run is dropped after some step without a word and taken up from the history and what is on disk (runs without a
/// disk: from the last snapshot).
TEST_P(Equality, ResumedAfterAStep) {
  const TierCase& c = GetParam();
  for (const uint32_t stop : {0u, 1u, 7u, 16u}) {
    const std::string path = folder_.File("units" + std::to_string(stop)), saved = folder_.File("s" + std::to_string(stop));
    Resident resident(model_, c.hyper);
    History history;
    auto run = StartRun(c, model_, path);
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = 0; step < stop; ++step) {
      resident.Step();
      ASSERT_TRUE(run->Step(model_, c.hyper.lr).ok());
      if (step + 1 == stop / 2) {
        ASSERT_TRUE(run->pipeline->Snapshot(*OpenDirectFile(saved, 1)).ok());
      }
    }
    history = run->pipeline->history();
    run->pipeline.reset();
    run = absl::InternalError("gone");
    InitialValues initial = nullptr;
    std::unique_ptr<UnitFile> snapshot;
    if (stop / 2 > 0) {
      std::vector<RecordLayout> layouts;
      for (const Unit& unit : model_.units()) layouts.emplace_back(unit, UnitPass::StatesOf(c.hyper), Codec::kNone);
      snapshot = *UnitFile::Open(*OpenDirectFile(saved, 1), model_.units(), layouts, stop);
      initial = [&snapshot, layouts](size_t unit, std::span<float> slot) -> absl::StatusOr<Progress> {
        auto buffer = PageBuffer::Create(kPage + layouts[unit].record_bytes());
        if (absl::Status s = snapshot->Read(unit, buffer->bytes()); !s.ok()) return s;
        layouts[unit].ToSlot(buffer->bytes().subspan(kPage), slot);
        return snapshot->progress(unit);
      };
    }
    run = StartRun(c, model_, path, history, initial);
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = stop; step < stop + 3; ++step) {
      const zo::StepResult want = resident.Step();
      const auto got = run->Step(model_, c.hyper.lr);
      ASSERT_TRUE(got.ok()) << got.status();
      ExpectSame(*got, want, step);
    }
    EXPECT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty()) << "stopped after " << stop;
  }
}

/// So that the tables above meet all three: what zo-sgd-cons chooses in their steps.
TEST(Pipeline, ConservativeStepsStayDescendAndAscend) {
  const MlpModel model({});
  std::set<std::string> chosen;
  for (const ZoHyper& hyper : {kCons, kConsFar, kConsBlunt}) {
    auto run = StartRun({.name = "", .request = Ask(false, 0), .hyper = hyper}, model, "");
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = 0; step < kSteps; ++step) chosen.insert(zo::CandidateName(run->Step(model, hyper.lr)->chosen.value()));
  }
  EXPECT_THAT(chosen, testing::UnorderedElementsAre("stay", "descent", "ascent"));
}

/// Two that evaluate a direction each and finish with both scalars go where one goes that evaluates both.
TEST(Pipeline, WorkersThatShareQueriesHaveTheBytesOfOne) {
  const MlpModel model({});
  TempFolder folder;
  const ZoHyper hyper{.lr = 1e-2, .queries = 2, .weight_decay = 0.1};
  Resident resident(model, hyper);
  std::vector<TierRun> runs;
  for (int w = 0; w < 2; ++w) {
    const TierCase c{.name = "", .request = Ask(true, 2 + w, w == 0 ? 1 : 7), .hyper = hyper, .first_query = w, .evaluated = 1};
    auto run = StartRun(c, model, folder.File("units" + std::to_string(w)));
    ASSERT_TRUE(run.ok()) << run.status();
    runs.push_back(*std::move(run));
  }
  for (uint32_t step = 0; step < kSteps; ++step) {
    const zo::StepResult want = resident.Step();
    StepRecord agreed{RateAt(hyper.lr, step)};
    for (TierRun& run : runs) {
      MlpCompute compute(model, step);
      const auto losses = run.pipeline->Measure(agreed.lr, compute);
      ASSERT_TRUE(losses.ok()) << losses.status();
      ASSERT_EQ(losses->g.size(), 1u);
      agreed.g.push_back(losses->g[0]);
    }
    EXPECT_EQ(agreed.g, want.projected_grad);
    for (TierRun& run : runs) {
      run.pipeline->Finish(agreed);
      ASSERT_THAT(Different(run, model, resident.theta()), IsEmpty()) << "step " << step;
    }
  }
}

/// z = 0 on a random 40% of the elements, others every step.
class HalfMasked final : public MaskSource {
 public:
  void Zero(uint32_t tensor, uint64_t first, uint32_t step, std::span<float> z) const override {
    std::vector<uint8_t> bytes(z.size());
    ASSERT_TRUE(zo::FillMask({kSeed, step, 77}, tensor, first, 0.4, zo::MaskLaw::kUniform, bytes).ok());
    for (size_t i = 0; i < z.size(); ++i) z[i] = bytes[i] != 0 ? 0.0f : z[i];
  }
};
class MaskedSteps : public testing::TestWithParam<TierCase> {};
INSTANTIATE_TEST_SUITE_P(Runs, MaskedSteps,
                         testing::Values(TierCase{.name = "resident", .request = Ask(false, 0), .hyper = kSgd},
                                         TierCase{.name = "disk_k2", .request = Ask(true, 2), .hyper = kSgd},
                                         TierCase{.name = "disk_k3_lazy_7_threads", .request = Ask(true, 3, 7), .hyper = kQueries, .threads = 3},
                                         TierCase{.name = "host_unfused", .request = Ask(false, 2, 1, true, false), .hyper = kSgd},
                                         TierCase{.name = "mixed_adam_untied", .request = Ask(true, 2, 7), .host_share = 0.5, .hyper = kAdam, .tied = false},
                                         TierCase{.name = "element_sign", .request = Ask(true, 2, 3), .hyper = kElement},
                                         TierCase{.name = "cons_lazy", .request = Ask(true, 2, 7), .hyper = kCons}),
                         [](const auto& info) { return info.param.name; });

TEST_P(MaskedSteps, HaveTheBytesOfTheResidentOnesAfterEveryStep) {
  TierCase c = GetParam();
  const MlpModel model({.tied = c.tied});
  TempFolder folder;
  const HalfMasked masks;
  c.mask = &masks;
  Resident resident(model, c.hyper);
  auto run = StartRun(c, model, folder.File("units"));
  ASSERT_TRUE(run.ok()) << run.status();
  for (uint32_t step = 0; step < kSteps; ++step) {
    const zo::StepResult want = resident.Step(1, &masks);
    const auto got = run->Step(model, c.hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    ExpectSame(*got, want, step);
    if (step % 3 == 1) continue;  // steps without a word between them
    ASSERT_THAT(Different(*run, model, resident.theta(), &resident.state()), IsEmpty()) << "step " << step;
  }
  const History history = run->pipeline->history();
  run->pipeline.reset();
  run = StartRun(c, model, folder.File("units"), history);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_THAT(Different(*run, model, resident.theta(), &resident.state()), IsEmpty()) << "resumed";
}

/// Block-wise: the embedding, then a layer's matrices and its bias apart, then the others layer by layer, then the head.
struct GroupCase {
  const char* name;
  TierRequest request;
  ZoHyper hyper;
  bool coordinate = true, tied = true;
  double host_share = -1;
  int threads = 1;
};
class GroupSteps : public testing::TestWithParam<GroupCase> {
 protected:
  GroupSteps() : model_({.tied = GetParam().tied}) {
    const auto unit_of = [&](const std::string& name) {
      size_t u = 0;
      while (model_.units()[u].name != name) ++u;
      return u;
    };
    Add({0}, 0);
    Add({2}, unit_of("layers.0"));
    Add({1, 3}, unit_of("layers.0"));
    for (uint32_t layer = 1; layer < 5; ++layer) Add({1 + 3 * layer, 2 + 3 * layer, 3 + 3 * layer}, unit_of("layers." + std::to_string(layer)));
    Add({16}, unit_of("head"));
    if (!GetParam().tied) Add({17}, unit_of("head"));
  }
  void Add(std::vector<uint32_t> tensors, size_t first_unit) {
    groups_.emplace_back(tensors.begin(), tensors.end());
    case_.groups.push_back({std::move(tensors), first_unit});
  }
  const MlpModel model_;
  TempFolder folder_;
  std::vector<std::vector<size_t>> groups_;
  TierCase case_{.name = "", .request = GetParam().request, .host_share = GetParam().host_share, .hyper = GetParam().hyper,
                 .threads = GetParam().threads, .coordinate = GetParam().coordinate};
};
INSTANTIATE_TEST_SUITE_P(Runs, GroupSteps,
                         testing::Values(GroupCase{"resident", Ask(false, 0), kSgd}, GroupCase{"disk_k2", Ask(true, 2), kSgd},
                                         GroupCase{"disk_k3_lazy_7_threads", Ask(true, 3, 7), kSgd, true, true, -1, 3},
                                         GroupCase{"disk_more_slots_than_units_left", Ask(true, 7), kSgd},
                                         GroupCase{"joint_disk", Ask(true, 2), kSgd, false}, GroupCase{"joint_lazy_untied", Ask(true, 3, 7), kSgd, false, false},
                                         GroupCase{"untied", Ask(true, 2), kSgd, true, false}, GroupCase{"host", Ask(false, 2, 1, true), kSgd},
                                         GroupCase{"mixed", Ask(true, 2), kSgd, true, true, 0.5},
                                         GroupCase{"disk_through_the_host_lazy", Ask(true, 2, 7, true), kSgd, true, true, 0.6},
                                         GroupCase{"momentum", Ask(true, 2), kMomentum}, GroupCase{"adam_lazy", Ask(true, 3, 7), {.base = Base::kAdam, .lr = 1e-3}},
                                         GroupCase{"adam_in_memory_joint", Ask(false, 0), {.base = Base::kAdam, .lr = 1e-3}, false}),
                         [](const auto& info) { return info.param.name; });

TEST_P(GroupSteps, HaveTheBytesOfTheResidentOnesAfterEveryStep) {
  const zo::BlockSchedule schedule = GetParam().coordinate ? zo::BlockSchedule::kCoordinate : zo::BlockSchedule::kJoint;
  Resident resident(model_, GetParam().hyper);
  auto run = StartRun(case_, model_, folder_.File("units"), {}, nullptr, std::make_unique<DelayedDevice>(5));
  ASSERT_TRUE(run.ok()) << run.status();
  for (uint32_t step = 0; step < kSteps; ++step) {
    const zo::StepResult want = resident.Step(groups_, schedule);
    const auto got = run->Step(model_, GetParam().hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    ExpectSame(*got, want, step);
    if (step % 3 == 1) continue;  // steps without a word between them
    ASSERT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty()) << "step " << step;
  }
  const History history = run->pipeline->history();
  run->pipeline.reset();
  run = StartRun(case_, model_, folder_.File("units"), history);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_THAT(Different(*run, model_, resident.theta(), &resident.state()), IsEmpty()) << "resumed";
}

TEST(Pipeline, FlushLeavesASnapshotOnDisk) {
  const MlpModel model({});
  TempFolder folder;
  const TierCase c{.name = "", .request = Ask(true, 2, 7), .hyper = kSgd};
  Resident resident(model, c.hyper);
  History history;
  {
    auto run = StartRun(c, model, folder.File("units"));
    for (int step = 0; step < 5; ++step) {
      resident.Step();
      ASSERT_TRUE(run->Step(model, c.hyper.lr).ok());
    }
    ASSERT_TRUE(run->pipeline->Flush().ok());
    history = run->pipeline->history();
  }
  size_t asked = 0;
  auto run = StartRun(c, model, folder.File("units"), history, [&](size_t, std::span<float>) -> absl::StatusOr<Progress> {
    ++asked;
    return Progress{};
  });
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(asked, 0u);
  EXPECT_THAT(Different(*run, model, resident.theta()), IsEmpty());
}

/// LoRA's base: what does not train is read and never written, and its values pass unperturbed.
TEST(Pipeline, FrozenUnitsAreReadOnly) {
  const MlpModel model({});
  TempFolder folder;
  const TierCase c{.name = "", .request = Ask(true, 2), .hyper = kSgd};
  std::vector<Unit> units = model.units();
  for (Unit& unit : units) unit.trainable = unit.name == "layers.2";
  const Plan plan = *MakePlan(units, 0, false, c.request);
  EXPECT_LT(plan.written, plan.read / 4);
  std::atomic<size_t> writes = 0;  // called from the disk's queues
  ThreadsDevice device;
  auto file = std::make_unique<FaultyFile>(*OpenDirectFile(folder.File("units"), 1), [&](const std::string& call) {
    writes += call == "write";
    return absl::OkStatus();
  });
  PipelineOptions options;
  options.hyper = c.hyper;
  options.seed = kSeed;
  auto pipeline = Pipeline::Create(units, plan, options, &device, std::move(file), {},
                                   [&](size_t unit, std::span<float> slot) -> absl::StatusOr<Progress> {
                                     model.CopyUnit(unit, model.Start(), slot);
                                     return Progress{};
                                   });
  ASSERT_TRUE(pipeline.ok()) << pipeline.status();
  const size_t first = writes;
  for (uint32_t step = 0; step < 5; ++step) {
    MlpCompute compute(model, step);
    const auto losses = (*pipeline)->Step(1e-2, compute);
    ASSERT_TRUE(losses.ok()) << losses.status();
    EXPECT_NE(losses->plus, losses->minus);
  }
  ASSERT_TRUE((*pipeline)->Flush().ok());
  EXPECT_EQ(writes - first, 5u);  // steps 1..4 and the flush, of one unit
  const std::vector<float> start = model.Start();
  ASSERT_TRUE((*pipeline)
                  ->ForEachUnit([&](size_t unit, Progress, std::span<const float> slot) {
                    EXPECT_EQ(model.SameBytes(unit, slot, start), !units[unit].trainable) << units[unit].name;
                    return absl::OkStatus();
                  })
                  .ok());
}

struct CodecCase {
  const char* name;
  Codec codec;
  double step;  ///< distance of neighbours from 1 on
  double least;  ///< and of the smallest numbers (fp8: of a row whose largest is about 1/2)
};
class LossyCodecs : public testing::TestWithParam<CodecCase> {};
INSTANTIATE_TEST_SUITE_P(Codecs, LossyCodecs,
                         testing::Values(CodecCase{"bf16", Codec::kBf16, 0x1p-7, 0x1p-133}, CodecCase{"fp16", Codec::kF16, 0x1p-10, 0x1p-24},
                                         CodecCase{"fp8", Codec::kFp8, 0x1p-3, 0x1p-18}),
                         [](const auto& info) { return info.param.name; });

/// Not the lossless bytes, but the same ones every time, near the lossless ones, and trained.
TEST_P(LossyCodecs, AreRepeatableAndNear) {
  const MlpModel model({});
  TempFolder folder;
  const auto values_of = [&](TierRun& run) {
    std::vector<float> values;
    const absl::Status status = run.pipeline->ForEachUnit([&](size_t unit, Progress, std::span<const float> slot) {
      values.insert(values.end(), slot.begin(), slot.begin() + static_cast<ptrdiff_t>(model.units()[unit].floats()));
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return values;
  };
  std::vector<std::vector<float>> ends;
  History history;
  for (const auto& [slots, threads, disk, there] : {std::tuple(1, 1, true, false), std::tuple(3, 2, true, false),
                                                    std::tuple(2, 1, false, false), std::tuple(2, 1, false, true)}) {
    TierCase c{.name = "", .request = Ask(disk, slots, 1, !disk), .hyper = kSgd, .threads = threads};
    if (disk) c.host_share = slots == 3 ? 1.2 : 0.9;  // most or all of them on the host
    if (!disk) c.request.device_budget = 6 * 4096;    // slots, their codes, copies: no unit lives there, unrounded
    c.request.codec = GetParam().codec;
    c.accelerated = there;
    auto run = StartRun(c, model, folder.File("units" + std::to_string(slots)));
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = 0; step < 20; ++step) ASSERT_TRUE(run->Step(model, c.hyper.lr).ok());
    ASSERT_TRUE(run->pipeline->Flush().ok());
    history = run->pipeline->history();
    ends.push_back(values_of(*run));
  }
  EXPECT_EQ(ends[0], ends[1]);
  EXPECT_EQ(ends[0], ends[2]);
  EXPECT_EQ(ends[0], ends[3]);
  // The same scalars without rounding: what a rounded run's own losses do to its scalars is left out.
  auto exact_run = StartRun({.name = "", .request = Ask(false, 0), .hyper = kSgd}, model, "", history);
  ASSERT_TRUE(exact_run.ok()) << exact_run.status();
  const std::vector<float> exact = values_of(*exact_run);
  double squares = 0, distances = 0;  // sums of squares
  for (size_t i = 0; i < exact.size(); ++i) {
    const double distance = std::max(GetParam().step * std::exp2(std::floor(std::log2(std::fabs(exact[i])))), GetParam().least);
    squares += std::pow(double{exact[i]} - ends[0][i], 2);
    distances += distance * distance;
  }
  // Rounding at random to one of two neighbours has a standard deviation of at most half their distance, and roundings are
  // independent of one another: after n of them sqrt(n) / 2 distances.
  EXPECT_LE(std::sqrt(squares / distances), std::sqrt(20.0) / 2);
  EXPECT_GT(squares, 0);
}

TEST(Pipeline, Refuses) {
  const MlpModel model({});
  TempFolder folder;
  const auto refusal = [&](TierCase c) { return StartRun(c, model, folder.File("u")).status().ToString(); };
  EXPECT_THAT(refusal({.name = "", .request = Ask(false, 0), .hyper = {.sides = zo::Sides::kOne, .residue = zo::Residue::kMezo}}),
              HasSubstr("optimizer.residue: mezo with perturbation one-side"));
  EXPECT_THAT(refusal({.name = "", .request = Ask(false, 0), .hyper = {.rule = zo::Rule::kForwardGrad, .residue = Residue::kMezo}}),
              HasSubstr("optimizer.residue: mezo with forward-grad"));
  EXPECT_THAT(refusal({.name = "", .request = Ask(false, 0), .hyper = {.rule = zo::Rule::kConservative, .residue = Residue::kMezo}}),
              HasSubstr("zo-sgd-cons with residue mezo"));
  EXPECT_THAT(refusal({.name = "", .request = Ask(false, 0), .hyper = kQueries, .groups = {{{0}, 0}}}), HasSubstr("block-wise estimation needs"));
  EXPECT_THAT(refusal({.name = "", .request = Ask(true, 2, 4), .hyper = kMezo}),
              HasSubstr("tier.write_every: 4 with optimizer.residue \"mezo\"; must be 1"));
  EXPECT_THAT(refusal({.name = "", .request = Ask(false, 0), .hyper = {.lr = -1}}), HasSubstr("lr: -1"));
}

/// Rows that lie in no unit as asked: a table cut across them.
class Crossing final : public BlockCompute {
 public:
  absl::Status Begin(int) override { return absl::OkStatus(); }
  std::vector<Slice> Wanted() override { return {{0, 15 * 12, 24}}; }
  absl::Status Forward(size_t, int, std::span<const float>) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<double>> Losses() override { return std::vector<double>{0, 0}; }
};
TEST(Pipeline, SlicesMustLieInOneUnit) {
  const MlpModel model({});
  auto run = StartRun({.name = "", .request = Ask(false, 0), .hyper = kSgd}, model, "");
  ASSERT_TRUE(run.ok());
  Crossing compute;
  EXPECT_THAT(run->pipeline->Step(1e-3, compute).status().ToString(), HasSubstr("are not in one unit"));
}

}  // namespace
}  // namespace optod::tier
