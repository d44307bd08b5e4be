// kill -9 in the middle of commits: a child commits from 8 threads and tells through a pipe what was acknowledged; the
// parent kills it after a random number of acknowledgements, opens the file and compares. The next child goes on where
// this one ended.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../unit/server/store_test_util.h"
#include "server/store/sqlite_store.h"

namespace optod::store {
namespace {

constexpr int kThreads = 8;
constexpr int kRounds = 50;

struct Acknowledged {
  int32_t session;  ///< uid
  int32_t number;
};

SqliteOptions OptionsIn(const TempFolder& folder) {
  SqliteOptions options;
  options.path = folder.File("optod.db");
  options.measure_ms = 0;
  options.checkpoint_bytes = 64 << 10;
  options.wal_limit_bytes = 256 << 10;
  return options;
}

Batch Step(SessionRow& session) {
  const int64_t number = session.version_count++;
  ++session.revision;
  session.head_version = number;
  return BatchOf(InsertVersion{MakeVersion(session.uid, number)}, UpdateSession{session},
                 InsertRequest{MakeRequest("ann", "Tell", std::to_string(session.uid) + "/" + std::to_string(number))},
                 AppendEvent{MakeEvent("ann", std::to_string(session.uid) + "/" + std::to_string(number))});
}

[[noreturn]] void RunChild(const TempFolder& folder, int pipe_fd) {
  auto store = OpenSqliteStore(OptionsIn(folder));
  if (!store.ok()) _exit(2);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto session = (*store)->GetSessionByUid(t + 1);
      if (!session.ok()) _exit(3);
      for (;;) {
        if (!(*store)->CommitAndWait(Step(*session)).ok()) _exit(4);
        const Acknowledged told{static_cast<int32_t>(session->uid), static_cast<int32_t>(session->head_version)};
        if (write(pipe_fd, &told, sizeof told) != sizeof told) _exit(5);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  _exit(6);
}

/// Every acknowledged step present exactly once, sessions consistent with their versions, events gapless.
void Check(Store& store, const std::vector<std::set<int32_t>>& acknowledged) {
  size_t steps = 0;
  for (int64_t uid = 1; uid <= kThreads; ++uid) {
    const auto versions = store.ListVersions(uid, 0, 1 << 30, -1);
    const auto session = store.GetSessionByUid(uid);
    ASSERT_TRUE(versions.ok() && session.ok());
    for (size_t i = 0; i < versions->size(); ++i) ASSERT_EQ((*versions)[i].number, static_cast<int64_t>(i));
    ASSERT_EQ(session->version_count, static_cast<int64_t>(versions->size()));
    ASSERT_EQ(session->revision, static_cast<int64_t>(versions->size()));
    const std::set<int32_t>& told = acknowledged[static_cast<size_t>(uid)];
    if (!told.empty()) {
      ASSERT_LT(*told.rbegin(), static_cast<int32_t>(versions->size()))
          << "an acknowledged step of session " << uid << " is lost";
    }
    steps += versions->size();
  }
  const auto events = store.ListEvents("ann", 0, -1);
  ASSERT_EQ(events->size(), steps);
  std::set<std::string> distinct;
  for (size_t i = 0; i < events->size(); ++i) {
    ASSERT_EQ((*events)[i].sequence, static_cast<int64_t>(i) + 1);
    ASSERT_TRUE(distinct.insert((*events)[i].resource).second) << "doubled: " << (*events)[i].resource;
  }
}

TEST(StoreKillTest, NothingAcknowledgedIsLostByKill9) {
  TempFolder folder;
  {
    auto store = OpenSqliteStore(OptionsIn(folder));
    ASSERT_TRUE(store.ok()) << store.status();
    for (int64_t uid = 1; uid <= kThreads; ++uid) {
      ASSERT_TRUE(
          (*store)->CommitAndWait(BatchOf(InsertSession{MakeSession(uid, "ann", "s" + std::to_string(uid))})).ok());
    }
  }
  std::vector<std::set<int32_t>> acknowledged(kThreads + 1);
  std::mt19937 random(7);
  for (int round = 0; round < kRounds; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(ends[0]);
      RunChild(folder, ends[1]);
    }
    close(ends[1]);
    const unsigned until = random() % 120;  // 0: before the first acknowledgement, even while it opens
    Acknowledged told{};
    unsigned count = 0;
    bool killed = until == 0 && kill(child, SIGKILL) == 0;
    while (read(ends[0], &told, sizeof told) == sizeof told) {
      acknowledged[static_cast<size_t>(told.session)].insert(told.number);
      if (++count >= until && !killed) killed = kill(child, SIGKILL) == 0;  // what is in the pipe by then still counts
    }
    close(ends[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the child ended by itself: " << status;
    auto store = OpenSqliteStore(OptionsIn(folder));
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_NO_FATAL_FAILURE(Check(**store, acknowledged)) << "round " << round;
  }
  size_t total = 0;
  for (const auto& told : acknowledged) total += told.size();
  EXPECT_GT(total, 1000u);
}

}  // namespace
}  // namespace optod::store
