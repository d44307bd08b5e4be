// What every store must do: run by the memory store and the SQLite store.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/store/memory_store.h"
#include "server/store/meta_range.h"
#include "server/store/sqlite_store.h"
#include "store_test_util.h"

namespace optod::store {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

struct Kind {
  const char* name;
  std::function<std::unique_ptr<Store>(const TempFolder&)> make;
};

const Kind kKinds[] = {
    {"memory", [](const TempFolder&) { return MakeMemoryStore(); }},
    {"sqlite",
     [](const TempFolder& folder) {
       SqliteOptions options;
       options.path = folder.File("optod.db");
       options.synchronous = SqliteOptions::kNormal;  // the same code path, without an fsync a commit
       options.measure_ms = 0;
       return OpenSqliteStore(options).value();
     }},
};

class StoreConformance : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    store_ = GetParam().make(folder_);
    uid_ = store_->NewSessionUid();
    ASSERT_TRUE(Do(InsertSession{MakeSession(uid_, "ann", "s")}).ok());
  }
  template <typename... Mutations>
  absl::Status Do(Mutations... mutations) {
    return store_->CommitAndWait(BatchOf(std::move(mutations)...));
  }
  absl::Status Wait() {
    std::promise<absl::Status> done;
    store_->Barrier([&](absl::Status status) { done.set_value(status); });
    return done.get_future().get();
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  int64_t uid_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, StoreConformance, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name; });

// ---- rows come back as they went in

TEST_P(StoreConformance, UsersAndTokens) {
  ASSERT_TRUE(Do(PutUser{{"bob", 2, false, 11}}, PutUser{{"ann", 3, true, 12}},
                 PutToken{{"t1", "bob", "laptop", std::string(32, '\0'), 1, 2, false}},
                 PutToken{{"t0", "ann", "", "x", 3, 0, true}})
                  .ok());
  ASSERT_TRUE(Do(PutUser{{"bob", 1, true, 11}}).ok());
  auto bob = store_->GetUser("bob");
  ASSERT_TRUE(bob.ok());
  EXPECT_EQ(bob->role, 1);
  EXPECT_TRUE(bob->deleted);
  EXPECT_EQ(bob->create_ms, 11);
  EXPECT_EQ(store_->ListUsers()->size(), 2u);
  EXPECT_EQ(store_->ListUsers()->front().user, "ann");
  auto token = store_->GetToken("t1");
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->secret_sha256, std::string(32, '\0'));
  EXPECT_EQ(token->label, "laptop");
  EXPECT_EQ(token->expire_ms, 2);
  EXPECT_EQ(store_->ListTokens("bob")->size(), 1u);
  EXPECT_EQ(store_->ListTokens("")->size(), 2u);
  EXPECT_TRUE(store_->ListTokens("")->front().revoked);
}

TEST_P(StoreConformance, SessionRoundTripAndUpdate) {
  SessionRow row = MakeSession(uid_, "other", "renamed");
  row.state = 2;
  row.etag = 3;
  row.revision = 1;
  row.mutable_fields = "new";
  row.head_version = 4;
  row.version_count = 5;
  row.seq = 6;
  row.update_ms = 7;
  row.delete_ms = 8;
  row.spec = "must not change";
  row.create_ms = 1;
  ASSERT_TRUE(Do(UpdateSession{row}).ok());
  auto got = store_->GetSession("ann", "s");
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got->uid, uid_);
  EXPECT_EQ(got->spec, "spec of s");
  EXPECT_EQ(got->create_ms, 1000 + uid_);
  EXPECT_EQ(std::vector<int64_t>({got->state, got->etag, got->revision, got->head_version, got->version_count, got->seq,
                                  got->update_ms, got->delete_ms}),
            std::vector<int64_t>({2, 3, 1, 4, 5, 6, 7, 8}));
  EXPECT_EQ(got->mutable_fields, "new");
  EXPECT_EQ(store_->GetSessionByUid(uid_)->id, "s");
}

