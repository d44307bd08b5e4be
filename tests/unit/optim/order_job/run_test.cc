// A sample_order job without server and LibTorch: what it writes, that it goes on after any end, and that a second run
// of the same spec gives the same bytes.
#include "optim/order_job/run.h"

#include <atomic>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/random_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "optim/order_job/builtin_problem.h"
#include "optim/order_job/files.h"

namespace optod::order {
namespace {

using Json = nlohmann::json;

constexpr const char* kJob =
    R"({"kind": "sample_order", "model": {"builtin": "mlp", "features": 5, "classes": 3, "rows": 6, "evaluation_rows": 20,
  "hidden": 4, "drift": 0.5, "ragged": true}, "batches": 6, "threads": 1, "study": {"optimizer": "adam", "lr": 0.02, "curvature": "diag", "probes": 2,
  "segment_bytes": 2000}, "estimate": {"random_orders": 12, "seed": 3}, "search": {"generations": 3, "population": 6}, "matrix": {"spot_checks": 2},
  "retrain_checks": 3, "metric": {"perplexity": true}})";

class RunTest : public testing::Test {
 protected:
  RunTest() : root_(testing::TempDir() + "/optod-order-job-" + RandomId()) {}
  ~RunTest() override { std::filesystem::remove_all(root_); }

  absl::StatusOr<std::string> Run(const std::string& folder, const std::string& text, const RunHooks& hooks = {}) {
    auto spec = ParseSampleOrderSpec(text);
    if (!spec.ok()) return spec.status();
    auto model = MakeBuiltinProblem(*spec, PosixFs());
    if (!model.ok()) return model.status();
    return RunSampleOrder(PosixFs(), root_ + "/" + folder, text, *spec, *model, hooks);
  }
  std::string File(const std::string& name) {
    return PosixFs().ReadFile(root_ + "/" + name).value_or("absent: " + name);
  }

  const std::string root_;
};

/// What must not depend on the clock.
Json WithoutTimes(const std::string& text) {
  Json json = Json::parse(text);
  for (auto it = json.begin(); it != json.end();) {
    if (it.key().find("seconds") != std::string::npos) {
      it = json.erase(it);
    } else {
      if (it->is_object()) *it = WithoutTimes(it->dump());
      ++it;
    }
  }
  return json;
}

TEST_F(RunTest, DoesEveryPartAndTellsUnitsUpToTheTotal) {
  std::vector<int64_t> units;
  std::vector<std::string> lines;
  RunHooks hooks;
  hooks.progress = [&](int64_t done, const auto&) { units.push_back(done); };
  hooks.log = [&](const std::string& line) { lines.push_back(line); };
  const auto result = Run("a", kJob, hooks);
  ASSERT_TRUE(result.ok()) << result.status();
  const Json json = Json::parse(*result);
  EXPECT_EQ(json["positions"], 6);
  EXPECT_EQ(json["estimate"]["estimates"].size(), 12u);
  EXPECT_EQ(json["search"]["best"].size(), 4u);  // the first generation and three more
  EXPECT_EQ(json["matrix"]["matrix"].size(), 36u);
  EXPECT_EQ(json["retrain_checks"]["retrained"].size(), 3u);
  EXPECT_LT(json["retrain_checks"]["error_over_guess"], 1.0);
  EXPECT_TRUE(std::is_sorted(units.begin(), units.end()));
  EXPECT_EQ(units.back(), TotalUnits(*ParseSampleOrderSpec(kJob)));
  ASSERT_GE(lines.size(), 2u);
  EXPECT_THAT(lines[1], testing::HasSubstr("72 gradients and 72 Hessian products: about"));
  for (const char* file : {"orders", "estimates", "matrix", "retrained"})
    EXPECT_TRUE(File(std::string("a/result/") + file + ".npy").starts_with("\x93NUMPY")) << file;
}

