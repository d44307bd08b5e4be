// zo_bench [MILLIONS [REPETITIONS]]: normals/s of every path of the random stream, and of the fused theta += scale * z, on one thread and on two.
// One line a measurement: `name threads median_M/s best_M/s`. Inputs: MILLIONS * 2^20 float32 (16 by default), REPETITIONS (9).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "optim/zo/stream_slices.h"

namespace {

using namespace optod::zo;

void Measure(const char* name, const char* path, int threads, size_t n, int repetitions, const std::function<void(uint32_t)>& run) {
  run(0);  // first touch of the pages, clock frequency
  std::vector<double> rates;
  for (int repetition = 1; repetition <= repetitions; ++repetition) {
    const auto begin = std::chrono::steady_clock::now();
    run(static_cast<uint32_t>(repetition));
    rates.push_back(static_cast<double>(n) / 1e6 / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(rates.begin(), rates.end());
  std::printf("%s-%s %d %.0f %.0f\n", name, path, threads, rates[rates.size() / 2], rates.back());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t n = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 16) << 20;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 9;
  std::vector<float> z(n), theta(n, 0.5f);
  for (const kernels::Kernels* path : {&kernels::Scalar(), kernels::Avx2(), kernels::Avx512()}) {
    if (path == nullptr) continue;
    for (int threads : {1, 2}) {
      Measure("fill", path->name, threads, n, repetitions,
              [&](uint32_t step) { kernels::FillSlice(*path, threads, {1, step, 0}, 0, 0, z); });
      Measure("add", path->name, threads, n, repetitions,
              [&](uint32_t step) { kernels::AddSlice(*path, threads, {1, step, 0}, 0, 0, 1e-3f, theta, theta); });
    }
  }
}
