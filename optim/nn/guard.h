#pragma once
/// LibTorch reports errors by exceptions; they become statuses here and go no further.

#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "absl/status/statusor.h"

namespace optod::nn {

/// What `work` returns, or INTERNAL (RESOURCE_EXHAUSTED for lack of memory) with the first line of what was thrown.
template <typename Work>
auto Guarded(Work work) -> absl::StatusOr<decltype(work())> {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return absl::InternalError("LibTorch: " + text.substr(0, text.find('\n')));
  }
}

}  // namespace optod::nn
