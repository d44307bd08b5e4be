// The memory of a run is what its plan says: under a hard limit, over many steps, for any number of units. Each run is a
// process of its own.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "tier_testing.h"

namespace optod::tier {
namespace {

constexpr int64_t kMiB = 1 << 20;

/// A field of /proc/self/status in bytes.
int64_t Status(const std::string& field) {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return -1;
}

struct Measured {
  int code = 1;           ///< 0 = the run ended well
  int64_t plan = 0;       ///< bytes that the plan allows
  int64_t first = 0;      ///< anonymous resident bytes beyond the start's, after the tenth of the steps
  int64_t last = 0, most = 0;  ///< at the end; the most of all steps
};

Measured Run(const MlpShape& shape, int64_t device_budget, uint32_t steps, bool limit) {
  Measured measured;
  const MlpModel model(shape);
  TempFolder folder(/*on_disk=*/true);
  TierCase c{.name = "", .request = {.device_budget = device_budget, .host_budget = 0, .disk = true}, .hyper = {.lr = 1e-4}};
  const absl::StatusOr<Plan> plan = PlanOf(c, model);
  if (!plan.ok()) return measured;
  measured.plan = static_cast<int64_t>(plan->device_peak + plan->host_peak);
  pthread_attr_t attributes;  // stacks count as data: small ones, so that the limit is on what is measured
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  pthread_setattr_default_np(&attributes);
  if (limit) {
    const auto most = static_cast<rlim_t>(Status("VmData") + measured.plan + 64 * kMiB);
    const rlimit rule{most, most};
    if (setrlimit(RLIMIT_DATA, &rule) != 0) return measured;
  }
  const int64_t base = Status("RssAnon");
  const InitialValues initial = [&](size_t unit, std::span<float> slot) -> absl::StatusOr<Progress> {
    zo::FillNormal({3, 0, 0}, static_cast<uint32_t>(unit), 0, slot);
    for (float& x : slot) x *= 0.01f;
    return Progress{};
  };
  auto run = StartRun(c, model, folder.File("units"), {}, initial);
  if (!run.ok()) return std::fprintf(stderr, "%s\n", run.status().ToString().c_str()), measured;
  for (uint32_t step = 0; step < steps; ++step) {
    MlpCompute compute(model, step, 1);
    const auto losses = run->pipeline->Step(1e-4, compute);
    if (!losses.ok()) return std::fprintf(stderr, "%s\n", losses.status().ToString().c_str()), measured;
    measured.last = Status("RssAnon") - base;
    measured.most = std::max(measured.most, measured.last);
    if (step == steps / 10) measured.first = measured.last;
  }
  measured.code = 0;
  return measured;
}

/// Run in a process of its own.
Measured RunApart(const MlpShape& shape, int64_t device_budget, uint32_t steps, bool limit) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    const Measured measured = Run(shape, device_budget, steps, limit);
    _exit(write(ends[1], &measured, sizeof measured) == sizeof measured ? 0 : 1);
  }
  close(ends[1]);
  Measured measured;
  EXPECT_EQ(read(ends[0], &measured, sizeof measured), static_cast<ssize_t>(sizeof measured));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  return measured;
}

#if defined(__SANITIZE_ADDRESS__) || defined(OPTOD_THREAD_SANITIZER)
#define SKIP_IF_SANITIZED() GTEST_SKIP() << "sanitizers keep memory of their own"
#else
#define SKIP_IF_SANITIZED() (void)0
#endif

/// 160 MiB of parameters, 16 MiB of budget, and no more than that and 64 MiB to be had.
TEST(Memory, AHardLimitIsEnough) {
  SKIP_IF_SANITIZED();
  const Measured m = RunApart({.vocab = 64, .hidden = 256, .inner = 1024, .layers = 80, .piece_rows = 64}, 16 * kMiB, 3, true);
  ASSERT_EQ(m.code, 0);
  EXPECT_LE(m.plan, 16 * kMiB);
  EXPECT_LE(m.most, m.plan + 8 * kMiB);
}

TEST(Memory, IsConstantOverSteps) {
  SKIP_IF_SANITIZED();
  const Measured m = RunApart({.vocab = 64, .hidden = 64, .inner = 128, .layers = 8, .piece_rows = 32}, -1, 200, false);
  ASSERT_EQ(m.code, 0);
  EXPECT_LE(m.last, m.first + kMiB / 2);
}

TEST(Memory, DoesNotDependOnTheNumberOfUnits) {
  SKIP_IF_SANITIZED();
  int64_t most[2], plan[2];
  for (const int many : {0, 1}) {
    const Measured m = RunApart({.vocab = 64, .hidden = 128, .inner = 512, .layers = many ? 64 : 8, .piece_rows = 64}, -1, 4, false);
    ASSERT_EQ(m.code, 0);
    most[many] = m.most;
    plan[many] = m.plan;
  }
  EXPECT_EQ(plan[0], plan[1]);
  EXPECT_LE(most[1], most[0] + kMiB);
}

}  // namespace
}  // namespace optod::tier
