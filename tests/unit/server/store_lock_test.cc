#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "server/store/directory_lock.h"
#include "store_test_util.h"

namespace optod::store {
namespace {

using testing::HasSubstr;

TEST(DirectoryLock, SecondHolderIsToldWhoTheFirstIs) {
  TempFolder folder;
  auto first = DirectoryLock::Acquire(folder.path());
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = DirectoryLock::Acquire(folder.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("pid " + std::to_string(getpid())));
  ASSERT_TRUE((*first)->SetAddress("127.0.0.1:7070").ok());
  second = DirectoryLock::Acquire(folder.path());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("pid " + std::to_string(getpid()) + " (127.0.0.1:7070)"));
  first->reset();
  EXPECT_TRUE(DirectoryLock::Acquire(folder.path()).ok());
}

TEST(DirectoryLock, AbsentDirectoryIsRefused) {
  EXPECT_EQ(DirectoryLock::Acquire("/proc/absent").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(DirectoryLock, TheKernelReleasesItWhenTheHolderIsKilled) {
  TempFolder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto lock = DirectoryLock::Acquire(folder.path());
    const char byte = lock.ok() ? 'y' : 'n';
    if (write(ready[1], &byte, 1) == 1) pause();
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  EXPECT_THAT(std::string(DirectoryLock::Acquire(folder.path()).status().message()),
              HasSubstr("pid " + std::to_string(child)));
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(DirectoryLock::Acquire(folder.path()).ok());
  close(ready[0]);
  close(ready[1]);
}

}  // namespace
}  // namespace optod::store
