// What the estimates are worth, and that the fast path computes what the slow reference does.
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "optim/order/kernels.h"
#include "optim/order/matrix.h"
#include "optim/order/sample_order.h"
#include "optim/order/search.h"
#include "study_testing.h"

namespace optod::order {
namespace {

/// The study's own terms in the form of the slow reference.
optim::OrderReference SlowReference(const Study& study) {
  optim::OrderReference slow;
  const Optimizer& o = study.options().optimizer;
  slow.rule = o.rule == Rule::kSgd ? optim::OrderRule::kSgd : optim::OrderRule::kAdam;
  slow.beta1 = o.beta1, slow.beta2 = o.beta2, slow.eps = o.eps;
  slow.momentum = o.momentum, slow.nesterov = o.nesterov;
  slow.weight_decay = o.weight_decay, slow.decoupled = o.decoupled;
  slow.lr = study.lr();
  slow.batches = study.reference_order();
  slow.curvature_cap = study.curvature_cap();
  const size_t n = study.parameters();
  for (int t = 0; t <= study.positions(); ++t) slow.trajectory.push_back(study.trajectory().Row(t));
  slow.terms.resize(study.positions());
  for (int t = 0; t < study.positions(); ++t) {
    for (int l = 0; l < study.batches(); ++l) {
      optim::OrderTerm& term = slow.terms[t].emplace_back();
      const auto read = [&](Record record, std::vector<double>& out) {
        out.resize(n);
        const absl::Status status = study.terms().Read(record, t, l, 0, out);
        EXPECT_TRUE(status.ok()) << status;
      };
      read(kGradient, term.gradient);
      if (study.terms().layout().records > kCurvature) read(kCurvature, term.curvature);
      if (study.terms().layout().records > kThird) read(kThird, term.third);
      if (study.options().curvature != Curvature::kHvp) continue;
      term.curvature.resize(n * n);  // column i is H e_i
      std::vector<double> unit(n, 0.0), column(n);
      for (size_t i = 0; i < n; ++i) {
        unit[i] = 1.0;
        EXPECT_TRUE(study.model()->HessianVector(Batch(l), slow.trajectory[t], unit, column).ok());
        unit[i] = 0.0;
        for (size_t j = 0; j < n; ++j) term.curvature[j * n + i] = column[j];
      }
    }
  }
  return slow;
}

struct Variant {
  const char* name;
  const char* options;
};
const Variant kVariants[] = {
    {"sgd_diag", "optimizer=sgd\nlr=0.2\ncurvature=diag"},
    {"sgd_hvp", "optimizer=sgd\nlr=0.2\ncurvature=hvp"},
    {"momentum_diag", "optimizer=sgd\nmomentum=0.9\nlr=0.05\ncurvature=diag\nweight_decay=0.1"},
    {"nesterov_secant", "optimizer=sgd\nmomentum=0.8\nnesterov=true\nlr=0.05\ncurvature=secant"},
    {"adam_diag", "optimizer=adam\nlr=0.05\neps=1e-3\ncurvature=diag\nepochs=2"},
    {"adam_hvp", "optimizer=adam\nlr=0.05\neps=1e-3\ncurvature=hvp"},
    {"adam_second", "optimizer=adam\nlr=0.05\neps=1e-3\ncurvature=diag\nsecond_order=true"},
    {"adam_coupled", "optimizer=adam\nlr=0.05\neps=1e-3\ncurvature=secant\nsecond_order=true\nweight_decay=0.05"},
    {"adamw_cosine",
     "optimizer=adamw\nweight_decay=0.1\nlr=0.05\neps=1e-3\nschedule=cosine\nwarmup=2\nlr_final=0.1"
     "\ncurvature=diag\nepochs=3"},
    {"adamw_none", "optimizer=adamw\nweight_decay=0.1\nlr=0.05\ncurvature=none"},
};

class FastPath : public StudyTest, public testing::WithParamInterface<Variant> {};

// Relative 1e-9: the same formula, divisions by a correction written as products.
TEST_P(FastPath, EqualsTheSlowReference) {
  const auto study = Filled(Options(GetParam().options), MlpProblem(5, 3));
  ASSERT_NE(study, nullptr);
  const optim::OrderReference slow = SlowReference(*study);
  for (const Moments moments : {Moments::kReplay, Moments::kReference}) {
    for (const Order& order : RandomOrders(3, 5, 1)) {
      const bool none = study->options().curvature == Curvature::kNone;
      const auto path = study->Path(order, {.moments = moments});
      ASSERT_TRUE(path.ok()) << path.status();
      const auto want = optim::EstimateOrder(
          slow, *Expand(order, 5, study->options().epochs),
          {!none, moments == Moments::kReplay ? optim::OrderMoments::kReplay : optim::OrderMoments::kReference});
      ASSERT_TRUE(want.ok()) << want.status();
      for (int t = 0; t <= study->positions(); ++t) {
        for (size_t i = 0; i < study->parameters(); ++i) {
          ASSERT_NEAR((*path)[t][i], want->parameters[t][i], 1e-9 * (1.0 + std::abs(want->parameters[t][i])))
              << t << " " << i;
        }
      }
      const auto batched = study->Estimate(std::vector<Order>(70, order), {.moments = moments});
      ASSERT_TRUE(batched.ok()) << batched.status();
      for (const size_t which : {size_t{0}, size_t{69}}) EXPECT_EQ((*batched)[which], path->back());
    }
  }
}

TEST_P(FastPath, IdentityGivesTheReferenceToTheBit) {
  for (const Precision precision : {Precision::kFloat64, Precision::kFloat32}) {
    for (const char* storage : {"exact", "bf16", "sketch-sign"}) {
      const auto study =
          Filled(Options(std::string(GetParam().options) + "\nstorage=" + storage), MlpProblem(5, 3, precision));
      ASSERT_NE(study, nullptr);
      for (const Moments moments : {Moments::kReplay, Moments::kReference}) {
        const auto path = study->Path(Identity(5), {.moments = moments});
        ASSERT_TRUE(path.ok()) << path.status();
        for (int t = 0; t <= study->positions(); ++t) {
          const std::vector<double> want = study->trajectory().Row(t);
          EXPECT_EQ(0, std::memcmp((*path)[t].data(), want.data(), want.size() * sizeof(double))) << t;
        }
        const std::vector<Order> orders = {Identity(5)};
        const auto batched = study->Estimate(orders, {.moments = moments});
        ASSERT_TRUE(batched.ok());
        EXPECT_EQ((*batched)[0], path->back());
      }
      // And the reference is what training gives.
      const auto trained = study->Retrain(Identity(5));
      ASSERT_TRUE(trained.ok());
      EXPECT_EQ(trained->parameters, study->trajectory().Row(study->positions()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, FastPath, testing::ValuesIn(kVariants),
                         [](const auto& info) { return std::string(info.param.name); });

// Every instruction set of this CPU against the scalar table, to the bit, at odd lengths.
TEST(OrderKernels, AllPathsGiveTheSameBits) {
  constexpr size_t kN = 77;
  CounterRandom random(5, 0);
  std::vector<std::vector<double>> in(6, std::vector<double>(kN));
  for (auto& values : in) {
    for (double& value : values) value = random.Uniform() - 0.5;
  }
  for (const char* name : {"avx2", "avx512"}) {
    const kernels::Table* table = kernels::Find(name);
    if (table == nullptr) continue;
    for (const char* text :
         {"optimizer=sgd\nmomentum=0.9\nnesterov=true\nweight_decay=0.1", "optimizer=adamw\nweight_decay=0.1"}) {
      for (const bool held : {false, true}) {
        for (int terms = 0; terms < 4; ++terms) {
          const kernels::Step step = kernels::MakeStep(Options(text).optimizer, 0.1, 3);
          std::vector<double> results[2];
          for (int which = 0; which < 2; ++which) {
            std::vector<double> d = in[0], m = in[1], v(kN, 0.3);
            kernels::Piece<double> piece;
            piece.g = in[2].data();
            piece.h = terms == 1 || terms == 2 ? in[3].data() : nullptr;
            piece.q = terms == 2 ? in[4].data() : nullptr;
            piece.product = terms == 3 ? in[3].data() : nullptr;
            piece.theta = in[5].data();
            piece.direction = in[1].data();
            if (held) piece.m_reference = in[4].data(), piece.v_reference = v.data();
            piece.m = m.data(), piece.v = v.data(), piece.d = d.data();
            piece.cap = 0.2;
            std::vector<double> held_v = v;
            if (held) piece.v_reference = held_v.data();
            (which == 0 ? *kernels::Find("scalar") : *table).advance_double(step, piece, kN);
            results[which] = d;
            results[which].insert(results[which].end(), m.begin(), m.end());
            results[which].insert(results[which].end(), v.begin(), v.end());
          }
          EXPECT_EQ(0, std::memcmp(results[0].data(), results[1].data(), results[0].size() * 8))
              << name << text << terms;
        }
      }
    }
  }
}

// The recorded runs of tests/golden, by the fast path: full Hessians are the model's products, trained for real here.
TEST_F(StudyTest, GoldenRunsByTheFastPath) {
  for (const char* name : {"fut_sgd_full", "fut_adam_full", "fut_adam_replay_full"}) {
    std::ifstream file(std::string(OPTOD_GOLDEN_DIR) + "/optim/" + name + ".json");
    const nlohmann::json golden = nlohmann::json::parse(file);
    LabelledData data;
    data.features = golden["init"]["theta"]["data"].size();
    for (size_t l = 0; l < golden["problem"]["X"].size(); ++l) {
      LabelledRows& rows = data.batches.emplace_back();
      rows.x = golden["problem"]["X"][l]["data"].get<std::vector<double>>();
      for (const double y : golden["problem"]["y"][l]["data"]) rows.label.push_back(y > 0.5);
    }
    const auto& hyper = golden["hyper"];
    StudyOptions options = Options("curvature=hvp");
    options.optimizer.rule = hyper["optimizer"] == "sgd" ? Rule::kSgd : Rule::kAdam;
    options.lr = {hyper["lr"].get<double>()};
    if (hyper.contains("eps")) options.optimizer.eps = hyper["eps"].get<double>();
    const auto study = Filled(options, *MakeLogistic(data, golden["init"]["theta"]["data"].get<std::vector<double>>()));
    ASSERT_NE(study, nullptr);
    const auto& step = golden["steps"][0];
    for (int t = 0; t <= study->positions(); ++t) {
      const auto want = step["reference"][t]["data"].get<std::vector<double>>();
      for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(study->trajectory().Row(t)[i], want[i], 1e-12) << name;
    }
    ASSERT_FALSE(step["orders"].empty());
    for (const auto& recorded : step["orders"]) {
      const Order order = recorded["order"].get<Order>();
      const auto path = study->Path(
          order, {.moments = hyper.value("moments", "replay") == "replay" ? Moments::kReplay : Moments::kReference});
      ASSERT_TRUE(path.ok()) << path.status();
      const auto& rows = recorded["estimate_first_order"];
      for (size_t t = 0; t < rows.size(); ++t) {
        const auto want = rows[t]["data"].get<std::vector<double>>();
        for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR((*path)[t][i], want[i], 1e-10) << name << " " << t;
      }
    }
  }
}

// Swapping batches 0 and 1: the zeroth order errs by lr^2, the first by lr^3 (exact products).
TEST_F(StudyTest, ErrorOfAnAdjacentSwapScalesWithTheLearningRate) {
  Order order = Identity(6);
  std::swap(order[0], order[1]);
  std::vector<double> zeroth, first;
  for (const double lr : {0.04, 0.02, 0.01}) {
    StudyOptions options = Options("optimizer=sgd\ncurvature=hvp");
    options.lr = {lr};
    const auto study = Filled(options, LogisticProblem(6, 4));
    const std::vector<double> truth = study->Retrain(order)->parameters;
    zeroth.push_back(Distance((*study->Estimate(std::vector<Order>{order}, {.expansion = 0}))[0], truth));
    first.push_back(Distance((*study->Estimate(std::vector<Order>{order}))[0], truth));
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_NEAR(std::log2(zeroth[i] / zeroth[i + 1]), 2.0, 0.15);
    EXPECT_NEAR(std::log2(first[i] / first[i + 1]), 3.0, 0.25);
  }
}

// Spec 9.5 (a): 50 random orders, Adam, eta 0.05, replay and first order.
TEST_F(StudyTest, LogisticRegressionOfFiftyOrders) {
  for (const int batches : {8, 16}) {
    const auto study = Filled(Options("optimizer=adam\nlr=0.05\ncurvature=hvp"), LogisticProblem(batches, 1));
    const std::vector<Order> orders = RandomOrders(50, batches, 2);
    const auto first = study->Estimate(orders), zeroth = study->Estimate(orders, {.expansion = 0});
    ASSERT_TRUE(first.ok() && zeroth.ok());
    std::vector<double> error, error0, truth;
    for (size_t i = 0; i < orders.size(); ++i) {
      const auto run = study->Retrain(orders[i]);
      error.push_back(Distance((*first)[i], run->parameters));
      error0.push_back(Distance((*zeroth)[i], run->parameters));
      truth.push_back(*study->Measure({}, run->parameters));
    }
    EXPECT_LE(Median(error), 0.1 * Median(error0)) << batches;
    const auto estimated = study->Losses(orders, {});
    ASSERT_TRUE(estimated.ok());
    const auto agreement = Compare(*estimated, truth);
    EXPECT_GE(agreement->spearman, 0.9) << batches;
    RecordProperty("ratio_T" + std::to_string(batches), std::to_string(Median(error) / Median(error0)));
    RecordProperty("spearman_T" + std::to_string(batches), std::to_string(agreement->spearman));
  }
}

// Curvatures that store diagonals or nothing at all beside gradients still help.
TEST_F(StudyTest, EveryCurvatureBeatsTheZerothOrder) {
  for (const char* curvature : {"diag\nprobes=16", "span"}) {
    const auto study =
        Filled(Options(std::string("optimizer=sgd\nlr=0.3\ncurvature=") + curvature), LogisticProblem(8, 1));
    std::vector<double> error, error0;
    const auto orders = RandomOrders(30, 8, 2);
    const auto first = study->Estimate(orders), zeroth = study->Estimate(orders, {.expansion = 0});
    ASSERT_TRUE(first.ok()) << first.status();
    for (size_t i = 0; i < orders.size(); ++i) {
      const auto run = study->Retrain(orders[i]);
      error.push_back(Distance((*first)[i], run->parameters));
      error0.push_back(Distance((*zeroth)[i], run->parameters));
    }
    EXPECT_LT(Median(error), 0.95 * Median(error0)) << curvature;
  }
}

// Spec 9.5 (c) on a network whose batches differ: better than the median random order, retrained.
TEST_F(StudyTest, CurriculumBeatsTheMedianRandomOrder) {
  const auto study = Filled(Options("optimizer=adam\nlr=0.05\nepochs=2\ncurvature=hvp"), MlpProblem(8, 3));
  const auto orders = RandomOrders(20, 8, 9);
  const auto random = study->RetrainedLosses(orders, std::vector<Metric>(orders.size()));
  ASSERT_TRUE(random.ok());
  for (const SearchMethod method : {SearchMethod::kGenetic, SearchMethod::kLocal}) {
    const auto found =
        SearchOrder(*study, PosixFs(), {.method = method, .population = 16, .generations = 10, .seed = 1});
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_LE(*found->retrained, Median(*random));
    EXPECT_LE(found->estimated, found->best.front());
    EXPECT_TRUE(std::is_sorted(found->best.rbegin(), found->best.rend()));
  }
}

// Spec 9.5 (d): T = 8, correlation with the retrained heat map.
TEST_F(StudyTest, MatrixAgreesWithTheRetrainedOne) {
  const auto study = Filled(Options("optimizer=adam\nlr=0.03\ncurvature=hvp"), MlpProblem(8, 3));
  for (const bool memorisation : {true, false}) {
    const MatrixOptions options{.memorisation = memorisation, .spot_checks = 12};
    const auto matrix = EstimateMatrix(*study, options);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    const auto truth = RetrainMatrix(*study, options);
    ASSERT_TRUE(truth.ok());
    const auto agreement = Compare(matrix->values, *truth);
    EXPECT_GE(agreement->pearson, 0.7);
    ASSERT_EQ(matrix->spots.size(), 12u);
    for (const SpotCheck& spot : matrix->spots) {
      EXPECT_EQ(spot.retrained, (*truth)[spot.batch * 8 + spot.position]);
      EXPECT_EQ(spot.estimated, matrix->values[spot.batch * 8 + spot.position]);
    }
    RecordProperty(memorisation ? "memorisation" : "generalisation", std::to_string(agreement->pearson));
  }
  const auto influence = InfluenceOfMoving(*study, 3, {});
  ASSERT_TRUE(influence.ok());
  EXPECT_NEAR((*influence)[3], 0.0, 1e-15);  // where it stands already
}

TEST_F(StudyTest, LinearLossesAreCloseToForwardOnes) {
  const auto study = Filled(Options("optimizer=adam\nlr=0.01\ncurvature=diag"), LogisticProblem(8, 1));
  const auto orders = RandomOrders(20, 8, 3);
  const auto forward = study->Losses(orders, {}), linear = study->Losses(orders, {}, LossMode::kLinear);
  ASSERT_TRUE(forward.ok() && linear.ok());
  EXPECT_GE(Compare(*forward, *linear)->spearman, 0.95);
  const auto perplexity = study->Losses(orders, {.perplexity = true});
  EXPECT_NEAR((*perplexity)[0], std::exp((*forward)[0]), 1e-12);
}

// Derivatives of the built-in models against differences of their losses and gradients.
TEST(OrderModels, DerivativesMatchDifferences) {
  for (const auto& model : {LogisticProblem(2, 1), MlpProblem(2, 1)}) {
    const size_t n = model->size();
    std::vector<double> theta(n), g(n), v(n), hv(n), difference(n);
    ASSERT_OK(model->Initial(theta));
    CounterRandom random(1, 1);
    for (double& x : v) x = random.Uniform() - 0.5;
    ASSERT_TRUE(model->Gradient(Batch(1), theta, g).ok());
    ASSERT_OK(model->HessianVector(Batch(1), theta, v, hv));
    ASSERT_OK(model->Model::HessianVector(Batch(1), theta, v, difference));
    double slope = 0.0;
    std::vector<double> up = theta, down = theta;
    for (size_t i = 0; i < n; ++i) slope += g[i] * v[i], up[i] += 1e-6 * v[i], down[i] -= 1e-6 * v[i];
    EXPECT_NEAR((*model->Loss(Batch(1), up) - *model->Loss(Batch(1), down)) / 2e-6, slope, 1e-7);
    for (size_t i = 0; i < n; ++i) EXPECT_NEAR(hv[i], difference[i], 1e-7);
  }
}

}  // namespace
}  // namespace optod::order
