// What lies under the pipeline: units, codecs, plans, the block file and its faults.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tier_testing.h"

namespace optod::tier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// ---- units

const std::vector<BlockSpec> kBlocks = {{"embed", {{"table", {10, 3}}, {"norm", {3}}}}, {"layer", {{"w", {4, 3}}}}};

TEST(Units, TablesAreCutInRows) {
  const std::vector<Unit> units = CutIntoUnits(kBlocks, {0}, 4);
  std::vector<std::string> names;
  for (const Unit& unit : units) names.push_back(unit.name);
  EXPECT_THAT(names, ElementsAre("table rows 0..3", "table rows 4..7", "table rows 8..9", "embed", "layer"));
  EXPECT_EQ(units[2].parts[0].first, 24u);
  EXPECT_EQ(units[2].floats(), 6u);
  EXPECT_EQ(LargestUnit(units), 12u);
  EXPECT_TRUE(CheckUnits(units, kBlocks).ok());
}

struct UnitsCase {
  const char* name;
  void (*change)(std::vector<Unit>&);
  const char* message;
};
class BadUnits : public testing::TestWithParam<UnitsCase> {};
INSTANTIATE_TEST_SUITE_P(
    Lists, BadUnits,
    testing::Values(
        UnitsCase{"missing", [](auto& u) { u.pop_back(); }, "units: tensor \"w\" is in no unit"},
        UnitsCase{"gap", [](auto& u) { u.erase(u.begin() + 1); }, "units: tensor \"table\": element 12 is in no unit"},
        UnitsCase{"twice", [](auto& u) { u.push_back(u[0]); }, "units: tensor \"table\": element 0 is in two units"},
        UnitsCase{"unknown", [](auto& u) { u[4].parts[0].uid = 9; }, "units[4] \"layer\": part 0: tensor 9 of 3"},
        UnitsCase{"beyond", [](auto& u) { u[2].parts[0].count = 9; }, "elements 24 and 9 on of tensor \"table\", which has 30"},
        UnitsCase{"rows", [](auto& u) { u[0].parts[0].count = 11; }, "not whole rows of tensor \"table\""}),
    [](const auto& info) { return std::string(info.param.name); });
TEST_P(BadUnits, AreRefused) {
  std::vector<Unit> units = CutIntoUnits(kBlocks, {0}, 4);
  GetParam().change(units);
  EXPECT_THAT(CheckUnits(units, kBlocks).ToString(), HasSubstr(GetParam().message));
}

// ---- codecs

struct RoundTrip {
  const char* name;
  Codec codec;
  double relative;  ///< distance of neighbours from 1 on: 2 to the power of minus the bits behind the point
  int smallest = -126;  ///< exponent of the smallest normal number
};
class Codecs : public testing::TestWithParam<RoundTrip> {};
INSTANTIATE_TEST_SUITE_P(All, Codecs,
                         testing::Values(RoundTrip{"none", Codec::kNone, 0}, RoundTrip{"bf16", Codec::kBf16, 0x1p-7},
                                         RoundTrip{"fp16", Codec::kF16, 0x1p-10, -14}, RoundTrip{"fp8", Codec::kFp8, 0x1p-3, -6}),
                         [](const auto& info) { return info.param.name; });

/// Distance of the two numbers of the format that x lies between. `top`: the largest |x| of its row, which fp8 (e4m3, at
/// most 448) divides by a power of two, the smallest that makes it fit.
double NeighbourDistance(const RoundTrip& format, double x, double top) {
  int scale = 0;
  while (format.codec == Codec::kFp8 && std::ldexp(top, -scale) > 448) ++scale;
  while (format.codec == Codec::kFp8 && std::ldexp(top, -scale) <= 224) --scale;
  const int exponent = x == 0 ? format.smallest : std::max(std::ilogb(x) - scale, format.smallest);
  return std::ldexp(format.relative, exponent + scale);
}

