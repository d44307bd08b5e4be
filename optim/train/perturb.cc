// Compiled without contraction: a product and a sum are two roundings, everywhere.
#include "optim/train/perturb.h"

#include <algorithm>

#include "optim/zo/update.h"

namespace optod::train {
namespace {

constexpr size_t kTile = 2048;  // z and theta stay in the first-level cache

// One loop for every instruction set that pays, chosen at load time; without contraction all give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define OPTOD_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define OPTOD_WIDE
#endif

OPTOD_WIDE void Both(const float* theta, const float* z, float scale, size_t n, float* plus, float* minus) {
  for (size_t i = 0; i < n; ++i) {
    const float step = scale * z[i];
    plus[i] = theta[i] + step;
    minus[i] = theta[i] - step;
  }
}
OPTOD_WIDE void Add(float scale, const float* z, size_t n, float* theta) {
  for (size_t i = 0; i < n; ++i) theta[i] = theta[i] + scale * z[i];
}

void FillTile(const zo::Direction& direction, const zo::BitMask* mask, const Piece& piece, size_t at,
              std::span<float> z) {
  zo::FillNormal(direction, piece.tensor, piece.first + at, z);
  if (mask != nullptr) mask->Zero(piece.flat + at, z);
}

void Apply(const PendingUpdate& update, const Piece& piece, size_t at, std::span<float> z, std::span<float> theta) {
  if (piece.decay && update.scalars.decay_rate != 0) zo::DecayInPlace(update.scalars.decay_rate, theta);
  for (const zo::Term& term : update.scalars.terms) {
    FillTile({update.seed, term.step, term.query}, update.mask.get(), piece, at, z);
    Add(-term.coefficient, z.data(), theta.size(), theta.data());
  }
}

// body(begin, count): tiles of [0, n), on all threads.
template <typename Body>
void ForEachTile(size_t n, Body body) {
  const auto tiles = static_cast<int64_t>((n + kTile - 1) / kTile);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tiles; ++t) {
    const size_t at = static_cast<size_t>(t) * kTile;
    body(at, std::min(kTile, n - at));
  }
}

void Tile(const PendingUpdate* pending, const Perturbation& p, const Piece& piece, size_t at, size_t count,
          std::span<float> plus, std::span<float> minus) {
  alignas(64) float storage[kTile];
  const std::span<float> z(storage, count), theta = piece.theta.subspan(at, count);
  if (pending != nullptr) Apply(*pending, piece, at, z, theta);
  if (plus.empty()) return;
  FillTile(p.direction, p.mask.get(), piece, at, z);
  Both(theta.data(), z.data(), p.scale, count, plus.data() + at, minus.data() + at);
}

}  // namespace

void UpdateAndPerturbHere(const PendingUpdate* pending, const Perturbation& perturbation, const Piece& piece,
                          std::span<float> plus, std::span<float> minus) {
  for (size_t at = 0; at < piece.theta.size(); at += kTile)
    Tile(pending, perturbation, piece, at, std::min(kTile, piece.theta.size() - at), plus, minus);
}

void UpdateAndPerturb(const PendingUpdate* pending, const Perturbation& perturbation, const Piece& piece,
                      std::span<float> plus, std::span<float> minus) {
  ForEachTile(piece.theta.size(),
              [&](size_t at, size_t count) { Tile(pending, perturbation, piece, at, count, plus, minus); });
}

void FillDirection(const Perturbation& perturbation, const Piece& piece, std::span<float> z) {
  ForEachTile(z.size(), [&](size_t at, size_t count) {
    FillTile(perturbation.direction, perturbation.mask.get(), piece, at, z.subspan(at, count));
  });
}

}  // namespace optod::train
