#pragma once
/// The random stream of every perturbation: Philox 4x32-10 (Salmon et al., SC 2011), key = seed, counter = (element /
/// 4, tensor, query, step). Element e of tensor t is lane e % 4 of the block whose counter is (e / 4, t, query, step),
/// so any slice can be generated anywhere, in any order, with the same bytes. Gaussian values come from pairs of lanes
/// by Box-Muller with fixed polynomials evaluated in IEEE float32 without fused multiply-add: scalar C++, SIMD C++,
/// CUDA and NumPy agree bit for bit. Pure functions, thread-safe.
///
///   key     = (low, high) 32 bits of the seed
///   counter = (block mod 2^32, tensor + 2^24 * (block / 2^32), query, step), block = element / 4
///   limits: tensor < 2^24, element < 2^42 (the block number's high 8 bits share a word with the tensor number); larger
///   values wrap z       : float32, mean 0, variance 1, |z| <= 6.556 (31 bits decide the radius), exactly symmetric
///   about 0
/// The formula and its constants are in normal_constants.h; golden bytes are in tests/golden/zo_stream/vectors.json.
/// First values for seed 0, step 0, query 0, tensor 0: see kFirstNormals in tests/unit/optim/zo_stream_test.cc.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace optod::zo {

/// Philox 4x32-10. Published vector: counter 0, key 0 -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Which direction: z is a function of (seed, step, query) and of the position inside the parameters.
struct Direction {
  uint64_t seed = 0;   ///< of the session
  uint32_t step = 0;   ///< version the direction starts from
  uint32_t query = 0;  ///< 0 .. q-1
};

/// z[i] = Gaussian of element first + i of tensor number `tensor` (its index in the layout). Best path of this CPU.
/// Spans of more than 2^18 elements are shared among StreamThreads() threads; the bytes do not depend on their number.
void FillNormal(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z);
/// The same bytes, one element at a time, obviously right: the reference.
void FillNormalScalar(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z);

/// theta[i] += scale * z[i], z generated on the fly and never stored. float32: each element computed as fl(theta +
/// fl(scale * z)).
void AddScaledNormal(const Direction& direction, uint32_t tensor, uint64_t first, float scale, std::span<float> theta);
/// out[i] = fl(theta[i] + fl(scale * z[i])): the perturbed copy, theta untouched. Spans of equal size, equal or
/// disjoint.
void AddScaledNormalTo(const Direction& direction, uint32_t tensor, uint64_t first, float scale,
                       std::span<const float> theta, std::span<float> out);

/// The raw 32-bit words behind z: bits[i] = lane (first + i) % 4 of block (first + i) / 4 (same counter layout).
/// Uniform over 2^32.
void FillBits(const Direction& direction, uint32_t tensor, uint64_t first, std::span<uint32_t> bits);

/// "avx512", "avx2" or "scalar": what FillNormal runs on here.
const char* NormalPathName();

/// Most threads one call may use: at least 1; at first the number of CPUs this process may run on. Takes effect on the
/// next call.
void SetStreamThreads(int threads);
int StreamThreads();

}  // namespace optod::zo