std::vector<float> Decoded(Codec codec, std::span<const float> values, uint32_t step) {
  constexpr size_t kColumns = 50;
  std::vector<std::byte> coded(CodedBytes(codec, values.size(), kColumns));
  Encode(codec, values, kColumns, {1, step, 3, 0}, coded);
  std::vector<float> back(values.size());
  Decode(codec, coded, kColumns, back);
  return back;
}

TEST_P(Codecs, RoundWithinOneStepAndOnlyOnce) {
  std::vector<float> values(5000);
  zo::FillNormal({1, 2, 3}, 0, 0, values);
  values[7] = 0;
  values[8] = -0.0f;
  values[9] = 3e-7f;
  const std::vector<float> once = Decoded(GetParam().codec, values, 1);
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t row = i / 50 * 50;
    float top = 0;
    for (size_t j = row; j < row + 50; ++j) top = std::max(top, std::fabs(values[j]));
    const double step = NeighbourDistance(GetParam(), values[i], top), units = once[i] / step;
    if (step > 0) {
      EXPECT_LT(std::fabs(double{once[i]} - values[i]), step) << i << ": rounds to a neighbour";
      EXPECT_EQ(units, std::round(units)) << i << ": a number of the format";
    } else {
      EXPECT_EQ(once[i], values[i]) << i;
    }
  }
  const std::vector<float> twice = Decoded(GetParam().codec, once, 2);
  EXPECT_EQ(std::memcmp(once.data(), twice.data(), once.size() * sizeof(float)), 0) << "a coded value must stay";
}

TEST_P(Codecs, RoundingIsUnbiased) {
  std::vector<float> values(50, 0.7003f);
  values[0] = 1;  // the row's scale
  double sum = 0;
  constexpr int kDraws = 400;
  for (uint32_t step = 0; step < kDraws; ++step) {
    const std::vector<float> back = Decoded(GetParam().codec, values, step);
    for (size_t i = 1; i < back.size(); ++i) sum += back[i];
  }
  const double mean = sum / (49.0 * kDraws), step = GetParam().relative;
  EXPECT_NEAR(mean, 0.7003f, 4 * 0.5 * step / std::sqrt(49.0 * kDraws) + 1e-7);
}

TEST(Codecs, AnUnknownOneIsRefused) {
  EXPECT_THAT(ParseCodec("int4").status().ToString(), HasSubstr("codec: \"int4\" is not one of none, bf16, fp16, fp8"));
}

// ---- plans

TEST(Plans, TheSmallestBudgetIsTwiceTheLargestUnit) {
  const MlpModel model({});
  TierRequest request{.device_budget = 1000, .host_budget = 0, .disk = true};
  const auto refused = MakePlan(model.units(), 0, false, request);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("(12288 bytes), a slot and a perturbed copy of the largest unit"));
  request.device_budget = 12288;  // header page, record, copy
  const Plan plan = *MakePlan(model.units(), 0, false, request);
  EXPECT_EQ(plan.slots, 1);
  EXPECT_EQ(plan.copies, 1);
  EXPECT_LE(plan.device_peak, 12288u);
  request.device_budget = 1 << 20;
  EXPECT_EQ(MakePlan(model.units(), 0, false, request)->slots, 3);
  EXPECT_EQ(MakePlan(model.units(), 0, false, request)->copies, 2);
}

TEST(Plans, RefuseWhatHasNoPlace) {
  const MlpModel model({});
  EXPECT_THAT(MakePlan(model.units(), 0, false, {.host_budget = 100}).status().ToString(),
              HasSubstr("tier.disk names no folder"));
  EXPECT_THAT(MakePlan(model.units(), 0, false, {.host_budget = 100, .disk = true, .codec = Codec::kBf16}).status().ToString(),
              HasSubstr("staging"));
  EXPECT_THAT(MakePlan(model.units(), 0, false, {.write_every = 0}).status().ToString(), HasSubstr("tier.write_every: 0"));
  EXPECT_THAT(MakePlan(model.units(), 0, false, {.slots = -1}).status().ToString(), HasSubstr("tier.slots: -1"));
}

