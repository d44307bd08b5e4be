// Step time of the first-order rules as achieved GB/s over this machine's copy bandwidth, measured in the same run on
// buffers of the same kind (huge pages advised, touched). Bytes counted are those a step must move: each operand read
// once and each result written once, and the gradient once more for the NaN/Inf scan that precedes every step.
//   rules_bench [--elements 16777216,104857600] [--repeats 5] [--rules adamw,sgd] [--path avx2]
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "optim/rules/buffer.h"
#include "optim/rules/kernels.h"
#include "optim/rules/registry.h"

namespace {

using optod::optim::Buffer;

struct Subject {
  const char* label;
  const char* rule;
  optod::optim::Hyper hyper;
  double floats_moved;  ///< numbers of 4 bytes read or written an element, the scan's read included
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

bool Measure(const Subject& subject, int64_t n, int repeats, const Copy& copy) {
  using optod::optim::DType;
  const int64_t cols = n % 4096 == 0 ? 4096 : 1;
  const std::vector<optod::optim::TensorSpec> layout = {{"w", DType::kF32, {n / cols, cols}}};
  auto rule = optod::optim::MakeRule(subject.rule, subject.hyper, layout, 1);
  if (!rule.ok()) {
    std::fprintf(stderr, "%s: %s\n", subject.label, std::string(rule.status().message()).c_str());
    return false;
  }
  Buffer p(n * 4), g(n * 4);
  Fill(p, 0.5f);
  Fill(g, 0.01f);
  void* params[] = {p.data()};
  const void* grads[] = {g.data()};
  optod::optim::StepInput input;
  input.grads = grads;
  optod::optim::OwnedTensor hessian;
  if (std::string(subject.rule) == "adahessian") {
    hessian.spec = {"hessian_z/w", DType::kF32, layout[0].shape};
    hessian.data.assign(n * 4, std::byte{0});
    input.extra["hessian_z/w"] = &hessian;
  }
  // Copies and steps take turns, so that a busy machine slows both; the ratio is that of the medians.
  std::vector<double> steps, copies;
  for (int k = 0; k < repeats + 2; ++k) {
    const double copied = copy.Time(), start = Seconds();
    if (!(*rule)->Step(params, input).ok()) return false;
    if (k < 2) continue;  // the first steps touch the state
    steps.push_back(Seconds() - start);
    copies.push_back(copied);
  }
  const double step = Median(steps), rate = 4.0 * subject.floats_moved * static_cast<double>(n) / step,
               copy_rate = copy.moved() / Median(copies);
  std::printf("%-18s %10.1f M %10.2f ms %8.2f GB/s %8.2f GB/s %8.2f\n", subject.label, static_cast<double>(n) / 1e6,
              step * 1e3, rate / 1e9, copy_rate / 1e9, rate / copy_rate);
  std::fflush(stdout);
  return true;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> elements = {"16777216", "104857600"}, rules;
  int repeats = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--elements") elements = Split(argv[i + 1]);
    if (flag == "--repeats") repeats = std::max(1, std::atoi(argv[i + 1]));
    if (flag == "--rules") rules = Split(argv[i + 1]);
    if (flag == "--path" && !optod::optim::SelectKernels(argv[i + 1]))
      std::fprintf(stderr, "no path %s here\n", argv[i + 1]);
  }
  bool ok = true;
  for (const std::string& count : elements) {
    const int64_t n = std::atoll(count.c_str());
    const Copy copy(static_cast<size_t>(n) * 4);
    std::printf("%s, %d threads\n%-18s %12s %13s %13s %13s %8s\n", optod::optim::Kernels().name, omp_get_max_threads(),
                "rule", "float32", "step", "moved", "copy", "ratio");
    for (const Subject& subject : Subjects()) {
      if (rules.empty() || std::count(rules.begin(), rules.end(), subject.rule))
        ok = Measure(subject, n, repeats, copy) && ok;
    }
  }
  return ok ? 0 : 1;
}
