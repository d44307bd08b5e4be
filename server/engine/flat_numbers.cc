#include "server/engine/flat_numbers.h"

#include <algorithm>
#include <cstring>

#include "optim/rules/kernels.h"

namespace optod::engine {

using optim::DType;

FlatNumbers::FlatNumbers(const Layout& layout, const FlatForm& form) {
  auto absent = form.absent.begin();
  for (size_t i = 0; i < layout.size(); ++i) {
    if (absent != form.absent.end() && static_cast<size_t>(*absent) == i) {
      ++absent;
      continue;
    }
    const DType dtype = form.dtype == DType::kUnspecified ? layout.spec(i).dtype : form.dtype;
    Append(dtype, static_cast<uint64_t>(layout.spec(i).elements()) * static_cast<uint64_t>(optim::DTypeSize(dtype)));
  }
  for (const optim::TensorSpec& spec : form.extra) Append(spec.dtype, spec.bytes());
}

void FlatNumbers::Append(DType dtype, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t begin = runs_.empty() ? 0 : runs_.back().end;
  aligned_ = aligned_ && begin % static_cast<uint64_t>(optim::DTypeSize(dtype)) == 0;
  if (!runs_.empty() && runs_.back().dtype == dtype) {
    runs_.back().end += bytes;
  } else {
    runs_.push_back({begin + bytes, dtype});
  }
}

bool FlatNumbers::Finite(const std::byte* flat, uint64_t begin, uint64_t end) const {
  if (!aligned_) return false;
  auto run = std::upper_bound(runs_.begin(), runs_.end(), begin,
                              [](uint64_t at, const Run& candidate) { return at < candidate.end; });
  while (begin < end && run != runs_.end()) {
    const uint64_t last = std::min(end, run->end);
    const auto count = static_cast<int64_t>((last - begin) / static_cast<uint64_t>(optim::DTypeSize(run->dtype)));
    if (optim::Kernels().first_not_finite(run->dtype, flat + begin, count) >= 0) return false;
    begin = last;
    ++run;
  }
  return true;
}

bool FlatNumbers::CopyFinite(std::byte* to, const std::byte* from, uint64_t begin, uint64_t end) const {
  bool finite = true;
  for (uint64_t at = begin; at < end; at += kInCache) {
    const uint64_t last = std::min(end, at + kInCache);
    std::memcpy(to + at, from + at, last - at);
    finite = finite && Finite(to, at, last);
  }
  return finite;
}

}  // namespace optod::engine
