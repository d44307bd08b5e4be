// Compiled without contraction: a product and a sum are two roundings, everywhere.
#include "optim/train/perturb.h"

#include <algorithm>

namespace optod::train {
namespace {

constexpr size_t kTile = 2048;  // z stays in the first-level cache

}  // namespace

void PerturbBothHere(const zo::Direction& direction, uint32_t tensor, uint64_t first, float scale,
                     std::span<const float> theta, std::span<float> plus, std::span<float> minus) {
  alignas(64) float z[kTile];
  for (size_t at = 0; at < theta.size(); at += kTile) {
    const size_t count = std::min(kTile, theta.size() - at);
    zo::FillNormal(direction, tensor, first + at, {z, count});
    const float* in = theta.data() + at;
    float *up = plus.data() + at, *down = minus.data() + at;
    for (size_t i = 0; i < count; ++i) {
      const float step = scale * z[i];
      up[i] = in[i] + step;
      down[i] = in[i] - step;
    }
  }
}

void PerturbBoth(const zo::Direction& direction, uint32_t tensor, uint64_t first, float scale,
                 std::span<const float> theta, std::span<float> plus, std::span<float> minus) {
  const auto tiles = static_cast<int64_t>((theta.size() + kTile - 1) / kTile);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tiles; ++t) {
    const size_t at = static_cast<size_t>(t) * kTile, count = std::min(kTile, theta.size() - at);
    PerturbBothHere(direction, tensor, first + at, scale, theta.subspan(at, count), plus.subspan(at, count),
                    minus.subspan(at, count));
  }
}

}  // namespace optod::train
