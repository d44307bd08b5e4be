#include "optim/zo/support.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "base/status.h"
#include "optim/zo/direction.h"
#include "optim/zo/mask.h"

namespace optod::zo {
namespace {

std::vector<std::string_view> Split(std::string_view text, char by) {
  std::vector<std::string_view> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(by, begin), text.size());
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

/// Blocks by prefixes: a tensor belongs to the first block that has a prefix of its name.
absl::Status SetBlocks(const std::string& text, std::vector<ZoTensor>* tensors) {
  const std::vector<std::string_view> blocks = Split(text, ';');
  std::vector<bool> used(blocks.size());
  for (ZoTensor& tensor : *tensors) {
    const auto found = std::find_if(blocks.begin(), blocks.end(), [&](std::string_view block) {
      const auto prefixes = Split(block, ',');
      return std::any_of(prefixes.begin(), prefixes.end(), [&](auto prefix) { return !prefix.empty() && tensor.name.starts_with(prefix); });
    });
    if (found == blocks.end())
      return InvalidArgument("hyperparameters.blocks: no prefix matches tensor \"", tensor.name, "\"; every tensor needs a block");
    tensor.block = static_cast<uint32_t>(found - blocks.begin());
    used[tensor.block] = true;
  }
  for (size_t b = 0; b < blocks.size(); ++b)
    if (!used[b]) return InvalidArgument("hyperparameters.blocks: block ", b, " (\"", blocks[b], "\") has no tensor");
  return absl::OkStatus();
}

absl::Status SetRatios(const std::string& text, std::vector<ZoTensor>* tensors) {
  const std::vector<std::string_view> ratios = Split(text, ',');
  if (ratios.size() != tensors->size())
    return InvalidArgument("hyperparameters.mask_ratios: ", ratios.size(), " numbers; the layout has ", tensors->size(), " tensors");
  for (size_t t = 0; t < ratios.size(); ++t) {
    const std::string one(ratios[t]);
    char* end = nullptr;
    const double ratio = std::strtod(one.c_str(), &end);
    if (one.empty() || *end != 0 || !(ratio >= 0 && ratio <= 1))
      return InvalidArgument("hyperparameters.mask_ratios[", t, "]: \"", one, "\" is no number in [0, 1]");
    (*tensors)[t].mask_ratio = ratio;
  }
  return absl::OkStatus();
}

bool Coordinate(const ZoLayout& layout, const ZoHyper& hyper) {
  return layout.blocks() > 1 && hyper.block_schedule == BlockSchedule::kCoordinate;
}

}  // namespace

absl::StatusOr<ZoLayout> Arrange(const ZoLayout& layout, const ZoHyper& hyper) {
  std::vector<ZoTensor> tensors;
  for (size_t t = 0; t < layout.tensors(); ++t) {
    tensors.push_back(layout.tensor(t));
    tensors[t].mask_ratio = hyper.mask_ratio;
    if (hyper.blocks == "each") tensors[t].block = static_cast<uint32_t>(t);
  }
  if (!hyper.blocks.empty() && hyper.blocks != "each") RETURN_IF_ERROR(SetBlocks(hyper.blocks, &tensors));
  if (!hyper.mask_ratios.empty()) RETURN_IF_ERROR(SetRatios(hyper.mask_ratios, &tensors));
  return ZoLayout(std::move(tensors));
}

uint32_t DirectionsOfStep(const ZoLayout& layout, const ZoHyper& hyper) {
  const auto q = static_cast<uint32_t>(hyper.queries);
  return Coordinate(layout, hyper) ? q : q * layout.blocks();
}

uint32_t FirstDirection(const ZoLayout& layout, const ZoHyper& hyper, int64_t n) {
  return Coordinate(layout, hyper) ? static_cast<uint32_t>(n % layout.blocks()) * static_cast<uint32_t>(hyper.queries) : 0;
}

int64_t UpdatesOfBlock(const ZoLayout& layout, const ZoHyper& hyper, int64_t n) {
  return Coordinate(layout, hyper) && n > 0 ? (n - 1) / layout.blocks() + 1 : n;
}

bool Moves(const ZoLayout& layout, const ZoHyper& hyper, uint32_t query, size_t tensor) {
  return layout.blocks() == 1 || query / static_cast<uint32_t>(hyper.queries) == layout.tensor(tensor).block;
}

void AddScaledMasked(const Direction& direction, uint32_t tensor, uint64_t first, const ZoHyper& hyper, double ratio,
                     float scale, std::span<float> out) {
  const Direction mask_of{direction.seed, direction.step / static_cast<uint32_t>(hyper.mask_every), kMaskQuery};
  std::array<uint8_t, kChunk> masked;
  std::array<float, kChunk> z;
  for (size_t begin = 0; begin < out.size(); begin += kChunk) {
    const size_t n = std::min(kChunk, out.size() - begin);
    (void)FillMask(mask_of, tensor, first + begin, ratio, hyper.mask_law, {masked.data(), n});  // the ratio was checked
    FillNormal(direction, tensor, first + begin, {z.data(), n});
    for (size_t i = 0; i < n; ++i) {
      const float product = scale * z[i];
      if (masked[i] == 0) out[begin + i] += product;
    }
  }
}

}  // namespace optod::zo
