#include "clients/cli/job_file.h"

#include <gtest/gtest.h>

namespace optod::cli {
namespace {

const char* Lookup(const char* name) {
  if (std::string(name) == "DATA") return "/data";
  return std::string(name) == "EMPTY" ? "" : nullptr;
}

struct Case {
  const char *name, *spec, *out, *error;
};
class JobPaths : public testing::TestWithParam<Case> {};
TEST_P(JobPaths, AreExpanded) {
  const auto made = ExpandJobPaths(GetParam().spec, &Lookup);
  EXPECT_EQ(made.value_or(""), GetParam().out);
  EXPECT_EQ(made.status().message(), GetParam().error);
}
INSTANTIATE_TEST_SUITE_P(
    Cases, JobPaths,
    testing::Values(
        Case{"all_places", R"({"model":"${DATA}/m","task":{"train":"${DATA}/a","dev":"/x/${DATA}${DATA}","test":"/t"}})",
             R"({"model":"/data/m","task":{"train":"/data/a","dev":"/x//data/data","test":"/t"}})", ""},
        Case{"order_and_other_fields_stay", R"({"steps":3,"task":{"prompt":"${DATA} {x}"},"model":"$DATA"})",
             R"({"steps":3,"task":{"prompt":"${DATA} {x}"},"model":"$DATA"})", ""},
        Case{"no_path", R"({"model":7,"task":"sst2"})", R"({"model":7,"task":"sst2"})", ""},
        Case{"unset", R"({"model":"${MODEL}"})", "", "model: MODEL is not set"},
        Case{"empty", R"({"task":{"dev":"${EMPTY}/d"}})", "", "task.dev: EMPTY is not set"},
        Case{"open", R"({"task":{"train":"/a/${DATA"}})", "", "task.train: \"${\" without \"}\""}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace optod::cli
