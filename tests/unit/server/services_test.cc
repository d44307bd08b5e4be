/// The small parts of the services: error mapping, page tokens, the byte budget, backups.
#include <gmock/gmock.h>
#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/clock.h"
#include "base/reason.h"
#include "server/services/backup.h"
#include "server/services/byte_budget.h"
#include "server/services/pages.h"
#include "server/services/status.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"

namespace optod::services {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

TEST(Status, EveryCodeKeepsItsNumberAndText) {
  for (int code = 1; code <= 16; ++code) {
    grpc::Status status = ToGrpc(absl::Status(static_cast<absl::StatusCode>(code), "field: why"), nullptr);
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "field: why");
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus(), nullptr).ok());
}

struct MetadataCase {
  const char* name;
  absl::Status status;
  std::map<std::string, std::string> want;
};

const MetadataCase kMetadataCases[] = {
    {"ok", absl::OkStatus(), {}},
    {"code_is_the_reason", absl::NotFoundError("x"), {{"optod-reason", "NOT_FOUND"}}},
    {"own_reason", WithReason(absl::AbortedError("x"), "REQUEST_ID_REUSED"), {{"optod-reason", "REQUEST_ID_REUSED"}}},
    {"field_from_message",
     absl::InvalidArgumentError("layout.tensors[3].dtype: F99 is unknown"),
     {{"optod-reason", "INVALID_ARGUMENT"}, {"optod-field", "layout.tensors[3].dtype"}}},
    {"sentence_is_no_field",
     absl::InvalidArgumentError("No such thing: sorry"),
     {{"optod-reason", "INVALID_ARGUMENT"}}},
    {"field_only_of_bad_input", absl::NotFoundError("name: no user x"), {{"optod-reason", "NOT_FOUND"}}},
    {"own_field",
     WithField(absl::NotFoundError("x"), "name"),
     {{"optod-reason", "NOT_FOUND"}, {"optod-field", "name"}}},
    {"unavailable_comes_back",
     absl::UnavailableError("x"),
     {{"optod-reason", "UNAVAILABLE"}, {"retry-after-ms", "1000"}}},
    {"exhausted_says_when",
     WithRetryAfterMs(absl::ResourceExhaustedError("x"), 250),
     {{"optod-reason", "RESOURCE_EXHAUSTED"}, {"retry-after-ms", "250"}}},
    {"exhausted_for_good", absl::ResourceExhaustedError("budget"), {{"optod-reason", "RESOURCE_EXHAUSTED"}}},
    {"not_printable", WithReason(absl::InternalError("x"), "A\nB\xC3\xA9"), {{"optod-reason", "A?B??"}}},
};

class Metadata : public ::testing::TestWithParam<MetadataCase> {};
TEST_P(Metadata, IsWhatProgramsNeed) { EXPECT_EQ(ErrorMetadata(GetParam().status), GetParam().want); }
INSTANTIATE_TEST_SUITE_P(All, Metadata, ::testing::ValuesIn(kMetadataCases),
                         [](const auto& info) { return info.param.name; });

TEST(Status, LongMessagesAreCutBetweenCharacters) {
  std::string text = "x";  // odd, so that the cut falls into a two-byte character
  for (int i = 0; i < 5000; ++i) text += "\xC3\xA9";
  std::string cut = ToGrpc(absl::InternalError(text), nullptr).error_message();
  EXPECT_LE(cut.size(), 2003u);
  EXPECT_EQ(cut.substr(cut.size() - 5), "\xC3\xA9...");
}

TEST(Pages, TokensBelongToTheirList) {
  PageStart start{42, "abc~def"};
  std::string token = MakePageToken("artifacts/ann", start);
  auto parsed = ParsePageToken("artifacts/ann", token);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->number, 42);
  EXPECT_EQ(parsed->text, "abc~def");
  EXPECT_EQ(ParsePageToken("x", "")->number, 0);
  std::string changed = token;
  changed[17] = '3';
  for (const std::string& bad : {changed, std::string("42"), token.substr(1), std::string(40, '0')}) {
    EXPECT_THAT(std::string(ParsePageToken("artifacts/ann", bad).status().message()), HasSubstr("page_token:")) << bad;
  }
  EXPECT_FALSE(ParsePageToken("artifacts/bob", token).ok());
}

