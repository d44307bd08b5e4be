#include "tests/gpu/mlp_kernels.h"

namespace optod::cuda {
namespace {

__global__ void EmbedKernel(const float* rows, int64_t first_row, int64_t count, const int64_t* ids, int hidden, float* x) {
  const int64_t row = ids[blockIdx.x] - first_row;
  if (row >= 0 && row < count && threadIdx.x < hidden) x[blockIdx.x * hidden + threadIdx.x] = rows[row * hidden + threadIdx.x];
}

__global__ void LayerKernel(const float* w, int hidden, int inner, float* all) {
  __shared__ float relu[1024];
  const float *w1 = w, *bias = w1 + inner * hidden, *w2 = bias + inner;
  float* x = all + static_cast<int64_t>(blockIdx.x) * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < inner; i += static_cast<int>(blockDim.x)) {
    float sum = bias[i];
    for (int j = 0; j < hidden; ++j) sum += w1[i * hidden + j] * x[j];
    relu[i] = sum > 0.0f ? sum : 0.0f;
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < hidden; j += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int i = 0; i < inner; ++i) sum += w2[j * inner + i] * relu[i];
    x[j] += sum;
  }
}

__global__ void GainKernel(const float* gain, int hidden, float* x) {
  if (threadIdx.x < hidden) x[blockIdx.x * hidden + threadIdx.x] *= gain[threadIdx.x];
}

__global__ void VocabularyKernel(const float* rows, int64_t first_row, int64_t count, const int64_t* targets, int hidden,
                                 const float* all, MlpTallies t) {
  const int token = static_cast<int>(blockIdx.x);
  const float* x = all + static_cast<int64_t>(token) * hidden;
  for (int64_t r = 0; r < count; ++r) {
    float logit = 0;
    for (int j = 0; j < hidden; ++j) logit += rows[r * hidden + j] * x[j];
    if (logit > t.best[token]) {
      t.sum[token] *= exp(t.best[token] - logit);
      t.best[token] = logit;
    }
    t.sum[token] += exp(logit - t.best[token]);
    if (first_row + r == targets[token]) t.asked[token] = logit;
  }
}

}  // namespace

void MlpEmbed(const float* rows, int64_t first_row, int64_t count, const int64_t* ids, int tokens, int hidden, float* x,
              cudaStream_t stream) {
  EmbedKernel<<<tokens, hidden, 0, stream>>>(rows, first_row, count, ids, hidden, x);
}
void MlpLayer(const float* w, int tokens, int hidden, int inner, float* x, cudaStream_t stream) {
  LayerKernel<<<tokens, 64, 0, stream>>>(w, hidden, inner, x);
}
void MlpGain(const float* gain, int tokens, int hidden, float* x, cudaStream_t stream) {
  GainKernel<<<tokens, hidden, 0, stream>>>(gain, hidden, x);
}
void MlpVocabulary(const float* rows, int64_t first_row, int64_t count, const int64_t* targets, int tokens, int hidden,
                   const float* x, const MlpTallies& tallies, cudaStream_t stream) {
  VocabularyKernel<<<tokens, 1, 0, stream>>>(rows, first_row, count, targets, hidden, x, tallies);
}

}  // namespace optod::cuda
