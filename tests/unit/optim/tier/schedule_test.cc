// The schedule alone, on a virtual clock: how long it takes, that no edge is missing, that no more than k units are live.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "optim/tier/simulated_device.h"
#include "tier_testing.h"

namespace optod::tier {
namespace {

constexpr uint32_t kSteps = 4;

/// Times of every queue's work a unit, in seconds.
using Times = std::vector<std::array<double, kQueues>>;

Times RandomTimes(size_t units, uint32_t seed, double spread) {
  Times times(units + 1);
  std::vector<uint32_t> words((units + 1) * kQueues);
  zo::FillBits({seed, 7, 0}, 0, 0, words);
  for (size_t i = 0; i < words.size(); ++i)
    times[i / kQueues][i % kQueues] = 1e-3 * (1 + spread * (words[i] % 1000) / 1000.0);
  return times;
}

/// The longest path through the edges that the data need: what no schedule with k slots can beat. Written from the
/// rules, not from the scheduler: slot free, home ready, g of the step before, one piece of work at a time a queue.
double CriticalPath(const MlpModel& model, const Times& t, size_t k, bool direct) {
  const size_t units = model.units().size();
  std::array<double, kQueues> queue{};
  std::vector<double> slot(k), staging(k), home(units);
  double step_begins = 0;
  const auto run = [&](Queue q, double ready, size_t unit) {
    double& free = queue[static_cast<size_t>(q)];
    free = std::max(free, ready) + t[unit][static_cast<size_t>(q)];
    return free;
  };
  std::vector<double> up(k);
  size_t issued = 0;
  const auto issue = [&](double now) {
    const size_t u = issued % units, s = issued % k;
    if (direct) {
      up[s] = run(Queue::kRead, std::max({slot[s], home[u], now}), u);
    } else {
      const double read = run(Queue::kRead, std::max({staging[s], home[u], now}), u);
      up[s] = run(Queue::kUpload, std::max({read, slot[s], now}), u);
      staging[s] = up[s];
    }
    ++issued;
  };
  for (size_t s = 0; s < k; ++s) issue(0);
  double end = 0;
  for (uint32_t step = 0; step < kSteps; ++step) {
    double gathered = step_begins;
    for (const Slice& slice : MlpCompute(model, step).Wanted()) {
      for (size_t u = 0; u < units; ++u) {
        const UnitPart& part = model.units()[u].parts[0];
        if (part.uid == slice.uid && slice.first >= part.first && slice.first < part.first + part.count)
          gathered = std::max(gathered, home[u]);
      }
    }
    run(Queue::kCompute, gathered, units);
    for (size_t u = 0; u < units; ++u) {
      const size_t s = (step * units + u) % k;
      const double computed = run(Queue::kCompute, std::max(up[s], step_begins), u);
      slot[s] = computed;
      if (step > 0) {
        double done = computed;
        if (!direct) {
          done = run(Queue::kOffload, std::max({computed, staging[s], step_begins}), u);
          slot[s] = done;
        }
        done = run(Queue::kWrite, std::max(done, step_begins), u);
        (direct ? slot : staging)[s] = done;
        home[u] = done;
        end = std::max(end, done);
      }
      issue(step_begins);
      end = std::max({end, computed, up[s]});
    }
    step_begins = queue[static_cast<size_t>(Queue::kCompute)];
  }
  for (double u : up) end = std::max(end, u);
  return end;
}

struct ScheduleCase {
  int slots;
  bool direct;
  uint32_t seed;
  double spread;
};
class Schedules : public testing::TestWithParam<ScheduleCase> {};
std::vector<ScheduleCase> SomeSchedules() {
  std::vector<ScheduleCase> cases;
  for (uint32_t seed = 1; seed <= 12; ++seed) cases.push_back({1 + static_cast<int>(seed % 4), seed % 2 == 0, seed, seed % 3 == 0 ? 0.0 : 5.0});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Random, Schedules, testing::ValuesIn(SomeSchedules()), [](const auto& info) {
  return "seed" + std::to_string(info.param.seed) + "_k" + std::to_string(info.param.slots) + (info.param.direct ? "_direct" : "_staged");
});

TEST_P(Schedules, TakesTheCriticalPathAndGivesTheBytes) {
  const MlpModel model({});
  TempFolder folder;
  const size_t units = model.units().size();
  const auto k = static_cast<size_t>(GetParam().slots);
  const Times times = RandomTimes(units, GetParam().seed, GetParam().spread);
  auto device = std::make_unique<SimulatedDevice>([&](const Work& work) {
    return times[work.unit][static_cast<size_t>(work.queue)];
  });
  const SimulatedDevice& simulated = *device;
  TierCase c{.name = "", .request = {.disk = true, .slots = GetParam().slots}, .hyper = {.lr = 1e-2}};
  c.request.host_budget = 0;
  c.request.separate_device = !GetParam().direct;
  if (!GetParam().direct) {
    c.request.device_budget = static_cast<int64_t>(k * 4096 + 2 * 4096);  // slots and copies, no room to live
    c.request.host_budget = static_cast<int64_t>(k * 8192);               // staging, no room to live
  }
  Resident resident(model, c.hyper);
  auto run = StartRun(c, model, folder.File("units"), {}, nullptr, std::move(device));
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_EQ(std::count(run->pipeline->plan().homes.begin(), run->pipeline->plan().homes.end(), Home::kDisk),
            static_cast<ptrdiff_t>(units));
  for (uint32_t step = 0; step < kSteps; ++step) {
    const zo::StepResult want = resident.Step();
    const auto got = run->Step(model, c.hyper.lr);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->plus, want.loss_plus);
  }
  const double path = CriticalPath(model, times, k, GetParam().direct);
  EXPECT_NEAR(simulated.makespan(), path, 0.01 * path);
  ASSERT_TRUE(run->device->Drain().ok());

