// Step time of the first-order rules as achieved GB/s over this machine's copy bandwidth, measured in the same run on
// buffers of the same kind (huge pages advised, touched). Bytes counted are those a step must move: each operand read
// once and each result written once, and the gradient once more for the NaN/Inf scan that precedes every step.
// Matrix rules step on [n / 2048, 2048]: their figure is time, bound by products, not by memory.
//   rules_bench [--elements 16777216,104857600] [--repeats 5] [--rules adamw,sgd] [--path avx2] [--dtype f32|bf16|f16] [--json 1]
//   rules_bench --factors 256,512,1024,2048     MKOR's rank-1 update of a factor's inverse against KFAC's inversions
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "optim/rules/blas.h"
#include "optim/rules/buffer.h"
#include "optim/rules/kernels.h"
#include "optim/rules/registry.h"

namespace {

using optod::optim::Buffer;

struct Subject {
  const char* label;
  const char* rule;
  optod::optim::Hyper hyper;
  double floats_moved;  ///< numbers of 4 bytes read or written an element, the scan's read included; 0 = bound by products
};

// Matrix rules see [rows, 4096]; elementwise ones do not care.
const std::vector<Subject>& Subjects() {
  static const std::vector<Subject> subjects = {
      {"sgd", "sgd", {}, 4},
      {"sgd momentum", "sgd", {{"momentum", 0.9}}, 6},
      {"adam", "adam", {}, 8},
      {"adamw", "adamw", {}, 8},
      {"adamw amsgrad", "adamw", {{"amsgrad", true}}, 10},
      {"adamw-8bit", "adamw-8bit", {}, 5},
      {"sgd-sai", "sgd-sai", {}, 6},
      {"adahessian", "adahessian", {}, 9},
      {"lamb", "lamb", {}, 11},
      {"scale hidden", "scale", {{"hidden_tensors", std::string("*")}}, 4},
      {"scale embedding", "scale", {{"embedding_tensors", std::string("*")}}, 5},
      {"scale last layer", "scale", {}, 6},
      {"adafactor", "adafactor", {}, 7},
      {"muon", "muon", {{"aux_tensors", std::string("")}}, 0},
      {"galore", "galore", {}, 0},
      {"fira", "fira", {}, 0},
      {"apollo", "apollo", {}, 0},
      {"apollo-mini", "apollo-mini", {}, 0},
      {"kfac", "kfac", {{"factor_every", 1.0}, {"inv_every", 1.0}}, 0},
      {"mkor", "mkor", {{"inv_freq", 1.0}}, 0},
  };
  return subjects;
}

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void Fill(Buffer& buffer, float value) {
  float* x = buffer.as<float>();
  const int64_t n = static_cast<int64_t>(buffer.size() / sizeof(float));
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) x[i] = value + 1e-3f * static_cast<float>(i % 1021);
}

/// A threaded memcpy between two buffers that stay.
class Copy {
 public:
  explicit Copy(size_t bytes) : from_(bytes), to_(bytes) {
    Fill(from_, 1);
    Fill(to_, 0);
  }
  double Time() const {
    const double start = Seconds();
#pragma omp parallel
    {
      const size_t threads = omp_get_num_threads(), id = omp_get_thread_num();
      const size_t begin = from_.size() * id / threads, end = from_.size() * (id + 1) / threads;
      std::memcpy(to_.as<char>() + begin, from_.as<char>() + begin, end - begin);
    }
    return Seconds() - start;
  }
  double moved() const { return 2.0 * static_cast<double>(from_.size()); }  ///< bytes read and written