TEST(Plans, PredictWhatLimits) {
  const MlpModel model({});
  const Rates rates{.disk_read = 1e6, .disk_write = 1e6, .compute = 1e-6};
  const Plan slow = *MakePlan(model.units(), 0, false, {.host_budget = 0, .disk = true}, rates);
  EXPECT_EQ(slow.limit, "disk");
  EXPECT_NEAR(slow.rho, slow.compute_seconds / slow.disk_seconds, 1e-12);
  const Plan lazy = *MakePlan(model.units(), 0, false, {.host_budget = 0, .disk = true, .write_every = 8}, rates);
  EXPECT_NEAR(static_cast<double>(lazy.written), static_cast<double>(slow.written) / 8, 8.0 * static_cast<double>(model.units().size()));
  const Plan resident = *MakePlan(model.units(), 0, false, {}, rates);
  EXPECT_EQ(resident.limit, "compute");
  EXPECT_EQ(resident.rho, 1);
  EXPECT_THAT(PlanText(slow), HasSubstr("limited by disk"));
  EXPECT_EQ(nlohmann::json::parse(PlanJson(slow))["step_seconds"]["limit"], "disk");
}

/// What the plan counts is what a run moves.
TEST(Plans, BytesMovedAreThePlans) {
  const MlpModel model({});
  TempFolder folder;
  for (const bool separate : {false, true}) {
    TierCase c{.name = "", .request = {.disk = true, .slots = 2}, .hyper = {.lr = 1e-2}};
    c.request.host_budget = separate ? 20000 : 0;
    c.request.separate_device = separate;
    if (separate) c.request.device_budget = 4 * 4096;
    auto run = StartRun(c, model, folder.File("u" + std::to_string(separate)));
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_TRUE(run->Step(model, 1e-2).ok());  // writes nothing
    ASSERT_TRUE(run->device->Drain().ok());
    const QueueTimes before = run->device->times();
    for (int step = 0; step < 5; ++step) ASSERT_TRUE(run->Step(model, 1e-2).ok());
    ASSERT_TRUE(run->device->Drain().ok());
    const QueueTimes after = run->device->times();
    const Plan& plan = run->pipeline->plan();
    const auto moved = [&](Queue q) { return after.bytes[static_cast<size_t>(q)] - before.bytes[static_cast<size_t>(q)]; };
    EXPECT_EQ(moved(Queue::kRead), 5 * plan.read);
    EXPECT_EQ(moved(Queue::kWrite), 5 * plan.written);
    EXPECT_EQ(moved(Queue::kUpload), 5 * plan.uploaded);
    EXPECT_EQ(moved(Queue::kOffload), 5 * plan.offloaded);
  }
}

TEST(Plans, TheDiskCanBeMeasured) {
  TempFolder folder(/*on_disk=*/true);
  const auto rates = MeasureDisk(folder.path(), 2);
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_GT(rates->disk_read, 1e6);
  EXPECT_GT(rates->disk_write, 1e5);
}

/// A row's scale is a normal number, so a row of the smallest numbers comes back finite, to within a step.
TEST(Codecs, RowsOfTheSmallestNumbersStayFinite) {
  for (const int exponent : {-149, -141, -135, -127, -120, -100}) {
    const std::vector<float> row = {std::ldexp(1.0f, exponent), -std::ldexp(1.0f, exponent), 0.0f, std::ldexp(1.0f, exponent - 2)};
    std::vector<std::byte> coded(CodedBytes(Codec::kFp8, row.size(), row.size()));
    std::vector<float> back(row.size());
    Encode(Codec::kFp8, row, row.size(), {1, 2, 3, 0}, coded);
    Decode(Codec::kFp8, coded, row.size(), back);
    for (size_t i = 0; i < row.size(); ++i) EXPECT_NEAR(back[i], row[i], 0x1p-135 + 0.125 * std::abs(row[i])) << exponent << " " << i;
  }
}

// ---- faults

const TierCase kOnDisk{.name = "", .request = {.host_budget = 0, .disk = true, .slots = 2}, .hyper = {.lr = 1e-2}};

