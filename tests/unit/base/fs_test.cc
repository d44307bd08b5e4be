#include "base/fs.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#include "base/errno_status.h"
#include "base/posix_io.h"
#include "base/random_id.h"
#include "gtest/gtest.h"

namespace optod {
namespace {

class FsTest : public testing::Test {
 protected:
  FsTest() : dir_(testing::TempDir() + "/optod-fs-" + RandomId()) { EXPECT_TRUE(fs_.CreateDirectories(dir_).ok()); }
  ~FsTest() override { std::filesystem::remove_all(dir_); }
  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  std::vector<std::string> Names() { return *fs_.ListDirectory(dir_); }

  Fs& fs_ = PosixFs();
  const std::string dir_;
};

/// Makes writes beyond `bytes` fail as they do on a full disk (EFBIG in place of ENOSPC; both mean "no room").
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  sighandler_t handler_;
};

TEST_F(FsTest, WritesReadsAndReplaces) {
  const std::string binary("a\0b\n", 4);
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("f"), BytesOf("old and longer")).ok());
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("f"), BytesOf(binary), 0600).ok());
  EXPECT_EQ(*fs_.ReadFile(Path("f")), binary);
  EXPECT_EQ(*fs_.FileSize(Path("f")), 4);
  EXPECT_EQ(*fs_.FileMode(Path("f")), 0600);
  EXPECT_EQ(Names(), std::vector<std::string>{"f"}) << "no temporary is left";
}