 private:
  Buffer from_, to_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Settings {
  int repeats = 5;
  bool json = false;
  optod::optim::DType dtype = optod::optim::DType::kF32;
};

/// Bytes that a step moves: parameters and gradients count at their own width.
double BytesMoved(const Subject& subject, int64_t n, optod::optim::DType dtype) {
  const double narrow = 4.0 - static_cast<double>(optod::optim::DTypeSize(dtype));
  // Parameter read and written, gradient read by the scan and by the step; more reads of either stay counted as 4 bytes.
  return (4.0 * subject.floats_moved - 4 * narrow) * static_cast<double>(n);
}

void Print(const Subject& subject, int64_t n, double step, double copy_rate, const Settings& settings) {
  const double rate = BytesMoved(subject, n, settings.dtype) / step;
  if (settings.json) {
    std::printf("{\"rule\": \"%s\", \"elements\": %lld, \"ms\": %.4f, \"gbs\": %.3f, \"copy_gbs\": %.3f, \"ratio\": %.3f}\n", subject.label,
                static_cast<long long>(n), step * 1e3, subject.floats_moved > 0 ? rate / 1e9 : 0, copy_rate / 1e9,
                subject.floats_moved > 0 ? rate / copy_rate : 0);
  } else if (subject.floats_moved > 0) {
    std::printf("%-18s %10.1f M %10.2f ms %8.2f GB/s %8.2f GB/s %8.2f\n", subject.label, static_cast<double>(n) / 1e6, step * 1e3,
                rate / 1e9, copy_rate / 1e9, rate / copy_rate);
  } else {
    std::printf("%-18s %10.1f M %10.2f ms\n", subject.label, static_cast<double>(n) / 1e6, step * 1e3);
  }
  std::fflush(stdout);
}

/// Rows of statistics for the layer of `weight`, as mkor and kfac want them.
std::vector<optod::optim::OwnedTensor> Statistics(const optod::optim::TensorSpec& weight) {
  std::vector<optod::optim::OwnedTensor> out;
  for (const auto& [name, width] : {std::pair{"act/w", weight.shape[1]}, std::pair{"pgrad/w", weight.shape[0]}}) {
    optod::optim::OwnedTensor& tensor = out.emplace_back();
    tensor.spec = {name, optod::optim::DType::kF32, {64, width}};
    std::vector<float> values(static_cast<size_t>(64 * width));
    for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * static_cast<float>(static_cast<int>(i * 7919 % 101) - 50);
    tensor.data.resize(values.size() * 4);
    std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  }
  return out;
}

bool Measure(const Subject& subject, int64_t n, const Settings& settings, const Copy& copy) {
  using optod::optim::DType;
  const bool matrix = subject.floats_moved == 0;
  const int64_t width = matrix ? 2048 : 4096, cols = n % width == 0 ? width : 1;
  const std::vector<optod::optim::TensorSpec> layout = {{"w.weight", settings.dtype, {n / cols, cols}}};
  auto rule = optod::optim::MakeRule(subject.rule, subject.hyper, layout, 1);
  if (!rule.ok()) {
    std::fprintf(stderr, "%s: %s\n", subject.label, std::string(rule.status().message()).c_str());
    return false;
  }
  Buffer p(n * 4), g(n * 4);  // 16-bit tensors use the front half; any pattern is a finite number there
  Fill(p, 0.5f);
  Fill(g, 0.01f);
  void* params[] = {p.data()};
  const void* grads[] = {g.data()};
  optod::optim::StepInput input;
  input.grads = grads;
  optod::optim::OwnedTensor hessian;
  if (std::string(subject.rule) == "adahessian") {
    hessian.spec = {"hessian_z/w.weight", DType::kF32, layout[0].shape};
    hessian.data.assign(n * 4, std::byte{0});
    input.extra["hessian_z/w.weight"] = &hessian;
  }
  std::vector<optod::optim::OwnedTensor> statistics;
  if (matrix) statistics = Statistics(layout[0]);
  for (const auto& tensor : statistics) input.extra[tensor.spec.name] = &tensor;
  // Copies and steps take turns, so that a busy machine slows both; the ratio is that of the medians.
  std::vector<double> steps, copies;
  for (int k = 0; k < settings.repeats + 2; ++k) {
    const double copied = copy.Time(), start = Seconds();
    if (const auto report = (*rule)->Step(params, input); !report.ok()) {
      std::fprintf(stderr, "%s: %s\n", subject.label, std::string(report.status().message()).c_str());
      return false;
    }
    if (k < 2) continue;  // the first steps touch the state
    steps.push_back(Seconds() - start);
    copies.push_back(copied);
  }
  Print(subject, n, Median(steps), copy.moved() / Median(copies), settings);
  return true;
}

/// MKOR's `release` update of one inverse factor (as mkor.cc does it) against what KFAC does with a factor of the same
/// width: an inverse by Cholesky, or an eigendecomposition. One line a width; times in turns.
void MeasureFactor(int64_t d, int repeats, bool json) {
  namespace blas = optod::optim::blas;
  std::vector<float> k(d * d, 0.0f), spd(d * d), work(d * d), v(d), w(d), eigenvalues(d);
  for (int64_t i = 0; i < d; ++i) {
    k[i * d + i] = 1;
    v[i] = 0.01f * static_cast<float>(i % 17 - 8);
    for (int64_t j = 0; j < d; ++j)
      spd[i * d + j] = (i == j ? 2.0f : 0.0f) + 1.0f / (1.0f + static_cast<float>(std::abs(i - j)));
  }
  std::vector<double> rank1, cholesky, eigen;
  for (int repeat = 0; repeat < repeats + 1; ++repeat) {
    double start = Seconds();
    blas::Symv<float>(d, k.data(), v.data(), w.data());
    optod::optim::Kernels().f32.scale_and_add(0.95f, w.data(), 0.05f, v.data(), d);
    const double q = blas::Dot(d, v.data(), w.data());
    const float beta = static_cast<float>(-1 / (1 + q));
#pragma omp parallel for schedule(static) if (d >= 512)
    for (int64_t row = 0; row < d; ++row) {
      optod::optim::Kernels().f32.scale_and_add(0.95f, k.data() + row * d, beta * w[row], w.data(), d);
      k[row * d + row] += 0.05f;
    }
    const double updated = Seconds() - start;
    work = spd;
    start = Seconds();
    blas::InvertPositive<float>(d, work.data());
    const double inverted = Seconds() - start;
    work = spd;
    start = Seconds();
    blas::Eigh<float>(d, work.data(), eigenvalues.data());
    const double decomposed = Seconds() - start;
    if (repeat == 0) continue;
    rank1.push_back(updated);
    cholesky.push_back(inverted);
    eigen.push_back(decomposed);
  }
  const double a = Median(rank1) * 1e3, b = Median(cholesky) * 1e3, c = Median(eigen) * 1e3;
  if (json) {
    std::printf("{\"width\": %lld, \"mkor_ms\": %.4f, \"inverse_ms\": %.4f, \"eigen_ms\": %.4f}\n", static_cast<long long>(d), a, b, c);
  } else {
    std::printf("%6lld %12.3f ms %12.3f ms (%6.1fx) %12.3f ms (%6.1fx)\n", static_cast<long long>(d), a, b, b / a, c, c / a);
  }
  std::fflush(stdout);
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> elements = {"16777216", "104857600"}, rules, factors;
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--elements") elements = Split(value);
    if (flag == "--repeats") settings.repeats = std::max(1, std::atoi(argv[i + 1]));
    if (flag == "--rules") rules = Split(value);
    if (flag == "--factors") factors = Split(value);
    if (flag == "--json") settings.json = value != "0";
    if (flag == "--dtype") {
      settings.dtype = value == "bf16" ? optod::optim::DType::kBF16
                       : value == "f16" ? optod::optim::DType::kF16
                                        : optod::optim::DType::kF32;
    }
    if (flag == "--path" && !optod::optim::SelectKernels(value)) std::fprintf(stderr, "no path %s here\n", argv[i + 1]);
  }
  if (!factors.empty()) {
    if (!settings.json) std::printf("%6s %15s %25s %25s\n", "width", "MKOR rank 1", "KFAC inverse", "KFAC eigen");
    for (const std::string& width : factors) MeasureFactor(std::atoll(width.c_str()), settings.repeats, settings.json);
    return 0;
  }
  bool ok = true;
  for (const std::string& count : elements) {
    const int64_t n = std::atoll(count.c_str());
    const Copy copy(static_cast<size_t>(n) * 4);
    if (!settings.json)
      std::printf("%s, %d threads\n%-18s %12s %13s %13s %13s %8s\n", optod::optim::Kernels().name, omp_get_max_threads(), "rule",
                  "elements", "step", "moved", "copy", "ratio");
    for (const Subject& subject : Subjects()) {
      const bool named = std::count(rules.begin(), rules.end(), subject.rule) || std::count(rules.begin(), rules.end(), subject.label);
      // Matrix rules are asked for by name: at 100 M elements a step takes minutes.
      if (rules.empty() ? subject.floats_moved > 0 : named) ok = Measure(subject, n, settings, copy) && ok;
    }
  }
  return ok ? 0 : 1;
}
