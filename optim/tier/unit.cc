#include "optim/tier/unit.h"

#include <algorithm>

#include "base/status.h"

namespace optod::tier {
namespace {

size_t ColumnsOf(const BlockTensor& tensor) {
  return tensor.shape.empty() ? 1 : static_cast<size_t>(tensor.shape.back());
}

UnitPart WholePart(const BlockTensor& tensor, size_t uid) {
  return {static_cast<uint32_t>(uid), 0, static_cast<size_t>(tensor.elements()), ColumnsOf(tensor), tensor.decay};
}

void CutTable(const BlockTensor& tensor, size_t uid, size_t piece_rows, std::vector<Unit>* units) {
  const UnitPart whole = WholePart(tensor, uid);
  const size_t rows = whole.count / whole.columns;
  for (size_t row = 0; row < rows; row += piece_rows) {
    const size_t end = std::min(rows, row + piece_rows);
    UnitPart part = whole;
    part.first = row * whole.columns;
    part.count = (end - row) * whole.columns;
    units->push_back({Cat(tensor.name, " rows ", row, "..", end - 1), {part}});
  }
}

std::vector<const BlockTensor*> TensorsOf(const std::vector<BlockSpec>& blocks) {
  std::vector<const BlockTensor*> tensors;
  for (const BlockSpec& block : blocks) {
    for (const BlockTensor& tensor : block.tensors) tensors.push_back(&tensor);
  }
  return tensors;
}

absl::Status CheckPart(const std::vector<const BlockTensor*>& tensors, const std::string& where, const UnitPart& part) {
  if (part.uid >= tensors.size()) return InvalidArgument(where, ": tensor ", part.uid, " of ", tensors.size());
  const BlockTensor& tensor = *tensors[part.uid];
  const auto size = static_cast<uint64_t>(tensor.elements());
  if (part.count == 0 || part.first > size || part.count > size - part.first)
    return InvalidArgument(where, ": elements ", part.first, " and ", part.count, " on of tensor \"", tensor.name,
                           "\", which has ", size);
  if (part.columns != ColumnsOf(tensor) || part.first % part.columns != 0 || part.count % part.columns != 0)
    return InvalidArgument(where, ": not whole rows of tensor \"", tensor.name, "\"");
  return absl::OkStatus();
}

}  // namespace

size_t Unit::floats() const {
  size_t sum = 0;
  for (const UnitPart& part : parts) sum += part.count;
  return sum;
}

std::vector<Unit> CutIntoUnits(const std::vector<BlockSpec>& blocks, const std::vector<size_t>& tables,
                               size_t piece_rows) {
  std::vector<Unit> units;
  size_t uid = 0;
  for (const BlockSpec& block : blocks) {
    Unit rest{block.name, {}};
    for (const BlockTensor& tensor : block.tensors) {
      if (std::find(tables.begin(), tables.end(), uid) != tables.end())
        CutTable(tensor, uid, piece_rows, &units);
      else
        rest.parts.push_back(WholePart(tensor, uid));
      ++uid;
    }
    if (!rest.parts.empty()) units.push_back(std::move(rest));
  }
  return units;
}

absl::Status CheckUnits(const std::vector<Unit>& units, const std::vector<BlockSpec>& blocks) {
  const std::vector<const BlockTensor*> tensors = TensorsOf(blocks);
  std::vector<std::vector<std::pair<uint64_t, uint64_t>>> ranges(tensors.size());  // [first, end) of each tensor
  for (size_t u = 0; u < units.size(); ++u) {
    for (size_t p = 0; p < units[u].parts.size(); ++p) {
      const UnitPart& part = units[u].parts[p];
      RETURN_IF_ERROR(CheckPart(tensors, Cat("units[", u, "] \"", units[u].name, "\": part ", p), part));
      ranges[part.uid].emplace_back(part.first, part.first + part.count);
    }
  }
  for (size_t uid = 0; uid < tensors.size(); ++uid) {
    std::sort(ranges[uid].begin(), ranges[uid].end());
    uint64_t covered = 0;
    for (const auto& [first, end] : ranges[uid]) {
      if (first < covered)
        return InvalidArgument("units: tensor \"", tensors[uid]->name, "\": element ", first, " is in two units");
      if (first > covered) break;
      covered = end;
    }
    if (ranges[uid].empty()) return InvalidArgument("units: tensor \"", tensors[uid]->name, "\" is in no unit");
    if (covered < static_cast<uint64_t>(tensors[uid]->elements()))
      return InvalidArgument("units: tensor \"", tensors[uid]->name, "\": element ", covered, " is in no unit");
  }
  return absl::OkStatus();
}

size_t LargestUnit(const std::vector<Unit>& units) {
  size_t largest = 0;
  for (const Unit& unit : units) largest = std::max(largest, unit.floats());
  return largest;
}

}  // namespace optod::tier
