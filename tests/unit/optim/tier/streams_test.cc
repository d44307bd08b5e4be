// The pipeline's device over streams and marks: order, what the host waits for, errors; and the memory of such runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>

#include "optim/tier/streams_device.h"
#include "tier_testing.h"

namespace optod::tier {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

Work On(Queue queue, std::vector<Event> after, absl::AnyInvocable<absl::Status()> run) {
  Work work;
  work.queue = queue;
  work.after = std::move(after);
  work.bytes = 10;
  work.run = std::move(run);
  return work;
}

/// A thousand pieces of work on random queues after random earlier ones: each sees all of them done.
TEST(StreamsDevice, KeepsEveryEdge) {
  constexpr size_t kPieces = 1000;
  ThreadAccelerator accelerator(5, 20);
  StreamsDevice device(&accelerator);
  std::minstd_rand random(1);
  std::vector<std::atomic<bool>> done(kPieces);
  std::vector<Event> events;
  std::vector<size_t> last(kQueues, kPieces);
  std::atomic<int> wrong = 0;
  for (size_t i = 0; i < kPieces; ++i) {
    const auto queue = static_cast<Queue>(random() % kQueues);
    std::vector<size_t> before;
    std::vector<Event> after;
    for (int k = 0; k < 2 && i > 0; ++k) {
      before.push_back(i - 1 - random() % std::min<size_t>(i, 12));
      after.push_back(events[before.back()]);
    }
    size_t& mine = last[static_cast<size_t>(queue)];
    if (mine < kPieces) before.push_back(mine);
    mine = i;
    const auto body = [&wrong, &done, before, i] {
      for (size_t b : before) wrong += !done[b];
      done[i] = true;
    };
    events.push_back(device.Submit(On(queue, after, [&accelerator, queue, body] {
      if (queue == Queue::kRead || queue == Queue::kWrite)
        body();
      else
        accelerator.Enqueue(queue, body);
      return absl::OkStatus();
    })));
  }
  ASSERT_TRUE(device.Drain().ok());
  EXPECT_EQ(wrong, 0);
  for (size_t i = 0; i < kPieces; ++i) EXPECT_TRUE(done[i]) << i;
  const QueueTimes times = device.times();
  uint64_t bytes = 0;
  for (size_t q = 0; q < kQueues; ++q) bytes += times.bytes[q];
  EXPECT_EQ(bytes, 10 * kPieces);
  EXPECT_GT(times.busy[static_cast<size_t>(Queue::kCompute)], 0);
}

/// Submitting enqueues: the host does not wait for a stream, but for work that touches its own memory, and in Wait.
TEST(StreamsDevice, TheHostWaitsOnlyWhereItMust) {
  ThreadAccelerator accelerator(1, 0);
  StreamsDevice device(&accelerator);
  std::atomic<bool> go = false, uploaded = false, computed = false;
  const Event up = device.Submit(On(Queue::kUpload, {}, [&] {
    accelerator.Enqueue(Queue::kUpload, [&] {
      go.wait(false);
      uploaded = true;
    });
    return absl::OkStatus();
  }));
  const Event compute = device.Submit(On(Queue::kCompute, {up}, [&] {
    accelerator.Enqueue(Queue::kCompute, [&] { computed = uploaded.load(); });
    return absl::OkStatus();
  }));
  EXPECT_FALSE(computed);  // and Submit has come back
  go = true;
  go.notify_all();
  Work on_host =
      On(Queue::kCompute, {up}, [&] { return uploaded ? absl::OkStatus() : absl::InternalError("too early"); });
  on_host.on_host = true;
  EXPECT_TRUE(device.Wait(device.Submit(std::move(on_host))).ok());
  EXPECT_TRUE(device.Wait(compute).ok());
  EXPECT_TRUE(computed);
}

TEST(StreamsDevice, TheFirstErrorEndsEverything) {
  for (const Queue queue : {Queue::kRead, Queue::kUpload, Queue::kCompute, Queue::kOffload, Queue::kWrite}) {
    ThreadAccelerator accelerator(2, 20);
    StreamsDevice device(&accelerator);
    int later = 0;
    const Event bad = device.Submit(On(queue, {}, [] { return absl::DataLossError("first"); }));
    Event event = bad;
    for (int i = 0; i < 20; ++i) {
      event = device.Submit(On(static_cast<Queue>(i % 5), {event, bad}, [&] {
        ++later;
        return absl::InternalError("later");
      }));
    }
    EXPECT_THAT(device.Wait(event).ToString(), HasSubstr("first"));
    EXPECT_THAT(device.Drain().ToString(), HasSubstr("first"));
    EXPECT_EQ(later, 0) << QueueName(queue);
  }
}

/// What a kernel met shows at the next mark.
TEST(StreamsDevice, ErrorsOfTheAcceleratorComeOut) {
  const MlpModel model({});
  TierCase c{
      .name = "", .request = {.device_budget = 24 << 10, .slots = 2, .separate_device = true}, .hyper = {.lr = 1e-2}};
  c.accelerated = true;
  auto run = StartRun(c, model, "");
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(run->Step(model, 1e-2).ok());
  run->accelerator->Fail(absl::InternalError("UnitPassKernel: an illegal memory access was encountered"));
  EXPECT_THAT(run->Step(model, 1e-2).status().ToString(), HasSubstr("illegal memory access"));
}

/// Whatever the delays: 30 seeds, three steps each.
TEST(StreamsDevice, DelaysChangeNothing) {
  const MlpModel model({});
  TempFolder folder;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    TierCase c{.name = "",
               .request = {.device_budget = 24 << 10,
                           .disk = true,
                           .slots = 1 + static_cast<int>(seed % 3),
                           .separate_device = true},
               .host_share = 0.7,
               .hyper = {.lr = 1e-2},
               .accelerated = true};
    Resident resident(model, c.hyper);
    auto run = StartRun(c, model, folder.File("u" + std::to_string(seed)), {}, nullptr, nullptr, nullptr, seed);
    ASSERT_TRUE(run.ok()) << run.status();
    for (uint32_t step = 0; step < 3; ++step) {
      const auto want = resident.Step();
      const auto got = run->Step(model, c.hyper.lr);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(got->plus, want.loss_plus) << "seed " << seed << " step " << step;
    }
    EXPECT_THAT(Different(*run, model, resident.theta()), IsEmpty());
  }
}

