// Blob stores: one suite for both, then what files add (damage, a full disk, leftovers).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "server/store/blob_store.h"
#include "store_test_util.h"

namespace optod::store {
namespace {

using absl::StatusCode;
constexpr char kAbc[] =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";  // SHA-256("abc"), FIPS 180-4

std::span<const std::byte> BytesOf(const std::string& text) { return std::as_bytes(std::span(text)); }

class BlobConformance : public testing::TestWithParam<bool> {
 protected:
  BlobConformance()
      : blobs_(GetParam() ? MakeFileBlobStore(PosixFs(), folder_.File("blobs"), clock_) : MakeMemoryBlobStore(clock_)) {
  }
  TempFolder folder_;
  FakeClock clock_;
  std::unique_ptr<BlobStore> blobs_;
};

INSTANTIATE_TEST_SUITE_P(All, BlobConformance, testing::Bool(),
                         [](const auto& info) { return info.param ? "file" : "memory"; });

TEST_P(BlobConformance, PutGetSize) {
  EXPECT_EQ(*blobs_->Put(BytesOf("abc")), kAbc);
  EXPECT_EQ(*blobs_->Put(BytesOf("abc")), kAbc);
  EXPECT_EQ(*blobs_->Get(kAbc), "abc");
  EXPECT_EQ(*blobs_->Size(kAbc), 3);
  EXPECT_TRUE(blobs_->Has(kAbc));
  EXPECT_EQ(blobs_->BytesStored(), 3);
  const auto empty = blobs_->Put({});
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_EQ(*blobs_->Get(*empty), "");
  EXPECT_EQ(blobs_->BytesStored(), 3);
}

TEST_P(BlobConformance, PieceByPieceIsTheSameBlob) {
  const std::vector<std::vector<std::string>> ways = {{"abc"}, {"a", "b", "c"}, {"", "ab", "", "c"}};
  for (const auto& pieces : ways) {
    auto writer = blobs_->Begin();
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const std::string& piece : pieces) ASSERT_TRUE((*writer)->Append(BytesOf(piece)).ok());
    EXPECT_FALSE(pieces.size() == 1 && blobs_->Has(kAbc)) << "before Finish there is nothing";
    EXPECT_EQ(*(*writer)->Finish(), kAbc);
    EXPECT_EQ(*blobs_->Get(kAbc), "abc");
    EXPECT_EQ(blobs_->BytesStored(), 3);
  }
  const std::string long_text(40 << 20, 'x');  // beyond every buffer and write-back step on the way
  auto writer = blobs_->Begin();
  for (size_t at = 0; at < long_text.size(); at += 3'000'000)
    ASSERT_TRUE((*writer)->Append(BytesOf(long_text.substr(at, 3'000'000))).ok());
  const std::string name = *(*writer)->Finish();
  EXPECT_EQ(*blobs_->Get(name), long_text);
}

TEST_P(BlobConformance, AWriterThatIsDroppedLeavesNothing) {
  {
    auto writer = blobs_->Begin();
    ASSERT_TRUE((*writer)->Append(BytesOf("abc")).ok());
    EXPECT_EQ(*blobs_->Sweep({}, 1000, clock_.NowUnixMs()), 0) << "what is being written is no leftover";
    ASSERT_TRUE((*writer)->Append(BytesOf("d")).ok());
  }
  EXPECT_EQ(*blobs_->Sweep({}, 1000, clock_.NowUnixMs()), 0) << "nothing is left to sweep";
  EXPECT_FALSE(blobs_->Has(kAbc));
  EXPECT_EQ(blobs_->BytesStored(), 0);
}

TEST_P(BlobConformance, WrongNames) {
  const std::string absent(64, 'a');
  EXPECT_EQ(blobs_->Get(absent).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(blobs_->Size(absent).status().code(), StatusCode::kNotFound);
  for (const std::string& name :
       {std::string("../../etc/passwd"), std::string(), std::string(64, 'A'), std::string(63, 'a')}) {
    EXPECT_EQ(blobs_->Get(name).status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(blobs_->Size(name).status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_FALSE(blobs_->Has(name));
  }
}

TEST_P(BlobConformance, SweepKeepsTheLiveAndTheYoung) {
  const std::string live = *blobs_->Put(BytesOf("live")), dead = *blobs_->Put(BytesOf("dead")),
                    again = *blobs_->Put(BytesOf("again"));
  clock_.Advance(std::chrono::seconds(100));
  const std::string young = *blobs_->Put(BytesOf("young"));
  ASSERT_EQ(*blobs_->Put(BytesOf("again")), again);  // a row for it is on the way
  EXPECT_EQ(*blobs_->Sweep({live}, 50'000, clock_.NowUnixMs()), 4);
  EXPECT_TRUE(blobs_->Has(live));
  EXPECT_FALSE(blobs_->Has(dead));
  EXPECT_TRUE(blobs_->Has(young));
  EXPECT_TRUE(blobs_->Has(again));
  EXPECT_EQ(blobs_->BytesStored(), 14);
  clock_.Advance(std::chrono::seconds(100));
  EXPECT_EQ(*blobs_->Sweep({}, 50'000, clock_.NowUnixMs()), 14);
  EXPECT_EQ(blobs_->BytesStored(), 0);
}

TEST_P(BlobConformance, PutsAndSweepsAtOnceLoseNothing) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const std::string data = "blob " + std::to_string(t % 2) + " " + std::to_string(i);
        const auto name = blobs_->Put(BytesOf(data));
        ASSERT_TRUE(name.ok()) << name.status();
        ASSERT_EQ(*blobs_->Get(*name), data);
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(blobs_->Sweep({}, 1000, clock_.NowUnixMs()).value_or(-1), 0);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(blobs_->BytesStored(), 2 * (10 * 8 + 10 * 9));
}

TEST(FileBlobStore, DamageIsDataLoss) {
  TempFolder folder;
  auto blobs = MakeFileBlobStore(PosixFs(), folder.path());
  ASSERT_EQ(*blobs->Put(BytesOf("abc")), kAbc);
  std::ofstream(folder.File(std::string("ba/") + kAbc)) << "abd";
  EXPECT_EQ(blobs->Get(kAbc).status().code(), StatusCode::kDataLoss);
}

TEST(FileBlobStore, AnotherProcessFindsThemAndSweepsLeftovers) {
  TempFolder folder;
  FakeClock clock;
  ASSERT_EQ(*MakeFileBlobStore(PosixFs(), folder.path(), clock)->Put(BytesOf("abc")), kAbc);
  std::ofstream(folder.File(std::string("ba/") + kAbc + ".tmp-1")) << "half";
  auto blobs = MakeFileBlobStore(PosixFs(), folder.path(), clock);
  EXPECT_EQ(blobs->BytesStored(), 3);
  EXPECT_EQ(*blobs->Sweep({kAbc}, 1000, clock.NowUnixMs()), 4);
  EXPECT_TRUE(blobs->Has(kAbc));
  EXPECT_EQ(*blobs->Sweep({}, 1000, clock.NowUnixMs()), 3) << "put by an earlier process: old";
}

/// The real file system, whose writes fail with a given status.
class FailingFs final : public Fs {
 public:
  absl::Status write_status;
  absl::StatusOr<std::string> ReadFile(const std::string& path) override { return PosixFs().ReadFile(path); }
  absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode) override {
    return write_status.ok() ? PosixFs().WriteFileAtomic(path, data, mode) : write_status;
  }
  absl::Status CreateDirectories(const std::string& path, int mode) override {
    return PosixFs().CreateDirectories(path, mode);
  }
  absl::Status Remove(const std::string& path) override { return PosixFs().Remove(path); }
  bool Exists(const std::string& path) override { return PosixFs().Exists(path); }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override { return PosixFs().FileSize(path); }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    return PosixFs().ListDirectory(path);
  }
};

TEST(FileBlobStore, AFullDiskLeavesNothingAndPasses) {
  TempFolder folder;
  FailingFs fs;
  auto blobs = MakeFileBlobStore(fs, folder.path());
  for (const absl::Status& status : {absl::ResourceExhaustedError("full"), absl::DataLossError("fsync")}) {
    fs.write_status = status;
    EXPECT_EQ(blobs->Put(BytesOf("abc")).status().code(), status.code());
    auto writer = blobs->Begin();
    ASSERT_TRUE((*writer)->Append(BytesOf("abc")).ok());
    EXPECT_EQ((*writer)->Finish().status().code(), status.code());
    EXPECT_FALSE(blobs->Has(kAbc));
    EXPECT_EQ(blobs->BytesStored(), 0);
  }
  fs.write_status = absl::OkStatus();
  EXPECT_TRUE(blobs->Put(BytesOf("abc")).ok());
  EXPECT_EQ(blobs->BytesStored(), 3);
}

}  // namespace
}  // namespace optod::store
