// cuBLAS and cuSOLVER are column-major: a row-major matrix is its transpose there, so a product c = a b is computed as
// c' = b' a' by exchanging the operands.
#include <cublas_v2.h>
#include <cusolverDn.h>

#include "cuda/matrix.h"

namespace optod::cuda {
namespace {

constexpr int kThreads = 256;
unsigned GridFor(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < 65536 ? blocks : 65536);
}

Error FromBlas(cublasStatus_t status, const char* what) {
  return status == CUBLAS_STATUS_SUCCESS ? Error{} : Error{std::string(what) + ": " + cublasGetStatusString(status)};
}
Error FromSolver(cusolverStatus_t status, const char* what) {
  return status == CUSOLVER_STATUS_SUCCESS ? Error{}
                                           : Error{std::string(what) + ": cuSOLVER status " + std::to_string(status)};
}

#define OPTOD_GRID_STRIDE(i, n)                                                                                   \
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (n);                          \
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)

// y = x / (norm + 1e-7), norm in device memory.
__global__ void NormaliseKernel(int64_t n, const float* x, const float* norm, float* y) {
  const float scale = 1.0f / (*norm + 1e-7f);
  OPTOD_GRID_STRIDE(i, n) y[i] = x[i] * scale;
}
// a = keep a, and add to the diagonal.
__global__ void ShrinkKernel(int64_t d, float keep, float add, float* a) {
  OPTOD_GRID_STRIDE(i, d* d) a[i] = keep * a[i] + (i % (d + 1) == 0 ? add : 0.0f);
}
// a -= w w' / (1 + *dot).
__global__ void RankOneKernel(int64_t d, const float* w, const float* dot, float* a) {
  const float scale = 1.0f / (1.0f + *dot);
  OPTOD_GRID_STRIDE(i, d* d) a[i] -= w[i / d] * w[i % d] * scale;
}
// The upper triangle of the row-major matrix becomes the mirror of the lower one.
__global__ void MirrorKernel(int64_t d, float* a) {
  OPTOD_GRID_STRIDE(i, d* d) {
    const int64_t row = i / d, col = i % d;
    if (col > row) a[i] = a[col * d + row];
  }
}
__global__ void SquareKernel(float* x) { *x = *x * *x; }

// Device memory that grows.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
  ~Scratch() { cudaFree(data); }
  Error Reserve(size_t want) {
    if (want <= bytes) return {};
    cudaFree(data);
    data = nullptr;
    bytes = 0;
    OPTOD_CUDA_RETURN(FromCuda(cudaMalloc(&data, want), "cudaMalloc of a workspace"));
    bytes = want;
    return {};
  }
  float* f() const { return static_cast<float*>(data); }
};

}  // namespace

struct Matrices::Impl {
  cudaStream_t stream = nullptr;
  cublasHandle_t blas = nullptr;
  cusolverDnHandle_t solver = nullptr;
  Scratch x, y, gram, poly, vector, scalars, work;

  ~Impl() {
    if (stream != nullptr) cudaStreamSynchronize(stream);
    if (blas != nullptr) cublasDestroy(blas);
    if (solver != nullptr) cusolverDnDestroy(solver);
  }
  int* info() const { return static_cast<int*>(scalars.data) + 16; }
  /// cuSOLVER's verdict; waits for the stream.
  Error ReadInfo(int* out) {
    OPTOD_CUDA_RETURN(FromCuda(cudaMemcpyAsync(out, info(), sizeof(int), cudaMemcpyDeviceToHost, stream), "copy of info"));
    return FromCuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
};

Error Matrices::Make(cudaStream_t stream, std::unique_ptr<Matrices>* out) {
  std::unique_ptr<Matrices> made(new Matrices());
  made->impl_ = std::make_unique<Impl>();
  Impl& impl = *made->impl_;
  impl.stream = stream;
  OPTOD_CUDA_RETURN(FromBlas(cublasCreate(&impl.blas), "cublasCreate"));
  OPTOD_CUDA_RETURN(FromBlas(cublasSetStream(impl.blas, stream), "cublasSetStream"));
  OPTOD_CUDA_RETURN(FromBlas(cublasSetMathMode(impl.blas, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode"));
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnCreate(&impl.solver), "cusolverDnCreate"));
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnSetStream(impl.solver, stream), "cusolverDnSetStream"));
  OPTOD_CUDA_RETURN(impl.scalars.Reserve(256));
  *out = std::move(made);
  return {};
}

