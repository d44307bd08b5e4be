// Which wide paths this x86-64 CPU can run. Compiled for the baseline instruction set.
#include "optim/zo/stream_kernels.h"

namespace optod::zo::kernels {

const Kernels* Avx2() { return __builtin_cpu_supports("avx2") ? &kAvx2Kernels : nullptr; }

const Kernels* Avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? &kAvx512Kernels : nullptr;
}

}  // namespace optod::zo::kernels
