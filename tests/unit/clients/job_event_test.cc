#include "clients/cli/job_event.h"

#include <gtest/gtest.h>

#include <map>

namespace optod::cli {
namespace {

struct Case {
  const char* name;
  std::map<std::string, double> metrics;
  const char* text;
};
class JobEvents : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Cases, JobEvents,
    testing::Values(Case{"bare", {}, "step 12  running  40 %"},
                    Case{"resident", {{"loss", 0.69314718}, {"seconds_per_step", 1.25}, {"lr", 1e-6}}, "step 12  running  40 %  loss 0.6931  1.25 s/step"},
                    Case{"tiers",
                         {{"loss", 2}, {"tier/overlap", 0.98125}, {"tier/read_bytes", 410649395}, {"tier/written_bytes", 1024}, {"tier/plan_bytes", 7}},
                         "step 12  running  40 %  loss 2  overlap 0.9812  read 391.6 MiB  written 1.0 KiB"}),
    [](const auto& info) { return info.param.name; });

TEST_P(JobEvents, AreOneLine) {
  v1::JobEvent event;
  event.set_step(12);
  event.mutable_job()->set_state(v1::Job::RUNNING);
  event.mutable_job()->set_progress(0.405);
  for (const auto& [name, value] : GetParam().metrics) (*event.mutable_metrics())[name] = value;
  EXPECT_EQ(EventText(event), GetParam().text);
}

}  // namespace
}  // namespace optod::cli