TEST_F(RunTest, StoppedAnywhereItGoesOnToTheSameResult) {
  const auto whole = Run("whole", kJob);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const int64_t total = TotalUnits(*ParseSampleOrderSpec(kJob));
  for (const int64_t at : {int64_t{1}, int64_t{7}, int64_t{30}, total - 3}) {
    const std::string folder = "stopped-" + std::to_string(at);
    std::atomic<bool> stop = false;
    RunHooks hooks;
    hooks.checkpoint = [&](int64_t units) { stop = stop || units >= at; };
    hooks.stop = [&] { return stop.load(); };
    const auto stopped = Run(folder, kJob, hooks);
    EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled) << at;
    const auto finished = Run(folder, kJob);
    ASSERT_TRUE(finished.ok()) << finished.status();
    const auto again = Run(folder, kJob);  // a finished run is told again
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(WithoutTimes(*again), WithoutTimes(*whole)) << folder;
    for (const char* file :
         {"/study/reference.bin", "/result/estimates.npy", "/result/matrix.npy", "/result/retrained.npy"})
      EXPECT_EQ(File(folder + file), File(std::string("whole") + file)) << file;
  }
}

TEST_F(RunTest, AnotherSpecInTheSameFolderIsRefused) {
  ASSERT_TRUE(
      Run("a", R"({"model": {"builtin": "logistic"}, "batches": 4, "study": {"optimizer": "adam", "lr": 0.1}})").ok());
  const auto other =
      Run("a", R"({"model": {"builtin": "logistic"}, "batches": 4, "study": {"optimizer": "sgd", "lr": 0.1}})");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.status().message()), testing::HasSubstr("optimizer: sgd was asked, adam is recorded"));
}

TEST_F(RunTest, BudgetsAreRules) {
  const auto disk = Run("a", R"({"model": {"builtin": "logistic"}, "batches": 4, "study": {"disk_budget": 100}})");
  EXPECT_EQ(disk.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(disk.status().message()), testing::HasSubstr("disk_budget: 100 bytes; this study takes"));
  const auto memory = Run(
      "b",
      R"({"model": {"builtin": "logistic"}, "batches": 4, "study": {"memory_budget": 64}, "estimate": {"random_orders": 1}})");
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(memory.status().message()), testing::HasSubstr("memory_budget: 64 bytes"));
}

// Without curvature the last of 16 positions are far off; the result says so. With probe runs it need not.
TEST_F(RunTest, EstimatesThatSayNothingAreWarnedOf) {
  const auto job = [&](const char* folder, const char* study) {
    const auto result = Run(folder, std::string(R"({"model": {"builtin": "logistic", "features": 20, "rows": 16,
      "data_seed": 1, "seed": 1}, "batches": 16, "threads": 1, "estimate": {"seed": 2}, "retrain_checks": 50, "study": )") +
                                        study + "}");
    EXPECT_TRUE(result.ok()) << result.status();
    return Json::parse(result.value_or("{}"))["retrain_checks"];
  };
  const Json wild = job("wild", R"({"optimizer": "adam", "lr": 0.05, "curvature": "none"})");
  ASSERT_TRUE(wild.contains("warning")) << wild["absdiff"] << wild["absdiff_guess"];
  EXPECT_THAT(wild["warning"].get<std::string>(), testing::HasSubstr("these estimates say nothing"));
  EXPECT_FALSE(wild.contains("calibration"));
  const Json tame = job("tame", R"({"optimizer": "adam", "lr": 0.05})");
  EXPECT_FALSE(tame.contains("warning")) << tame["warning"];
  EXPECT_GT(tame["calibration"]["slope"], 0.2);
  EXPECT_LT(tame["absdiff"], tame["absdiff_mean_of_probe_runs"]);
}

TEST(Files, HeadersAreAligned) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, {7}, {123456, 3}, {1, 2, 3}}) {
    const std::string header = NpyHeader(shape, "<f8");
    EXPECT_EQ(header.size() % 64, 0u);
    EXPECT_EQ(static_cast<unsigned char>(header[8]) + 256u * static_cast<unsigned char>(header[9]) + 10, header.size());
    EXPECT_EQ(header.back(), '\n');
  }
  const NamedPart parts[] = {{"a", {2, 3}}, {"b", {}}};
  const std::string header = SafetensorsHeader(parts, true);
  EXPECT_EQ(header.size() % 8, 0u);
  EXPECT_EQ(Json::parse(header.substr(8))["b"]["data_offsets"], (Json{24, 28}));
}

}  // namespace
}  // namespace optod::order
