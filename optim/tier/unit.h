#pragma once
/// Units: what moves between memory tiers at once. A layer is one unit; a table (embedding, vocabulary matrix) is cut
/// into pieces of rows, since the largest unit decides how little memory is enough.
///
///   tensors   embed.tokens [49152, 576]        layers.0.q  layers.0.k ...       head.norm
///   units     |rows 0..4095|rows 4096..| ...   |------- layers.0 -------|  ...  |--head--|
///             a part = (tensor, first element, elements); a unit = parts, one behind the other, visited in list order
///
/// A part's elements keep their number and place in the random stream (optim/zo/stream.h), so neither cutting
/// nor order changes a direction. Plain data and pure functions.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "optim/tier/block_list.h"

namespace optod::tier {

struct UnitPart {
  uint32_t uid = 0;     ///< tensor number over the list
  uint64_t first = 0;   ///< element of the tensor
  size_t count = 0;     ///< elements
  size_t columns = 1;   ///< elements of a row (the last extent); first and count are whole rows
  bool decay = true;    ///< weight decay applies
  int64_t stream = -1;  ///< tensor number in the random stream; -1 = uid
  uint32_t number() const { return stream < 0 ? uid : static_cast<uint32_t>(stream); }
};

struct Unit {
  std::string name;  ///< "layers.0", "embed.tokens rows 0..4095"
  std::vector<UnitPart> parts;
  bool trainable = true;  ///< false: read only, never perturbed, never written back
  bool resident = false;  ///< lives where it is computed on, whatever the budgets: adapters beside a streamed model
  size_t floats() const;
};

/// Units of tensors that are one behind the other: all of one block in one unit, but tables in pieces of at most
/// `piece_rows` rows. `tables`: uids. Units of a table come where the table stands.
std::vector<Unit> CutIntoUnits(const std::vector<BlockSpec>& blocks, const std::vector<size_t>& tables,
                               size_t piece_rows);

/// Every element of every tensor in exactly one unit, every part whole rows of its tensor. INVALID_ARGUMENT: `units:
/// tensor "layers.0.q" is in no unit`, `units: tensor "x": element 12 is in two units`, `units[3] "head": part 0:
/// tensor 99 of 12`.
absl::Status CheckUnits(const std::vector<Unit>& units, const std::vector<BlockSpec>& blocks);

/// Floats of the largest unit; 0 for none.
size_t LargestUnit(const std::vector<Unit>& units);

}  // namespace optod::tier
