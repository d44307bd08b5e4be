// Built instead of stream_x86.cc, stream_avx2.cc and stream_avx512.cc on targets that are not x86-64.
#include "optim/zo/stream_kernels.h"

namespace optod::zo::kernels {
const Kernels* Avx2() { return nullptr; }
const Kernels* Avx512() { return nullptr; }
}  // namespace optod::zo::kernels