TEST_P(StoreConformance, EmptyAndBinaryBytesSurvive) {
  VersionRow row = MakeVersion(uid_, 0);
  row.payload = "";
  ASSERT_TRUE(Do(InsertVersion{row}, PutObservation{{uid_, "k", 1, 2, std::string("\0\xff\0", 3), ""}},
                 SetMeta{"key", std::string("\0", 1)})
                  .ok());
  EXPECT_EQ(store_->GetVersion(uid_, 0)->payload, "");
  EXPECT_EQ(store_->GetVersion(uid_, 0)->blob, "");
  EXPECT_EQ(store_->ListObservations(uid_, "k", 0, 9)->at(0).payload, std::string("\0\xff\0", 3));
  EXPECT_EQ(*store_->GetMeta("key"), std::string("\0", 1));
}

TEST_P(StoreConformance, MetaIsListedByRangeOfKeys) {
  ASSERT_TRUE(Do(SetMeta{"u/2/b", "3"}, SetMeta{"u/1/a", "1"}, SetMeta{"u/2/*", "2"}, SetMeta{"u/3/a", "4"}, SetMeta{"v", "5"}).ok());
  EXPECT_EQ(*ListMeta(*store_, "u/1/", "u/3/"), (MetaEntries{{"u/1/a", "1"}, {"u/2/*", "2"}, {"u/2/b", "3"}}));
  EXPECT_EQ(*ListMeta(*store_, "u/3/a", "v"), (MetaEntries{{"u/3/a", "4"}}));
  EXPECT_EQ(*ListMeta(*store_, "w", "z"), MetaEntries{});
}

TEST_P(StoreConformance, OperationsArtifactsByTimeWithTies) {
  for (int i = 0; i < 6; ++i) {
    const std::string id = std::to_string(i);
    ASSERT_TRUE(Do(PutOperation{{"ann", "op" + id, i % 2 == 0, "p" + id, "r", 100 + i / 2}},
                   PutArtifact{{"ann", "sha" + id, i, "n", "m", 100 + i / 2}})
                    .ok());
  }
  ASSERT_TRUE(Do(PutOperation{{"bob", "op9", false, "", "", 999}}).ok());
  const auto ids = [](const std::vector<OperationRow>& rows) {
    std::vector<std::string> ids;
    for (const OperationRow& row : rows) ids.push_back(row.id);
    return ids;
  };
  EXPECT_THAT(ids(*store_->ListOperations("ann", 0, 3)), ElementsAre("op5", "op4", "op3"));
  EXPECT_THAT(ids(*store_->ListOperations("ann", 101, 9, "op3")), ElementsAre("op2", "op1", "op0"));
  EXPECT_THAT(ids(*store_->ListOperations("ann", 101, 9)), ElementsAre("op1", "op0"));
  EXPECT_THAT(ids(*store_->ListOperations("", 0, 2)), ElementsAre("op9", "op5"));
  EXPECT_THAT(ids(*store_->ListUndoneOperations()), ElementsAre("op1", "op3", "op5", "op9"));
  EXPECT_EQ(store_->GetOperation("ann", "op2")->payload, "p2");
  EXPECT_EQ(store_->ListArtifacts("ann", 101, 9, "sha3")->at(0).sha256, "sha2");
  EXPECT_EQ(store_->GetArtifact("ann", "sha4")->size_bytes, 4);
  ASSERT_TRUE(Do(DeleteArtifact{"ann", "sha4"}, DeleteArtifact{"ann", "never there"}).ok());
  EXPECT_EQ(store_->GetArtifact("ann", "sha4").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store_->ListArtifacts("", 0, -1)->size(), 5u);
}

TEST_P(StoreConformance, AbsentRowsAreNotFound) {
  const absl::Status kAbsent[] = {
      store_->GetUser("x").status(),
      store_->GetToken("x").status(),
      store_->GetSession("ann", "x").status(),
      store_->GetSessionByUid(99).status(),
      store_->GetVersion(uid_, 0).status(),
      store_->LatestSnapshot(uid_, 9).status(),
      store_->GetRequest("a", "b", "c").status(),
      store_->GetOperation("a", "b").status(),
      store_->GetArtifact("a", "b").status(),
      store_->GetMeta("x").status(),
  };
  for (const absl::Status& status : kAbsent) EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
}

// ---- refusals, each with its code and a message; nothing of a refused batch stays

struct Refusal {
  const char* name;
  std::function<Mutation(int64_t uid)> mutation;
  StatusCode want;
  const char* message;
};

