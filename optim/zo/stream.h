#pragma once
/// The random stream of every perturbation: Philox 4x32-10 (Salmon et al., SC 2011), key = seed, counter = (element / 4, tensor, query, step).
/// Element e of tensor t is lane e % 4 of the block whose counter is (e / 4, t, query, step), so any slice can be generated anywhere, in any order,
/// with the same bytes. Gaussian values come from pairs of lanes by Box-Muller with fixed polynomials evaluated in IEEE float32 without fused
/// multiply-add: scalar C++, SIMD C++, CUDA and NumPy agree bit for bit. Pure functions, thread-safe.

#include <array>
#include <cstdint>
#include <span>

namespace optod::zo {

/// Philox 4x32-10. Published vector: counter 0, key 0 -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Which direction: z is a function of (seed, step, query) and of the position inside the parameters.
struct Direction {
  uint64_t seed = 0;     ///< of the session
  uint32_t step = 0;     ///< version the direction starts from
  uint32_t query = 0;    ///< 0 .. q-1
};

/// z[i] = Gaussian of element first + i of tensor number `tensor` (its index in the layout). Best path of this CPU.
void FillNormal(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z);
/// The same bytes, one element at a time, obviously right: the reference.
void FillNormalScalar(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z);

/// theta[i] += scale * z[i], z generated on the fly and never stored. float32: each element computed as fl(theta + fl(scale * z)).
void AddScaledNormal(const Direction& direction, uint32_t tensor, uint64_t first, float scale, std::span<float> theta);

/// "avx512", "avx2" or "scalar": what FillNormal runs on here.
const char* NormalPathName();

}  // namespace optod::zo