struct FaultCase {
  const char *name, *call;
  int at;  ///< the how-manieth call fails
  absl::Status error;
  bool at_start;
};
class Faults : public testing::TestWithParam<FaultCase> {};
INSTANTIATE_TEST_SUITE_P(
    Calls, Faults,
    testing::Values(FaultCase{"disk_full_at_start", "reserve", 1, absl::ResourceExhaustedError("No space left on device"), true},
                    FaultCase{"disk_full", "write", 15, absl::ResourceExhaustedError("No space left on device"), false},
                    FaultCase{"short_read", "read", 20, absl::DataLossError("the file ends at byte 4096"), false},
                    FaultCase{"eio_read", "read", 14, absl::DataLossError("Input/output error"), false},
                    FaultCase{"eio_write", "write", 20, absl::DataLossError("Input/output error"), false}),
    [](const auto& info) { return info.param.name; });

/// The error comes out, nothing hangs, and the run goes on from the file and the history with the right bytes.
TEST_P(Faults, ComeOutAndTheRunResumes) {
  const MlpModel model({});
  TempFolder folder;
  std::atomic<int> calls = 0, armed = 1;
  const auto hook = [&](const std::string& call) {
    return armed != 0 && call == GetParam().call && ++calls >= GetParam().at ? GetParam().error : absl::OkStatus();
  };
  History history;
  Resident resident(model, kOnDisk.hyper);
  {
    auto run = StartRun(kOnDisk, model, folder.File("units"), {}, nullptr, nullptr, hook);
    ASSERT_EQ(run.ok(), !GetParam().at_start) << run.status();
    absl::Status status = run.status();
    for (int step = 0; step < 10 && status.ok(); ++step) {
      status = run->Step(model, kOnDisk.hyper.lr).status();
      if (status.ok()) resident.Step();
    }
    EXPECT_EQ(status.code(), GetParam().error.code()) << status;
    EXPECT_THAT(status.ToString(), HasSubstr(std::string(GetParam().error.message())));
    if (run.ok()) history = run->pipeline->history();
  }
  armed = 0;
  auto run = StartRun(kOnDisk, model, folder.File("units"), history);
  ASSERT_TRUE(run.ok()) << run.status();
  for (int step = 0; step < 3; ++step) {
    const auto want = resident.Step();
    const auto got = run->Step(model, kOnDisk.hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->plus, want.loss_plus);
  }
  EXPECT_THAT(Different(*run, model, resident.theta()), IsEmpty());
}

void Corrupt(const std::string& path, off_t at) {
  const int fd = open(path.c_str(), O_RDWR);
  char byte;
  ASSERT_EQ(pread(fd, &byte, 1, at), 1);
  byte = static_cast<char>(byte ^ 0x40);
  ASSERT_EQ(pwrite(fd, &byte, 1, at), 1);
  close(fd);
}

