// Logistic regression on images like handwritten digits, trained through a running optod in two ways:
//   adamw   the client computes the gradient; the server holds the parameters and the optimizer
//   zo-sgd  the client computes only losses at perturbed parameters that are named by a seed
// The images are made here (seeded): ten 8x8 glyphs, shifted, blurred by noise; 1,200 to train on, 400 to test on.
//
//   optod --data-dir /some/folder &
//   build/bin/optod-example-digits [--json]
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "base/status.h"
#include "clients/cpp/client.h"
#include "clients/cpp/layout.h"
#include "clients/cpp/zo_worker.h"

namespace optod {
namespace {

constexpr int kPixels = 64, kClasses = 10, kTrain = 1200, kTest = 400;
constexpr int kAdamSteps = 100, kZoSteps = 1500;

// Rows of an 8x8 glyph, one bit a pixel.
constexpr std::array<std::array<uint8_t, 8>, kClasses> kGlyphs = {{{0x3c, 0x66, 0x66, 0x66, 0x66, 0x66, 0x3c, 0x00},
                                                                   {0x18, 0x38, 0x18, 0x18, 0x18, 0x18, 0x3c, 0x00},
                                                                   {0x3c, 0x66, 0x06, 0x0c, 0x18, 0x30, 0x7e, 0x00},
                                                                   {0x3c, 0x66, 0x06, 0x1c, 0x06, 0x66, 0x3c, 0x00},
                                                                   {0x0c, 0x1c, 0x2c, 0x4c, 0x7e, 0x0c, 0x0c, 0x00},
                                                                   {0x7e, 0x60, 0x7c, 0x06, 0x06, 0x66, 0x3c, 0x00},
                                                                   {0x1c, 0x30, 0x60, 0x7c, 0x66, 0x66, 0x3c, 0x00},
                                                                   {0x7e, 0x06, 0x0c, 0x18, 0x30, 0x30, 0x30, 0x00},
                                                                   {0x3c, 0x66, 0x66, 0x3c, 0x66, 0x66, 0x3c, 0x00},
                                                                   {0x3c, 0x66, 0x66, 0x3e, 0x06, 0x0c, 0x38, 0x00}}};

struct Images {
  std::vector<float> pixels;  // [n, 64], about 0 to 1
  std::vector<int> labels;    // [n]
};

Images MakeImages(int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> noise(0.0f, 0.3f);
  Images images;
  for (int i = 0; i < n; ++i) {
    const int label = i % kClasses, dx = static_cast<int>(random() % 3) - 1, dy = static_cast<int>(random() % 2);
    images.labels.push_back(label);
    for (int y = 0; y < 8; ++y)
      for (int x = 0; x < 8; ++x) {
        const int from_x = x - dx, from_y = y - dy;
        const bool inside = from_x >= 0 && from_x < 8 && from_y >= 0;
        const bool ink =
            inside && (kGlyphs[static_cast<size_t>(label)][static_cast<size_t>(from_y)] >> (7 - from_x) & 1);
        images.pixels.push_back((ink ? 1.0f : 0.0f) + noise(random));
      }
  }
  return images;
}

// theta: w [64, 10] then b [10]. Mean cross-entropy; `gradient` (same shape) when wanted; `correct` counts right
// answers.
double Loss(std::span<const float> theta, const Images& images, std::vector<float>* gradient, int* correct) {
  const size_t n = images.labels.size();
  const float* bias = theta.data() + kPixels * kClasses;
  if (gradient) gradient->assign(theta.size(), 0.0f);
  double total = 0;
  int right = 0;
  for (size_t i = 0; i < n; ++i) {
    const float* x = images.pixels.data() + i * kPixels;
    std::array<double, kClasses> logit;
    for (int c = 0; c < kClasses; ++c) logit[static_cast<size_t>(c)] = bias[c];
    for (int p = 0; p < kPixels; ++p)
      for (int c = 0; c < kClasses; ++c)
        logit[static_cast<size_t>(c)] += static_cast<double>(x[p]) * theta[static_cast<size_t>(p * kClasses + c)];
    const double top = *std::max_element(logit.begin(), logit.end());
    right += std::max_element(logit.begin(), logit.end()) - logit.begin() == images.labels[i];
    double sum = 0;
    for (double& value : logit) sum += value = std::exp(value - top);
    const auto label = static_cast<size_t>(images.labels[i]);
    total -= std::log(logit[label] / sum);
    if (!gradient) continue;
    for (int c = 0; c < kClasses; ++c) {
      const auto error = static_cast<float>((logit[static_cast<size_t>(c)] / sum - (static_cast<size_t>(c) == label)) /
                                            static_cast<double>(n));
      (*gradient)[static_cast<size_t>(kPixels * kClasses + c)] += error;
      for (int p = 0; p < kPixels; ++p) (*gradient)[static_cast<size_t>(p * kClasses + c)] += error * x[p];
    }
  }
  if (correct) *correct = right;
  return total / static_cast<double>(n);
}

struct Report {
  const char* optimizer;
  std::string session;
  double first_loss = 0, last_loss = 0, accuracy = 0;
};

absl::StatusOr<v1::Session> Create(client::Client& client, const char* optimizer, double lr, double eps) {
  v1::CreateSessionRequest request;
  request.mutable_optimizer()->set_name(optimizer);
  request.mutable_optimizer()->set_seed(1);
  auto& hyper = *request.mutable_optimizer()->mutable_hyperparameters();
  hyper["lr"].set_number(lr);
  if (eps > 0) hyper["eps"].set_number(eps);
  *request.mutable_layout() = client::Float32Layout({{"w", {kPixels, kClasses}, false}, {"b", {kClasses}, true}});
  request.set_direction(v1::MINIMIZE);
  request.set_display_name(Cat("digits by ", optimizer));
  return client.CreateSession(request);
}

absl::StatusOr<Report> TrainByGradients(client::Client& client, const Images& train, const Images& test) {
  ASSIGN_OR_RETURN(const v1::Session session, Create(client, "adamw", 0.05, 0));
  Report report{"adamw", session.name()};
  std::vector<float> theta(kPixels * kClasses + kClasses, 0.0f), gradient;
  RETURN_IF_ERROR(client.PushParameters(session.name(), std::as_bytes(std::span(theta))).status());
  ASSIGN_OR_RETURN(auto stream, client.OpenSteps(session.name(), true));
  for (int step = 1; step <= kAdamSteps; ++step) {
    const double loss = Loss(theta, train, &gradient, nullptr);
    if (step == 1) report.first_loss = loss;
    v1::StepStreamBegin begin;
    begin.set_seq(step);
    begin.set_base_version(step - 1);
    begin.set_loss(loss);
    RETURN_IF_ERROR(
        stream->Step(begin, std::as_bytes(std::span(gradient)), std::as_writable_bytes(std::span(theta))).status());
  }
  RETURN_IF_ERROR(stream->Close());
  int correct = 0;
  report.last_loss = Loss(theta, train, nullptr, nullptr);
  Loss(theta, test, nullptr, &correct);
  report.accuracy = static_cast<double>(correct) / kTest;
  return report;
}

absl::StatusOr<Report> TrainByLosses(client::Client& client, const Images& train, const Images& test) {
  ASSIGN_OR_RETURN(const v1::Session session, Create(client, "zo-sgd", 0.01, 1e-3));
  Report report{"zo-sgd", session.name()};
  client::ZeroOrderWorker::Options options;
  options.session = session.name();
  options.initial.assign(kPixels * kClasses + kClasses, 0.0f);
  ASSIGN_OR_RETURN(auto worker, client::ZeroOrderWorker::Attach(client, options));
  const auto loss = [&](std::span<const float> theta) -> absl::StatusOr<double> {
    return Loss(theta, train, nullptr, nullptr);
  };
  report.first_loss = Loss(worker->theta(), train, nullptr, nullptr);
  for (int step = 0; step < kZoSteps; ++step) RETURN_IF_ERROR(worker->Step(loss).status());
  RETURN_IF_ERROR(worker->CatchUp());
  int correct = 0;
  report.last_loss = Loss(worker->theta(), train, nullptr, nullptr);
  Loss(worker->theta(), test, nullptr, &correct);
  report.accuracy = static_cast<double>(correct) / kTest;
  return report;
}

absl::Status Run(bool json) {
  const Images train = MakeImages(kTrain, 1), test = MakeImages(kTest, 2);
  ASSIGN_OR_RETURN(auto client, client::Client::Connect(client::OptionsFromEnv()));
  for (const auto train_by : {&TrainByGradients, &TrainByLosses}) {
    ASSIGN_OR_RETURN(const Report r, train_by(*client, train, test));
    std::printf(
        json ? "{\"optimizer\":\"%s\",\"session\":\"%s\",\"first_loss\":%.6f,\"last_loss\":%.6f,\"accuracy\":%.4f}\n"
             : "%-7s %-40s loss %.4f -> %.4f   test accuracy %.4f\n",
        r.optimizer, r.session.c_str(), r.first_loss, r.last_loss, r.accuracy);
    std::fflush(stdout);
    if (!(r.last_loss < r.first_loss)) return Internal(r.optimizer, ": the loss did not fall");
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace optod

int main(int argc, char** argv) {
  const absl::Status status = optod::Run(argc > 1 && std::strcmp(argv[1], "--json") == 0);
  if (status.ok()) return 0;
  std::fprintf(stderr, "optod-example-digits: %s\n", std::string(status.message()).c_str());
  return status.code() == absl::StatusCode::kUnavailable ? 3 : 4;
}
