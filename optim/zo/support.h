#pragma once
/// Which elements of theta a direction moves, in sessions whose workers regenerate it from seed and scalars: blocks
/// (ZO-Bench, Zhang et al. 2024, block-wise estimation) and random masks (sparse estimation). Pure functions of the
/// settings, the layout and (step, query), so that nothing more travels.
///
///   blocks  a step perturbs block b alone in its directions b q, ..., b q + q - 1 (q = `queries`), each with its own z.
///           joint: a step has the directions of all blocks. coordinate: of one block, update number n (from 0, skipped
///           steps not counted) that of block n mod blocks; a cycle through all blocks is ZO-Bench's step.
///           Weight decay and moments: of the tensors of the blocks that a step updates.
///   masks   z is 0 where bit (seed, step / mask_every, kMaskQuery) of the random stream falls below the tensor's ratio
///           (mask.h); weight decay still applies there.

#include <span>

#include "absl/status/statusor.h"
#include "optim/zo/hyper.h"
#include "optim/zo/stream.h"

namespace optod::zo {

/// Query number of the stream that masks are drawn from; directions have smaller ones.
inline constexpr uint32_t kMaskQuery = UINT32_MAX;

/// The layout with blocks and ratios as `hyper` wants them. INVALID_ARGUMENT: a tensor that no prefix matches, a prefix
/// that matches none, ratios that are not one a tensor in [0, 1].
absl::StatusOr<ZoLayout> Arrange(const ZoLayout& layout, const ZoHyper& hyper);

/// Directions of one step, and the number of the first one at update `n` = 0, 1, ... of the branch.
uint32_t DirectionsOfStep(const ZoLayout& layout, const ZoHyper& hyper);
uint32_t FirstDirection(const ZoLayout& layout, const ZoHyper& hyper, int64_t n);
/// Updates that the tensors of the block have had after `n` of the branch of which the last touched it.
int64_t UpdatesOfBlock(const ZoLayout& layout, const ZoHyper& hyper, int64_t n);
/// Whether direction `query` moves `tensor`.
bool Moves(const ZoLayout& layout, const ZoHyper& hyper, uint32_t query, size_t tensor);

/// out[i] += scale * z[i] where the mask of element first + i is 0; product and sum are rounded separately.
void AddScaledMasked(const Direction& direction, uint32_t tensor, uint64_t first, const ZoHyper& hyper, double ratio,
                     float scale, std::span<float> out);

}  // namespace optod::zo
