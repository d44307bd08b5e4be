#pragma once
/// Running a loaded model: logits of token sequences, and greedy or sampled continuation. Free of LibTorch types, so
/// that programs that only call it compile fast. One object at a time per model; not thread-safe. What LibTorch throws
/// comes back as INTERNAL (RESOURCE_EXHAUSTED for lack of memory).

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/checkpoint.h"

namespace optod::nn {

enum class Precision { kFloat32, kBFloat16 };

struct SamplingOptions {
  int64_t max_tokens = 64;
  double temperature = 0;   ///< 0 = the likeliest token every time
  uint64_t seed = 0;        ///< of the draws
  int64_t stop_token = -1;  ///< ends the text; not part of it
};

class Inference {
 public:
  /// `files` is borrowed and must outlive this object. bfloat16 keeps a second copy of the weights.
  static absl::StatusOr<std::unique_ptr<Inference>> Create(const ModelFiles& files,
                                                           Precision precision = Precision::kFloat32);
  virtual ~Inference() = default;
  /// Row-major [ids.size(), vocab] float32. INVALID_ARGUMENT: `ids[3]: 512 is not below the vocabulary's 512`, an empty
  /// list, or more tokens than the model has positions.
  virtual absl::StatusOr<std::vector<float>> Logits(const std::vector<int64_t>& ids) = 0;
  /// The ids that follow `ids`, at most max_tokens, ending early at stop_token or at the last position. `each` sees
  /// every id as it comes; returning false stops. UNIMPLEMENTED for models that are not causal.
  virtual absl::StatusOr<std::vector<int64_t>> Generate(const std::vector<int64_t>& ids, const SamplingOptions& options,
                                                        const std::function<bool(int64_t)>& each = nullptr) = 0;
};

/// The errors Logits gives, without computing.
absl::Status CheckIds(const ModelConfig& config, const std::vector<int64_t>& ids);

/// Library and version the computing runs on: "LibTorch 1.13.0".
std::string RuntimeName();
/// See model.h.
void UseCachingAllocator();
int SetThreads(int threads);
void TouchBlas();

}  // namespace optod::nn
