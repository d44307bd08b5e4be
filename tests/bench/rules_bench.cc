// Step time of the first-order rules as achieved GB/s over this machine's copy bandwidth, measured in the same run on
// buffers of the same kind (huge pages advised, touched). Bytes counted are those a step must move: each operand read
// once a pass that the formula needs, each result written once, and the gradient (AdaHessian: the Hessian sample too) once
// more for the NaN/Inf scan that precedes a step. Beside it the step of a caller who has looked already
// (StepInput::grads_finite): without the scan and its bytes.
// Matrix rules step on [n / 2048, 2048]: their figure is time, bound by products, not by memory.
//   rules_bench [--elements 16777216,104857600] [--repeats 5] [--rules adamw,sgd] [--path avx2] [--dtype f32|bf16|f16] [--json 1]
//   rules_bench --turns adamw [--elements N]     one step a line of standard input ("step", "known": without the scan,
//                                                "copy"), answered by its milliseconds: to take turns with another program
//   rules_bench --factors 256,512,1024,2048     MKOR's rank-1 update of a factor's inverse against KFAC's inversions
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
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
  double floats_moved;  ///< numbers of 4 bytes read or written an element without the scan; 0 = bound by products
  double scanned = 1;   ///< numbers of 4 bytes that the scan reads
};

