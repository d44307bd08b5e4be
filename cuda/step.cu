// The multi-tensor kernel and its launcher. Grid: one block of 256 threads a chunk; a chunk is 16,384 elements of one
// tensor, so each thread takes 16 turns of four elements. Shared memory: none.
#include <cstring>

#include "cuda/operations.h"
#include "cuda/step.h"
#include "cuda/vectors.cuh"

namespace optod::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunkElements = 16384;
constexpr uint32_t kRoundingQuery = 0xFFFFFFFFu;
constexpr int kSlots = 4;  // tables in flight: a step does not wait for the one before

struct Chunk {
  int32_t tensor;
  int64_t begin;
};

struct TensorRow {
  TensorOperands operands;
  int64_t n;
  bool aligned;  // every operand in use lies on a multiple of four of its elements
};

template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads)
    StepKernel(const TensorRow* __restrict__ rows, const Chunk* __restrict__ chunks,
               const typename Op::Constants* __restrict__ constants) {
  const Chunk chunk = chunks[blockIdx.x];
  const TensorRow& row = rows[chunk.tensor];
  const TensorOperands o = row.operands;
  if (Op::kGradient && o.g == nullptr) return;
  const typename Op::Constants c = constants[chunk.tensor];
  const int64_t n = row.n, end = chunk.begin + kChunkElements < n ? chunk.begin + kChunkElements : n;
  const bool aligned = row.aligned;
  for (int64_t i = chunk.begin + 4 * threadIdx.x; i < end; i += 4 * kThreads) {
    const int count = end - i < 4 ? static_cast<int>(end - i) : 4;
    Four<T> p = Load<T>(o.p_dtype, o.p, i, count, aligned), g = {}, x = {};
    Four<T> s[Op::kStates > 0 ? Op::kStates : 1];
    if constexpr (Op::kGradient) g = Load<T>(o.g_dtype, o.g, i, count, aligned);
    if constexpr (Op::kInput) x = LoadNative<T>(o.x, i, count, aligned);
#pragma unroll
    for (int k = 0; k < Op::kStates; ++k) s[k] = LoadNative<T>(o.s[k], i, count, aligned);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      T state[Op::kStates > 0 ? Op::kStates : 1];
#pragma unroll
      for (int k = 0; k < Op::kStates; ++k) state[k] = s[k].v[e];
      Op::Apply(c, p.v[e], g.v[e], state, x.v[e]);
#pragma unroll
      for (int k = 0; k < Op::kStates; ++k) s[k].v[e] = state[k];
    }
#pragma unroll
    for (int k = 0; k < Op::kStates; ++k) StoreNative<T>(o.s[k], i, count, aligned, s[k]);
    if constexpr (Op::kMoves) {
      if (o.stochastic && o.p_dtype == DType::kBF16) {  // i is a multiple of four: one block of the stream
        const PhiloxBlock words = StreamBlock({o.seed, o.step, kRoundingQuery, o.tensor}, static_cast<uint64_t>(i) / 4);
        Store<T>(o.p_dtype, o.p, i, count, aligned, p, words.word);
      } else {
        Store<T>(o.p_dtype, o.p, i, count, aligned, p, nullptr);
      }
    }
  }
}

size_t ElementSize(DType dtype) { return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2; }

bool OnFour(const void* pointer, size_t element) { return reinterpret_cast<uintptr_t>(pointer) % (4 * element) == 0; }

// Vectors of float64 are two of 16 bytes; all others are one of 4 elements.
bool Aligned(const TensorOperands& o) {
  const size_t wide = o.p_dtype == DType::kF64 ? 4 : sizeof(float);  // float64: 16 bytes suffice
  bool aligned = (o.p_dtype == DType::kF64 ? OnFour(o.p, 4) : OnFour(o.p, ElementSize(o.p_dtype))) && OnFour(o.x, wide);
  if (o.g != nullptr) aligned = aligned && (o.g_dtype == DType::kF64 ? OnFour(o.g, 4) : OnFour(o.g, ElementSize(o.g_dtype)));
  for (const void* state : o.s) aligned = aligned && OnFour(state, wide);
  return aligned;
}

}  // namespace

struct StepPlan::Impl {
  std::vector<int64_t> sizes;
  int64_t chunk_count = 0;
  Chunk* chunks = nullptr;  // device
  // Slot k: rows then constants, in pinned host memory and in device memory.
  size_t rows_bytes = 0, slot_bytes = 0;
  std::byte* host = nullptr;
  std::byte* device = nullptr;
  cudaEvent_t used[kSlots] = {};
  int next = 0;

  ~Impl() {
    for (cudaEvent_t event : used) {
      if (event == nullptr) continue;
      cudaEventSynchronize(event);  // nothing may read a table that goes away
      cudaEventDestroy(event);
    }
    cudaFree(chunks);
    cudaFree(device);
    cudaFreeHost(host);
  }
  Error Allocate();
  template <typename T>
  Error Launch(Operation operation, const std::byte* table, cudaStream_t stream);
  template <typename T, typename Op>
  Error LaunchOp(const std::byte* table, cudaStream_t stream) {
    if (chunk_count == 0) return {};
    StepKernel<T, Op><<<static_cast<unsigned>(chunk_count), kThreads, 0, stream>>>(
        reinterpret_cast<const TensorRow*>(table), chunks,
        reinterpret_cast<const typename Op::Constants*>(table + rows_bytes));
    return LaunchError("StepKernel");
  }
};