// clang-format off
const Refusal kRefusals[] = {
    {"session_name", [](int64_t uid) { return InsertSession{MakeSession(uid + 50, "ann", "s")}; },
     StatusCode::kAlreadyExists, "users/ann/sessions/s"},
    {"session_uid", [](int64_t uid) { return InsertSession{MakeSession(uid, "ann", "t")}; }, StatusCode::kAlreadyExists,
     "already exists"},
    {"unknown_session", [](int64_t) { return UpdateSession{MakeSession(77, "ann", "s")}; }, StatusCode::kNotFound,
     "uid 77"},
    {"stale_revision", [](int64_t uid) { return UpdateSession{MakeSession(uid, "ann", "s")}; }, StatusCode::kAborted,
     "revision 0"},
    {"version_taken", [](int64_t uid) { return InsertVersion{MakeVersion(uid, 3)}; }, StatusCode::kAlreadyExists,
     "version 3"},
    {"version_of_nobody", [](int64_t) { return InsertVersion{MakeVersion(77, 3)}; }, StatusCode::kNotFound, "uid 77"},
    {"unknown_version", [](int64_t uid) { return UpdateVersion{MakeVersion(uid, 4)}; }, StatusCode::kNotFound,
     "version 4"},
    {"observation_of_nobody",
     [](int64_t) {
       return PutObservation{{77, "k", 0, 0, "", ""}};
     },
     StatusCode::kNotFound, "77"},
    {"request_taken", [](int64_t) { return InsertRequest{MakeRequest("ann", "Tell", "r")}; },
     StatusCode::kAlreadyExists, "request id r of Tell"},
    {"node_taken",
     [](int64_t uid) {
       return InsertNodes{{{uid, 9, ""}, {uid, 0, ""}}};
     },
     StatusCode::kAlreadyExists, "node 0"},
    {"node_of_nobody",
     [](int64_t) {
       return InsertNodes{{{77, 0, ""}}};
     },
     StatusCode::kNotFound, "77"},
    {"unknown_node",
     [](int64_t uid) {
       return UpdateNode{{uid, 5, ""}};
     },
     StatusCode::kNotFound, "node 5"},
};

TEST_P(StoreConformance, RefusedBatchesLeaveNothing) {
  ASSERT_TRUE(Do(InsertVersion{MakeVersion(uid_, 3)}, InsertRequest{MakeRequest("ann", "Tell", "r")},
                 InsertNodes{{{uid_, 0, "n"}}})
                  .ok());
  for (const Refusal& refusal : kRefusals) {
    const absl::Status status = Do(SetMeta{"before", refusal.name}, AppendEvent{MakeEvent("ann", "lost")},
                                   InsertVersion{MakeVersion(uid_, 100)}, refusal.mutation(uid_));
    EXPECT_EQ(status.code(), refusal.want) << refusal.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(refusal.message)) << refusal.name;
    EXPECT_FALSE(store_->GetMeta("before").ok()) << refusal.name;
    EXPECT_FALSE(store_->GetVersion(uid_, 100).ok()) << refusal.name;
    EXPECT_EQ(*store_->LastEventSequence("ann"), 0) << refusal.name;
  }
  EXPECT_EQ(store_->ListNodes(uid_, 0, -1)->size(), 1u);
}

