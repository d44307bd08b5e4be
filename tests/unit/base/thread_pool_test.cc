#include "base/thread_pool.h"

#include <atomic>
#include <future>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace optod {
namespace {

TEST(ThreadPool, RunsEverythingBeforeItsEnd) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(3);
    EXPECT_EQ(pool.threads(), 3);
    for (int i = 0; i < 1'000; ++i) {
      pool.Post([&] { ++ran; });
    }
  }
  EXPECT_EQ(ran, 1'000);
}

TEST(ThreadPool, TasksPostedByTasksRunToo) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(1);
    pool.Post([&] { pool.Post([&] { pool.Post([&] { ++ran; }); }); });
  }
  EXPECT_EQ(ran, 1);
}

// Promises are declared before the pool: its destructor joins the thread that may still be inside set_value.

TEST(ThreadPool, ThreadsWorkSideBySide) {
  std::promise<void> first, second, done;  // each waits for the other: one thread alone could not finish
  ThreadPool pool(2);
  pool.Post([&] {
    first.set_value();
    second.get_future().wait();
  });
  pool.Post([&] {
    first.get_future().wait();
    second.set_value();
    done.set_value();
  });
  done.get_future().wait();
}

TEST(Strand, KeepsOrderAndNeverOverlaps) {
  std::vector<int> order;  // unguarded: a race here is a bug of the strand, which TSan would see
  {
    ThreadPool pool(4);
    Strand strand(pool);
    for (int i = 0; i < 2'000; ++i) strand.Post([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 2'000u);
  for (int i = 0; i < 2'000; ++i) ASSERT_EQ(order[i], i);
}

TEST(Strand, ManyPostersManyStrands) {
  int counters[4] = {};
  {
    ThreadPool pool(2);
    std::vector<std::unique_ptr<Strand>> strands;
    for (int s = 0; s < 4; ++s) strands.push_back(std::make_unique<Strand>(pool));
    std::vector<std::thread> posters;
    for (int p = 0; p < 4; ++p) {
      posters.emplace_back([&] {
        for (int i = 0; i < 400; ++i) strands[i % 4]->Post([&counters, i] { ++counters[i % 4]; });
      });
    }
    for (auto& poster : posters) poster.join();
    strands.clear();  // what is queued still runs
  }
  for (int counter : counters) EXPECT_EQ(counter, 400);
}

TEST(Strand, ABusyStrandLetsOthersRun) {
  std::promise<void> go, other_ran, drained;
  std::atomic<bool> stop{false};
  std::function<void()> again;
  ThreadPool pool(1);
  Strand busy(pool), other(pool);
  again = [&] {
    if (!stop) busy.Post([&] { again(); });
  };
  busy.Post([&] {
    go.get_future().wait();
    again();
  });
  other.Post([&] { other_ran.set_value(); });
  go.set_value();
  other_ran.get_future().wait();  // hangs when the busy strand never gives the only thread back
  stop = true;
  busy.Post([&] { drained.set_value(); });
  drained.get_future().wait();
}

TEST(Timers, FireWhenDue) {
  std::promise<void> first, second;
  bool early = false;
  {
    ThreadPool pool(1);
    Timers timers(pool);
    timers.After(std::chrono::hours(1), [&] { early = true; });
    timers.After(std::chrono::nanoseconds(0), [&] {
      timers.After(std::chrono::milliseconds(1), [&] { second.set_value(); });
      first.set_value();
    });
    first.get_future().wait();
    second.get_future().wait();
  }
  EXPECT_FALSE(early);
}

TEST(Timers, CancelDropsTheTask) {
  ThreadPool pool(1);
  Timers timers(pool);
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  const uint64_t handle = timers.After(std::chrono::hours(1), [held = std::move(held)] {});
  EXPECT_FALSE(watch.expired());
  timers.Cancel(handle);
  EXPECT_TRUE(watch.expired());
  timers.Cancel(handle);  // again is harmless
}

/// A chore that sets its own next timer, as a server's do, and is under way when the server stops.
TEST(Timers, AChoreThatOutlastsStopHasNoSuccessor) {
  std::promise<void> begun, stopped;
  int ran = 0;
  auto pool = std::make_unique<ThreadPool>(1);
  Timers timers(*pool);
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  timers.After(std::chrono::hours(1), [held = std::move(held)] {});
  timers.After(std::chrono::nanoseconds(0), [&] {
    ++ran;
    begun.set_value();
    stopped.get_future().wait();
    EXPECT_EQ(timers.After(std::chrono::nanoseconds(0), [&] { ++ran; }), 0u);
    timers.Cancel(0);
  });
  begun.get_future().wait();
  timers.Stop();
  EXPECT_TRUE(watch.expired());
  stopped.set_value();
  pool.reset();  // waits for the chore
  timers.Stop();  // again is harmless
  EXPECT_EQ(ran, 1);
}

TEST(Timers, EndDropsWhatIsNotDue) {
  bool ran = false;
  {
    ThreadPool pool(1);
    Timers timers(pool);
    timers.After(std::chrono::hours(1), [&] { ran = true; });
  }
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace optod