Error StepPlan::Impl::Allocate() {
  constexpr size_t kMostConstants = 128;  // bytes a tensor: the largest struct of formulas.h has 10 doubles
  static_assert(sizeof(formula::Adam<double>) <= kMostConstants && sizeof(formula::AdaHessian<double>) <= kMostConstants &&
                sizeof(formula::Lamb<double>) <= kMostConstants);
  std::vector<Chunk> table;
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (int64_t begin = 0; begin < sizes[i]; begin += kChunkElements) table.push_back({static_cast<int32_t>(i), begin});
  }
  chunk_count = static_cast<int64_t>(table.size());
  if (chunk_count > 0x7fffffff) return {"StepPlan: more than 2^31 chunks"};
  rows_bytes = (sizes.size() * sizeof(TensorRow) + 255) / 256 * 256;
  slot_bytes = rows_bytes + (sizes.size() * kMostConstants + 255) / 256 * 256;
  if (slot_bytes == 0) slot_bytes = 256;
  const size_t chunk_bytes = table.size() * sizeof(Chunk);
  OPTOD_CUDA_RETURN(FromCuda(cudaMalloc(&chunks, chunk_bytes > 0 ? chunk_bytes : 1), "cudaMalloc of the chunk table"));
  OPTOD_CUDA_RETURN(FromCuda(cudaMemcpy(chunks, table.data(), chunk_bytes, cudaMemcpyHostToDevice), "copy of the chunk table"));
  OPTOD_CUDA_RETURN(FromCuda(cudaMalloc(&device, kSlots * slot_bytes), "cudaMalloc of the tensor tables"));
  OPTOD_CUDA_RETURN(FromCuda(cudaMallocHost(&host, kSlots * slot_bytes), "cudaMallocHost of the tensor tables"));
  for (cudaEvent_t& event : used)
    OPTOD_CUDA_RETURN(FromCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
  return {};
}

template <typename T>
Error StepPlan::Impl::Launch(Operation operation, const std::byte* table, cudaStream_t stream) {
  switch (operation) {
    case Operation::kSgdPlain: return LaunchOp<T, SgdPlain<T>>(table, stream);
    case Operation::kSgdMomentum: return LaunchOp<T, SgdMomentum<T, false>>(table, stream);
    case Operation::kSgdNesterov: return LaunchOp<T, SgdMomentum<T, true>>(table, stream);
    case Operation::kAdam: return LaunchOp<T, Adam<T>>(table, stream);
    case Operation::kAmsgrad: return LaunchOp<T, Amsgrad<T>>(table, stream);
    case Operation::kSai: return LaunchOp<T, Sai<T>>(table, stream);
    case Operation::kAdaHessian: return LaunchOp<T, AdaHessian<T, false>>(table, stream);
    case Operation::kAdaHessianPower: return LaunchOp<T, AdaHessian<T, true>>(table, stream);
    case Operation::kLambMoments: return LaunchOp<T, LambMoments<T>>(table, stream);
    case Operation::kLambApply: return LaunchOp<T, LambApply<T>>(table, stream);
    case Operation::kNormalisedRow: return LaunchOp<T, NormalisedRow<T>>(table, stream);
    case Operation::kAverage: return LaunchOp<T, Average<T>>(table, stream);
  }
  return {"StepPlan.Run: unknown operation"};
}

Error StepPlan::Make(std::span<const int64_t> sizes, std::unique_ptr<StepPlan>* out) {
  for (const int64_t size : sizes) {
    if (size < 0) return {"StepPlan.Make: a size is negative"};
  }
  std::unique_ptr<StepPlan> plan(new StepPlan());
  plan->impl_ = std::make_unique<Impl>();
  plan->impl_->sizes.assign(sizes.begin(), sizes.end());
  OPTOD_CUDA_RETURN(plan->impl_->Allocate());
  *out = std::move(plan);
  return {};
}

StepPlan::~StepPlan() = default;

Error StepPlan::Run(Operation operation, std::span<const TensorOperands> tensors, std::span<const std::byte> constants,
                    cudaStream_t stream) {
  Impl& impl = *impl_;
  if (tensors.size() != impl.sizes.size()) return {"StepPlan.Run: another number of tensors than the plan has"};
  if (tensors.empty()) return {};
  if (constants.size() > impl.slot_bytes - impl.rows_bytes) return {"StepPlan.Run: constants are too large"};
  const bool wide = tensors[0].p_dtype == DType::kF64;
  for (const TensorOperands& tensor : tensors) {
    const bool grad_wide = tensor.g != nullptr ? tensor.g_dtype == DType::kF64 : wide;
    if ((tensor.p_dtype == DType::kF64) != wide || grad_wide != wide)
      return {"StepPlan.Run: float64 and other dtypes cannot share a launch"};
  }
  const int slot = impl.next;
  impl.next = (slot + 1) % kSlots;
  OPTOD_CUDA_RETURN(FromCuda(cudaEventSynchronize(impl.used[slot]), "wait for an earlier step"));
  std::byte* host = impl.host + slot * impl.slot_bytes;
  std::byte* device = impl.device + slot * impl.slot_bytes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorRow row = {tensors[i], impl.sizes[i], Aligned(tensors[i])};
    std::memcpy(host + i * sizeof(TensorRow), &row, sizeof(row));
  }
  std::memcpy(host + impl.rows_bytes, constants.data(), constants.size());
  OPTOD_CUDA_RETURN(FromCuda(cudaMemcpyAsync(device, host, impl.rows_bytes + constants.size(), cudaMemcpyHostToDevice, stream),
                             "copy of the tensor table"));
  OPTOD_CUDA_RETURN(wide ? impl.Launch<double>(operation, device, stream) : impl.Launch<float>(operation, device, stream));
  return FromCuda(cudaEventRecord(impl.used[slot], stream), "cudaEventRecord");
}

}  // namespace optod::cuda
