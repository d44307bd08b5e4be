#include "optim/order/kernels.h"

#include <cmath>
#include <cstring>

namespace optod::order::kernels {

extern const Table kScalar;
#if defined(__x86_64__)
extern const Table kAvx2;
extern const Table kAvx512;
#endif

Step MakeStep(const Optimizer& o, double lr, int position) {
  Step step;
  step.rule = o.rule;
  step.nesterov = o.nesterov;
  step.momentum = o.momentum;
  step.beta1 = o.beta1;
  step.beta2 = o.beta2;
  step.eps = o.eps;
  step.inverse_correction1 = 1.0 / (1.0 - std::pow(o.beta1, position + 1));
  step.inverse_correction2 = 1.0 / (1.0 - std::pow(o.beta2, position + 1));
  (o.decoupled ? step.decoupled_decay : step.coupled_decay) = o.weight_decay;
  step.lr = lr;
  return step;
}

const Table* Find(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return &kScalar;
#if defined(__x86_64__)
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (std::strcmp(name, "avx2") == 0 && v3) return &kAvx2;
  if (std::strcmp(name, "avx512") == 0 && v4) return &kAvx512;
#endif
  return nullptr;
}

const Table& Best() {
  static const Table* best = [] {
    for (const char* name : {"avx512", "avx2"}) {
      if (const Table* table = Find(name)) return table;
    }
    return &kScalar;
  }();
  return *best;
}

}  // namespace optod::order::kernels