TEST_F(FsTest, FullDiskLeavesTheOldFileAndNoTemporary) {
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("f"), BytesOf("old")).ok());
  {
    const FileSizeLimit limit(1'000);
    const auto status = fs_.WriteFileAtomic(Path("f"), BytesOf(std::string(5'000, 'x')));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  }
  EXPECT_EQ(*fs_.ReadFile(Path("f")), "old");
  EXPECT_EQ(Names(), std::vector<std::string>{"f"});
}

TEST_F(FsTest, FailedAppendIsCutOffAgain) {
  ASSERT_TRUE(fs_.AppendFile(Path("log"), BytesOf("one\n")).ok());
  {
    const FileSizeLimit limit(1'000);
    EXPECT_EQ(fs_.AppendFile(Path("log"), BytesOf(std::string(5'000, 'x'))).code(),
              absl::StatusCode::kResourceExhausted);
  }
  ASSERT_TRUE(fs_.AppendFile(Path("log"), BytesOf("two\n")).ok());
  EXPECT_EQ(*fs_.ReadFile(Path("log")), "one\ntwo\n");
}

TEST_F(FsTest, BaseAppendEqualsTheFastOne) {
  ASSERT_TRUE(fs_.Fs::AppendFile(Path("log"), BytesOf("one")).ok());
  ASSERT_TRUE(fs_.Fs::AppendFile(Path("log"), BytesOf("two")).ok());
  EXPECT_EQ(*fs_.ReadFile(Path("log")), "onetwo");
}

TEST_F(FsTest, ReadsARangeAndBaseReadRangeAgrees) {
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("a"), BytesOf("0123456789")).ok());
  for (const bool base : {false, true}) {
    std::string out(4, ' ');
    const auto read = [&](const std::string& path, int64_t offset) {
      const auto bytes = std::as_writable_bytes(std::span(out));
      return base ? fs_.Fs::ReadRange(path, offset, bytes) : fs_.ReadRange(path, offset, bytes);
    };
    EXPECT_TRUE(read(Path("a"), 3).ok());
    EXPECT_EQ(out, "3456");
    EXPECT_EQ(read(Path("a"), 7).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(read(Path("b"), 0).code(), absl::StatusCode::kNotFound);
  }
}

TEST_F(FsTest, DirectoriesAreMadeListedAndRemoved) {
  ASSERT_TRUE(fs_.CreateDirectories(Path("a/b//c/")).ok());
  ASSERT_TRUE(fs_.CreateDirectories(Path("a/b")).ok()) << "again is fine";
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("a/z"), {}).ok());
  EXPECT_EQ(*fs_.ListDirectory(Path("a")), (std::vector<std::string>{"b", "z"}));
  EXPECT_TRUE(fs_.Exists(Path("a/b/c")));
  EXPECT_EQ(fs_.Remove(Path("a")).code(), absl::StatusCode::kFailedPrecondition) << "not empty";
  EXPECT_TRUE(fs_.Remove(Path("a/z")).ok());
  EXPECT_FALSE(fs_.Exists(Path("a/z")));
}

TEST_F(FsTest, ErrorsHaveCodesAndNoPath) {
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("file"), {}).ok());
  const std::pair<absl::Status, absl::StatusCode> kCases[] = {
      {fs_.ReadFile(Path("none")).status(), absl::StatusCode::kNotFound},
      {fs_.FileSize(Path("none")).status(), absl::StatusCode::kNotFound},
      {fs_.FileMode(Path("none")).status(), absl::StatusCode::kNotFound},
      {fs_.Remove(Path("none")), absl::StatusCode::kNotFound},
      {fs_.ListDirectory(Path("none")).status(), absl::StatusCode::kNotFound},
      {fs_.WriteFileAtomic(Path("none/f"), {}), absl::StatusCode::kNotFound},
      {fs_.AppendFile(Path("none/f"), {}), absl::StatusCode::kNotFound},
      {fs_.ReadFile(dir_).status(), absl::StatusCode::kInvalidArgument},
      {fs_.CreateDirectories(Path("file/d")), absl::StatusCode::kInvalidArgument},
      {fs_.CreateDirectories(""), absl::StatusCode::kInvalidArgument},
      {fs_.CreateDirectories(Path(std::string(300, 'x'))), absl::StatusCode::kInvalidArgument}};
  for (const auto& [status, code] : kCases) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(std::string(status.message()).find(dir_), std::string::npos) << status;
  }
}

TEST_F(FsTest, ReadersSeeOldOrNewNeverAMix) {
  const std::string a(10'000, 'a'), b(10'000, 'b');
  ASSERT_TRUE(fs_.WriteFileAtomic(Path("f"), BytesOf(a)).ok());
  std::thread writer([&] {
    for (int i = 0; i < 40; ++i) EXPECT_TRUE(fs_.WriteFileAtomic(Path("f"), BytesOf(i % 2 ? a : b)).ok());
  });
  for (int i = 0; i < 400; ++i) {
    const std::string seen = *fs_.ReadFile(Path("f"));
    ASSERT_TRUE(seen == a || seen == b);
  }
  writer.join();
}

TEST(PosixIo, AFullDeviceIsResourceExhausted) {
  UniqueFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full.ok());
  const auto status = WriteAll(full.get(), BytesOf("x"), "write session.db");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()), "write session.db: No space left on device");
}

TEST(ErrnoStatus, Table) {
  const std::pair<int, absl::StatusCode> kCases[] = {{ENOENT, absl::StatusCode::kNotFound},
                                                     {EACCES, absl::StatusCode::kPermissionDenied},
                                                     {ENOSPC, absl::StatusCode::kResourceExhausted},
                                                     {EDQUOT, absl::StatusCode::kResourceExhausted},
                                                     {EMFILE, absl::StatusCode::kResourceExhausted},
                                                     {EEXIST, absl::StatusCode::kAlreadyExists},
                                                     {ENAMETOOLONG, absl::StatusCode::kInvalidArgument},
                                                     {EIO, absl::StatusCode::kDataLoss},
                                                     {EPROTO, absl::StatusCode::kInternal}};
  for (const auto& [error, code] : kCases) EXPECT_EQ(ErrnoStatus(error, "w").code(), code) << error;
}

}  // namespace
}  // namespace optod
