// What the zeroth-order estimator does beside what theory says it should, and how far every optimizer of the family comes
// on problems with a known optimum: figures beside their limits. Every figure is the same in every run; zo_statistics_test holds the
// same figures to the same limits.
//   zo_laws [--json]        exit 1 when a figure is outside its limits
#include <cstdio>
#include <cstring>
#include <string>

#include "../unit/optim/copy_task.h"
#include "../unit/optim/zo_laws.h"
#include "../unit/optim/zo_problems.h"

namespace {

using namespace optod::zo;

bool json = false, all_hold = true;
const char* separator = "";

/// A figure, the interval that it must lie in, and a line about it.
void Row(const std::string& name, double value, double least, double most) {
  const bool holds = value >= least && value <= most;
  all_hold = all_hold && holds;
  if (json) {
    std::printf("%s{\"name\": \"%s\", \"value\": %.9g, \"least\": %.9g, \"most\": %.9g, \"holds\": %s}", separator, name.c_str(), value,
                least, most, holds ? "true" : "false");
    separator = ",\n ";
  } else {
    std::printf("  %-58s %12.6g   in [%.6g, %.6g]%s\n", name.c_str(), value, least, most, holds ? "" : "   OUTSIDE");
  }
  std::fflush(stdout);
}
void Title(const char* text) {
  if (!json) std::printf("%s\n", text);
}

void EstimatorLaws() {
  Title("estimator, f = <v, theta>, 4000 draws: E ghat = v; Var = (|v|^2 + v_i^2)/q; |ghat|^2; cos^2 ~ Beta(q/2, (d-1)/2)");
  for (const size_t d : kLawDims) {
    for (const int q : kLawQueries) {
      const EstimatorLaw law = MeasureEstimator(d, q);
      const std::string at = "d=" + std::to_string(d) + " q=" + std::to_string(q) + ": ";
      Row(at + "mean, worst coordinate, standard errors", law.worst_mean, 0, 5);
      Row(at + "variance / law", law.variance_ratio, 0.9, 1.1);
      Row(at + "E |ghat|^2 / law", law.norm_ratio, 1 - 5 * law.norm_error, 1 + 5 * law.norm_error);
      Row(at + "mean cos^2 / law", law.cos2 / law.cos2_law, 1 - law.cos2_limit / law.cos2_law, 1 + law.cos2_limit / law.cos2_law);
      Row(at + "KS p of cos^2 against the Beta law", law.ks_p, 1e-4, 1);
    }
  }
}

void Biases() {
  Title("bias: one side adds (eps/2) z'Hz of mean 0 and variance ~ eps^2; two sides on a cubic 3 c eps^2");
  std::vector<double> means;
  const Slope variance = OneSidedVariance(&means);
  for (size_t i = 0; i < means.size(); ++i)
    Row("one side, eps=" + std::to_string(variance.eps[i]) + ": mean, standard errors", std::fabs(means[i]) / variance.law[i], 0, 4);
  Row("one side: slope of log variance over log eps", variance.slope, 1.98, 2.02);
  const Slope bias = TwoSidedBias();
  for (size_t i = 0; i < bias.eps.size(); ++i)
    Row("two sides, eps=" + std::to_string(bias.eps[i]) + ": bias / (3 c eps^2)", bias.measured[i] / bias.law[i], 0.9, 1.1);
  Row("two sides: slope of log bias over log eps", bias.slope, 1.8, 2.2);
}

void Convergence() {
  Title("convergence: quadratic, d = 50, condition 10");
  const Contraction contraction = MeasureContraction();
  Row("zo-sgd, 1000 steps, mean gap of 20 seeds; the guarantee", contraction.left, 1e-6, contraction.guaranteed);
  for (const BudgetCase& budget : kBudgets) {
    double worst = 0;
    for (uint64_t seed = 0; seed < 5; ++seed) worst = std::max(worst, RemainingGap(budget.hyper, seed, budget.steps));
    Row(std::string(budget.name) + ", " + std::to_string(budget.steps) + " steps: gap left, worst of 5 seeds", worst, 0, 0.1);
  }
  const double plain = BestGap(Way::kPlain);
  Row("block-wise coordinate, 60 steps: gap over plain's", BestGap(Way::kCoordinate) / plain, 0, 0.5);
  Row("block-wise joint, 60 steps: gap over plain's", BestGap(Way::kJoint) / plain, 0, 0.5);
  Row("hybrid, 60 steps: gap over plain's", BestGap(Way::kHybrid) / plain, 0, 0.9);
  Row("variance of q = 1 over q = 16", VarianceOfOneQueryOverSixteen(), 13.5, 18.5);
  Row("logistic regression, float32, 300 steps, from 0.693", TrainLogistic(), 0, 0.55);
}

void Copying() {
  Title("copy task: transformer of 2 layers, width 32, vocabulary 64, zo-sgd of one query, batches of 16");
  for (const CopyScheme scheme : kCopySchemes) {
    const CopyRun run = TrainCopyTask(scheme, 1);
    const std::string name = std::string(CopyName(scheme)) + ", " + std::to_string(run.parameters) + " parameters, ";
    Row(name + "loss before", run.before, 1, 4.16);
    Row(name + std::to_string(run.steps) + " steps: loss over loss before", run.after / run.before, 0, 0.7);
  }
}

}  // namespace

int main(int argc, char** argv) {
  json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  if (argc > 2 || (argc == 2 && !json)) return std::fprintf(stderr, "usage: zo_laws [--json]\n"), 2;
  if (json) std::printf("[");
  EstimatorLaws();
  Biases();
  Convergence();
  Copying();
  if (json) std::printf("]\n");
  return all_hold ? 0 : 1;
}
