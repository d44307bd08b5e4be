// What an hourly round removes, and what it must leave alone.

#include <gtest/gtest.h>

#include "server/store/caretaker.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"
#include "store_test_util.h"

namespace optod::store {
namespace {

class Caretaker : public testing::TestWithParam<bool> {
 protected:
  Caretaker() {
    if (GetParam()) {
      SqliteOptions options;
      options.path = folder_.File("optod.db");
      options.synchronous = SqliteOptions::kNormal;
      options.measure_ms = 0;
      store_ = OpenSqliteStore(options).value();
      blobs_ = MakeFileBlobStore(PosixFs(), folder_.File("blobs"), clock_);
    } else {
      store_ = MakeMemoryStore();
      blobs_ = MakeMemoryBlobStore(clock_);
    }
  }
  template <typename... Mutations>
  void Do(Mutations... mutations) {
    const absl::Status status = store_->CommitAndWait(BatchOf(std::move(mutations)...));
    ASSERT_TRUE(status.ok()) << status;
  }
  int64_t AddSession(const std::string& id, int64_t delete_ms) {
    SessionRow row = MakeSession(store_->NewSessionUid(), "ann", id);
    row.delete_ms = delete_ms;
    Do(InsertSession{row});
    return row.uid;
  }
  CareReport Care() {
    auto report = TakeCare(*store_, *blobs_, clock_, options_);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(CareReport{});
  }

  TempFolder folder_;
  FakeClock clock_;
  CareOptions options_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<BlobStore> blobs_;
};

INSTANTIATE_TEST_SUITE_P(All, Caretaker, testing::Bool(),
                         [](const auto& info) { return info.param ? "sqlite" : "memory"; });

TEST_P(Caretaker, PurgesWhatWasDeletedAWeekAgo) {
  const int64_t now = clock_.NowUnixMs();
  AddSession("lives", 0);
  AddSession("deleted-today", now - 1000);
  const int64_t old = AddSession("deleted-long-ago", now - options_.deleted_ms);
  Do(InsertVersion{MakeVersion(old, 0)});
  EXPECT_EQ(Care().sessions_purged, 1);
  EXPECT_TRUE(store_->GetSession("ann", "lives").ok());
  EXPECT_TRUE(store_->GetSession("ann", "deleted-today").ok());
  EXPECT_TRUE(absl::IsNotFound(store_->GetSessionByUid(old).status()));
  EXPECT_TRUE(absl::IsNotFound(store_->GetVersion(old, 0).status()));
  EXPECT_EQ(Care().sessions_purged, 0);
}

TEST_P(Caretaker, PrunesAnswersThatNobodyAsksForAnyMore) {
  const int64_t limit = clock_.NowUnixMs() - options_.request_ms;
  for (int i = 0; i < 50; ++i)  // over several slices, with a long pause in between
    Do(InsertRequest{MakeRequest("ann", "Tell", "r" + std::to_string(i), limit - 10'000'000 + i * 200'000)});
  Do(InsertRequest{MakeRequest("ann", "Tell", "young", limit)});
  Care();
  EXPECT_EQ(*store_->OldestRequestMs(), limit);
  EXPECT_TRUE(store_->GetRequest("ann", "Tell", "young").ok());
  EXPECT_FALSE(store_->GetRequest("ann", "Tell", "r49").ok());
}

TEST_P(Caretaker, KeepsTheNewestEvents) {
  options_.events_kept = 3;
  for (int i = 0; i < 5; ++i) Do(AppendEvent{EventRow{"local", 0, "step", "s", "{}", 1000 + i}});
  Care();
  EXPECT_EQ(*store_->FirstEventSequence("local"), 3);
  EXPECT_EQ(*store_->LastEventSequence("local"), 5);
}

TEST_P(Caretaker, SweepsBlobsOfPurgedSessionsOnceTheyAreOld) {
  const auto data = std::as_bytes(std::span("weights", 7));
  const std::string name = *blobs_->Put(data);
  const int64_t uid = AddSession("s", 0);
  Do(InsertVersion{MakeVersion(uid, 0, name)});
  clock_.Advance(std::chrono::hours(2));
  EXPECT_EQ(Care().blob_bytes_freed, 0) << "a row points to it";
  Do(PurgeSession{uid});
  EXPECT_EQ(Care().blob_bytes_freed, 7);
  EXPECT_FALSE(blobs_->Has(name));
}

}  // namespace
}  // namespace optod::store