TEST(Pages, Sizes) {
  EXPECT_EQ(*PageSize(0), 100);
  EXPECT_EQ(*PageSize(7), 7);
  EXPECT_EQ(*PageSize(5000), 1000);
  EXPECT_FALSE(PageSize(-1).ok());
}

TEST(ByteBudget, SharesComeBack) {
  ByteBudget budget(100);
  {
    ByteBudget::Share first = budget.Take(60);
    EXPECT_TRUE(static_cast<bool>(first));
    EXPECT_FALSE(static_cast<bool>(budget.Take(41)));
    ByteBudget::Share moved = std::move(first);
    EXPECT_TRUE(static_cast<bool>(budget.Take(40)));
    EXPECT_EQ(budget.used_bytes(), 60);
    EXPECT_EQ(budget.shares(), 1);
    moved = budget.Take(0);
    EXPECT_EQ(budget.used_bytes(), 0) << "assigning gives the old share back";
  }
  EXPECT_EQ(budget.shares(), 0);
  EXPECT_FALSE(static_cast<bool>(budget.Take(-1)));
}

class BackupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "optod-backup-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    store_ = Open(dir_ + "/optod.db");
    blobs_ = store::MakeFileBlobStore(PosixFs(), dir_ + "/blobs");
    queue_ = std::make_unique<jobs::JobQueue>(jobs::QueueOptions{}, jobs::JobFiles(PosixFs(), dir_ + "/jobs"),
                                              *launcher_, clock_);
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(dir_);
  }
  static std::unique_ptr<store::Store> Open(const std::string& path) {
    store::SqliteOptions options;
    options.path = path;
    options.measure_ms = 0;
    auto opened = store::OpenSqliteStore(options);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }
  std::string AddArtifact(const std::string& text) {
    std::string sha256 = *blobs_->Put(BytesOf(text));
    EXPECT_TRUE(store_->CommitAndWait({{store::PutArtifact{{"ann", sha256, 4, "n", "m", 1}}}, nullptr}).ok());
    return sha256;
  }

  absl::StatusOr<BackupOutcome> Backup(const std::string& name) {
    return BackupInto(dir_ + name, *store_, *blobs_, *queue_, PosixFs());
  }

  std::string dir_;
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<store::BlobStore> blobs_;
  FakeClock clock_;
  std::unique_ptr<jobs::Launcher> launcher_ = jobs::MakeLocalLauncher();
  std::unique_ptr<jobs::JobQueue> queue_;
};

TEST_F(BackupTest, OpensAsAServerWouldAndHoldsWhatItsRowsPointTo) {
  std::string live = AddArtifact("live bytes");
  std::string orphan = *blobs_->Put(BytesOf("nobody points here"));
  std::filesystem::create_directories(dir_ + "/jobs/ann/tune/work");
  for (const char* file : {"job.pb", "work/replay.log"})
    ASSERT_TRUE(PosixFs().WriteFileAtomic(dir_ + "/jobs/ann/tune/" + file, BytesOf(file)).ok());
  auto outcome = Backup("/b");
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->blobs, 1);
  EXPECT_EQ(outcome->jobs, 1);
  EXPECT_EQ(PosixFs().ReadFile(dir_ + "/b/jobs/ann/tune/work/replay.log").value_or(""), "work/replay.log");
  auto copy = Open(dir_ + "/b/optod.db");
  auto copied_blobs = store::MakeFileBlobStore(PosixFs(), dir_ + "/b/blobs");
  EXPECT_TRUE(copy->GetArtifact("ann", live).ok());
  EXPECT_EQ(*copied_blobs->Get(live), "live bytes");
  EXPECT_FALSE(copied_blobs->Has(orphan));
  EXPECT_TRUE(PosixFs().Exists(dir_ + "/b/COMPLETE"));
}

TEST_F(BackupTest, NeverOverwritesAndNeverClaimsToBeComplete) {
  std::string sha256 = AddArtifact("live bytes");
  ASSERT_TRUE(Backup("/b").ok());
  EXPECT_EQ(Backup("/b").status().code(), absl::StatusCode::kAlreadyExists);
  std::filesystem::remove(dir_ + "/blobs/" + sha256.substr(0, 2) + "/" + sha256);
  EXPECT_FALSE(Backup("/c").ok());
  EXPECT_FALSE(PosixFs().Exists(dir_ + "/c/COMPLETE"));
}

}  // namespace
}  // namespace optod::services