TEST(BlockFile, BytesChangedUnderneathAreSeen) {
  const MlpModel model({});
  TempFolder folder(/*on_disk=*/true);
  auto run = StartRun(kOnDisk, model, folder.File("units"));
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(run->Step(model, 1e-2).ok());
  ASSERT_TRUE(run->pipeline->Flush().ok());
  // Both places of unit 4, behind the slots' reach.
  const off_t unit = 4096 + 4 * 2 * 8192;
  Corrupt(folder.File("units"), unit + 4096 + 100);
  Corrupt(folder.File("units"), unit + 8192 + 4096 + 100);
  const auto got = run->Step(model, 1e-2);
  EXPECT_EQ(got.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(got.status().ToString(), HasSubstr("unit \"layers.4\": its bytes changed underneath"));
}

/// A place that is no good at the start is passed over: the other one, or the initial values, and the history.
TEST(BlockFile, ABrokenUnitIsMadeAgain) {
  const MlpModel model({});
  TempFolder folder;
  Resident resident(model, kOnDisk.hyper);
  History history;
  {
    auto run = StartRun(kOnDisk, model, folder.File("units"));
    for (int step = 0; step < 5; ++step) {
      resident.Step();
      ASSERT_TRUE(run->Step(model, kOnDisk.hyper.lr).ok());
    }
    history = run->pipeline->history();
  }
  Corrupt(folder.File("units"), 4096 + 2 * 2 * 8192 + 10);                 // header of one place
  Corrupt(folder.File("units"), 4096 + 3 * 2 * 8192 + 4096 + 10);          // record of one place of the next
  Corrupt(folder.File("units"), 4096 + 4 * 2 * 8192 + 4096 + 10);          // both of the next but one
  Corrupt(folder.File("units"), 4096 + 4 * 2 * 8192 + 8192 + 4096 + 10);
  auto run = StartRun(kOnDisk, model, folder.File("units"), history);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_THAT(Different(*run, model, resident.theta()), IsEmpty());
}

TEST(BlockFile, OfAnotherModelOrInUseIsRefused) {
  const MlpModel model({}), other({.layers = 3});
  TempFolder folder;
  {
    auto run = StartRun(kOnDisk, model, folder.File("units"));
    ASSERT_TRUE(run.ok());
    EXPECT_TRUE(absl::IsUnavailable(OpenDirectFile(folder.File("units"), 1).status())) << "only one may have it";
  }
  EXPECT_THAT(StartRun(kOnDisk, other, folder.File("units")).status().ToString(), HasSubstr("block file: of other units"));
  Corrupt(folder.File("units"), 0);
  EXPECT_THAT(StartRun(kOnDisk, model, folder.File("units")).status().ToString(), HasSubstr("not one of this version"));
}

/// A process is killed in the middle of a write, again and again; what it finished is in a history file, as the replay
/// log of a job has it. The run that goes on gives the bytes of one that was never killed.
class Kill9 : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Residues, Kill9, testing::Bool(), [](const auto& info) { return info.param ? "mezo" : "none"; });

History ReadHistory(const std::string& path) {
  History history;
  const int fd = open(path.c_str(), O_RDONLY);
  double record[2];
  while (fd >= 0 && read(fd, record, sizeof record) == sizeof record) history.Add({record[0], {record[1]}, false});
  if (fd >= 0) close(fd);
  return history;
}

[[noreturn]] void RunUntilKilled(const TierCase& c, const MlpModel& model, const std::string& folder, int write_to_die_in) {
  std::atomic<int> writes = 0;
  const auto hook = [&](const std::string& call) {
    if (call == "write" && ++writes == write_to_die_in) return absl::AbortedError("torn");
    return absl::OkStatus();
  };
  auto run = StartRun(c, model, folder + "/units", ReadHistory(folder + "/log"), nullptr, nullptr, hook);
  if (!run.ok()) _exit(2);
  while (true) {
    const auto step = run->Step(model, c.hyper.lr);
    if (!step.ok()) _exit(3);
    const double record[2] = {RateAt(c.hyper.lr, run->pipeline->history().steps() - 1), step->g[0]};
    const int fd = open((folder + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(fd, record, sizeof record) != sizeof record) _exit(4);
    close(fd);
  }
}

TEST_P(Kill9, ResumesToTheSameBytes) {
  TierCase c = kOnDisk;
  if (GetParam()) c.hyper.residue = zo::Residue::kMezo;
  const MlpModel model({});
  TempFolder folder;
  for (int die : {13, 24, 31, 17, 40, 22}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) RunUntilKilled(c, model, folder.path(), die);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
  const History history = ReadHistory(folder.File("log"));
  EXPECT_GT(history.steps(), 5u);
  Resident resident(model, c.hyper);
  for (uint32_t step = 0; step < history.steps(); ++step) {
    const auto want = resident.Step();
    ASSERT_EQ(want.projected_grad[0], history[step].g[0]) << "step " << step;
  }
  auto run = StartRun(c, model, folder.File("units"), history);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_THAT(Different(*run, model, resident.theta()), IsEmpty());
}

}  // namespace
}  // namespace optod::tier