/// Device memory is what the plan says, and is given back.
TEST(DeviceMemory, IsThePlans) {
  const MlpModel model({});
  for (const Codec codec : {Codec::kNone, Codec::kBf16, Codec::kFp8}) {
    for (const int64_t budget : {int64_t{24 << 10}, int64_t{60 << 10}, int64_t{-1}}) {
      TierCase c{.name = "",
                 .request = {.device_budget = budget, .codec = codec, .separate_device = true},
                 .hyper = {.lr = 1e-2}};
      c.accelerated = true;
      auto run = StartRun(c, model, "");
      ASSERT_TRUE(run.ok()) << run.status();
      EXPECT_LE(run->accelerator->allocated(), run->pipeline->plan().device_peak) << CodecName(codec) << " " << budget;
      EXPECT_GE(run->accelerator->allocated() + 2 * 4096, run->pipeline->plan().device_peak)
          << CodecName(codec) << " " << budget;
      run->pipeline.reset();
      EXPECT_EQ(run->accelerator->allocated(), 0u);
    }
  }
}

TEST(DeviceMemory, NeedsAPlanForIt) {
  const MlpModel model({});
  TierCase c{.name = "", .request = {}, .hyper = {.lr = 1e-2}};
  c.accelerated = true;
  EXPECT_THAT(StartRun(c, model, "").status().ToString(), HasSubstr("plan: made for one memory"));
}

}  // namespace
}  // namespace optod::tier
