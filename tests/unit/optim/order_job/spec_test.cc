// Job files of kind sample_order: what is taken, what is refused and how it is said; tables of numbers.
#include "optim/order_job/spec.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "optim/order_job/builtin_problem.h"

namespace optod::order {
namespace {

using testing::HasSubstr;

constexpr const char* kSmall = R"("kind": "sample_order", "model": {"builtin": "logistic"}, "batches": 8)";

struct Refused {
  const char* name;
  const char* json;
  const char* message;
};
const Refused kRefused[] = {
    {"no_object", "[]", "job: not a mapping"},
    {"no_model", R"({"kind": "sample_order", "batches": 8})", "model: missing"},
    {"no_batches", R"({"model": {"builtin": "logistic"}})", "batches: missing"},
    {"batches_zero", R"({"model": {"builtin": "logistic"}, "batches": 0})", "batches: 0 must be in 1..100000"},
    {"batches_text", R"({"model": {"builtin": "logistic"}, "batches": "8"})", "batches: not a whole number"},
    {"builtin", R"({"model": {"builtin": "cnn"}, "batches": 8})", "model.builtin: \"cnn\" is not one of logistic, mlp"},
    {"field", R"({"model": {"builtin": "mlp"}, "bathces": 8})", "job: unknown field \"bathces\""},
    {"model_field", R"({"model": {"builtin": "mlp", "width": 3}, "batches": 8})", "model: unknown field \"width\""},
    {"lr", R"({"model": {"builtin": "mlp"}, "batches": 8, "study": {"lr": -1}})", "study.lr: -1"},
    {"option", R"({"model": {"builtin": "mlp"}, "batches": 8, "study": {"optmizer": "sgd"}})",
     "did you mean optimizer"},
    {"option_kind", R"({"model": {"builtin": "mlp"}, "batches": 8, "study": {"lr": {}}})", "study.lr: not a number"},
    {"epochs", R"({"model": {"builtin": "mlp"}, "batches": 1000, "study": {"epochs": 101}})",
     "more than 100000 positions"},
    {"task", R"({"model": {"builtin": "mlp"}, "batches": 8, "task": {}})", "task: belongs to a language model"},
    {"no_task", R"({"model": "/m", "batches": 8})", "task: missing"},
    {"task_train", R"({"model": "/m", "batches": 8, "task": {"name": "text", "dev": "/d"}})", "task.train: missing"},
    {"classes", R"({"model": {"builtin": "logistic", "classes": 3}, "batches": 8})", "logistic has 2"},
    {"tournament", R"({"model": {"builtin": "mlp"}, "batches": 8, "search": {"population": 2, "tournament": 3}})",
     "search.tournament: 3 is over search.population"},
    {"elitism", R"({"model": {"builtin": "mlp"}, "batches": 8, "search": {"population": 3, "elitism": 3}})",
     "search.elitism: 3 is not below"},
    {"spots", R"({"model": {"builtin": "mlp"}, "batches": 2, "matrix": {"spot_checks": 5}})", "over the 2 x 2 cells"},
    {"moments", R"({"model": {"builtin": "mlp"}, "batches": 8, "estimate": {"moments": "old"}})",
     "not one of replay, reference"},
    {"probe_runs", R"({"model": {"builtin": "mlp"}, "batches": 8, "study": {"curvature": "none", "probe_runs": 2}})",
     "study.probe_runs: 2; curvature none uses none"},
    {"calibrate", R"({"model": {"builtin": "mlp"}, "batches": 8, "estimate": {"calibrate": 1}})",
     "estimate.calibrate: not true or false"},
    {"huge", R"({"model": {"builtin": "mlp"}, "batches": 18446744073709551615})", "must be in 1..100000"},
};
class RefusedSpec : public testing::TestWithParam<Refused> {};
TEST_P(RefusedSpec, SaysFieldAndRule) {
  const auto spec = ParseSampleOrderSpec(GetParam().json);
  ASSERT_FALSE(spec.ok());
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(Specs, RefusedSpec, testing::ValuesIn(kRefused),
                         [](const auto& info) { return info.param.name; });

SampleOrderSpec Spec(const std::string& more) {
  auto spec = ParseSampleOrderSpec(std::string("{") + kSmall + more + "}");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : SampleOrderSpec{};
}

TEST(Spec, DefaultsAndUnits) {
  const SampleOrderSpec plain = Spec("");
  EXPECT_EQ(TotalUnits(plain), 8 + 64 + 9 * 8);  // steps, terms, steps of the probe runs
  EXPECT_EQ(TotalUnits(Spec(R"(, "study": {"curvature": "none"})")), 8 + 64);
  EXPECT_TRUE(PathsOf(plain).empty());
  EXPECT_FALSE(plain.search || plain.matrix);
  const SampleOrderSpec all = Spec(
      R"(, "study": {"epochs": 2, "optimizer": "sgd", "lr": [0.1]}, "estimate": {"random_orders": 5, "expansion": 0},
                                      "search": {"generations": 3}, "matrix": {}, "retrain_checks": 2, "metric": {"perplexity": true}, "threads": 3)");
  EXPECT_EQ(TotalUnits(all), 16 * 9 + 17 * 8 + 5 + 3 + 64 + 2);
  EXPECT_EQ(all.study.optimizer.rule, Rule::kSgd);
  EXPECT_EQ(all.study.threads, 3);
  EXPECT_EQ(all.search->estimate.expansion, 0);
  EXPECT_TRUE(all.search->metric.perplexity && all.matrix->metric.perplexity);
}

TEST(Spec, PathsOfALanguageModel) {
  const auto spec =
      ParseSampleOrderSpec(R"({"model": "/m", "batches": 4, "task": {"name": "text", "train": "/a", "dev": "/b"}})");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(PathsOf(*spec), (std::vector<std::string>{"/m", "/a", "/b"}));
}

struct BadTable {
  const char* name;
  const char* text;
  const char* message;
};
const BadTable kTables[] = {
    {"empty", "", "table: 0 lines; 6 are needed"},
    {"short", "1,2,0\n1,2,1\n", "table: 2 lines; 6 are needed"},
    {"word", "1,x,0\n", "table: line 1: column 2 is no number"},
    {"hole", "1,,0\n", "table: line 1: column 2 is no number"},
    {"nan", "1,nan,0\n", "table: line 1: column 2 is no number"},
    {"ragged", "1,2,0\n1,0\n", "table: line 2: 2 numbers; line 1 has 3"},
    {"fraction", "1,2,0.5\n", "table: line 1: label 0.5 is no class"},
    {"negative", "1,2,-1\n", "table: line 1: label -1 is no class"},
    {"alone", "1\n", "and at least 2 are needed"},
};
class RefusedTable : public testing::TestWithParam<BadTable> {};
TEST_P(RefusedTable, SaysLineAndColumn) {
  SampleOrderSpec spec;
  spec.builtin.emplace().data.rows = 2;
  spec.builtin->data.evaluation_rows = 2;
  spec.batches = 2;
  const auto data = ReadTable(GetParam().text, spec);
  ASSERT_FALSE(data.ok());
  EXPECT_THAT(std::string(data.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(Tables, RefusedTable, testing::ValuesIn(kTables),
                         [](const auto& info) { return info.param.name; });

TEST(Table, RowsBecomeBatchesAndHeldOutSets) {
  SampleOrderSpec spec;
  spec.builtin.emplace().data.rows = 1;
  spec.builtin->data.evaluation_rows = 4;
  spec.builtin->divide_by = 2.0;
  spec.batches = 2;
  spec.evaluations = 2;
  const auto data = ReadTable("2,4,0\r\n6, 8,2\n\n1,1,0\n2,2,0\n3,3,1\n4,4,1\nrest is not read\n", spec);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->features, 2u);
  EXPECT_EQ(data->classes, 3);
  EXPECT_EQ(data->batches[1].x, (std::vector<double>{3.0, 4.0}));
  EXPECT_EQ(data->batches[1].label, std::vector<int>{2});
  ASSERT_EQ(data->evaluations.size(), 2u);
  EXPECT_EQ(data->evaluations[1].x, (std::vector<double>{1.5, 1.5, 2.0, 2.0}));
}

}  // namespace
}  // namespace optod::order
