// One thread a block of four elements, which stays in registers from the first operation to both copies.
#include "cuda/unit_pass.h"

#include "cuda/stream_blocks.cuh"

namespace optod::cuda {
namespace {

struct Ops {
  PassOp op[kMostPassOps];
  int count;
};

struct Operands {
  PassValues values;
  PassRule rule;
  PassCopies copies;
  bool aligned;  // every operand in use takes vectors at the stream's blocks
};

__device__ __forceinline__ void Get(const Operands& o, const float* from, int64_t at, bool whole, float* to) {
  const Four<float> x = LoadFour(DType::kF32, from, at, o.values.n, whole);
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = x.v[k];
}
__device__ __forceinline__ void Put(const Operands& o, float* to, int64_t at, bool whole, const float* from) {
  StoreFour(DType::kF32, to, at, o.values.n, whole, Four<float>{{from[0], from[1], from[2], from[3]}});
}

template <bool kRuled>
__global__ void __launch_bounds__(kBlockThreads)
    UnitPassKernel(const __grid_constant__ Operands o, const __grid_constant__ Ops ops) {
  const StreamId id = {o.values.seed, 0, 0, o.values.tensor};
  ForEachBlock(o.values.first, o.values.n, [&](int64_t at, uint64_t block) {
    const bool whole = o.aligned && at >= 0 && at + 4 <= o.values.n;
    PassFour x = {};
    Get(o, o.values.theta, at, whole, x.theta);
    if constexpr (kRuled) {
      if (o.values.m != nullptr) Get(o, o.values.m, at, whole, x.m);
      if (o.values.v != nullptr) Get(o, o.values.v, at, whole, x.v);
    }
    if (o.copies.form == PassCopies::kMezoMinus) Get(o, o.values.plus, at, whole, x.plus);
    for (int i = 0; i < ops.count; ++i) {
      if constexpr (kRuled)
        ApplyOp(ops.op[i], o.rule, id, block, x);
      else
        ApplyPlainOp(ops.op[i], id, block, x);
    }
    FormCopies(o.copies, id, block, x);
    if (ops.count > 0 || ChangesTheta(o.copies.form)) Put(o, o.values.theta, at, whole, x.theta);
    if constexpr (kRuled) {
      if (o.values.m != nullptr) Put(o, o.values.m, at, whole, x.m);
      if (o.values.v != nullptr) Put(o, o.values.v, at, whole, x.v);
    }
    if (WritesPlus(o.copies.form)) Put(o, o.values.plus, at, whole, x.plus);
    if (WritesMinus(o.copies.form)) Put(o, o.values.minus, at, whole, x.minus);
  });
}

bool Fits(const PassValues& v, const float* pointer) { return pointer == nullptr || VectorsFit(v.first, DType::kF32, pointer); }

Error Launch(const PassValues& values, std::span<const PassOp> ops, const PassRule& rule, const PassCopies& copies,
             cudaStream_t stream) {
  Ops table = {};
  bool ruled = false;
  for (const PassOp& op : ops) {
    table.op[table.count++] = op;
    ruled = ruled || op.kind == PassOp::kRule || op.kind == PassOp::kGradient;
  }
  const bool aligned = Fits(values, values.theta) && Fits(values, values.m) && Fits(values, values.v) &&
                       Fits(values, values.plus) && Fits(values, values.minus);
  const Operands operands = {values, rule, copies, aligned};
  const unsigned grid = GridFor(BlocksOf(values.first, values.n));
  if (ruled)
    UnitPassKernel<true><<<grid, kBlockThreads, 0, stream>>>(operands, table);
  else
    UnitPassKernel<false><<<grid, kBlockThreads, 0, stream>>>(operands, table);
  return LaunchError("UnitPassKernel");
}

// How many of the operations one launch may have: the gradient of a rule lives in registers, so none is cut off from it.
size_t Head(std::span<const PassOp> ops) {
  if (ops.size() <= kMostPassOps) return ops.size();
  size_t head = kMostPassOps;
  while (head > 0 && ops[head - 1].kind == PassOp::kGradient) --head;
  return head;
}

}  // namespace

Error UnitPass(const PassValues& values, std::span<const PassOp> ops, const PassRule& rule, const PassCopies& copies,
               cudaStream_t stream) {
  if (values.n <= 0 || (ops.empty() && copies.form == PassCopies::kNone)) return {};
  while (true) {
    const size_t head = Head(ops);
    if (head == 0 && !ops.empty()) return {"UnitPass: more than 63 directions in one update of a base optimizer"};
    const bool last = head == ops.size();
    OPTOD_CUDA_RETURN(Launch(values, ops.first(head), rule, last ? copies : PassCopies{}, stream));
    if (last) return {};
    ops = ops.subspan(head);
  }
}

}  // namespace optod::cuda
