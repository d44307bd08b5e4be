#include <algorithm>
#include <chrono>

#include "base/fs.h"
#include "base/random_id.h"
#include "base/status.h"
#include "optim/tier/direct_file.h"
#include "optim/tier/plan.h"

namespace optod::tier {

absl::StatusOr<Rates> MeasureDisk(const std::string& folder, int threads) {
  constexpr size_t kBytes = 64 << 20, kAtOnce = 8 << 20;
  const std::string path = Cat(folder, "/measure.tmp-", RandomId(12));
  using Clock = std::chrono::steady_clock;
  const auto run = [&]() -> absl::StatusOr<Rates> {
    ASSIGN_OR_RETURN(const auto file, OpenDirectFile(path, threads));
    ASSIGN_OR_RETURN(const PageBuffer buffer, PageBuffer::Create(kAtOnce));
    std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{1});
    RETURN_IF_ERROR(file->Reserve(kBytes));
    Rates rates;
    auto began = Clock::now();
    for (size_t at = 0; at < kBytes; at += kAtOnce) RETURN_IF_ERROR(file->Write(at, buffer.bytes()));
    rates.disk_write = kBytes / std::chrono::duration<double>(Clock::now() - began).count();
    began = Clock::now();
    for (size_t at = 0; at < kBytes; at += kAtOnce) RETURN_IF_ERROR(file->Read(at, buffer.bytes()));
    rates.disk_read = kBytes / std::chrono::duration<double>(Clock::now() - began).count();
    return rates;
  };
  absl::StatusOr<Rates> rates = run();
  (void)PosixFs().Remove(path);
  return rates;
}

}  // namespace optod::tier