// Groups of good and bad batches, against a plain list of what must be there.
TEST_P(StoreConformance, FailuresDoNotUndoNeighbours) {
  std::mutex mutex;
  std::vector<std::pair<int, StatusCode>> finished;
  std::vector<int> kept;
  for (int i = 0; i < 600; ++i) {
    const bool bad = i % 7 == 3 || (i >= 200 && i < 260);
    if (!bad) kept.push_back(i);
    Batch batch = BatchOf(InsertVersion{MakeVersion(uid_, i)}, AppendEvent{MakeEvent("ann", std::to_string(i))});
    if (bad) batch.mutations.push_back(InsertVersion{MakeVersion(uid_, i)});
    store_->Commit(std::move(batch), [&mutex, &finished, i](absl::Status status) {
      std::lock_guard lock(mutex);
      finished.emplace_back(i, status.code());
    });
  }
  ASSERT_TRUE(Wait().ok());
  ASSERT_EQ(finished.size(), 600u);
  for (int i = 0; i < 600; ++i) {
    EXPECT_EQ(finished[static_cast<size_t>(i)].first, i) << "callbacks in the order of Commit";
    const bool good = std::binary_search(kept.begin(), kept.end(), i);
    EXPECT_EQ(finished[static_cast<size_t>(i)].second, good ? StatusCode::kOk : StatusCode::kAlreadyExists) << i;
  }
  const auto versions = store_->ListVersions(uid_, 0, 1000, -1);
  ASSERT_EQ(versions->size(), kept.size());
  const auto events = store_->ListEvents("ann", 0, -1);
  ASSERT_EQ(events->size(), kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ((*versions)[i].number, kept[i]);
    EXPECT_EQ((*events)[i].sequence, static_cast<int64_t>(i) + 1);
    EXPECT_EQ((*events)[i].resource, std::to_string(kept[i]));
  }
}

// A session whose batch failed closes its gate in the callback; nothing that was queued behind it may get in.
TEST_P(StoreConformance, GateClosedByAFailureKeepsLaterBatchesOut) {
  ASSERT_TRUE(Do(InsertVersion{MakeVersion(uid_, 20)}).ok());
  std::atomic<bool> closed{false};
  std::vector<StatusCode> codes(40, StatusCode::kUnknown);
  for (int i = 0; i < 40; ++i) {
    Batch batch = BatchOf(InsertVersion{MakeVersion(uid_, i)});
    batch.gate = [&closed] { return closed ? absl::AbortedError("an earlier batch failed") : absl::OkStatus(); };
    store_->Commit(std::move(batch), [&closed, &codes, i](absl::Status status) {
      codes[static_cast<size_t>(i)] = status.code();
      if (!status.ok()) closed = true;
    });
  }
  ASSERT_TRUE(Wait().ok());
  for (int i = 0; i < 40; ++i) {
    const StatusCode want = i < 20 ? StatusCode::kOk : i == 20 ? StatusCode::kAlreadyExists : StatusCode::kAborted;
    EXPECT_EQ(codes[static_cast<size_t>(i)], want) << i;
  }
  EXPECT_EQ(store_->ListVersions(uid_, 0, 100, -1)->size(), 21u);
}

TEST_P(StoreConformance, RevisionsKeepSuccessorsOfAFailedBatchOut) {
  std::vector<StatusCode> codes(10, StatusCode::kUnknown);
  SessionRow row = MakeSession(uid_, "ann", "s");
  ASSERT_TRUE(Do(InsertVersion{MakeVersion(uid_, 4)}).ok());
  for (int i = 0; i < 10; ++i) {
    row.revision = i + 1;
    store_->Commit(BatchOf(InsertVersion{MakeVersion(uid_, i)}, UpdateSession{row}),
                   [&codes, i](absl::Status status) { codes[static_cast<size_t>(i)] = status.code(); });
  }
  ASSERT_TRUE(Wait().ok());
  EXPECT_THAT(codes, ElementsAre(StatusCode::kOk, StatusCode::kOk, StatusCode::kOk, StatusCode::kOk,
                                 StatusCode::kAlreadyExists, StatusCode::kAborted, StatusCode::kAborted,
                                 StatusCode::kAborted, StatusCode::kAborted, StatusCode::kAborted));
  EXPECT_EQ(store_->GetSessionByUid(uid_)->revision, 4);
}

