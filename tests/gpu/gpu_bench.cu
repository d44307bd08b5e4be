// GB/s of every step kernel over the card's own copy rate, measured in the same run: bytes that must move (operands read
// once, results written once) over the time between events. Prints one line a kernel and one JSON line at the end.
//   optod-gpu-bench [--elements 100000000]
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/adamw_8bit.h"
#include "cuda/matrix.h"
#include "cuda/norms.h"
#include "cuda/random.h"
#include "cuda/step.h"
#include "tests/gpu/testing.h"

namespace optod::cuda {
namespace {

using testing::Device;
namespace formula = optim::formula;

/// Median milliseconds of `body` on the default stream.
template <typename Body>
double Milliseconds(Body body, int repeats = 15) {
  cudaEvent_t start, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  std::vector<float> times;
  for (int k = 0; k < repeats + 3; ++k) {
    cudaEventRecord(start);
    const Error error = body();
    cudaEventRecord(stop);
    cudaEventSynchronize(stop);
    if (!error.ok()) {
      std::printf("%s\n", error.text.c_str());
      std::exit(1);
    }
    float ms = 0;
    cudaEventElapsedTime(&ms, start, stop);
    if (k >= 3) times.push_back(ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Buffers {
  explicit Buffers(int64_t n) : n(n), p(n), g(n), s0(n), s1(n), s2(n), x(n) {
    for (Device<float>* buffer : {&p, &g, &s0, &s1, &s2, &x}) cudaMemset(buffer->get(), 0, n * sizeof(float));
  }
  int64_t n;
  Device<float> p, g, s0, s1, s2, x;
  TensorOperands Operands(DType p_dtype, DType g_dtype) const {
    TensorOperands o;
    o.p = p.get();
    o.g = g.get();
    o.s[0] = s0.get();
    o.s[1] = s1.get();
    o.s[2] = s2.get();
    o.x = x.get();
    o.p_dtype = p_dtype;
    o.g_dtype = g_dtype;
    return o;
  }
};

double copy_rate = 0;  // GB/s
std::string json;

void Report(const char* name, double bytes, double ms) {
  const double rate = bytes / ms / 1e6;
  std::printf("%-28s %9.3f ms %9.1f GB/s %6.3f of copy\n", name, ms, rate, rate / copy_rate);
  json += (json.empty() ? "" : ", ") + std::string("\"") + name + "\": " + std::to_string(ms);
}

struct Subject {
  const char* name;
  Operation operation;
  double words;  // of 4 bytes an element
};

void Steps(const Buffers& buffers) {
  const Subject subjects[] = {
      {"sgd", Operation::kSgdPlain, 3},          {"sgd momentum", Operation::kSgdMomentum, 5},
      {"adamw", Operation::kAdam, 7},            {"amsgrad", Operation::kAmsgrad, 9},
      {"sgd-sai", Operation::kSai, 5},           {"adahessian", Operation::kAdaHessian, 8},
      {"lamb moments", Operation::kLambMoments, 7}, {"lamb apply", Operation::kLambApply, 4},
  };
  std::unique_ptr<StepPlan> plan;
  const int64_t sizes[] = {buffers.n};
  if (const Error error = StepPlan::Make(sizes, &plan); !error.ok()) std::printf("%s\n", error.text.c_str()), std::exit(1);
  const std::vector<std::byte> constants(64, std::byte{0});
  for (const Subject& subject : subjects) {
    const TensorOperands o = buffers.Operands(DType::kF32, DType::kF32);
    Report(subject.name, 4 * subject.words * static_cast<double>(buffers.n),
           Milliseconds([&] { return plan->Run(subject.operation, std::span(&o, 1), constants, nullptr); }));
  }
  for (const bool stochastic : {false, true}) {
    TensorOperands o = buffers.Operands(DType::kBF16, DType::kBF16);
    o.stochastic = stochastic;
    Report(stochastic ? "adamw bf16 stochastic" : "adamw bf16", 22.0 * static_cast<double>(buffers.n),
           Milliseconds([&] { return plan->Run(Operation::kAdam, std::span(&o, 1), constants, nullptr); }));
  }
  Device<uint8_t> m(buffers.n), v(buffers.n);
  const int64_t blocks = (buffers.n + 255) / 256;
  Device<float> m_max(blocks), v_max(blocks);
  cudaMemset(m_max.get(), 0, blocks * 4);
  cudaMemset(v_max.get(), 0, blocks * 4);
  const formula::Adam<float> adam = {{0.9f, 0.1f}, {0.999f, 0.001f}, 1e-3f, 1, 1e-8f, 1, 0, 1};
  Report("adamw-8bit", 16.0 * static_cast<double>(buffers.n), Milliseconds([&] {
           return StepAdamW8bit(buffers.Operands(DType::kF32, DType::kF32), {m.get(), v.get(), m_max.get(), v_max.get()}, buffers.n, 256,
                                adam, nullptr);
         }));
  const formula::Normalised<float> normalised = {{0.9f, 0.1f}, 1, 1e-3f, 1};
  Report("scale rows [.., 4096]", 16.0 * static_cast<double>(buffers.n / 4096 * 4096), Milliseconds([&] {
           return StepNormalisedRows(buffers.Operands(DType::kF32, DType::kF32), nullptr, buffers.n / 4096, 4096, normalised, nullptr);
         }));
}

void Stream(const Buffers& buffers) {
  const StreamId id = {1, 2, 3, 4};
  const double n = static_cast<double>(buffers.n);
  Report("normals", 4 * n, Milliseconds([&] { return FillNormal(id, 0, buffers.x.get(), buffers.n, nullptr); }));
  Report("theta + eps z", 8 * n, Milliseconds([&] {
           return AddScaledNormal(id, 0, 1e-3f, DType::kF32, buffers.p.get(), buffers.x.get(), buffers.n, nullptr);
         }));
  const UpdateTerm terms[] = {{1, 0, 1e-6f}, {1, 1, 1e-6f}, {1, 2, 1e-6f}, {1, 3, 1e-6f}};
  for (const size_t count : {size_t{1}, size_t{4}}) {
    Report(count == 1 ? "zo update, 1 term" : "zo update, 4 terms", 8 * n, Milliseconds([&] {
             return ApplyUpdate(id, std::span(terms, count), 0, DType::kF32, buffers.p.get(), buffers.n, nullptr);
           }));
  }
}

void Factors() {
  std::unique_ptr<Matrices> matrices;
  if (const Error error = Matrices::Make(nullptr, &matrices); !error.ok()) return (void)std::printf("%s\n", error.text.c_str());
  std::printf("\n%6s %14s %14s %8s\n", "d", "MKOR rank 1 ms", "inversion ms", "ratio");
  for (const int64_t d : {256, 512, 1024, 2048}) {
    std::vector<float> identity(d * d, 0.0f);
    for (int64_t i = 0; i < d; ++i) identity[i * d + i] = 2;
    Device<float> k(identity), a(identity), start(identity), v(std::vector<float>(d, 0.01f));
    const double rank1 = Milliseconds([&] { return matrices->MkorRelease(d, v.get(), k.get()); });
    const double inverse = Milliseconds([&] {
      bool positive = false;
      cudaMemcpyAsync(a.get(), start.get(), d * d * sizeof(float), cudaMemcpyDeviceToDevice);
      return matrices->InvertPositive(d, a.get(), &positive);
    });
    std::printf("%6lld %14.4f %14.4f %8.1f\n", static_cast<long long>(d), rank1, inverse, inverse / rank1);
  }
}

}  // namespace
}  // namespace optod::cuda

int main(int argc, char** argv) {
  using namespace optod::cuda;
  int64_t n = 100'000'000;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--elements") n = std::max<int64_t>(4096, std::atoll(argv[i + 1]));
  }
  cudaDeviceProp device = {};
  if (const cudaError_t code = cudaGetDeviceProperties(&device, 0); code != cudaSuccess) {
    std::printf("no CUDA device: %s\n", cudaGetErrorString(code));
    return 1;
  }
  const Buffers buffers(n);
  const double copied = Milliseconds([&] {
    return FromCuda(cudaMemcpyAsync(buffers.x.get(), buffers.g.get(), n * sizeof(float), cudaMemcpyDeviceToDevice), "copy");
  });
  copy_rate = 8.0 * static_cast<double>(n) / copied / 1e6;
  std::printf("%s, %lld elements, copy %.1f GB/s\n", device.name, static_cast<long long>(n), copy_rate);
  Steps(buffers);
  Stream(buffers);
  Factors();
  std::printf("{\"device\": \"%s\", \"elements\": %lld, \"copy_gbs\": %.1f, \"ms\": {%s}}\n", device.name,
              static_cast<long long>(n), copy_rate, json.c_str());
  return 0;
}
