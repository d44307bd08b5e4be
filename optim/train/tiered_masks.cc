#include "optim/train/tiered_masks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/status.h"

namespace optod::train {

// ---- one quantile

RankSearch::RankSearch(uint64_t size, double ratio)
    : rank_(std::min(size - 1, static_cast<uint64_t>(ratio * static_cast<double>(size)))), counts_(size_t{1} << width_) {}

void RankSearch::Count(float w) {
  const uint32_t bits = std::bit_cast<uint32_t>(w) & 0x7fffffffu;  // in the order of |w|
  if (low_ < 31 && bits >> low_ != prefix_) return;
  ++counts_[bits >> (low_ - width_) & ((1u << width_) - 1)];
}

bool RankSearch::Narrow() {
  uint32_t digit = 0;
  while (digit + 1 < counts_.size() && rank_ >= counts_[digit]) rank_ -= counts_[digit++];
  prefix_ = prefix_ << width_ | digit;
  low_ -= width_;
  width_ = std::min(10, low_);
  counts_.assign(size_t{1} << width_, 0);
  return low_ == 0;
}

float RankSearch::value() const { return std::bit_cast<float>(prefix_); }

// ---- masks

TieredMasks::TieredMasks(const SparseSpec& spec, uint64_t seed, zo::ZoLayout layout)
    : spec_(spec), seed_(seed), layout_(std::move(layout)), ratios_(layout_.tensors(), spec.ratio) {
  if (Bytes(spec_, layout_.size()) > 0) bits_ = zo::BitMask(layout_.size());
}

uint64_t TieredMasks::Bytes(const SparseSpec& spec, uint64_t parameters) {
  return spec.ratio > 0 && spec.source != "random" ? (parameters + 63) / 64 * 8 : 0;
}

absl::Status TieredMasks::Draw(uint32_t step, const Sweep& sweep, const Sweep& last) {
  const int64_t draw = step / spec_.resample;
  return spec_.source == "random" ? DrawRatios(draw, sweep, last) : DrawMagnitudes(draw, sweep, last);
}

// As zo::GlobalMaskRatios.
absl::Status TieredMasks::DrawRatios(int64_t draw, const Sweep& sweep, const Sweep& last) {
  ASSIGN_OR_RETURN(const std::vector<float> tau, Quantiles(true, draw, sweep));
  std::vector<uint64_t> below(layout_.tensors(), 0);
  RETURN_IF_ERROR(last([&](std::span<const Part> unit) {
    for (const Part& part : unit)
      below[part.tensor] += static_cast<uint64_t>(std::count_if(part.values.begin(), part.values.end(), [&](float w) { return std::fabs(w) <= tau[0]; }));
  }));
  for (size_t t = 0; t < below.size(); ++t) {
    const size_t size = layout_.tensor(t).size;
    ratios_[t] = size == 0 ? 0.0 : static_cast<double>(below[t]) / static_cast<double>(size);
  }
  return absl::OkStatus();
}

absl::Status TieredMasks::DrawMagnitudes(int64_t draw, const Sweep& sweep, const Sweep& last) {
  const bool global = spec_.group == "global";
  ASSIGN_OR_RETURN(const std::vector<float> tau, Quantiles(global, draw, sweep));
  std::vector<uint8_t> bytes;
  return last([&](std::span<const Part> unit) {
    for (const Part& part : unit) {  // this unit has been caught up; its old bits are of no more use
      const float bound = tau[global ? 0 : part.tensor];
      bytes.resize(part.values.size());
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::fabs(part.values[i]) < bound;
      bits_.Set(layout_.offset(part.tensor) + part.first, bytes);
    }
  });
}

absl::StatusOr<std::vector<float>> TieredMasks::Quantiles(bool global, int64_t draw, const Sweep& sweep) const {
  const bool sampled = spec_.source == "random" && layout_.size() > zo::kMaxMaskSamples;
  std::vector<RankSearch> searches;
  if (global) searches.emplace_back(sampled ? zo::kMaxMaskSamples : layout_.size(), spec_.ratio);
  for (size_t t = 0; t < layout_.tensors() && !global; ++t) searches.emplace_back(std::max<size_t>(1, layout_.tensor(t).size), spec_.ratio);
  bool known = false;
  while (!known) {
    RETURN_IF_ERROR(sweep([&](std::span<const Part> unit) {
      if (sampled) return CountSample(draw, unit, &searches[0]);
      for (const Part& part : unit) {
        RankSearch& search = searches[global ? 0 : part.tensor];
        for (float w : part.values) search.Count(w);
      }
    }));
    for (RankSearch& search : searches) known = search.Narrow();
  }
  std::vector<float> values;
  for (const RankSearch& search : searches) values.push_back(search.value());
  return values;
}

/// Those places of the sample that lie in the unit.
void TieredMasks::CountSample(int64_t draw, std::span<const Part> unit, RankSearch* search) const {
  constexpr size_t kAtOnce = 4096;
  const zo::Direction direction = MaskDirection(seed_, draw);
  std::array<uint32_t, 2 * kAtOnce> words;
  for (size_t done = 0; done < zo::kMaxMaskSamples; done += kAtOnce) {
    const size_t n = std::min(kAtOnce, zo::kMaxMaskSamples - done);
    zo::FillBits(direction, 0, 2 * done, {words.data(), 2 * n});
    for (size_t i = 0; i < n; ++i) {
      const uint64_t at = (uint64_t{words[2 * i]} << 32 | words[2 * i + 1]) % layout_.size();
      for (const Part& part : unit) {
        const uint64_t first = layout_.offset(part.tensor) + part.first;
        if (at >= first && at - first < part.values.size()) search->Count(part.values[at - first]);
      }
    }
  }
}

absl::Status TieredMasks::DrawFixed(const std::map<size_t, std::vector<double>>& norms,
                                    const std::vector<tier::BlockTensor>& tensors, bool in_out, const Sweep& sweep) {
  if (norms.empty()) return InvalidArgument("sparse.source: wanda needs linear layers among what is trained");
  absl::Status status;
  RETURN_IF_ERROR(sweep([&](std::span<const Part> unit) {
    for (const Part& part : unit) {
      const auto norm = norms.find(part.tensor);
      if (norm == norms.end() || !status.ok()) continue;
      auto bytes = WandaBytes(tensors[part.tensor], part.values, norm->second, spec_.ratio, in_out);
      status = bytes.status();
      if (bytes.ok()) bits_.Set(layout_.offset(part.tensor) + part.first, *bytes);
    }
  }));
  has_fixed_ = status.ok();
  return status;
}

void TieredMasks::Zero(uint32_t tensor, uint64_t first, uint32_t step, std::span<float> z) const {
  if (spec_.source != "random") return bits_.Zero(layout_.offset(tensor) + first, z);
  std::array<uint8_t, zo::kChunk> bytes;
  (void)zo::FillMask(MaskDirection(seed_, step / spec_.resample), tensor, first, ratios_[tensor], MaskLawOf(spec_),
                     {bytes.data(), z.size()});  // the ratio is in [0, 1]
  for (size_t i = 0; i < z.size(); ++i) {
    if (bytes[i] != 0) z[i] = 0;
  }
}

}  // namespace optod::train
