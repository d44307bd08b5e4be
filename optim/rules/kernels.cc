#include "optim/rules/kernels.h"

#include <atomic>

#include "optim/rules/half.h"

namespace optod::optim {

extern const KernelTable kKernelsScalar;
#if defined(__x86_64__)
extern const KernelTable kKernelsAvx2;
extern const KernelTable kKernelsAvx512;
#endif

namespace {

std::vector<const KernelTable*> RunnableTables() {
  std::vector<const KernelTable*> tables = {&kKernelsScalar};
#if defined(__x86_64__)
  // The wide tables are compiled for x86-64-v3 and x86-64-v4: test what those levels add.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) tables.push_back(&kKernelsAvx2);
  if (v4) tables.push_back(&kKernelsAvx512);
#endif
  return tables;
}

std::atomic<const KernelTable*>& InUse() {
  static std::atomic<const KernelTable*> table{RunnableTables().back()};
  return table;
}

}  // namespace

const KernelTable& Kernels() { return *InUse().load(std::memory_order_relaxed); }

std::vector<std::string_view> KernelPaths() {
  std::vector<std::string_view> names;
  for (const KernelTable* table : RunnableTables()) names.emplace_back(table->name);
  return names;
}

bool SelectKernels(std::string_view path) {
  const auto tables = RunnableTables();
  for (const KernelTable* table : tables) {
    if (path == table->name || (path.empty() && table == tables.back())) {
      InUse().store(table, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

float WidenOne(DType from, uint16_t bits) { return from == DType::kBF16 ? half::FromBf16(bits) : half::FromF16(bits); }
uint16_t NarrowOne(DType to, float value) { return to == DType::kBF16 ? half::ToBf16(value) : half::ToF16(value); }

}  // namespace optod::optim
