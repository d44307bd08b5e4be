#pragma once
/// Errors of this folder as values. It knows neither absl nor a framework, so that it builds on a bare machine with a
/// GPU; the layer above turns an Error into its own status.

#include <cuda_runtime.h>

#include <string>

namespace optod::cuda {

struct [[nodiscard]] Error {
  std::string text;  ///< empty = none; else "what: reason"
  bool ok() const { return text.empty(); }
};

/// `what` names the call: "cudaMalloc of 4096 bytes: out of memory".
inline Error FromCuda(cudaError_t code, const std::string& what) {
  return code == cudaSuccess ? Error{} : Error{what + ": " + cudaGetErrorString(code)};
}
/// The error of the launch just made, if any. Errors inside the kernel show at the next synchronisation.
inline Error LaunchError(const char* kernel) { return FromCuda(cudaGetLastError(), kernel); }

#define OPTOD_CUDA_RETURN(expression)                                       \
  do {                                                                      \
    if (::optod::cuda::Error error_ = (expression); !error_.ok()) return error_; \
  } while (false)

}  // namespace optod::cuda