  // Slots: live from the first byte that comes in to the last that leaves. Work of one visit in order, of two apart.
  std::map<size_t, std::pair<double, double>> live;  // of visit
  for (const SimulatedDevice::Span& span : simulated.trace()) {
    if (span.unit == units || (!GetParam().direct && (span.queue == Queue::kRead || span.queue == Queue::kWrite))) continue;
    auto [it, fresh] = live.try_emplace(span.visit, span.begin, span.end);
    if (fresh) continue;
    it->second.first = std::min(it->second.first, span.begin);
    it->second.second = std::max(it->second.second, span.end);
  }
  for (const auto& [visit, when] : live) {
    if (const auto next = live.find(visit + k); next != live.end()) {
      EXPECT_GE(next->second.first, when.second - 1e-12) << "visits " << visit << " and " << visit + k << " share a slot";
    }
    size_t together = 0;
    for (const auto& [other, span] : live) together += span.first <= when.first && when.first < span.second;
    EXPECT_LE(together, k);
  }
}

/// The closed form for equal units (offloading with k = 3): the slowest queue sets the pace, one unit fills and one
/// empties the pipe.
TEST(Schedule, EqualUnitsTakeTheSlowestQueue) {
  const size_t n = 40;
  const MlpModel model({.layers = 40});
  for (const auto& [up, compute, off] : {std::tuple(1.0, 4.0, 2.0), std::tuple(3.0, 1.0, 1.0), std::tuple(1.0, 1.0, 2.5)}) {
    auto device = std::make_unique<SimulatedDevice>([&, up = up, compute = compute, off = off](const Work& work) {
      return work.unit >= n + 4 ? 1e-9 : work.queue == Queue::kUpload ? up : work.queue == Queue::kCompute ? compute : off;
    });
    const SimulatedDevice& simulated = *device;
    TierCase c{.name = "", .request = {.slots = 3}, .hyper = {.lr = 1e-2}};
    c.request.separate_device = true;
    c.request.device_budget = 5 * 4096;
    auto run = StartRun(c, model, "", {}, nullptr, std::move(device));
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_EQ(run->pipeline->plan().slots, 3);
    for (uint32_t step = 0; step < kSteps; ++step) ASSERT_TRUE(run->Step(model, 1e-2).ok());
    const double units = static_cast<double>(model.units().size());
    const double pace = std::max({up, compute, off, (up + compute + off) / 3});
    // Step 0 offloads nothing; between steps the next uploads go on, but computing waits for g.
    EXPECT_GE(simulated.makespan(), (kSteps - 1) * units * pace);
    EXPECT_LE(simulated.makespan(), kSteps * (units * pace + up + compute + off) * 1.01);
  }
}

/// A device that forgets one kind of edge: then something must show, or these tests show nothing.
class Forgetful final : public Device {
 public:
  Forgetful(Queue queue, SimulatedDevice::Cost cost) : queue_(queue), inner_(std::move(cost)) {}
  Event Submit(Work work) override {
    if (work.queue == queue_ && work.visit >= 2) work.after.clear();
    return inner_.Submit(std::move(work));
  }
  absl::Status Wait(Event event) override { return inner_.Wait(event); }
  absl::Status Drain() override { return inner_.Drain(); }
  QueueTimes times() const override { return inner_.times(); }

 private:
  Queue queue_;
  SimulatedDevice inner_;
};
class MissingEdges : public testing::TestWithParam<Queue> {};
INSTANTIATE_TEST_SUITE_P(Queues, MissingEdges, testing::Values(Queue::kUpload, Queue::kCompute, Queue::kOffload),
                         [](const auto& info) { return QueueName(info.param); });

TEST_P(MissingEdges, Show) {
  const MlpModel model({});
  bool shown = false;
  for (uint32_t seed = 1; seed <= 4 && !shown; ++seed) {
    const Times times = RandomTimes(model.units().size(), seed, 30.0);
    TierCase c{.name = "", .request = {.slots = 2}, .hyper = {.lr = 1e-2}};
    c.request.separate_device = true;
    c.request.device_budget = 4 * 4096;
    Resident resident(model, c.hyper);
    auto run = StartRun(c, model, "", {}, nullptr, std::make_unique<Forgetful>(GetParam(), [&](const Work& work) {
                          return times[work.unit][static_cast<size_t>(work.queue)];
                        }));
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = 0; step < 6 && !shown; ++step) {
      const zo::StepResult want = resident.Step();
      const auto got = run->Step(model, c.hyper.lr);
      shown = !got.ok() || got->plus != want.loss_plus || !(got->g == want.projected_grad);
    }
  }
  EXPECT_TRUE(shown);
}

}  // namespace
}  // namespace optod::tier
