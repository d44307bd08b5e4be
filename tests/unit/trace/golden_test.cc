// Every golden file of traces and replies, through the library.
#include <gtest/gtest.h>

#include "golden_replay/trace_compare.h"
#include "golden_replay/trace_replay.h"

namespace optod {
namespace {

TEST(TraceGolden, EveryFileAgrees) {
  const std::vector<CaseResult> results = ReplayTraceGolden(OPTOD_GOLDEN_DIR "/trace");
  EXPECT_GE(results.size(), 9u);
  for (const CaseResult& r : results) EXPECT_TRUE(r.passed) << r.name << ": " << r.first_difference;
}

TEST(TraceGolden, MissingFolderIsOneFailure) {
  const std::vector<CaseResult> results = ReplayTraceGolden("no-such-folder");
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].passed);
}

using nlohmann::json;

json Workflow() {
  return {{"nodes", {{{"name", "a:0"}, {"py_name", "a0"}, {"level", 0}}}},
          {"optimizer_parameters", {"a:0"}},
          {"subgraph", {{0, "a:0"}}},
          {"code_lines", {"f0 = f(x=a0)"}},
          {"documented_functions", {{"f", "[f] text"}, {"g", nullptr}}},
          {"variables", {{"a0", {{"type", "int"}, {"text", "1"}, {"constraint", nullptr}}}}}};
}

// The comparison must be able to fail: each row spoils one fact.
TEST(TraceCompare, SeesEachKindOfDifference) {
  const json golden = Workflow();
  json observed = golden;
  observed["documented_functions"]["g"] = "[g]";
  EXPECT_EQ(CompareWorkflow(golden, observed), "");
  struct Row {
    const char* pointer;
    json value;
    const char* says;
  };
  const Row rows[] = {{"/nodes/0/level", 1, "nodes[0].level"},
                      {"/nodes/0/py_name", "a1", "nodes[0].py_name"},
                      {"/subgraph/0/0", 2, "subgraph"},
                      {"/subgraph/1", json::array({0, "b:0"}), "too many"},
                      {"/code_lines/0", "f0 = f(y=a0)", "code_lines"},
                      {"/documented_functions/f", "[f] other", "documented_functions.f"},
                      {"/documented_functions/h", "[h]", "h is too many"},
                      {"/variables/a0/text", "2", "variables.a0.text"},
                      {"/variables/b0", {{"type", "int"}, {"hidden", true}}, "variables.b0 is too many"}};
  for (const Row& row : rows) {
    json spoiled = observed;
    spoiled[json::json_pointer(row.pointer)] = row.value;
    EXPECT_NE(CompareWorkflow(golden, spoiled).find(row.says), std::string::npos) << row.pointer;
  }
}

TEST(TraceCompare, RepliesDifferOnlyWithADocumentedReason) {
  const json golden = {
      {"updated", {{"i0", {{"type", "int"}, {"text", "5"}, {"json", 5}}}}}, {"warnings", 0}, {"no_update", false}};
  json same = {{"updated", golden["updated"]}, {"warnings", 0}};
  EXPECT_EQ(CompareReply(golden, same, true), "");
  EXPECT_EQ(CompareReply(golden, same, false), "");
  json other = same;
  other["updated"]["i0"]["json"] = 6;
  EXPECT_NE(CompareReply(golden, other, true), "");
  EXPECT_NE(CompareReply(golden, other, false), "");
  other["fixes"] = {"no_such_fix"};
  EXPECT_NE(CompareReply(golden, other, false), "");
  other["fixes"] = {"bool_parsed"};
  EXPECT_EQ(CompareReply(golden, other, false), "");
  json warned = same;
  warned["warnings"] = 1;
  EXPECT_NE(CompareReply(golden, warned, true), "");
}

TEST(TraceCompare, LayoutOfSourceDoesNotCount) {
  EXPECT_TRUE(SameUpToLayout("def f(a):\n    '''d'''\n    return 1", "def f(a,):\n  \"\"\"d\"\"\"\n  return 1\n"));
  EXPECT_FALSE(SameUpToLayout("def f(a): return 1", "def f(a): return 2"));
}

}  // namespace
}  // namespace optod