TEST_P(StoreConformance, EventsAreGaplessUnderThreads) {
  constexpr int kThreads = 16, kEach = 100;
  std::vector<std::thread> threads;
  std::atomic<int> refused{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const std::string user = t % 2 == 0 ? "ann" : "bob";
        Batch batch = BatchOf(AppendEvent{MakeEvent(user, std::to_string(t * kEach + i))},
                              InsertVersion{MakeVersion(uid_, t * kEach + i)});
        if (i % 10 == 9)
          batch.mutations.push_back(InsertVersion{MakeVersion(uid_, t * kEach + i)});  // a tenth fails after its event
        store_->Commit(std::move(batch), [&refused](absl::Status status) { refused += status.ok() ? 0 : 1; });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(Wait().ok());
  EXPECT_EQ(refused, kThreads * kEach / 10);
  for (const char* user : {"ann", "bob"}) {
    const auto events = store_->ListEvents(user, 0, -1);
    ASSERT_EQ(events->size(), static_cast<size_t>(kThreads * kEach / 10 * 9 / 2));
    std::vector<int> last(kThreads, -1);
    for (size_t i = 0; i < events->size(); ++i) {
      EXPECT_EQ((*events)[i].sequence, static_cast<int64_t>(i) + 1);
      const int value = std::stoi((*events)[i].resource);
      EXPECT_LT(last[static_cast<size_t>(value / kEach)], value) << "each thread's batches in its order";
      last[static_cast<size_t>(value / kEach)] = value;
    }
  }
}

TEST_P(StoreConformance, ReadersSeeWholeBatchesOnlyAndAcknowledgedOnesAlways) {
  std::atomic<int64_t> acknowledged{-1};
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int r = 0; r < 6; ++r) {  // more than there are connections
    readers.emplace_back([&] {
      while (!stop) {
        const int64_t before = acknowledged;
        EXPECT_TRUE(before < 0 || store_->GetVersion(uid_, before).ok());
        const auto nodes = store_->ListNodes(uid_, 0, -1);
        ASSERT_TRUE(nodes.ok()) << nodes.status();
        EXPECT_EQ(nodes->size() % 3, 0u);
        EXPECT_GE(static_cast<int64_t>(nodes->size()), 3 * (before + 1));
      }
    });
  }
  for (int64_t i = 0; i < 60; ++i) {
    ASSERT_TRUE(Do(InsertNodes{{{uid_, 3 * i, "a"}, {uid_, 3 * i + 1, "b"}}}, InsertNodes{{{uid_, 3 * i + 2, "c"}}},
                   InsertVersion{MakeVersion(uid_, i)})
                    .ok());
    acknowledged = i;
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

// ---- lists

TEST_P(StoreConformance, SessionsInPages) {
  std::vector<int64_t> uids = {uid_};
  for (int i = 1; i < 10; ++i) {
    uids.push_back(store_->NewSessionUid());
    SessionRow row = MakeSession(uids.back(), i % 3 == 0 ? "bob" : "ann", "s" + std::to_string(i));
    row.delete_ms = i == 4 ? 9 : 0;
    ASSERT_TRUE(Do(InsertSession{row}).ok());
  }
  const auto pages = [&](const std::string& user, bool deleted, int64_t limit) {
    std::vector<int64_t> seen;
    for (int64_t before = 0;;) {
      const auto rows = store_->ListSessions(user, deleted, before, limit);
      if (!rows.ok() || rows->empty()) return seen;
      for (const SessionRow& row : *rows) seen.push_back(row.uid);
      before = seen.back();
    }
  };
  std::vector<int64_t> all(uids.rbegin(), uids.rend());
  EXPECT_EQ(pages("", true, 3), all);
  EXPECT_THAT(pages("bob", false, 2), ElementsAre(uids[9], uids[6], uids[3]));
  EXPECT_THAT(pages("ann", false, 2), ElementsAre(uids[8], uids[7], uids[5], uids[2], uids[1], uids[0]));
  EXPECT_EQ(store_->ListSessions("", true, 0, 0)->size(), 0u);
  EXPECT_EQ(store_->ListSessions("", true, 0, -1)->size(), 10u);
}

TEST_P(StoreConformance, VersionsSnapshotsAndBlobs) {
  for (int i = 0; i < 10; ++i)
    ASSERT_TRUE(Do(InsertVersion{MakeVersion(uid_, i, i % 4 == 1 ? "blob" + std::to_string(i) : "")}).ok());
  ASSERT_TRUE(Do(PutObservation{{uid_, "gradient", 1, 1, "", "blob_o"}}, PutArtifact{{"ann", "blob_a", 1, "", "", 1}},
                 PutArtifact{{"bob", "blob_a", 1, "", "", 1}})
                  .ok());
  const auto rows = store_->ListVersions(uid_, 3, 8, 3);
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ(rows->front().number, 3);
  EXPECT_EQ(rows->front().parent, 2);
  EXPECT_EQ(rows->front().step, 3);
  EXPECT_EQ(rows->front().payload, "payload 3");
  EXPECT_EQ(rows->front().create_ms, 5003);
  EXPECT_EQ(store_->ListVersions(uid_, 3, 5, -1)->size(), 2u);
  EXPECT_EQ(store_->LatestSnapshot(uid_, 8)->number, 5);
  EXPECT_EQ(store_->LatestSnapshot(uid_, 5)->blob, "blob5");
  EXPECT_EQ(store_->LatestSnapshot(uid_, 0).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(*store_->LiveBlobs(), ElementsAre("blob1", "blob5", "blob9", "blob_a", "blob_o"));
  ASSERT_TRUE(Do(UpdateVersion{MakeVersion(uid_, 5)}, UpdateVersion{MakeVersion(uid_, 6, "blob6")}).ok());
  EXPECT_EQ(store_->LatestSnapshot(uid_, 8)->number, 6);
  EXPECT_THAT(*store_->LiveBlobs(), ElementsAre("blob1", "blob6", "blob9", "blob_a", "blob_o"));
}

TEST_P(StoreConformance, ObservationsByKindAndRange) {
  for (int64_t a : {3, 1, 2}) {
    for (int64_t b : {1, 0})
      ASSERT_TRUE(
          Do(PutObservation{{uid_, "probe", a, b, "p", ""}}, PutObservation{{uid_, "memory", a, b, "m", ""}}).ok());
  }
  ASSERT_TRUE(Do(PutObservation{{uid_, "probe", 2, 0, "again", ""}}).ok());
  const auto rows = store_->ListObservations(uid_, "probe", 1, 3);
  std::vector<std::pair<int64_t, int64_t>> keys;
  for (const ObservationRow& row : *rows) keys.emplace_back(row.a, row.b);
  EXPECT_THAT(keys, ElementsAre(std::pair(1, 0), std::pair(1, 1), std::pair(2, 0), std::pair(2, 1)));
  EXPECT_EQ(rows->at(2).payload, "again");
  ASSERT_TRUE(Do(DeleteObservations{uid_, "probe", 3}).ok());
  EXPECT_EQ(store_->ListObservations(uid_, "probe", 0, 100)->size(), 2u);
  EXPECT_EQ(store_->ListObservations(uid_, "memory", 0, 100)->size(), 6u);
}

TEST_P(StoreConformance, RequestsAndPruning) {
  EXPECT_EQ(store_->OldestRequestMs().status().code(), StatusCode::kNotFound);
  for (int i = 0; i < 10; ++i)
    ASSERT_TRUE(Do(InsertRequest{MakeRequest("ann", "Tell", "r" + std::to_string(i), 100 + i)}).ok());
  ASSERT_TRUE(
      Do(InsertRequest{MakeRequest("ann", "Ask", "r1", 200)}, InsertRequest{MakeRequest("bob", "Tell", "r1", 201)})
          .ok());
  EXPECT_EQ(store_->GetRequest("ann", "Tell", "r4")->response, "answer to r4");
  EXPECT_EQ(store_->GetRequest("ann", "Tell", "r4")->request_sha256, std::string(32, '\1'));
  EXPECT_EQ(*store_->OldestRequestMs(), 100);
  ASSERT_TRUE(Do(PruneRequests{105}).ok());
  EXPECT_EQ(*store_->OldestRequestMs(), 105);
  EXPECT_EQ(store_->GetRequest("ann", "Tell", "r4").status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(store_->GetRequest("ann", "Tell", "r5").ok());
  EXPECT_EQ(store_->GetRequest("bob", "Tell", "r1")->create_ms, 201);
  ASSERT_TRUE(Do(InsertRequest{MakeRequest("ann", "Tell", "r4", 300)}).ok());
  ASSERT_TRUE(Do(PruneRequests{1000}).ok());
  EXPECT_FALSE(store_->GetRequest("ann", "Tell", "r4").ok());
  EXPECT_FALSE(store_->GetRequest("ann", "Ask", "r1").ok());
}

TEST_P(StoreConformance, EventsPruneWithoutGaps) {
  EXPECT_EQ(*store_->FirstEventSequence("ann"), 1);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Do(AppendEvent{MakeEvent("ann", "x")}).ok());
  EXPECT_EQ(store_->ListEvents("ann", 2, 2)->front().sequence, 3);
  ASSERT_TRUE(Do(PruneEvents{"ann", 4}).ok());
  EXPECT_EQ(*store_->FirstEventSequence("ann"), 4);
  ASSERT_TRUE(Do(PruneEvents{"ann", 100}).ok());
  EXPECT_EQ(*store_->FirstEventSequence("ann"), 6);
  ASSERT_TRUE(Do(AppendEvent{MakeEvent("ann", "y")}).ok());
  EXPECT_EQ(store_->ListEvents("ann", 0, -1)->front().sequence, 6);
  EXPECT_EQ(*store_->LastEventSequence("bob"), 0);
}

TEST_P(StoreConformance, PurgeTakesWhatBelongsToTheSession) {
  const int64_t other = store_->NewSessionUid();
  ASSERT_TRUE(Do(InsertSession{MakeSession(other, "ann", "other")}, InsertVersion{MakeVersion(other, 0)},
                 InsertVersion{MakeVersion(uid_, 0, "b")}, PutObservation{{uid_, "k", 0, 0, "", ""}},
                 InsertNodes{{{uid_, 0, ""}}}, InsertRequest{MakeRequest("ann", "Tell", "r")})
                  .ok());
  ASSERT_TRUE(Do(PurgeSession{uid_}, PurgeSession{12345}).ok());
  EXPECT_FALSE(store_->GetSessionByUid(uid_).ok());
  EXPECT_FALSE(store_->GetVersion(uid_, 0).ok());
  EXPECT_TRUE(store_->ListObservations(uid_, "k", 0, 9)->empty());
  EXPECT_TRUE(store_->ListNodes(uid_, 0, 9)->empty());
  EXPECT_TRUE(store_->LiveBlobs()->empty());
  EXPECT_TRUE(store_->GetVersion(other, 0).ok());
  EXPECT_TRUE(store_->GetRequest("ann", "Tell", "r").ok());
  const int64_t again = store_->NewSessionUid();
  EXPECT_GT(again, other);
  EXPECT_TRUE(Do(InsertSession{MakeSession(again, "ann", "s")}).ok()) << "the name is free again";
}

// ---- life

TEST_P(StoreConformance, UidsAreDistinctAcrossThreads) {
  std::mutex mutex;
  std::vector<int64_t> uids;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      std::vector<int64_t> mine;
      for (int i = 0; i < 2000; ++i) mine.push_back(store_->NewSessionUid());
      std::lock_guard lock(mutex);
      uids.insert(uids.end(), mine.begin(), mine.end());
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::sort(uids.begin(), uids.end());
  EXPECT_EQ(std::adjacent_find(uids.begin(), uids.end()), uids.end());
  EXPECT_GT(uids.front(), uid_);
}

TEST_P(StoreConformance, CloseCommitsWhatIsQueuedAndIsIdempotent) {
  std::atomic<int> ok{0};
  for (int i = 0; i < 50; ++i)
    store_->Commit(BatchOf(InsertVersion{MakeVersion(uid_, i)}),
                   [&ok](absl::Status status) { ok += status.ok() ? 1 : 0; });
  EXPECT_TRUE(store_->Close().ok());
  EXPECT_EQ(ok, 50);
  EXPECT_TRUE(store_->Close().ok());
  EXPECT_EQ(Do(SetMeta{"a", "b"}).code(), StatusCode::kUnavailable);
}

TEST_P(StoreConformance, GateAlone) {
  Batch batch = BatchOf(SetMeta{"a", "b"});
  batch.gate = [] { return absl::CancelledError("closed"); };
  EXPECT_EQ(store_->CommitAndWait(std::move(batch)).code(), StatusCode::kCancelled);
  EXPECT_FALSE(store_->GetMeta("a").ok());
}

TEST_P(StoreConformance, BatchesOfOneCallerCommitInOrder) {
  for (int i = 0; i < 200; ++i) store_->Commit(BatchOf(SetMeta{"last", std::to_string(i)}), nullptr);
  ASSERT_TRUE(Wait().ok());
  EXPECT_EQ(*store_->GetMeta("last"), "199");
}

}  // namespace
}  // namespace optod::store
