// Compiled without contraction: a product and a sum are two roundings, everywhere.
#include "optim/train/perturb.h"

#include <algorithm>

#include "optim/zo/stream_pair.h"
#include "optim/zo/update.h"

namespace optod::train {
namespace {

constexpr size_t kTile = 4096;  // theta, z and both copies of a tile stay in a second-level cache

void FillTile(const zo::Direction& direction, const zo::BitMask* mask, const Piece& piece, size_t at,
              std::span<float> z) {
  zo::FillNormal(direction, piece.tensor, piece.first + at, z);
  if (mask != nullptr) mask->Zero(piece.flat + at, z);
}

void Apply(const PendingUpdate& update, const Piece& piece, size_t at, std::span<float> theta) {
  if (piece.decay && update.scalars.decay_rate != 0) zo::DecayInPlace(update.scalars.decay_rate, theta);
  for (const zo::Term& term : update.scalars.terms) {
    const zo::Direction direction{update.seed, term.step, term.query};
    if (update.mask == nullptr) {
      zo::AddScaledNormal(direction, piece.tensor, piece.first + at, -term.coefficient, theta);
      continue;
    }
    float z[kTile];
    FillTile(direction, update.mask.get(), piece, at, {z, theta.size()});
    for (size_t i = 0; i < theta.size(); ++i) theta[i] = theta[i] + -term.coefficient * z[i];
  }
}

void Both(const Perturbation& p, const Piece& piece, size_t at, std::span<const float> theta, std::span<float> plus,
          std::span<float> minus) {
  if (p.mask == nullptr)
    return zo::AddScaledNormalPair(p.direction, piece.tensor, piece.first + at, p.scale, theta, plus, minus);
  float z[kTile];
  FillTile(p.direction, p.mask.get(), piece, at, {z, theta.size()});
  for (size_t i = 0; i < theta.size(); ++i) {
    const float step = p.scale * z[i];
    plus[i] = theta[i] + step;
    minus[i] = theta[i] - step;
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
  const std::span<float> theta = piece.theta.subspan(at, count);
  if (pending != nullptr) Apply(*pending, piece, at, theta);
  if (!plus.empty()) Both(p, piece, at, theta, plus.subspan(at, count), minus.subspan(at, count));
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
