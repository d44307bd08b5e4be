#pragma once
// The small model of tests/unit/optim/tier/mlp_model.h on the device, in the host's order of operations: hidden states
// have the host's bits, sums of exponentials do not.
#include <cuda_runtime.h>

#include <cstdint>

namespace optod::cuda {

/// Rows of a table piece go to the tokens that have them. x [tokens, hidden].
void MlpEmbed(const float* rows, int64_t first_row, int64_t count, const int64_t* ids, int tokens, int hidden, float* x,
              cudaStream_t stream);
/// x += W2 relu(W1 x + b); w: W1 [inner, hidden], b, W2 [hidden, inner], one behind the other; inner <= 1024.
void MlpLayer(const float* w, int tokens, int hidden, int inner, float* x, cudaStream_t stream);
void MlpGain(const float* gain, int tokens, int hidden, float* x, cudaStream_t stream);
/// Running maximum, sum of exponentials and the target's logit a token; [tokens] each.
struct MlpTallies {
  double *best, *sum, *asked;
};
void MlpVocabulary(const float* rows, int64_t first_row, int64_t count, const int64_t* targets, int tokens, int hidden,
                   const float* x, const MlpTallies& tallies, cudaStream_t stream);

}  // namespace optod::cuda
