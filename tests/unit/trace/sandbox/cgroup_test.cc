// Control groups of both versions over folders that look like theirs: the kernel's files are plain files here.
#include "trace/sandbox/cgroup.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace optod::trace {
namespace {

namespace fs = std::filesystem;

class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/optod-cgroup-XXXXXX";
    root_ = mkdtemp(name);
  }
  void TearDown() override { fs::remove_all(root_); }
  std::string root_;
};

TEST_F(CgroupTest, NoneWhereTheKernelHasNone) {
  const CgroupParents found = FindCgroupParents("", root_);
  EXPECT_EQ(found.version, 0);
  EXPECT_EQ(found.why, "no control groups with memory and pids");
}

TEST_F(CgroupTest, Version2WithoutControllersInTheSubtree) {
  std::ofstream(root_ + "/cgroup.controllers") << "memory pids";
  fs::create_directories(root_ + "/user.slice");
  // A folder made here has no memory.max, as in the kernel when subtree_control does not hand the controllers down.
  const CgroupParents found = FindCgroupParents("0::/user.slice\n", root_);
  EXPECT_EQ(found.version, 0);
  EXPECT_NE(found.why.find("no right to make"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(root_ + "/user.slice"));  // the probe is gone
}

TEST_F(CgroupTest, ALimitThatCannotBeWrittenIsAnErrorAndLeavesNothing) {
  const CgroupParents parents{2, {root_}, ""};  // its new folder holds no memory.max
  auto group = Cgroup::Make(parents, {1 << 20, 10});
  EXPECT_EQ(group.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(CgroupTest, RealOnesWhereThisMachineLetsUs) {
  std::stringstream self;
  self << std::ifstream("/proc/self/cgroup").rdbuf();
  const CgroupParents found = FindCgroupParents(self.str(), "/sys/fs/cgroup");
  if (found.version == 0) GTEST_SKIP() << found.why;
  std::string folder;
  {
    auto group = Cgroup::Make(found, {64 << 20, 7});
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_FALSE((*group)->OutOfMemory());
    ASSERT_EQ((*group)->entrances().size(), found.folders.size());
    folder = fs::path((*group)->entrances().back()).parent_path();
    std::string most;
    std::ifstream(folder + "/pids.max") >> most;
    EXPECT_EQ(most, "7");
  }
  EXPECT_FALSE(fs::exists(folder));
}

}  // namespace
}  // namespace optod::trace