Matrices::~Matrices() = default;

Error Matrices::Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                     const float* b, float beta, float* c) {
  if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX) return {"Gemm: a size is above 2^31"};
  if (m == 0 || n == 0) return {};
  const int lda = static_cast<int>(transpose_a ? m : k), ldb = static_cast<int>(transpose_b ? k : n);
  return FromBlas(cublasSgemm(impl_->blas, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                              static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &alpha, b, ldb, a, lda, &beta, c,
                              static_cast<int>(n)),
                  "cublasSgemm");
}

Error Matrices::SumSquares(int64_t n, const float* x, float* sum) {
  if (n > INT32_MAX) return {"SumSquares: more than 2^31 entries"};
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl_->blas, CUBLAS_POINTER_MODE_DEVICE), "cublasSetPointerMode"));
  const Error norm = FromBlas(cublasSnrm2(impl_->blas, static_cast<int>(n), x, 1, sum), "cublasSnrm2");
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl_->blas, CUBLAS_POINTER_MODE_HOST), "cublasSetPointerMode"));
  OPTOD_CUDA_RETURN(norm);
  SquareKernel<<<1, 1, 0, impl_->stream>>>(sum);
  return LaunchError("SquareKernel");
}

Error Matrices::NewtonSchulz(int64_t rows, int64_t cols, const float* u, float* out) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  Impl& impl = *impl_;
  const int64_t n = rows * cols, small = rows < cols ? rows : cols;
  if (n == 0) return {};
  if (n > INT32_MAX) return {"NewtonSchulz: more than 2^31 entries"};
  for (Scratch* scratch : {&impl.x, &impl.y}) OPTOD_CUDA_RETURN(scratch->Reserve(n * sizeof(float)));
  for (Scratch* scratch : {&impl.gram, &impl.poly}) OPTOD_CUDA_RETURN(scratch->Reserve(small * small * sizeof(float)));
  float* norm = impl.scalars.f();
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl.blas, CUBLAS_POINTER_MODE_DEVICE), "cublasSetPointerMode"));
  const Error measured = FromBlas(cublasSnrm2(impl.blas, static_cast<int>(n), u, 1, norm), "cublasSnrm2");
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl.blas, CUBLAS_POINTER_MODE_HOST), "cublasSetPointerMode"));
  OPTOD_CUDA_RETURN(measured);
  float *x = impl.x.f(), *next = impl.y.f();
  NormaliseKernel<<<GridFor(n), kThreads, 0, impl.stream>>>(n, u, norm, x);
  OPTOD_CUDA_RETURN(LaunchError("NormaliseKernel"));
  const bool tall = rows > cols;  // the Gram matrix of the short side
  for (int step = 0; step < 5; ++step) {
    OPTOD_CUDA_RETURN(Gemm(tall, !tall, small, small, tall ? rows : cols, 1, x, x, 0, impl.gram.f()));
    // poly = b gram + c gram gram
    OPTOD_CUDA_RETURN(FromCuda(cudaMemcpyAsync(impl.poly.data, impl.gram.data, small * small * sizeof(float),
                                               cudaMemcpyDeviceToDevice, impl.stream),
                               "copy of the Gram matrix"));
    OPTOD_CUDA_RETURN(Gemm(false, false, small, small, small, kC, impl.gram.f(), impl.gram.f(), kB, impl.poly.f()));
    // next = a x + poly x, or a x + x poly
    float* to = step == 4 ? out : next;
    OPTOD_CUDA_RETURN(
        FromCuda(cudaMemcpyAsync(to, x, n * sizeof(float), cudaMemcpyDeviceToDevice, impl.stream), "copy of x"));
    OPTOD_CUDA_RETURN(tall ? Gemm(false, false, rows, cols, cols, 1, x, impl.poly.f(), kA, to)
                           : Gemm(false, false, rows, cols, rows, 1, impl.poly.f(), x, kA, to));
    next = x;
    x = to;
  }
  return {};
}

