// Layouts: SumSquares: kPartials blocks of 256 threads, then one block over the partial sums. Rows: one block of 256
// threads a row, two passes over the row. Columns: x by thread, segments of rows by blockIdx.y.
#include "cuda/norms.h"
#include "cuda/vectors.cuh"

namespace optod::cuda {
namespace {

constexpr int kThreads = 256;

// Sum over the block, the same for every thread; a tree of fixed shape.
__device__ double BlockSum(double value) {
  __shared__ double part[kThreads];
  __syncthreads();  // the last call's result may still be being read
  part[threadIdx.x] = value;
  __syncthreads();
#pragma unroll
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  return part[0];
}

template <typename T>
__global__ void SumSquaresKernel(DType dtype, const void* x, int64_t n, bool aligned, double* partial) {
  double sum = 0;
  const int64_t stride = 4 * static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x); i < n; i += stride) {
    const int count = n - i < 4 ? static_cast<int>(n - i) : 4;
    const Four<T> v = Load<T>(dtype, x, i, count, aligned);  // zeros beyond count
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += static_cast<double>(v.v[k]) * static_cast<double>(v.v[k]);
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
__global__ void AddPartialsKernel(const double* partial, double* sum) {
  double mine = 0;
  for (int i = threadIdx.x; i < kPartials; i += kThreads) mine += partial[i];
  mine = BlockSum(mine);
  if (threadIdx.x == 0) *sum = mine;
}

template <bool kMomentum>
__global__ void RowsKernel(TensorOperands o, float* momentum, int64_t cols, optim::formula::Normalised<float> c, bool aligned) {
  const int64_t row = blockIdx.x, base = row * cols;
  double squares = 0;
  for (int64_t j = 4 * threadIdx.x; j < cols; j += 4 * kThreads) {
    const int count = cols - j < 4 ? static_cast<int>(cols - j) : 4;
    Four<float> x = Load<float>(o.g_dtype, o.g, base + j, count, aligned);
    if constexpr (kMomentum) {
      Four<float> m = LoadNative<float>(momentum, base + j, count, aligned);
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] = m.v[k] = c.average(m.v[k], x.v[k]);
      StoreNative<float>(momentum, base + j, count, aligned, m);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < count) squares += static_cast<double>(x.v[k]) * static_cast<double>(x.v[k]);
    }
  }
  const double rms = sqrt(BlockSum(squares) / static_cast<double>(cols));
  const float divisor = static_cast<float>(rms > 1e-8 ? rms : 1e-8);
  for (int64_t j = 4 * threadIdx.x; j < cols; j += 4 * kThreads) {
    const int count = cols - j < 4 ? static_cast<int>(cols - j) : 4;
    Four<float> p = Load<float>(o.p_dtype, o.p, base + j, count, aligned);
    const Four<float> x = kMomentum ? LoadNative<float>(momentum, base + j, count, aligned)
                                    : Load<float>(o.g_dtype, o.g, base + j, count, aligned);
#pragma unroll
    for (int k = 0; k < 4; ++k) optim::formula::NormalisedStep(c, p.v[k], x.v[k], divisor);
    Store<float>(o.p_dtype, o.p, base + j, count, aligned, p, nullptr);
  }
}

__global__ void ColumnsKernel(DType dtype, const void* x, int64_t rows, int64_t cols, double* partial) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= cols) return;
  const int64_t per = (rows + kColumnSegments - 1) / kColumnSegments, begin = blockIdx.y * per;
  const int64_t end = begin + per < rows ? begin + per : rows;
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    const double v = static_cast<double>(Load<float>(dtype, x, row * cols + col, 1, false).v[0]);
    sum += v * v;
  }
  partial[blockIdx.y * cols + col] = sum;
}
__global__ void AddColumnsKernel(int64_t cols, const double* partial, double* sums) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= cols) return;
  double sum = 0;
  for (int segment = 0; segment < kColumnSegments; ++segment) sum += partial[segment * cols + col];
  sums[col] = sum;
}

bool OnFour(const void* pointer, size_t element) { return reinterpret_cast<uintptr_t>(pointer) % (4 * element) == 0; }
size_t Width(DType dtype) { return dtype == DType::kF64 ? 4 : dtype == DType::kF32 ? 4 : 2; }

}  // namespace

Error SumSquares(DType dtype, const void* x, int64_t n, double* partial, double* sum, cudaStream_t stream) {
  const bool aligned = OnFour(x, Width(dtype));
  if (dtype == DType::kF64) {
    SumSquaresKernel<double><<<kPartials, kThreads, 0, stream>>>(dtype, x, n, aligned, partial);
  } else {
    SumSquaresKernel<float><<<kPartials, kThreads, 0, stream>>>(dtype, x, n, aligned, partial);
  }
  OPTOD_CUDA_RETURN(LaunchError("SumSquaresKernel"));
  AddPartialsKernel<<<1, kThreads, 0, stream>>>(partial, sum);
  return LaunchError("AddPartialsKernel");
}

Error StepNormalisedRows(const TensorOperands& tensor, float* momentum, int64_t rows, int64_t cols,
                         const optim::formula::Normalised<float>& constants, cudaStream_t stream) {
  if (tensor.p_dtype == DType::kF64 || tensor.g_dtype == DType::kF64) return {"StepNormalisedRows: float64 is not offered"};
  if (tensor.stochastic) return {"StepNormalisedRows: stochastic rounding is not offered"};
  if (rows == 0 || cols == 0 || tensor.g == nullptr) return {};
  if (rows > INT32_MAX) return {"StepNormalisedRows: more than 2^31 rows"};
  const bool aligned = cols % 4 == 0 && OnFour(tensor.p, Width(tensor.p_dtype)) && OnFour(tensor.g, Width(tensor.g_dtype)) &&
                       OnFour(momentum, 4);
  const unsigned grid = static_cast<unsigned>(rows);
  if (momentum != nullptr) {
    RowsKernel<true><<<grid, kThreads, 0, stream>>>(tensor, momentum, cols, constants, aligned);
  } else {
    RowsKernel<false><<<grid, kThreads, 0, stream>>>(tensor, momentum, cols, constants, aligned);
  }
  return LaunchError("RowsKernel");
}

Error ColumnSumSquares(DType dtype, const void* x, int64_t rows, int64_t cols, double* partial, double* sums,
                       cudaStream_t stream) {
  if (dtype == DType::kF64) return {"ColumnSumSquares: float64 is not offered"};
  if (cols == 0) return {};
  const unsigned across = static_cast<unsigned>((cols + kThreads - 1) / kThreads);
  ColumnsKernel<<<dim3(across, kColumnSegments), kThreads, 0, stream>>>(dtype, x, rows, cols, partial);
  OPTOD_CUDA_RETURN(LaunchError("ColumnsKernel"));
  AddColumnsKernel<<<across, kThreads, 0, stream>>>(cols, partial, sums);
  return LaunchError("AddColumnsKernel");
}

}  // namespace optod::cuda
