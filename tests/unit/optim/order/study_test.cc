// Studies as things that are stored: resumed, stopped, damaged, too large, opened with other options.
#include <cstring>
#include <fstream>
#include <thread>

#include "optim/order/codec.h"
#include "optim/order/matrix.h"
#include "optim/order/search.h"
#include "study_testing.h"

namespace optod::order {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// ---- options

TEST(OrderOptions, TextRoundTrips) {
  StudyOptions options =
      Options("optimizer=adamw\nlr=0.1\nschedule=linear\nepochs=3\nreference_order=2,0,1\nstorage=sketch-sign");
  options.lr = {1.0 / 3.0};
  const auto again = ParseStudyOptions(ToText(options));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToText(*again), ToText(options));
  EXPECT_EQ(again->lr, options.lr);
  EXPECT_TRUE(again->optimizer.decoupled);
}

struct BadOption {
  const char* name;
  const char* text;
  const char* message;
};
class OrderOptionsRefuse : public testing::TestWithParam<BadOption> {};
TEST_P(OrderOptionsRefuse, InWords) {
  const auto options = ParseStudyOptions(std::string(GetParam().text));
  ASSERT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(options.status()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(
    All, OrderOptionsRefuse,
    testing::Values(
        BadOption{"unknown", "optmizer=adam", "optmizer: no such option; did you mean optimizer?"},
        BadOption{"optimizer", "optimizer=lion", "optimizer: \"lion\"; must be one of sgd, adam, adamw"},
        BadOption{"lr", "lr=-1", "lr: -1 is negative; must be >= 0"},
        BadOption{"number", "lr=fast", "lr: \"fast\" is no number"},
        BadOption{"nan", "lr=nan", "lr: nan is not finite"}, BadOption{"twice", "lr=1\nlr=2", "lr: stands twice"},
        BadOption{"momentum", "optimizer=adam\nmomentum=0.9", "momentum: belongs to sgd"},
        BadOption{"nesterov", "optimizer=sgd\nnesterov=true", "nesterov: true needs momentum > 0"},
        BadOption{"beta2", "beta2=1", "beta2: 1; must be in [0, 1)"}, BadOption{"eps", "eps=0", "eps: 0; must be > 0"},
        BadOption{"second", "curvature=span\nsecond_order=true",
                  "second_order: needs curvature diag or secant, not span"},
        BadOption{"schedule", "lr=1,2\nschedule=cosine", "lr: one number a position leaves nothing to schedule"},
        BadOption{"epochs", "epochs=0", "epochs: 0; must be in 1..100000"},
        BadOption{"ratio", "sketch_ratio=0", "sketch_ratio: 0; must be in 1..4096"},
        BadOption{"probe_runs", "probe_runs=-2", "probe_runs: -2; must be in 0..1024, or -1"},
        BadOption{"probe_runs_of_hvp", "curvature=hvp\nprobe_runs=4", "probe_runs: 4; curvature hvp uses none"},
        BadOption{"no_probe_runs", "curvature=multisecant\nprobe_runs=0", "curvature multisecant is made of them"},
        BadOption{"probe_ridge", "probe_ridge=0", "probe_ridge: 0; must be > 0"},
        BadOption{"line", "lr", "options: line 1 has no '='"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(OrderOptions, ScheduleBelongsToPositions) {
  const auto rates = LearningRates(Options("lr=1\nschedule=cosine\nwarmup=2\nlr_final=0.1"), 5);
  ASSERT_TRUE(rates.ok());
  EXPECT_THAT(*rates,
              testing::ElementsAre(0.5, 1.0, 1.0, testing::DoubleNear(0.55, 1e-12), testing::DoubleNear(0.1, 1e-12)));
}

// ---- orders

struct BadOrder {
  const char* name;
  Order order;
  const char* message;
};
class OrderRefuses : public testing::TestWithParam<BadOrder> {};
TEST_P(OrderRefuses, InWords) {
  const auto status = Expand(GetParam().order, 4, 2).status();
  ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(
    All, OrderRefuses,
    testing::Values(BadOrder{"twice", {0, 1, 1, 3}, "order[2]: 1 stands twice in its epoch"},
                    BadOrder{"second_epoch", {0, 1, 2, 3, 3, 3, 1, 0}, "order[5]: 3 stands twice in its epoch"},
                    BadOrder{"large", {0, 1, 2, 4}, "order[3]: 4 is no batch; must be in 0..3"},
                    BadOrder{"negative", {-1, 1, 2, 3}, "order[0]: -1 is no batch"},
                    BadOrder{"short", {0, 1, 2}, "order: 3 batches; must be 4 (the same in every epoch) or 8"},
                    BadOrder{"empty", {}, "order: 0 batches"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Orders, EpochsAndMoves) {
  EXPECT_EQ(*Expand(Order{1, 0}, 2, 3), (Order{1, 0, 1, 0, 1, 0}));
  EXPECT_EQ(Moved({0, 1, 2, 3}, 0, 2), (Order{1, 2, 0, 3}));
  EXPECT_EQ(Moved({0, 1, 2, 3}, 3, 3), (Order{0, 1, 2, 3}));
}

// ---- codec

class OrderCodec : public testing::TestWithParam<Storage> {};
TEST_P(OrderCodec, DecodesPagesOfAnySize) {
  for (const size_t size : {1u, 2u, 20u, 100u, 4095u, 4096u}) {
    for (const int ratio : {1, 2, 8, 32}) {
      const Codec codec{GetParam(), Precision::kFloat64, ratio, false, 7};
      std::vector<double> x(size), back(size);
      CounterRandom random(1, 2);
      for (double& value : x) value = random.Uniform() * 1e-3 - 5e-4;
      std::vector<std::byte> bytes(codec.PageBytes(size));
      codec.Encode(3, x, bytes);
      codec.Decode(3, bytes, back);
      const double relative = Distance(x, back) / (Distance(x, std::vector<double>(size, 0.0)));
      const double limit = GetParam() == Storage::kExact  ? 0.0
                           : GetParam() == Storage::kFp16 ? 1e-3
                           : GetParam() == Storage::kBf16 ? 4e-3
                                                          : std::sqrt(static_cast<double>(ratio)) * 2.0 + 1e-6;
      EXPECT_LE(relative, limit) << size << " " << ratio;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, OrderCodec,
                         testing::Values(Storage::kExact, Storage::kFp16, Storage::kBf16, Storage::kSketchSign,
                                         Storage::kSketchHadamard));

// E[S'S] = I: the decoded vector, averaged over seeds, is the vector; inner products are kept.
TEST(OrderCodecSketch, IsUnbiasedAndKeepsInnerProducts) {
  constexpr int kDraws = 400;
  constexpr size_t kN = 256;
  CounterRandom random(1, 2);
  std::vector<double> x(kN), y(kN);
  for (size_t i = 0; i < kN; ++i) x[i] = random.Uniform() - 0.5, y[i] = x[i] + 0.5 * (random.Uniform() - 0.5);
  double exact = 0.0;
  for (size_t i = 0; i < kN; ++i) exact += x[i] * y[i];
  for (const Storage storage : {Storage::kSketchSign, Storage::kSketchHadamard}) {
    std::vector<double> mean(kN, 0.0), back(kN);
    double dot = 0.0;
    for (int draw = 0; draw < kDraws; ++draw) {
      const Codec codec{storage, Precision::kFloat64, 4, false, static_cast<uint64_t>(draw)};
      std::vector<std::byte> a(codec.PageBytes(kN)), b(codec.PageBytes(kN));
      codec.Encode(0, x, a);
      codec.Encode(0, y, b);
      codec.Decode(0, a, back);
      for (size_t i = 0; i < kN; ++i) mean[i] += back[i] / kDraws;
      dot += SketchDot(a, b) / kDraws;
    }
    const std::vector<double> zero(kN, 0.0);
    // One draw errs by sqrt(3) to 2 in relative norm; the mean of 400 by a twentieth of it.
    EXPECT_LE(Distance(mean, x) / Distance(x, zero), 0.15);
    EXPECT_NEAR(dot / exact, 1.0, 0.05);
  }
}

// ---- the store

TEST_F(StudyTest, AStoppedFillGoesOnWhereItWas) {
  const auto model = MlpProblem(6, 1);
  const StudyOptions options =
      Options("optimizer=adam\nlr=0.02\ncurvature=secant\nsecond_order=true\nthreads=1\nsegment_bytes=5000");
  const auto whole = Filled(options, model);
  ASSERT_NE(whole, nullptr);

  const std::string directory = NewDirectory();
  auto study = Study::Create(PosixFs(), directory, options, model);
  ASSERT_TRUE(study.ok()) << study.status();
  std::stop_source stop;
  int64_t told = 0;
  Control control{[&](int64_t done, int64_t total, double) {
                    told = done;
                    EXPECT_EQ(total, 36);
                    if (done == 20) stop.request_stop();
                  },
                  stop.get_token()};
  EXPECT_EQ((*study)->Precompute(control).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(told, 20);
  EXPECT_FALSE((*study)->complete());
  EXPECT_GT((*study)->terms().filled(), 0);
  const auto early = (*study)->Estimate(RandomOrders(1, 6, 1));
  EXPECT_EQ(early.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(early.status()), HasSubstr("missing"));

  auto again = Study::Open(PosixFs(), directory, model);
  ASSERT_TRUE(again.ok()) << again.status();
  int64_t first = -1;
  ASSERT_OK((*again)->Precompute({[&](int64_t done, int64_t, double) {
                                    if (first < 0) first = done;
                                  },
                                  {}}));
  EXPECT_GT(first, 1);  // what was there counts
  EXPECT_TRUE((*again)->complete());
  const auto orders = RandomOrders(5, 6, 1);
  EXPECT_EQ(*(*again)->Estimate(orders), *whole->Estimate(orders));
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos);
  }
}

TEST_F(StudyTest, WorksWithoutTheModelAndAfterOpening) {
  const auto model = LogisticProblem(5, 1);
  const auto options = Options("optimizer=sgd\nlr=0.1\ncurvature=diag");
  const std::string directory = NewDirectory();
  {
    auto study = Study::Create(PosixFs(), directory, options, model);
    ASSERT_OK((*study)->Precompute());
  }
  auto with = Study::Open(PosixFs(), directory, model), without = Study::Open(PosixFs(), directory, nullptr);
  ASSERT_TRUE(with.ok() && without.ok()) << without.status();
  const auto orders = RandomOrders(3, 5, 1);
  EXPECT_EQ(*(*with)->Estimate(orders), *(*without)->Estimate(orders));
  EXPECT_THAT(Message((*without)->Losses(orders, {}).status()), HasSubstr("model: missing"));
  EXPECT_EQ(Study::Create(PosixFs(), directory, options, model).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Study::Open(PosixFs(), NewDirectory(), model).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StudyTest, AnotherOptimizerModelOrOptionIsRefused) {
  const std::string directory = NewDirectory();
  const auto options = Options("optimizer=adam\nlr=0.1\ncurvature=none");
  ASSERT_TRUE(Study::Create(PosixFs(), directory, options, LogisticProblem(5, 1)).ok());
  const auto open = [&](const char* text, std::shared_ptr<const Model> model) {
    const StudyOptions asked = Options(text);
    return Study::Open(PosixFs(), directory, std::move(model), &asked).status();
  };
  EXPECT_TRUE(
      open("optimizer=adam\nlr=0.1\ncurvature=none\nthreads=1\nmemory_budget=100000", LogisticProblem(5, 1)).ok());
  EXPECT_THAT(Message(open("optimizer=sgd\nlr=0.1\ncurvature=none", LogisticProblem(5, 1))),
              HasSubstr("optimizer: sgd was asked, adam is recorded"));
  EXPECT_THAT(Message(open("optimizer=adam\nlr=0.2\ncurvature=none", LogisticProblem(5, 1))),
              HasSubstr("lr: 0.2 was asked, 0.1 is recorded"));
  EXPECT_THAT(Message(open("optimizer=adam\nlr=0.1\ncurvature=none", LogisticProblem(5, 2))), HasSubstr("model: "));
}

TEST_F(StudyTest, BudgetsAreKeptOrRefusedInWords) {
  const auto model = MlpProblem(6, 1);
  StudyOptions options = Options("optimizer=adam\nlr=0.02\ncurvature=diag");
  options.disk_budget = 10000;
  const auto refused = Study::Create(PosixFs(), NewDirectory(), options, model);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()), HasSubstr("disk_budget: 10000 bytes; this study takes "));

  options.disk_budget = 0;
  const std::string directory = NewDirectory();
  auto study = Study::Create(PosixFs(), directory, options, model);
  const Cost cost = *(*study)->PredictCost(true);
  EXPECT_EQ(cost.gradients, 36);
  EXPECT_EQ(cost.hessian_products, 144);
  EXPECT_GT(cost.seconds, 0.0);
  ASSERT_OK((*study)->Precompute());
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().filename().string().starts_with("terms-")) bytes += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_EQ(bytes, cost.terms_bytes);  // to the byte

  options.memory_budget = 1000;
  auto small = Study::Open(PosixFs(), directory, model, &options);
  ASSERT_TRUE(small.ok()) << small.status();
  const auto status = (*small)->Estimate(RandomOrders(2, 6, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("memory_budget: 1000 bytes"));
}

/// 10,019 parameters: three pages a record.
std::shared_ptr<const Model> WideProblem(Precision precision) {
  auto data = MakeSynthetic({.features = 1110, .classes = 2, .batches = 4, .rows = 4, .evaluation_rows = 4});
  auto model = MakeTanhMlp(*std::move(data), 9, {.precision = precision});
  return *std::move(model);
}

TEST_F(StudyTest, TermsThatDoNotFitStreamFromDiskWithTheSameBits) {
  const auto model = WideProblem(Precision::kFloat32);
  StudyOptions options =
      Options("optimizer=adamw\nweight_decay=0.1\nlr=0.01\ncurvature=diag\nprobes=1\nsecond_order=true");
  const std::string directory = NewDirectory();
  auto resident = Study::Create(PosixFs(), directory, options, model);
  ASSERT_TRUE(resident.ok());
  ASSERT_OK((*resident)->Precompute());
  options.memory_budget = 1 << 20;  // the terms take 1.9 MB
  auto streaming = Study::Open(PosixFs(), directory, model, &options);
  ASSERT_TRUE(streaming.ok()) << streaming.status();
  const auto orders = RandomOrders(5, 4, 1);
  const auto want = (*resident)->Estimate(orders), got = (*streaming)->Estimate(orders);
  ASSERT_TRUE(want.ok() && got.ok()) << got.status();
  EXPECT_EQ(*got, *want);
  EXPECT_EQ((*(*streaming)->Path(orders[0])).back(), (*want)[0]);
}

TEST_F(StudyTest, LossyStoragesSayHowMuchTheyLose) {
  const auto model = WideProblem(Precision::kFloat32);
  for (const auto& [storage, low, high] :
       {std::tuple{"exact", 0.0, 0.0}, std::tuple{"fp16", 1e-6, 1e-2}, std::tuple{"bf16", 1e-5, 1e-2},
        std::tuple{"sketch-sign", 2.0, 3.5}, std::tuple{"sketch-hadamard", 2.0, 3.5}}) {
    const auto study =
        Filled(Options(std::string("optimizer=sgd\nlr=0.01\ncurvature=secant\nstorage=") + storage), model);
    const auto errors = study->terms().DecodeErrors();
    ASSERT_TRUE(errors.ok());
    EXPECT_GE((*errors)[0], low) << storage;
    EXPECT_LE((*errors)[0], high) << storage;
    EXPECT_TRUE(study->Estimate(RandomOrders(2, 4, 1)).ok());
  }
}

TEST_F(StudyTest, DamageIsFoundAndNamed) {
  const auto model = LogisticProblem(3, 1);
  const std::string directory = NewDirectory();
  {
    auto study = Study::Create(PosixFs(), directory, Options("optimizer=sgd\nlr=0.1\ncurvature=diag"), model);
    ASSERT_OK((*study)->Precompute());
  }
  const auto flip = [&](const char* name, int64_t at) {
    std::fstream file(directory + "/" + name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
  };
  flip("terms-00001-00000.bin", 70);  // behind the header: seen when it is read
  {
    auto study = Study::Open(PosixFs(), directory, model);
    ASSERT_TRUE(study.ok()) << study.status();
    const auto status = (*study)->Estimate(std::vector<Order>{{1, 0, 2}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(Message(status), HasSubstr("remove terms-00001-00000.bin and fill again"));
  }
  for (const auto& [name, at] :
       {std::pair{"terms-00001-00000.bin", 9}, std::pair{"reference.bin", 50}, std::pair{"study.txt", 30}}) {
    flip(name, at);
    EXPECT_EQ(Study::Open(PosixFs(), directory, model).status().code(), absl::StatusCode::kDataLoss) << name;
    flip(name, at);
  }
  std::filesystem::resize_file(directory + "/terms-00002-00000.bin", 200);
  EXPECT_THAT(Message(Study::Open(PosixFs(), directory, model).status()), HasSubstr("200 bytes; must be"));
}

/// Fails every write after the first `allowed` commits, as a full disk does.
class FullDisk final : public Fs {
 public:
  explicit FullDisk(int allowed) : left_(allowed) {}
  absl::StatusOr<std::string> ReadFile(const std::string& path) override { return real_.ReadFile(path); }
  absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode) override {
    if (left_.fetch_sub(1) <= 0) return absl::ResourceExhaustedError("write: no space left");
    return real_.WriteFileAtomic(path, data, mode);
  }
  absl::Status CreateDirectories(const std::string& path, int mode) override {
    return real_.CreateDirectories(path, mode);
  }
  absl::Status Remove(const std::string& path) override { return real_.Remove(path); }
  bool Exists(const std::string& path) override { return real_.Exists(path); }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override { return real_.FileSize(path); }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    return real_.ListDirectory(path);
  }

 private:
  Fs& real_ = PosixFs();
  std::atomic<int> left_;
};

TEST_F(StudyTest, AFullDiskEndsTheFillAndNothingElse) {
  const auto model = LogisticProblem(4, 1);
  const std::string directory = NewDirectory();
  FullDisk full(4);  // options, reference and two term files
  auto study = Study::Create(full, directory, Options("optimizer=sgd\nlr=0.1\ncurvature=none"), model);
  ASSERT_TRUE(study.ok()) << study.status();
  EXPECT_EQ((*study)->Precompute().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*study)->terms().filled(), 2);
  auto again = Study::Open(PosixFs(), directory, model);
  ASSERT_TRUE(again.ok());
  ASSERT_OK((*again)->Precompute());
}

TEST_F(StudyTest, ADivergingRunSaysWhere) {
  LabelledData data = *MakeSynthetic({.batches = 2, .rows = 2});
  data.batches[1].x[0] = std::numeric_limits<double>::quiet_NaN();
  const auto study = Make(Options("optimizer=sgd\nlr=0.1"), *MakeLogistic(data));
  const auto status = study->Record();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("batch 1 at position 1 is not finite"));
  EXPECT_FALSE(study->recorded());
}

TEST_F(StudyTest, QuestionsThatCannotBeAnswered) {
  const auto study = Make(Options("optimizer=sgd\nlr=0.1\ncurvature=none"), LogisticProblem(4, 1));
  const auto orders = RandomOrders(2, 4, 1);
  EXPECT_THAT(Message(study->Estimate(orders).status()), HasSubstr("not recorded yet"));
  ASSERT_OK(study->Precompute());
  EXPECT_THAT(Message(study->Estimate(orders, {.expansion = 1}).status()), HasSubstr("expansion: 1 was asked"));
  EXPECT_THAT(Message(study->Losses(orders, {.data = {Evaluation(1)}}).status()),
              HasSubstr("evaluation set 1 is not there; there are 1"));
  EXPECT_THAT(Message(study->Losses(orders, {.data = {}}).status()), HasSubstr("metric: names no data"));
  EXPECT_THAT(Message(study->Estimate(std::vector<Order>{{0, 1, 2, 3}, {0, 1, 1, 3}}).status()),
              HasSubstr("orders[1][2]: 1 stands twice"));
  EXPECT_THAT(Message(EstimateMatrix(*study, {.spot_checks = 17}).status()),
              HasSubstr("spot_checks: 17; must be in 0..16"));
  EXPECT_THAT(Message(InfluenceOfMoving(*study, 4, {}).status()), HasSubstr("batch: 4 is not there"));
  StudyOptions bad = Options("lr=1,2,3");
  EXPECT_THAT(Message(Study::Create(PosixFs(), NewDirectory(), bad, LogisticProblem(4, 1)).status()),
              HasSubstr("lr: 3 numbers; must be 1 or 4"));
}

// Threads share one study: estimates beside estimates beside a fill.
TEST_F(StudyTest, EstimatesOverlapEachOtherAndAFill) {
  const auto model = MlpProblem(6, 1);
  const std::string directory = NewDirectory();
  auto study =
      *Study::Create(PosixFs(), directory, Options("optimizer=adam\nlr=0.02\ncurvature=diag\nthreads=2"), model);
  ASSERT_OK(study->Record());
  const auto orders = RandomOrders(10, 6, 1);
  std::vector<std::jthread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(study->Precompute().ok()); });
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 20; ++k) {
        const auto estimate = study->Estimate(orders);
        EXPECT_TRUE(estimate.ok() || absl::IsFailedPrecondition(estimate.status())) << estimate.status();
      }
    });
  }
  threads.clear();
  EXPECT_EQ(*study->Estimate(orders), *(*Study::Open(PosixFs(), directory, model))->Estimate(orders));
}

// ---- search

TEST_F(StudyTest, AStoppedSearchGoesOnToTheSameResult) {
  const auto study = Filled(Options("optimizer=adam\nlr=0.05\ncurvature=diag"), MlpProblem(6, 1));
  for (const SearchMethod method : {SearchMethod::kGenetic, SearchMethod::kLocal}) {
    SearchOptions options{.method = method, .population = 8, .generations = 6, .seed = 5};
    const auto straight = SearchOrder(*study, PosixFs(), options);
    ASSERT_TRUE(straight.ok()) << straight.status();
    options.state_file = root_ + "/search-" + std::to_string(static_cast<int>(method));
    std::stop_source stop;
    const auto stopped = SearchOrder(*study, PosixFs(), options,
                                     {[&](int64_t done, int64_t, double) {
                                        if (done == 1) stop.request_stop();
                                      },
                                      stop.get_token()});
    EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
    const auto resumed = SearchOrder(*study, PosixFs(), options);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    EXPECT_EQ(resumed->order, straight->order);
    EXPECT_EQ(resumed->best, straight->best);
    EXPECT_EQ(resumed->evaluations, straight->evaluations);
    options.seed = 6;
    EXPECT_THAT(Message(SearchOrder(*study, PosixFs(), options).status()),
                HasSubstr("state_file: it is of another search"));
  }
  EXPECT_THAT(Message(SearchOrder(*study, PosixFs(), {.population = 1}).status()),
              HasSubstr("population: 1; must be >= 2"));
  EXPECT_THAT(Message(SearchOrder(*study, PosixFs(), {.elitism = 32}).status()),
              HasSubstr("elitism: 32; must be in 0..31"));
}

TEST_F(StudyTest, BaselineOrdersSortTheBatches) {
  const auto study = Filled(Options("optimizer=adam\nlr=0.05\ncurvature=none"), MlpProblem(6, 1));
  EXPECT_EQ(*CurriculumOrder(*study, Curriculum::kReference), Identity(6));
  EXPECT_EQ(*CurriculumOrder(*study, Curriculum::kShortToLong), (Order{0, 3, 1, 4, 2, 5}));  // rows 12, 13, 14, 12, ..
  Order easy = *CurriculumOrder(*study, Curriculum::kEasyToHard),
        hard = *CurriculumOrder(*study, Curriculum::kHardToEasy);
  std::reverse(hard.begin(), hard.end());
  EXPECT_EQ(easy, hard);
}

TEST(OrderCompare, KnownNumbers) {
  const auto agreement = Compare(std::vector<double>{1, 2, 3, 4}, std::vector<double>{1, 4, 9, 16});
  EXPECT_NEAR(agreement->pearson, 0.9843740386976972, 1e-12);
  EXPECT_NEAR(agreement->spearman, 1.0, 1e-12);
  EXPECT_NEAR(agreement->l1, 5.0, 1e-12);
  EXPECT_NEAR(agreement->mse, 46.0, 1e-12);
  EXPECT_FALSE(Compare(std::vector<double>{1}, std::vector<double>{}).ok());
}

}  // namespace
}  // namespace optod::order