Error Matrices::MkorRelease(int64_t d, const float* v, float* k) {
  Impl& impl = *impl_;
  if (d == 0) return {};
  if (d > 46340) return {"MkorRelease: d * d is above 2^31"};
  OPTOD_CUDA_RETURN(impl.vector.Reserve(d * sizeof(float)));
  float* w = impl.vector.f();
  float* dot = impl.scalars.f() + 1;
  ShrinkKernel<<<GridFor(d * d), kThreads, 0, impl.stream>>>(d, 0.95f, 0.05f, k);
  OPTOD_CUDA_RETURN(LaunchError("ShrinkKernel"));
  const float one = 1, zero = 0;
  const int n = static_cast<int>(d);
  OPTOD_CUDA_RETURN(
      FromBlas(cublasSsymv(impl.blas, CUBLAS_FILL_MODE_LOWER, n, &one, k, n, v, 1, &zero, w, 1), "cublasSsymv"));
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl.blas, CUBLAS_POINTER_MODE_DEVICE), "cublasSetPointerMode"));
  const Error dotted = FromBlas(cublasSdot(impl.blas, n, v, 1, w, 1, dot), "cublasSdot");
  OPTOD_CUDA_RETURN(FromBlas(cublasSetPointerMode(impl.blas, CUBLAS_POINTER_MODE_HOST), "cublasSetPointerMode"));
  OPTOD_CUDA_RETURN(dotted);
  RankOneKernel<<<GridFor(d * d), kThreads, 0, impl.stream>>>(d, w, dot, k);
  return LaunchError("RankOneKernel");
}

Error Matrices::InvertPositive(int64_t n, float* a, bool* positive) {
  Impl& impl = *impl_;
  *positive = true;
  if (n == 0) return {};
  if (n > 46340) return {"InvertPositive: n * n is above 2^31"};
  const int d = static_cast<int>(n);
  // Upper of the column-major view is the lower triangle of the row-major matrix.
  constexpr cublasFillMode_t kUpper = CUBLAS_FILL_MODE_UPPER;
  int factor_size = 0, invert_size = 0, info = 0;
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnSpotrf_bufferSize(impl.solver, kUpper, d, a, d, &factor_size), "spotrf_bufferSize"));
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnSpotri_bufferSize(impl.solver, kUpper, d, a, d, &invert_size), "spotri_bufferSize"));
  OPTOD_CUDA_RETURN(
      impl.work.Reserve(static_cast<size_t>(factor_size > invert_size ? factor_size : invert_size) * sizeof(float)));
  OPTOD_CUDA_RETURN(
      FromSolver(cusolverDnSpotrf(impl.solver, kUpper, d, a, d, impl.work.f(), factor_size, impl.info()), "cusolverDnSpotrf"));
  OPTOD_CUDA_RETURN(impl.ReadInfo(&info));
  if (info != 0) {
    *positive = false;
    return {};
  }
  OPTOD_CUDA_RETURN(
      FromSolver(cusolverDnSpotri(impl.solver, kUpper, d, a, d, impl.work.f(), invert_size, impl.info()), "cusolverDnSpotri"));
  MirrorKernel<<<GridFor(n * n), kThreads, 0, impl.stream>>>(n, a);
  return LaunchError("MirrorKernel");
}

Error Matrices::Eigh(int64_t n, float* a, float* w, bool* converged) {
  Impl& impl = *impl_;
  *converged = true;
  if (n == 0) return {};
  if (n > 46340) return {"Eigh: n * n is above 2^31"};
  const int d = static_cast<int>(n);
  int size = 0, info = 0;
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnSsyevd_bufferSize(impl.solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, d, a,
                                                           d, w, &size),
                               "ssyevd_bufferSize"));
  OPTOD_CUDA_RETURN(impl.work.Reserve(static_cast<size_t>(size) * sizeof(float)));
  OPTOD_CUDA_RETURN(FromSolver(cusolverDnSsyevd(impl.solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, d, a, d, w,
                                                impl.work.f(), size, impl.info()),
                               "cusolverDnSsyevd"));
  OPTOD_CUDA_RETURN(impl.ReadInfo(&info));
  *converged = info == 0;
  return {};
}

}  // namespace optod::cuda
