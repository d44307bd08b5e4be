// One block of threads a coded block, four elements a thread (64 to 1024 threads), held in registers.
// Shared memory: the codes' decades and two words for the maxima.
#include "cuda/adamw_8bit.h"
#include "cuda/vectors.cuh"
#include "optim/rules/dynamic_code.h"

namespace optod::cuda {
namespace {

using optim::DynamicDecades;
using optim::DynamicNearest;
using optim::DynamicValue;

constexpr uint32_t kRoundingQuery = 0xFFFFFFFFu;

__constant__ DynamicDecades kDecades[2];  // unsigned, signed

// Largest of all threads' values; non-negative floats order like their bits.
__device__ __forceinline__ float BlockMax(float value, unsigned* shared) {
  const unsigned mine = __reduce_max_sync(0xffffffffu, __float_as_uint(value));
  if (threadIdx.x % 32 == 0) atomicMax(shared, mine);
  __syncthreads();
  return __uint_as_float(*shared);
}

__device__ __forceinline__ void LoadCodes(const uint8_t* codes, int64_t i, int count, bool aligned, uint8_t out[4]) {
  if (aligned && count == 4) {
    const uchar4 x = *reinterpret_cast<const uchar4*>(codes + i);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) out[k] = k < count ? codes[i + k] : uint8_t{0};
}
__device__ __forceinline__ void StoreCodes(uint8_t* codes, int64_t i, int count, bool aligned, const uint8_t x[4]) {
  if (aligned && count == 4) {
    *reinterpret_cast<uchar4*>(codes + i) = make_uchar4(x[0], x[1], x[2], x[3]);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < count) codes[i + k] = x[k];
  }
}

__global__ void Step8bitKernel(TensorOperands o, CodedMoments moments, int64_t n, optim::formula::Adam<float> c,
                               bool aligned) {
  // Threads look up different decades: constant memory would serve them one after the other.
  __shared__ DynamicDecades decades[2];
  __shared__ unsigned largest[2];
  constexpr int kWords = sizeof(decades) / sizeof(float);
  for (int w = threadIdx.x; w < kWords; w += blockDim.x)
    reinterpret_cast<float*>(decades)[w] = reinterpret_cast<const float*>(kDecades)[w];
  if (threadIdx.x < 2) largest[threadIdx.x] = 0;
  __syncthreads();
  const DynamicDecades &unsigned_code = decades[0], &signed_code = decades[1];

  const int64_t block = blockIdx.x, i = 4 * (block * blockDim.x + threadIdx.x);
  const int count = n - i >= 4 ? 4 : n > i ? static_cast<int>(n - i) : 0;
  Four<float> m = {}, v = {};
  float m_top = 0, v_top = 0;
  if (count > 0) {
    const float m_scale = moments.m_max[block], v_scale = moments.v_max[block];
    uint8_t m_code[4], v_code[4];
    LoadCodes(moments.m, i, count, aligned, m_code);
    LoadCodes(moments.v, i, count, aligned, v_code);
    Four<float> p = Load<float>(o.p_dtype, o.p, i, count, aligned);
    const Four<float> g = Load<float>(o.g_dtype, o.g, i, count, aligned);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (e >= count) continue;
      m.v[e] = m_scale * DynamicValue(signed_code, true, m_code[e]);
      v.v[e] = v_scale * DynamicValue(unsigned_code, false, v_code[e]);
      optim::formula::AdamStep(c, p.v[e], g.v[e], m.v[e], v.v[e]);
      m_top = fmaxf(m_top, fabsf(m.v[e]));
      v_top = fmaxf(v_top, fabsf(v.v[e]));
    }
    if (o.stochastic && o.p_dtype == DType::kBF16) {
      const PhiloxBlock words = StreamBlock({o.seed, o.step, kRoundingQuery, o.tensor}, static_cast<uint64_t>(i) / 4);
      Store<float>(o.p_dtype, o.p, i, count, aligned, p, words.word);
    } else {
      Store<float>(o.p_dtype, o.p, i, count, aligned, p, nullptr);
    }
  }
  constexpr float kSmallest = 1.17549435e-38f;  // as on the CPU: below the smallest normal number a block is zeros
  m_top = fmaxf(BlockMax(m_top, &largest[0]), kSmallest);  // its barrier also ends the reading of the old maxima
  v_top = fmaxf(BlockMax(v_top, &largest[1]), kSmallest);
  if (count > 0) {
    const float m_inverse = 1 / m_top, v_inverse = 1 / v_top;
    uint8_t m_code[4], v_code[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      m_code[e] = DynamicNearest(signed_code, true, m.v[e] * m_inverse);
      v_code[e] = DynamicNearest(unsigned_code, false, v.v[e] * v_inverse);
    }
    StoreCodes(moments.m, i, count, aligned, m_code);
    StoreCodes(moments.v, i, count, aligned, v_code);
  }
  if (threadIdx.x == 0) {
    moments.m_max[block] = m_top;
    moments.v_max[block] = v_top;
  }
}

// The decades once a process and device.
Error UploadDecades() {
  static thread_local int uploaded_to = -1;
  int device = 0;
  OPTOD_CUDA_RETURN(FromCuda(cudaGetDevice(&device), "cudaGetDevice"));
  if (uploaded_to == device) return {};
  const DynamicDecades both[2] = {optim::kDynamicUnsigned, optim::kDynamicSigned};
  OPTOD_CUDA_RETURN(FromCuda(cudaMemcpyToSymbol(kDecades, both, sizeof(both)), "upload of the 8-bit codes"));
  uploaded_to = device;
  return {};
}

bool OnFour(const void* pointer, size_t element) { return reinterpret_cast<uintptr_t>(pointer) % (4 * element) == 0; }
size_t Width(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace

Error StepAdamW8bit(const TensorOperands& tensor, const CodedMoments& moments, int64_t n, int block,
                    const optim::formula::Adam<float>& constants, cudaStream_t stream) {
  if (tensor.p_dtype == DType::kF64 || tensor.g_dtype == DType::kF64) return {"StepAdamW8bit: float64 is not offered"};
  if (tensor.g == nullptr || n <= 0) return {};
  OPTOD_CUDA_RETURN(UploadDecades());
  const bool aligned = OnFour(tensor.p, Width(tensor.p_dtype)) && OnFour(tensor.g, Width(tensor.g_dtype)) &&
                       OnFour(moments.m, 1) && OnFour(moments.v, 1);
  if (block < 256 || block > 4096 || (block & (block - 1)) != 0)
    return {"StepAdamW8bit: block must be 256, 512, 1024, 2048 or 4096"};
  const unsigned blocks = static_cast<unsigned>((n + block - 1) / block);
  Step8bitKernel<<<blocks, block / 4, 0, stream>>>(tensor, moments, n, constants, aligned);
  return LaunchError("Step8bitKernel");
}

}  // namespace optod::cuda