// Matrix rules see [rows, 4096]; elementwise ones do not care.
const std::vector<Subject>& Subjects() {
  static const std::vector<Subject> subjects = {
      {"sgd", "sgd", {}, 3},
      {"sgd momentum", "sgd", {{"momentum", 0.9}}, 5},
      {"adam", "adam", {}, 7},
      {"adamw", "adamw", {}, 7},
      {"adamw amsgrad", "adamw", {{"amsgrad", true}}, 9},
      {"adamw-8bit", "adamw-8bit", {}, 4},
      {"sgd-sai", "sgd-sai", {}, 5},
      {"adahessian", "adahessian", {}, 8, 2},
      {"lamb", "lamb", {}, 10},
      {"scale hidden", "scale", {{"hidden_tensors", std::string("*")}}, 3},
      {"scale embedding", "scale", {{"embedding_tensors", std::string("*")}}, 4},
      {"scale last layer", "scale", {}, 5},
      {"adafactor", "adafactor", {}, 6},
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

/// Bytes that a step moves: parameters and gradients count at their own width. 0 for a rule bound by products.
double BytesMoved(const Subject& subject, int64_t n, optod::optim::DType dtype, bool scan) {
  if (subject.floats_moved == 0) return 0;
  const double narrow = 4.0 - static_cast<double>(optod::optim::DTypeSize(dtype));
  // Parameter read and written, gradient read by the step and by the scan; more reads of either stay counted as 4 bytes.
  return (4.0 * (subject.floats_moved + (scan ? subject.scanned : 0)) - (scan ? 4 : 3) * narrow) * static_cast<double>(n);
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

/// One rule on one tensor of n elements with all that a step is given.
class Stepper {
 public:
  Stepper(const Subject& subject, int64_t n, optod::optim::DType dtype) : p_(n * 4), g_(n * 4) {
    using optod::optim::DType;
    const bool matrix = subject.floats_moved == 0;
    const int64_t width = matrix ? 2048 : 4096, cols = n % width == 0 ? width : 1;
    layout_ = {{"w.weight", dtype, {n / cols, cols}}};
    auto rule = optod::optim::MakeRule(subject.rule, subject.hyper, layout_, 1);
    if (!rule.ok()) {
      Refuse(subject, rule.status());
      return;
    }
    rule_ = *std::move(rule);
    Fill(p_, 0.5f);  // 16-bit tensors use the front half; any pattern is a finite number there
    Fill(g_, 0.01f);
    if (std::string(subject.rule) == "adahessian") {
      extra_.emplace_back().spec = {"hessian_z/w.weight", DType::kF32, layout_[0].shape};
      extra_.back().data.assign(n * 4, std::byte{0});
    }
    if (matrix) extra_ = Statistics(layout_[0]);
    subject_ = &subject;
  }
  bool ok() const { return rule_ != nullptr; }

  /// Seconds of one step; negative when it is refused.
  double Time(bool scan) {
    void* params[] = {p_.data()};
    const void* grads[] = {g_.data()};
    optod::optim::StepInput input;
    input.grads = grads;
    input.grads_finite = input.extra_finite = !scan;
    for (const auto& tensor : extra_) input.extra[tensor.spec.name] = &tensor;
    const double start = Seconds();
    const auto report = rule_->Step(params, input);
    const double took = Seconds() - start;
    if (!report.ok()) Refuse(*subject_, report.status());
    return report.ok() ? took : -1;
  }

 private:
  void Refuse(const Subject& subject, const absl::Status& status) {
    std::fprintf(stderr, "%s: %s\n", subject.label, std::string(status.message()).c_str());
    rule_.reset();
  }

  const Subject* subject_ = nullptr;
  Buffer p_, g_;
  std::vector<optod::optim::TensorSpec> layout_;
  std::vector<optod::optim::OwnedTensor> extra_;
  std::unique_ptr<optod::optim::Rule> rule_;
};

/// Times and rates of one rule. Rates of a rule bound by products are 0.
void Print(const Subject& subject, int64_t n, double step, double known, double copy_rate, const Settings& settings) {
  const bool memory = subject.floats_moved > 0;
  const double rate = memory ? BytesMoved(subject, n, settings.dtype, true) / step : 0;
  const double known_rate = memory ? BytesMoved(subject, n, settings.dtype, false) / known : 0;
  if (settings.json) {
    std::printf("{\"rule\": \"%s\", \"elements\": %lld, \"ms\": %.4f, \"gbs\": %.3f, \"copy_gbs\": %.3f, \"ratio\": %.3f, "
                "\"known_ms\": %.4f, \"known_gbs\": %.3f, \"known_ratio\": %.3f}\n",
                subject.label, static_cast<long long>(n), step * 1e3, rate / 1e9, copy_rate / 1e9, rate / copy_rate, known * 1e3,
                known_rate / 1e9, known_rate / copy_rate);
  } else if (memory) {
    std::printf("%-18s %8.1f M %9.2f ms %7.2f GB/s %6.2f %9.2f ms %7.2f GB/s %6.2f %9.2f GB/s\n", subject.label,
                static_cast<double>(n) / 1e6, step * 1e3, rate / 1e9, rate / copy_rate, known * 1e3, known_rate / 1e9,
                known_rate / copy_rate, copy_rate / 1e9);
  } else {
    std::printf("%-18s %8.1f M %9.2f ms\n", subject.label, static_cast<double>(n) / 1e6, step * 1e3);
  }
  std::fflush(stdout);
}

bool Measure(const Subject& subject, int64_t n, const Settings& settings, const Copy& copy) {
  Stepper stepper(subject, n, settings.dtype);
  if (!stepper.ok()) return false;
  // Copies and steps take turns, so that a busy machine slows all; the ratio is that of the medians.
  std::vector<double> steps, known, copies;
  for (int k = 0; k < settings.repeats + 1; ++k) {
    const double copied = copy.Time(), step = stepper.Time(true), without = subject.floats_moved > 0 ? stepper.Time(false) : step;
    if (!stepper.ok()) return false;
    if (k == 0) continue;  // the first steps touch the state
    steps.push_back(step);
    known.push_back(without);
    copies.push_back(copied);
  }
  Print(subject, n, Median(steps), Median(known), copy.moved() / Median(copies), settings);
  return true;
}

/// Steps on demand: see --turns above.
int TakeTurns(const std::string& label, int64_t n, const Settings& settings) {
  for (const Subject& subject : Subjects()) {
    if (label != subject.label) continue;
    Stepper stepper(subject, n, settings.dtype);
    if (!stepper.ok()) return 1;
    const Copy copy(static_cast<size_t>(n) * 4);
    std::printf("%.0f %.0f %.0f\n", copy.moved(), BytesMoved(subject, n, settings.dtype, true), BytesMoved(subject, n, settings.dtype, false));
    std::fflush(stdout);
    char word[16];
    while (std::scanf("%15s", word) == 1) {
      const std::string what = word;
      const double took = what == "copy" ? copy.Time() : stepper.Time(what != "known");
      if (!stepper.ok()) return 1;
      std::printf("%.4f\n", took * 1e3);
      std::fflush(stdout);
    }
    return 0;
  }
  std::fprintf(stderr, "no rule %s here\n", label.c_str());
  return 2;
}

/// Times of one thing done again and again: the first is dropped when there are more, and what has taken `kEnough` seconds
/// is not done again (an eigendecomposition of width 2048 takes half a minute).
class Times {
 public:
  template <typename F>
  void Run(F f) {
    if (spent_ > kEnough) return;
    const double start = Seconds();
    f();
    times_.push_back(Seconds() - start);
    spent_ += times_.back();
  }
  double MedianMs() const {
    return 1e3 * Median(std::vector<double>(times_.begin() + (times_.size() > 1 ? 1 : 0), times_.end()));
  }

 private:
  static constexpr double kEnough = 2;
  std::vector<double> times_;
  double spent_ = 0;
};

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
  const auto update = [&] {
    blas::Symv<float>(d, k.data(), v.data(), w.data());
    optod::optim::Kernels().f32.scale_and_add(0.95f, w.data(), 0.05f, v.data(), d);
    const double q = blas::Dot(d, v.data(), w.data());
    const float beta = static_cast<float>(-1 / (1 + q));
#pragma omp parallel for schedule(static) if (d >= 512)
    for (int64_t row = 0; row < d; ++row) {
      optod::optim::Kernels().f32.scale_and_add(0.95f, k.data() + row * d, beta * w[row], w.data(), d);
      k[row * d + row] += 0.05f;
    }
  };
  Times rank1, cholesky, eigen;
  for (int repeat = 0; repeat < repeats + 1; ++repeat) {
    rank1.Run(update);
    work = spd;
    cholesky.Run([&] { blas::InvertPositive<float>(d, work.data()); });
    work = spd;
    eigen.Run([&] { blas::Eigh<float>(d, work.data(), eigenvalues.data()); });
  }
  const double a = rank1.MedianMs(), b = cholesky.MedianMs(), c = eigen.MedianMs();
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
  std::string turns;
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--elements") elements = Split(value);
    if (flag == "--repeats") settings.repeats = std::max(1, std::atoi(argv[i + 1]));
    if (flag == "--rules") rules = Split(value);
    if (flag == "--factors") factors = Split(value);
    if (flag == "--turns") turns = value;
    if (flag == "--json") settings.json = value != "0";
    if (flag == "--dtype") {
      settings.dtype = value == "bf16" ? optod::optim::DType::kBF16
                       : value == "f16" ? optod::optim::DType::kF16
                                        : optod::optim::DType::kF32;
    }
    if (flag == "--path" && !optod::optim::SelectKernels(value)) std::fprintf(stderr, "no path %s here\n", argv[i + 1]);
  }
  if (!turns.empty()) return TakeTurns(turns, std::atoll(elements[0].c_str()), settings);
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
      std::printf("%s, %d threads; of copy: with the NaN/Inf scan, then without\n%-18s %10s %12s %12s %6s %12s %12s %6s %14s\n",
                  optod::optim::Kernels().name, omp_get_max_threads(), "rule", "elements", "step", "moved", "/copy", "no scan", "moved", "/copy",
                  "copy");
    for (const Subject& subject : Subjects()) {
      const bool named = std::count(rules.begin(), rules.end(), subject.rule) || std::count(rules.begin(), rules.end(), subject.label);
      // Matrix rules are asked for by name: at 100 M elements a step takes minutes.
      if (rules.empty() ? subject.floats_moved > 0 : named) ok = Measure(subject, n, settings, copy) && ok;
    }
  }
  return ok ? 0 : 1;
}
