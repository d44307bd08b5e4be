#pragma once
/// Internal to optim/zo: what one implementation of the stream (scalar, AVX2, AVX-512) offers to the slicing code in
/// stream.cc. Plain pointers and no inline functions: the SIMD files are compiled with wider instruction sets, and
/// nothing that they instantiate may be shared by the linker with code that runs on every CPU.

#include <cstddef>
#include <cstdint>

namespace optod::zo::kernels {

/// The counter words and the key that stay constant over a run of blocks. word1 holds the tensor number and the block
/// number's high bits.
struct StreamKey {
  uint32_t key0, key1;
  uint32_t word1, query, step;
};

/// z[0 .. 4*blocks) of blocks [block, block + blocks); block + blocks <= 2^32; `blocks` is a multiple of
/// Kernels::group.
using FillFn = void (*)(const StreamKey& key, uint32_t block, size_t blocks, float* z);
/// out = fl(in + fl(scale * z)) over the same elements; in and out equal or disjoint.
using AddFn = void (*)(const StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* out);
/// plus = fl(in + fl(scale * z)), minus = fl(in - fl(scale * z)) over the same elements; disjoint.
using PairFn = void (*)(const StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* plus,
                        float* minus);

struct Kernels {
  const char* name;
  size_t group;  ///< blocks handled at a time
  FillFn fill;
  AddFn add;
  PairFn pair;
};

const Kernels& Scalar();
/// nullptr when the build's target or this CPU lacks the instructions.
const Kernels* Avx2();
const Kernels* Avx512();

/// What stream_avx2.cc and stream_avx512.cc define (x86-64 only): data, so that asking for them runs no wide
/// instruction.
extern const Kernels kAvx2Kernels, kAvx512Kernels;

/// The one in use: the widest that this CPU has.
const Kernels& Best();

}  // namespace optod::zo::kernels
