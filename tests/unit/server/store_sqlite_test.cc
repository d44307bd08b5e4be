// What only the store on a disk has: reopening, migrations, refusal of foreign files, backup, care for the WAL.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "server/store/request_key.h"
#include "server/store/sqlite_schema.h"
#include "server/store/sqlite_store.h"
#include "store_test_util.h"

namespace optod::store {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class SqliteStoreTest : public testing::Test {
 protected:
  SqliteStoreTest() {
    options_.path = folder_.File("optod.db");
    options_.measure_ms = 0;
    options_.synchronous = SqliteOptions::kNormal;
  }
  std::unique_ptr<Store> Open() { return OpenSqliteStore(options_).value(); }
  /// Runs SQL on the closed file, as a foreign program would.
  void Sql(const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(options_.path.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }

  TempFolder folder_;
  SqliteOptions options_;
};

TEST_F(SqliteStoreTest, ReopeningSeesEverything) {
  int64_t uid = 0;
  {
    auto store = Open();
    uid = store->NewSessionUid();
    ASSERT_TRUE(
        store
            ->CommitAndWait(BatchOf(
                InsertSession{MakeSession(uid, "ann", "s")}, InsertVersion{MakeVersion(uid, 0, "b")},
                InsertRequest{MakeRequest("ann", "Tell", "r")}, AppendEvent{MakeEvent("ann", "e")},
                PutObservation{{uid, "k", 1, 2, "o", ""}}, InsertNodes{{{uid, 0, "n"}}}, PutUser{{"ann", 1, false, 2}},
                PutToken{{"t", "ann", "l", "s", 1, 2, false}}, PutOperation{{"ann", "op", false, "p", "r", 3}},
                PutArtifact{{"ann", "sha", 4, "n", "m", 5}}, SetMeta{"k", "v"}))
            .ok());
  }
  auto store = Open();
  EXPECT_EQ(store->GetSession("ann", "s")->uid, uid);
  EXPECT_EQ(store->GetVersion(uid, 0)->blob, "b");
  EXPECT_EQ(store->GetRequest("ann", "Tell", "r")->response, "answer to r");
  EXPECT_EQ(store->ListObservations(uid, "k", 0, 9)->at(0).payload, "o");
  EXPECT_EQ(store->ListNodes(uid, 0, -1)->at(0).payload, "n");
  EXPECT_TRUE(store->GetUser("ann").ok());
  EXPECT_TRUE(store->GetToken("t").ok());
  EXPECT_EQ(store->ListUndoneOperations()->size(), 1u);
  EXPECT_TRUE(store->GetArtifact("ann", "sha").ok());
  EXPECT_EQ(*store->GetMeta("k"), "v");
  ASSERT_TRUE(store->CommitAndWait(BatchOf(AppendEvent{MakeEvent("ann", "second")})).ok());
  EXPECT_EQ(store->ListEvents("ann", 0, -1)->back().sequence, 2);
  EXPECT_GT(store->NewSessionUid(), uid);
}

TEST_F(SqliteStoreTest, UidsAreNeverReusedEvenWhenNothingWasStoredUnderThem) {
  int64_t last = 0;
  for (int round = 0; round < 3; ++round) {
    auto store = Open();
    for (int i = 0; i < 10'000; ++i) {
      const int64_t uid = store->NewSessionUid();
      ASSERT_GT(uid, last);
      last = uid;
    }
  }
}

// The key's hash is a place; a place taken by another key leads to the next one.
TEST_F(SqliteStoreTest, RequestsWithTheSameHashAreKeptApart) {
  const int64_t place = RequestKeyHash("ann", "Tell", "wanted");
  { Open(); }
  Sql("INSERT INTO requests(key_hash,user,method,request_id,request_sha256,response,session_uid,create_ms) VALUES(" +
      std::to_string(place) + ",'x','y','z',x'',x'00'," + "0,0)");
  auto store = Open();
  EXPECT_EQ(store->GetRequest("ann", "Tell", "wanted").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(store->CommitAndWait(BatchOf(InsertRequest{MakeRequest("ann", "Tell", "wanted")})).ok());
  EXPECT_EQ(store->GetRequest("ann", "Tell", "wanted")->response, "answer to wanted");
  EXPECT_EQ(store->CommitAndWait(BatchOf(InsertRequest{MakeRequest("ann", "Tell", "wanted")})).code(),
            StatusCode::kAlreadyExists);
}

TEST_F(SqliteStoreTest, RequestKeyHashIsFrozen) {
  // Written in databases; these values come from the definition in the header computed independently with Python
  // integers.
  EXPECT_EQ(static_cast<uint64_t>(RequestKeyHash("", "", "")), 0xea84b5f3461f8f55u);
  EXPECT_EQ(static_cast<uint64_t>(RequestKeyHash("ann", "Tell", "r1")), 0x214672c33df502fu);
}

TEST_F(SqliteStoreTest, ForeignFilesAreRefusedWithTheReason) {
  struct Case {
    const char* name;
    std::string bytes;  // "" = made by sql
    std::string sql;
    StatusCode want;
    const char* message;
  };
  const Case kCases[] = {
      {"garbage", std::string(8192, 'g'), "", StatusCode::kDataLoss, "not an SQLite database"},
      {"newer", "", "PRAGMA application_id=1869640815; PRAGMA user_version=999; CREATE TABLE t(x)",
       StatusCode::kFailedPrecondition, "schema 999"},
      {"other program", "", "CREATE TABLE t(x)", StatusCode::kFailedPrecondition, "another program"},
      {"other application id", "", "PRAGMA application_id=7; CREATE TABLE t(x)", StatusCode::kFailedPrecondition,
       "application id 7"},
  };
  for (const Case& test : kCases) {
    options_.path = folder_.File(test.name);
    if (test.bytes.empty()) {
      Sql(test.sql);
    } else {
      std::ofstream(options_.path) << test.bytes;
    }
    const auto before = std::filesystem::file_size(options_.path);
    auto store = OpenSqliteStore(options_);
    ASSERT_FALSE(store.ok()) << test.name;
    EXPECT_EQ(store.status().code(), test.want) << store.status();
    EXPECT_THAT(std::string(store.status().message()), HasSubstr(test.message));
    EXPECT_EQ(std::filesystem::file_size(options_.path), before) << "untouched";
  }
}

TEST_F(SqliteStoreTest, AnUnwritableFolderIsAStatus) {
  options_.path = folder_.File("absent/optod.db");
  EXPECT_EQ(OpenSqliteStore(options_).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(SqliteStoreTest, BackupIsASnapshotOfAStoreInUse) {
  auto store = Open();
  const int64_t uid = store->NewSessionUid();
  ASSERT_TRUE(store->CommitAndWait(BatchOf(InsertSession{MakeSession(uid, "ann", "s")})).ok());
  std::atomic<bool> stop{false};
  std::atomic<int64_t> written{0};
  std::thread writer([&] {
    for (int64_t i = 0; !stop; ++i) {
      if (store->CommitAndWait(BatchOf(InsertVersion{MakeVersion(uid, i)}, InsertNodes{{{uid, i, "n"}}})).ok())
        written = i + 1;
    }
  });
  while (written < 20) std::this_thread::yield();
  const int64_t before = written;
  const std::string copy = folder_.File("copy.db");
  EXPECT_TRUE(store->BackupTo(copy).ok());
  EXPECT_EQ(store->BackupTo(copy).code(), StatusCode::kAlreadyExists);
  stop = true;
  writer.join();
  EXPECT_FALSE(std::filesystem::exists(copy + "-wal"));
  options_.path = copy;
  auto restored = Open();
  const size_t versions = restored->ListVersions(uid, 0, 1 << 30, -1)->size();
  EXPECT_GE(static_cast<int64_t>(versions), before);
  EXPECT_EQ(restored->ListNodes(uid, 0, -1)->size(), versions);
}

TEST_F(SqliteStoreTest, TheWalStaysBounded) {
  options_.checkpoint_bytes = 64 << 10;
  options_.wal_limit_bytes = 512 << 10;
  auto store = Open();
  const int64_t uid = store->NewSessionUid();
  ASSERT_TRUE(store->CommitAndWait(BatchOf(InsertSession{MakeSession(uid, "ann", "s")})).ok());
  uintmax_t largest = 0;
  for (int64_t i = 0; i < 200; ++i) {  // 200 x 64 KiB
    VersionRow row = MakeVersion(uid, i);
    row.payload = std::string(64 << 10, 'p');
    ASSERT_TRUE(store->CommitAndWait(BatchOf(InsertVersion{row})).ok());
    largest = std::max(largest, std::filesystem::file_size(options_.path + "-wal"));
  }
  EXPECT_LT(largest, 1u << 20);
  EXPECT_EQ(store->ListVersions(uid, 0, 1000, -1)->size(), 200u);
}

TEST_F(SqliteStoreTest, MeasuresTheDisk) {
  options_.measure_ms = 5;
  EXPECT_GT(Open()->CommitsPerSecond(), 0);
}

}  // namespace
}  // namespace optod::store
