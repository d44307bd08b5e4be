#pragma once
/// Both perturbed copies of a piece of parameters in one pass, after the update that was left from the step before: z
/// is generated once and never stored whole, and every parameter is read and written once a step. Same bits as separate
/// passes of optim/zo, any number of threads.

#include <cstdint>
#include <memory>
#include <span>

#include "optim/zo/mask.h"
#include "optim/zo/replay.h"
#include "optim/zo/stream.h"

namespace optod::train {

/// Where a pair of points lies: theta + scale z and theta - scale z, z = Gaussian(direction, tensor, element).
struct Perturbation {
  zo::Direction direction;
  float scale = 0;
  std::shared_ptr<const zo::BitMask> mask;  ///< of the layout's size; masked elements have z = 0. Null: none has
  std::span<const size_t> tensors;          ///< numbers of the tensors that move, sorted; empty = all
};

/// A plain update that waits until its tensors are next at hand (ZO2's order of work; zo/replay.h has its arithmetic).
struct PendingUpdate {
  uint64_t seed = 0;
  zo::UpdateScalars scalars;
  std::shared_ptr<const zo::BitMask> mask;
};

/// Part of one tensor.
struct Piece {
  uint32_t tensor = 0;  ///< its number in the layout
  bool decay = true;    ///< weight decay applies to it
  uint64_t first = 0;   ///< first element inside the tensor
  size_t flat = 0;      ///< the same in the whole parameter vector
  std::span<float> theta;
};

/// theta <- after `pending` (null: as it is); plus[i] = fl(theta[i] + fl(scale z[i])), minus[i] = fl(theta[i] -
/// fl(scale z[i])): the bits of zo::ApplyUpdate, then of two calls of zo::AddScaledNormalTo. On all threads of the
/// OpenMP pool. plus and minus may both be empty: the update alone.
void UpdateAndPerturb(const PendingUpdate* pending, const Perturbation& perturbation, const Piece& piece,
                      std::span<float> plus, std::span<float> minus);
/// The same on the calling thread.
void UpdateAndPerturbHere(const PendingUpdate* pending, const Perturbation& perturbation, const Piece& piece,
                          std::span<float> plus, std::span<float> minus);

/// z of a piece, masked, on all threads.
void FillDirection(const Perturbation& perturbation, const Piece& piece, std::span<float> z);

}  // namespace optod::train
